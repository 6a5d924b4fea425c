"""``ctrd logs``: what the log of a container holds, and what comes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from libctrd.logs import LogEntry


@parts.command("logs")
@parts.option("-f", "--follow", is_flag=True, help="Go on with what comes, until it has ended.")
@parts.option("--since", metavar="TIME", help="Leave out what is older: 10m ago, or 2026-11-30T12:00:00Z.")
@parts.option("-n", "--tail", metavar="N", type=click.IntRange(0), help="Only the last N lines of what is there.")
@parts.option("-t", "--timestamps", is_flag=True, help="Show when each line came.")
@options.ID_ARGUMENT
@click.pass_obj
def command(
    settings: Settings, id: str, follow: bool, since: str | None, tail: int | None, timestamps: bool
) -> int | None:
    """Show the log of a container that was started with --log FILE, of its old files first.

    A log of JSON tells stdout from stderr, and so do we, and it has times; a raw one has neither. When it is cleaned
    the files stay, and are no longer found by its id.
    """
    from libctrd import logs

    with settings.connect() as client:
        container = client.get(id)
        moment = logs.moment(since) if since is not None else None
        entries = container.logs(follow=follow, since=moment, tail=tail)
        with output.while_read(lambda: os._exit(0)):  # nobody reads what we show: there is nothing left to do
            _show(entries, timestamps)
    return None


def _show(entries: Iterable[LogEntry], timestamps: bool) -> None:
    for entry in entries:
        time = f"{entry.time.isoformat()} ".encode() if timestamps and entry.time is not None else b""
        output.write_bytes(time + entry.data, 2 if entry.stream == "stderr" else 1)
