"""``ctrd kill``: a signal to containers."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("kill")
@parts.option("-s", "--signal", "sig", metavar="SIG", default="KILL", show_default=True, help="A name or a number.")
@options.IDS
@click.pass_obj
def command(settings: Settings, sig: str, ids: tuple[str, ...]) -> int:
    """Send a signal to the first process of containers."""
    from libctrd import proc

    number = proc.signal_number(sig)
    with settings.connect() as client:
        return output.for_each(ids, lambda id: client.get(id).signal(number))
