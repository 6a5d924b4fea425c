"""``ctrd attach``: to come to a container that runs, and to leave it again."""

from __future__ import annotations

import click

from libctrd.cli import keys, options, parts
from libctrd.cli.group import Settings


@parts.command("attach")
@parts.option(
    "-i/-n",
    "--interactive/--no-interactive",
    "interactive",
    default=None,
    help="Our input is its input, and its end the end of that. [default: when both are terminals]",
)
@parts.option("--process", metavar="NAME", default="init", help="A further process of it. [default: its first one]")
@parts.option(
    "--detach-keys",
    metavar="KEYS",
    default=keys.DEFAULT,
    help=f'What leaves it when typed at a terminal; "" for nothing. [default: {keys.DEFAULT}]',
)
@parts.option("--signals/--no-signals", "passing", default=True, help="Signals go on to it, or leave. [default: go on]")
@options.ID_ARGUMENT
@click.pass_obj
def command(
    settings: Settings, id: str, interactive: bool | None, process: str, detach_keys: str, passing: bool
) -> int:
    """Connect to the streams of the container ID, which was left to itself, until its end.

    What it printed while nobody was there comes first, if that was held for a reader. Exits with its exit code; with 0
    when the detach keys were typed, which leave it running. Signals go on to it, but that of a hang-up, which leaves it
    too. It is not removed at its end. In a containerd it must have been started with --unattended hold.
    """
    leave = keys.parse(detach_keys)
    from libctrd.cli import attending
    from libctrd.cli.signals import Signals

    signals = Signals()
    with settings.connect() as client:
        return attending.attach(client.get(id), signals, process, interactive=interactive, leave=leave, passing=passing)
