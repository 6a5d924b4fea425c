"""``ctrd stats``: what containers use, as a table that is kept up to date or as lines of JSON."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from rich.table import Table

    from libctrd.client import Client
    from libctrd.state import Stats

COLUMNS: Final = ("ID", "CPU %", "MEMORY", "LIMIT", "MEM %", "READ", "WRITTEN", "PIDS")
FIRST_SECONDS: Final = 0.25
"""How long the first look at the processors takes, when the next would come later."""


@parts.command("stats")
@parts.option("--no-stream", is_flag=True, help="Once, and not again and again.")
@parts.option(
    "--interval", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=1.0, help="How often. [default: 1]"
)
@options.FORMAT
@options.MAYBE_IDS
@click.pass_obj
def command(
    settings: Settings, ids: tuple[str, ...], no_stream: bool, interval: float, format: str | None
) -> int | None:
    """Show what containers use: those named, or all that run, again and again until it is interrupted.

    With --format json a line for each container and time, with the fields of libctrd.Stats and the id. CPU % is of one
    processor, over the time since the line before. It ends when the containers that were named have ended.
    """
    over = threading.Event()
    with settings.connect() as client, output.while_read(over.set):
        samples = Samples(client, ids)
        if (format or settings.format) == "json":
            _lines(samples, over, interval, no_stream)
        elif no_stream or not os.isatty(1):
            _tables(samples, over, interval, no_stream)
        else:
            _live(samples, over, interval)
    return None


class Samples:
    """What the containers *ids* use, or all that run when there are none, from one time to the next."""

    def __init__(self, client: Client, ids: tuple[str, ...]) -> None:
        self._client = client
        self._ids = ids
        self._before: dict[str, Stats] = {}
        for id in ids:
            if client.get(id).status not in ("running", "paused"):
                raise NotFoundError(f"container {id!r} is not running: it uses nothing")

    def take(self) -> dict[str, Stats]:
        """By id, now. One that ends meanwhile, or was not started yet, is left out."""
        containers = [self._client.get(id) for id in self._known()] if self._ids else self._client.containers()
        found: dict[str, Stats] = {}
        for container in containers:
            try:
                found[container.id] = container.stats()
            except (NotFoundError, InvalidArgumentError):
                continue
            except CtrdError as error:
                if self._ids or len(containers) == 1:
                    raise
                output.complain(str(error))
        return found

    def _known(self) -> Iterable[str]:
        for id in self._ids:
            try:
                self._client.get(id)
            except NotFoundError:
                continue
            yield id

    def all_over(self, found: dict[str, Stats]) -> bool:
        """Have all that were named ended?"""
        return bool(self._ids) and not found

    def rows(self, found: dict[str, Stats]) -> list[tuple[str, ...]]:
        """The table's rows, with what the processors did since the last."""
        rows = [_row(id, stats, self._before.get(id)) for id, stats in sorted(found.items())]
        self._before = found
        return rows


def _lines(samples: Samples, over: threading.Event, interval: float, once: bool) -> None:
    import msgspec

    while not over.is_set():
        found = samples.take()
        for id, stats in sorted(found.items()):
            output.write_line(msgspec.json.encode({"id": id, **msgspec.to_builtins(stats)}).decode())
        if once or samples.all_over(found) or over.wait(interval):
            return


def _tables(samples: Samples, over: threading.Event, interval: float, once: bool) -> None:
    samples.rows(samples.take())
    over.wait(min(interval, FIRST_SECONDS))
    while not over.is_set():
        found = samples.take()
        output.write_table(COLUMNS, samples.rows(found))
        if once or samples.all_over(found) or over.wait(interval):
            return


def _live(samples: Samples, over: threading.Event, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    samples.rows(samples.take())
    over.wait(min(interval, FIRST_SECONDS))
    with Live(console=Console(file=sys.stdout), auto_refresh=False) as live:
        while not over.is_set():
            found = samples.take()
            live.update(_table(samples.rows(found)), refresh=True)
            if samples.all_over(found) or over.wait(interval):
                return


def _table(rows: list[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, no_wrap=True, overflow="ellipsis", justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _row(id: str, stats: Stats, before: Stats | None) -> tuple[str, ...]:
    memory = stats.memory
    return (
        id,
        _percent(stats, before),
        size(memory.usage),
        size(memory.limit) if memory.limit is not None else "-",
        f"{100 * memory.usage / memory.limit:.1f}" if memory.limit else "-",
        size(stats.block_io.read_bytes),
        size(stats.block_io.written_bytes),
        str(stats.pids.current) if stats.pids.limit is None else f"{stats.pids.current}/{stats.pids.limit}",
    )


def _percent(stats: Stats, before: Stats | None) -> str:
    """What it used of one processor since *before*."""
    if before is None or stats.at <= before.at or stats.cpu.total_ns < before.cpu.total_ns:
        return "-"  # another container of that id, too
    return f"{(stats.cpu.total_ns - before.cpu.total_ns) / (stats.at - before.at).total_seconds() / 1e7:.1f}"


def size(count: int) -> str:
    """Bytes in the largest unit of which there is one: 1.5M is 1.5 * 1024 * 1024."""
    value, units = float(count), "BKMGTP"
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError
