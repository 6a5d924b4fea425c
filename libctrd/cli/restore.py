"""``ctrd restore``: a container that goes on where a checkpoint was made."""

from __future__ import annotations

import os
from typing import Any

import click

from libctrd.cli import checkpoints, options, parts
from libctrd.cli.group import Settings


@parts.command("restore")
@options.ID
@options.INTERACTIVE
@parts.option("-d", "--detach", is_flag=True, help="Leave it to itself and print its id.")
@options.apply(options.UNATTENDED)
@click.argument("directory", metavar="DIR")
@click.pass_obj
def command(
    settings: Settings,
    /,
    id: str | None,
    interactive: bool,
    detach: bool,
    directory: str,
    **unattended: Any,
) -> int:
    """Create a container like the one that ctrd checkpoint has written to the directory DIR, and go on from there.

    Its root file system must be where it was and as it was; of an image it is a fresh one. All else is as with ctrd
    run: it is attended until its end, or left to itself with -d.
    """
    policy: dict[str, Any] = options.unattended(**unattended, default="discard" if detach else "hold")
    found = checkpoints.load(directory)
    from libctrd.cli import starting
    from libctrd.cli.signals import Signals

    signals = Signals()
    terminal = bool((found.spec.get("process") or {}).get("terminal"))
    policy["checkpoint"] = os.path.abspath(directory)
    with settings.connect() as client:
        container = starting.create(client, signals, id, found.spec, image=found.image, labels=found.labels)
        if not detach:
            return starting.attend(container, signals, new=True, interactive=interactive, terminal=terminal, **policy)
        starting.leave(container, signals, new=True, interactive=interactive, **policy)
    return 0
