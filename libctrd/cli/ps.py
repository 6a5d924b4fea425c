"""``ctrd ps``: which containers there are."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings
from libctrd.errors import NotFoundError

if TYPE_CHECKING:
    from libctrd.state import ContainerInfo


@parts.command("ps")
@parts.option("-a/-r", "--all/--running", "everything", default=True, help="All, or those that run. [default: all]")
@parts.option("-q", "--quiet", is_flag=True, help="Only ids, a line each.")
@options.FORMAT
@click.pass_obj
def command(settings: Settings, everything: bool, quiet: bool, format: str | None) -> None:
    """List containers, whoever started them."""
    found: list[ContainerInfo] = []
    with settings.connect() as client:
        for container in client.containers():
            try:
                info = container.info()
            except NotFoundError:
                continue  # removed since
            if everything or info.status in ("running", "paused"):
                found.append(info)
    if quiet:
        output.write("".join(f"{info.id}\n" for info in found))
    elif (format or settings.format) == "json":
        output.write_json(found)
    else:
        now = datetime.now(timezone.utc)
        output.write_table(["ID", "STATUS", "PID", "CREATED", "RUNTIME"], [_row(info, now) for info in found])


def _row(info: ContainerInfo, now: datetime) -> tuple[str, ...]:
    status: str = info.status
    if info.exit is not None:
        code = str(info.exit.code) if info.exit.known else "unknown"
        status += f" ({code}{', out of memory' if info.exit.oom_killed else ''})"
    return info.id, status, str(info.pid or "-"), ago((now - info.created_at).total_seconds()), info.runtime


def ago(seconds: float) -> str:
    """How long ago that is, in the largest unit of which it is two or more."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} seconds ago"
