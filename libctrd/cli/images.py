"""``ctrd images``: the images that the engine has, how they come and how they go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings
from libctrd.errors import InvalidArgumentError

if TYPE_CHECKING:
    from libctrd.images import Image, Progress
    from libctrd.images.intake import Report

_STDIN: Final = "-"
_PLATFORM: Final = (
    parts.option("--platform", metavar="P", help="For which platform, like linux/arm64. [default: this host's]"),
    parts.option("--all-platforms", is_flag=True, help="For all platforms that it has."),
    parts.option("--allow-devices", is_flag=True, help="Take layers with device nodes in them."),
    parts.option("-q", "--quiet", is_flag=True, help="Show no progress."),
)


@parts.group("images")
def command() -> None:
    """List, import, pull and remove the images of a containerd."""


@command.command("ls")
@parts.option("-q", "--quiet", is_flag=True, help="Only names, a line each.")
@options.FORMAT
@click.pass_obj
def ls(settings: Settings, quiet: bool, format: str | None) -> None:
    """List the images."""
    with settings.connect() as client:
        images = client.images.list()
    if quiet:
        output.write("".join(f"{image.name}\n" for image in images))
    elif (format or settings.format) == "json":
        output.write_json(images)
    else:
        now = datetime.now(timezone.utc)
        output.write_table(["NAME", "DIGEST", "SIZE", "CREATED", "PLATFORMS"], [_row(image, now) for image in images])


@command.command("import", short_help="Import the images in an archive.")
@click.argument("file", metavar="FILE")
@parts.option("--name", metavar="REF", help="The name to give it. [default: what the archive says]")
@options.apply(_PLATFORM)
@click.pass_obj
def import_(settings: Settings, /, file: str, name: str | None, quiet: bool, **more: Any) -> None:
    """Import the images in FILE, the tar of an OCI layout or of `docker save`; - is stdin. Prints their names."""
    with settings.connect() as client, _bars(quiet, one_for_all=True) as progress:
        source = sys.stdin.buffer if file == _STDIN else file
        images = client.images.import_archive(source, name=name, progress=progress, **more)
    output.write("".join(f"{image.name}\n" for image in images))


@command.command("pull")
@click.argument("ref", metavar="REF")
@options.apply(_PLATFORM)
@parts.option("--user", metavar="NAME", help="Log in as NAME, with the password from stdin. [default: as docker login]")
@parts.option("--plain-http", is_flag=True, help="Speak plain HTTP. [default: with loopback registries alone]")
@parts.option("--ca", metavar="FILE", help="Trust the certificates in FILE besides the system's.")
@parts.option("--timeout", type=float, metavar="S", help="How long the registry may be silent. [default: 30 seconds]")
@parts.option(
    "--by",
    type=click.Choice(["daemon", "ctrd"]),
    help="Who fetches: the daemon's transfer service or ctrd itself. [default: the daemon if it can]",
)
@click.pass_obj
def pull(
    settings: Settings,
    /,
    ref: str,
    user: str | None,
    plain_http: bool,
    by: str | None,
    timeout: float | None,
    quiet: bool,
    **more: Any,
) -> None:
    """Pull the image REF from its registry, ready to run. Prints its full name."""
    if user is not None:
        more["credentials"] = (user, _password())
    if timeout is not None:
        more["timeout"] = timeout
    with settings.connect() as client, _bars(quiet, one_for_all=False) as progress:
        image = client.images.pull(
            ref,
            insecure_http=True if plain_http else None,
            through_daemon=None if by is None else by == "daemon",
            progress=progress,
            **more,
        )
    output.write_line(image.name)


@command.command("rm")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.pass_obj
def rm(settings: Settings, refs: tuple[str, ...]) -> int:
    """Remove images, and print their names. What containers still use of them stays until these are removed."""
    with settings.connect() as client:

        def remove(ref: str) -> None:
            name = client.images.get(ref).name
            client.images.remove(name)
            output.write_line(name)

        return output.for_each(refs, remove)


def _password() -> str:
    """The first line of stdin, asked for when that is a terminal. Never an argument, which all of a host can read."""
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("Password: ", sys.stderr)
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise InvalidArgumentError("no password came from standard input: give it there, in one line")
    return password


def _row(image: Image, now: datetime) -> tuple[str, ...]:
    from libctrd.cli.ps import ago

    created = ago((now - image.created_at).total_seconds()) if image.created_at is not None else "-"
    return image.name, image.digest[:19], _size(image.size), created, ", ".join(image.platforms) or "-"


def _size(size: float) -> str:
    """*size* in the largest unit of which it has one."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@contextmanager
def _bars(quiet: bool, *, one_for_all: bool) -> Iterator[Report | None]:
    """What to call with each progress: bars on stderr, when that is a terminal; one for all bytes, or one a layer."""
    if quiet or not os.isatty(2):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    steps: dict[str, Progress] = {}
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def show(step: Progress) -> None:
            steps[step.digest] = step
            name = "importing" if one_for_all else step.digest[7:19]
            shown = steps.values() if one_for_all else [step]
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=None)
            done, total = sum(step.done for step in shown), sum(step.total for step in shown)
            text = f"{name} is there" if step.existed and not one_for_all else name
            bars.update(tasks[name], completed=done, total=total, description=text)

        yield show
