"""``ctrd create``: a container that is there and not started."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("create", context_settings=options.OWN_ARGUMENTS)
@options.apply((options.ID, *options.ROOT, options.IMAGE, *options.SPEC, options.ARGUMENTS))
@click.pass_obj
def command(
    settings: Settings,
    /,
    id: str | None,
    rootfs: str | None,
    bundle: str | None,
    image: str | None,
    args: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Create a container without starting it, and print its id. Start it with: ctrd start ID

    It runs ARG... on a root file system, or what the config.json of a bundle or an image says.
    """
    from libctrd.cli import starting
    from libctrd.cli.signals import Signals

    specified = options.specify(args, rootfs, bundle, image, **chosen)
    signals = Signals()
    with settings.connect() as client:
        container = starting.create(client, signals, id, specified(client), image=image or "")
        try:
            output.write_line(container.id)
        except BaseException:
            container.clean()
            raise
