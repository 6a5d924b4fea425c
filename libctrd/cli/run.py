"""``ctrd run``: a container from its start to its end, or, with ``-d``, left to itself."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, parts
from libctrd.cli.group import Settings


@parts.command("run", short_help="Run a container and wait for its end.", context_settings=options.OWN_ARGUMENTS)
@options.apply((options.ID, *options.ROOT, options.IMAGE, options.INTERACTIVE))
@parts.option("-d", "--detach", is_flag=True, help="Leave it to itself and print its id.")
@parts.option(
    "--rm",
    "remove",
    is_flag=True,
    help="Remove it when it has ended; without -d that is so anyway. Not with -d in a containerd.",
)
@options.apply((*options.SPEC, *options.UNATTENDED, options.ARGUMENTS))
@click.pass_obj
def command(
    settings: Settings,
    /,
    id: str | None,
    rootfs: str | None,
    bundle: str | None,
    image: str | None,
    interactive: bool,
    detach: bool,
    remove: bool,
    unattended: str | None,
    log: str | None,
    log_format: str,
    log_size: str,
    log_files: int,
    args: tuple[str, ...],
    **chosen: Any,
) -> int:
    """Run a container: ARG... on a root file system, or what the config.json of a bundle or an image says.

    Exits with the exit code of the container: 128 + N when signal N killed it, 125 when ctrd itself failed. Signals go
    on to the container. When it has ended and all its output is out, it is removed.

    With -d it is left to itself: its id is printed, and ps, wait, kill and rm handle it from then on.
    """
    default = "discard" if detach else "hold"
    policy = options.unattended(
        unattended=unattended, log=log, log_format=log_format, log_size=log_size, log_files=log_files, default=default
    )
    if detach and remove and policy["unattended"] == "hold":
        raise click.UsageError(
            "-d --rm cannot hold output that nobody will read: use --unattended discard or --log FILE"
        )
    specified = options.specify(args, rootfs, bundle, image, **chosen)
    from libctrd.cli import starting
    from libctrd.cli.signals import Signals

    signals = Signals()
    with settings.connect() as client:
        spec = specified(client)
        terminal = bool(spec["process"].get("terminal"))
        if terminal and not detach:
            _give_size(spec["process"])
        container = starting.create(client, signals, id, spec, image=image or "")
        if not detach:
            return starting.attend(container, signals, new=True, interactive=interactive, terminal=terminal, **policy)
        starting.leave(container, signals, new=True, interactive=interactive, auto_remove=remove, **policy)
    return 0


def _give_size(process: dict[str, Any]) -> None:
    """Has the container's terminal made in the size of ours, so that its program never sees another."""
    from libctrd.cli.terminal import size

    now = size()
    if now is not None:
        process["consoleSize"] = {"width": now[0], "height": now[1]}
