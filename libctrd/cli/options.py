"""The options that say what runs: the same for ``run``, ``create`` and ``spec``, and what they make of a spec."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from libctrd.cli import parts
from libctrd.cli.parts import Function

if TYPE_CHECKING:
    from libctrd.client import Client

OWN_ARGUMENTS: Final = {"allow_interspersed_args": False}
"""For commands that take ARG…: what stands after the first one belongs to the container, options and all."""


def apply(options: Iterable[Callable[[Function], Function]]) -> Callable[[Function], Function]:
    """Puts *options* on a command, in their order."""

    def decorate(function: Function) -> Function:
        for option in reversed(list(options)):
            function = option(function)
        return function

    return decorate


ROOT: Final = (
    parts.option("--rootfs", metavar="DIR", help="The root file system."),
    parts.option("--bundle", metavar="DIR", help="An OCI bundle; other options go over its config.json."),
)
IMAGE: Final = parts.option(
    "--image", metavar="REF", help="An image that the engine has; other options go over what its configuration says."
)
SPEC: Final = (
    parts.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    parts.option("-e", "--env", metavar="K=V", multiple=True, help="Set a variable of its environment."),
    parts.option("-w", "--cwd", metavar="DIR", help="Where it starts. [default: what bundle or image say, else /]"),
    parts.option(
        "-u",
        "--user",
        metavar="UID[:GID]",
        help="Who it runs as, by number; with an image also by name. [default: what bundle or image say, else 0:0]",
    ),
    parts.option("-m", "--memory", metavar="SIZE", help="The most memory it may use, such as 64m or 1.5g."),
    parts.option("--cpus", metavar="N", type=float, help="The most processors' time it may use, such as 0.5."),
    parts.option("--pids-limit", metavar="N", type=int, help="The most processes it may have."),
    parts.option(
        "--mount",
        metavar="M",
        multiple=True,
        help="A mount, such as type=bind,source=/a,target=/b,ro or type=tmpfs,target=/t.",
    ),
    parts.option("--read-only", is_flag=True, help="Its root file system cannot be written."),
    parts.option(
        "--seccomp",
        metavar="PROFILE",
        help="The system calls it may make: default (those that harm nobody), unconfined (all), or those of a file "
        "with the linux.seccomp of a spec. [default: what a bundle says, else default]",
    ),
)
ARGUMENTS: Final = click.argument("args", metavar="[--] [ARG]...", nargs=-1, type=click.UNPROCESSED)
ID: Final = parts.option("--id", metavar="ID", help="Its id. [default: a fresh one]")


def _ids(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    from libctrd.cli.completion import ids  # when a shell asks

    return ids(context, parameter, begun)


ID_ARGUMENT: Final = click.argument("id", metavar="ID", shell_complete=_ids)
IDS: Final = click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=_ids)
MAYBE_IDS: Final = click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=_ids)
FORMAT: Final = parts.option("--format", type=click.Choice(["table", "json"]), help="The same as ctrd --format.")
INTERACTIVE: Final = parts.option(
    "-i", "--interactive", is_flag=True, help="Our input is its input. [default: it has none]"
)
UNATTENDED: Final = (
    parts.option(
        "--unattended",
        type=click.Choice(["hold", "discard"]),
        help="Its output while nobody reads it: hold it back, or let it go. [default: hold; detached: discard]",
    ),
    parts.option("--log", metavar="FILE", help="Append its output to FILE while nobody reads it; see ctrd logs."),
    parts.option(
        "--log-format",
        type=click.Choice(["raw", "json"]),
        default="raw",
        help="As it comes, or as lines of JSON with the time and the stream of each. [default: raw]",
    ),
    parts.option(
        "--log-size", metavar="SIZE", default="0", help="Begin anew after so much, such as 10m. [default: never]"
    ),
    parts.option(
        "--log-files", metavar="N", type=click.IntRange(1, 1000), default=1, help="Old files to keep. [default: 1]"
    ),
)


def unattended(
    *, unattended: str | None, log: str | None, log_format: str, log_size: str, log_files: int, default: str
) -> dict[str, Any]:
    """The keywords of `Container.start` for ``--unattended``, ``--log`` and what belongs to that."""
    if unattended is not None and log is not None:
        raise click.UsageError("--log says what becomes of unattended output: leave --unattended out")
    if log is None:
        if (log_format, log_size, log_files) != ("raw", "0", 1):
            raise click.UsageError("--log-format, --log-size and --log-files are about a log: give --log FILE too")
        return {"unattended": unattended or default}
    from libctrd.spec import parse_size

    rotation = {"log_size": parse_size(log_size), "log_files": log_files}
    return {"unattended": "log", "log": log, "log_format": log_format, **rotation}


def make_spec(
    args: tuple[str, ...],
    rootfs: str | None,
    bundle: str | None,
    *,
    tty: bool,
    read_only: bool,
    mount: tuple[str, ...],
    env: tuple[str, ...],
    cwd: str | None,
    seccomp: str | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """The spec for what was asked for, on a root file system or from a bundle. Raises as the functions of `spec` do."""
    from libctrd import spec as specs

    mounts = [specs.parse_mount(text) for text in mount]
    if bundle is None:
        if rootfs is None:
            raise click.UsageError("there is nothing to run on: give --rootfs DIR, --bundle DIR or --image REF")
        if not args:
            raise click.UsageError("there is nothing to run: give the program and its arguments as ARG...")
        return specs.default(
            args,
            rootfs,
            terminal=tty,
            env=env,
            cwd="/" if cwd is None else cwd,
            mounts=mounts,
            read_only=read_only,
            seccomp=_profile(seccomp),
            **limits,
        )
    if rootfs is not None:
        raise click.UsageError("a bundle names its own root file system: give either --rootfs or --bundle")
    spec = specs.resolve(specs.load(bundle), os.path.abspath(bundle))
    if args and isinstance(spec.get("process"), dict):
        spec["process"]["args"] = list(args)
    specs.validate(spec)
    _go_over(spec, tty=tty, read_only=read_only, mounts=mounts, env=env, cwd=cwd, seccomp=seccomp, **limits)
    specs.validate(spec)
    return spec


def _profile(chosen: str | None) -> bool | dict[str, Any]:
    """The *seccomp* of `spec.default` for ``--seccomp``."""
    if chosen in (None, "default", "unconfined"):
        return chosen != "unconfined"
    from libctrd import spec as specs

    return specs.load(os.path.abspath(chosen))


def specify(
    args: tuple[str, ...], rootfs: str | None, bundle: str | None, image: str | None, **chosen: Any
) -> Callable[[Client], dict[str, Any]]:
    """What makes the spec for what was asked for, of an image, a bundle or a root file system, once there is a client.

    What can be refused without one is refused now. Raises as `make_spec` does.
    """
    if image is None:
        spec = make_spec(args, rootfs, bundle, **chosen)
        return lambda client: spec
    if rootfs is not None or bundle is not None:
        raise click.UsageError("an image brings its own root file system: leave --rootfs and --bundle out")
    return lambda client: make_image_spec(client, image, args, **chosen)


def make_image_spec(
    client: Client,
    image: str,
    args: tuple[str, ...],
    *,
    tty: bool,
    mount: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    seccomp: str | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    """The spec for a container of *image*. Raises as `Images.spec` does."""
    from libctrd import spec as specs

    mounts = [specs.parse_mount(text) for text in mount]
    own = {name: value for name, value in (("cwd", cwd), ("user", user)) if value is not None}
    return client.images.spec(
        image, args or None, terminal=tty, mounts=mounts, seccomp=_profile(seccomp), **own, **chosen
    )


def _go_over(
    spec: dict[str, Any],
    *,
    tty: bool,
    read_only: bool,
    mounts: list[dict[str, Any]],
    env: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    seccomp: str | None,
    **limits: Any,
) -> None:
    """Changes *spec*, which is valid, as far as options were given."""
    from libctrd import spec as specs

    process = spec["process"]
    made = specs.default(["-"], "/", env=env, rootless=False, **limits)
    if env:
        names = {text.partition("=")[0] for text in env}
        given = [text for text in made["process"]["env"] if text.partition("=")[0] in names]
        process["env"] = [e for e in process.get("env") or [] if e.partition("=")[0] not in names] + given
    if tty:
        process["terminal"] = True
    if cwd is not None:
        process["cwd"] = cwd
    if user is not None:
        process["user"] = specs.parse_user(user)
    if read_only:
        spec["root"]["readonly"] = True
    if mounts:
        places = {mount["destination"] for mount in mounts}
        spec["mounts"] = [m for m in spec.get("mounts") or [] if m["destination"] not in places] + mounts
    changed = {
        kind: made["linux"]["resources"][kind]
        for kind in ("memory", "cpu", "pids")
        if kind in made["linux"]["resources"]
    }
    if seccomp is not None:
        linux = spec.setdefault("linux", {})
        linux.pop("seccomp", None)
        if profile := _profile(seccomp):
            linux["seccomp"] = made["linux"]["seccomp"] if profile is True else profile
    if changed:
        linux = spec.setdefault("linux", {})
        resources = linux.get("resources") or {}
        linux["resources"] = {
            **resources,
            **{kind: {**(resources.get(kind) or {}), **changed[kind]} for kind in changed},
        }
