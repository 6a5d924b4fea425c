"""``ctrd start``: containers that were created, left to themselves or, with ``-a``, one that is attended."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("start")
@parts.option("-a", "--attach", is_flag=True, help="Show its output, pass signals on, and wait for its end.")
@options.apply((options.INTERACTIVE, *options.UNATTENDED, options.IDS))
@click.pass_obj
def command(settings: Settings, /, attach: bool, interactive: bool, ids: tuple[str, ...], **unattended: Any) -> int:
    """Start containers that were created, and print their ids.

    They are left to themselves. With -a one is attended as by ctrd run: its exit code is ours, and when it has ended
    it is removed; -i goes with -a then, or leaves its input open for somebody who comes later.
    """
    if attach and len(ids) > 1:
        raise click.UsageError("only one container can be attended: give one ID with -a")
    policy = options.unattended(**unattended, default="hold" if attach else "discard")
    from libctrd.cli import starting
    from libctrd.cli.signals import Signals

    signals = Signals()
    with settings.connect() as client:
        if attach:
            container = client.get(ids[0])
            terminal = container.info().terminal
            return starting.attend(container, signals, new=False, interactive=interactive, terminal=terminal, **policy)

        def start(id: str) -> None:
            starting.leave(client.get(id), signals, new=False, interactive=interactive, **policy)

        return output.for_each(ids, start)
