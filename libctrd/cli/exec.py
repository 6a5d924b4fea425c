"""``ctrd exec``: a further process in a container that runs."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, parts
from libctrd.cli.group import Settings


@parts.command("exec", context_settings=options.OWN_ARGUMENTS)
@options.INTERACTIVE
@parts.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@parts.option("-d", "--detach", is_flag=True, help="Leave it to itself, without streams, and print its name.")
@parts.option("-e", "--env", metavar="K=V", multiple=True, help="Set a variable, over those of the container.")
@parts.option("-w", "--cwd", metavar="DIR", help="Where it starts, in the container. [default: as the container]")
@parts.option("-u", "--user", metavar="UID[:GID]", help="Who it runs as, by number. [default: as the container]")
@parts.option("--name", metavar="NAME", help="Its name. [default: a fresh one]")
@options.ID_ARGUMENT
@options.ARGUMENTS
@click.pass_obj
def command(
    settings: Settings,
    /,
    id: str,
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    name: str | None,
    args: tuple[str, ...],
) -> int:
    """Run ARG... in the container ID, which is running, and wait for its end.

    Exits with its exit code: 128 + N when signal N killed it, 125 when ctrd itself failed. Signals go on to it.
    """
    if args[:1] == ("--",):  # after ID, where the parser has left off already
        args = args[1:]
    if not args:
        raise click.UsageError("there is nothing to run: give the program and its arguments as ARG...")
    if detach and (interactive or tty):
        raise click.UsageError("-d leaves it without streams: leave -i and -t out")
    from libctrd.cli import starting
    from libctrd.cli.signals import Signals

    signals = Signals()
    with settings.connect() as client:
        container = client.get(id)
        chosen: dict[str, Any] = {"name": name, "cwd": cwd, "user": user}
        if env:
            own = (container.spec().get("process") or {}).get("env") or []
            names = {text.partition("=")[0] for text in env}
            chosen["env"] = [text for text in own if text.partition("=")[0] not in names] + list(env)
        if detach:
            starting.leave_process(container, signals, args, **chosen)
            return 0
        return starting.attend_process(container, signals, args, interactive=interactive, terminal=tty, **chosen)
