"""What ctrd says itself: ids, tables and JSON on stdout, one line for each error on stderr. No output of containers.

A reader of stdout that has gone is no error: what the command does is done all the same. Any other failure to write is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from libctrd.cli.exits import FAILED
from libctrd.errors import CtrdError, from_os_error

debug = False
"""With ``--debug``: errors come with their traceback."""
_GAP: Final = 2  # columns of a table are so far apart
line_end = "\n"
"""What ends a line on stderr: a terminal in raw mode needs a carriage return too."""


def write(text: str) -> None:
    """Writes *text* to stdout, all of it. Raises `UnavailableError` when it cannot be written there."""
    write_bytes(text.encode("utf-8", "surrogateescape"))


def write_bytes(data: bytes, fd: int = 1) -> None:
    """Writes *data* to stdout, or to stderr (2), all of it. Raises `UnavailableError` when that cannot be."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BrokenPipeError:
            _silence(fd)
        except BlockingIOError:
            _wait_for_room(fd)
        except OSError as error:
            name = "output" if fd == 1 else "error"
            raise from_os_error(error, f"write to standard {name} (write)") from error


def _silence(fd: int) -> None:
    """The reader has gone: from now on it is ``/dev/null``."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def _wait_for_room(fd: int) -> None:
    """Somebody else has set what is shared to nonblocking: it stays so, and we wait ourselves."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


@contextlib.contextmanager
def while_read(gone: Callable[[], object]) -> Iterator[None]:
    """Within it *gone* is called once when the reader of stdout has gone, for what would go on for ever.

    Where stdout is a pipe or a socket the system says so at once; a terminal sends a signal instead.
    """
    from libctrd import reactor

    kind = os.fstat(1).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        yield
        return
    fd, shared = os.dup(1), reactor.shared()

    def hung_up(_: int) -> None:
        shared.unwatch(fd)
        gone()

    shared.watch(fd, hung_up, 0)
    try:
        yield
    finally:
        shared.unwatch(fd)
        os.close(fd)


def write_line(text: str) -> None:
    """Writes one line to stdout."""
    write(text + "\n")


def write_json(value: Any) -> None:
    """Writes *value* to stdout as JSON that people can read too."""
    import msgspec

    write_line(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table to stdout. It fits a terminal: the last column gives way, then the first. Others get it whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = os.isatty(1)
    console = Console(file=sys.stdout, force_terminal=terminal, width=None if terminal else 100_000)
    cells = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    excess = sum(widths) + _GAP * (len(widths) - 1) - console.width
    for place in (-1, 0):
        give = max(0, min(excess, widths[place] - len(columns[place])))
        widths[place] -= give
        excess -= give
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(table)
    write("".join(line.rstrip(" ") + "\n" for line in capture.get().splitlines()))


def complain(message: str) -> None:
    """Writes *message* to stderr as one line that says who speaks. A stderr that takes nothing is nobody to tell."""
    lines = [line.strip() for line in message.splitlines()]
    text = "ctrd: " + _printable("; ".join(line for line in lines if line)) + line_end
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        return


def _printable(text: str) -> str:
    """*text* without what a terminal would obey: names and what runtimes say may hold anything."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def fail(error: BaseException) -> int:
    """Tells what failed; returns the exit code for it."""
    if debug:
        import traceback

        trace = "".join(traceback.format_exception(error)).replace("\n", line_end)
        os.write(2, trace.encode("utf-8", "backslashreplace"))
    if isinstance(error, CtrdError | OSError):
        complain(str(error))
    else:
        complain(f"{type(error).__name__}: {error} (this is a fault in ctrd itself: --debug shows where)")
    return FAILED


def for_each(ids: Sequence[str], action: Callable[[str], object]) -> int:
    """Does *action* for every id; one that fails is told and does not keep the rest from it. Returns the exit code."""
    code = 0
    for id in ids:
        try:
            action(id)
        except CtrdError as error:
            code = fail(error)
    return code


def flush() -> None:
    """Hands on what others have left in Python's own buffer of stdout, such as a help text."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence(1)
    except OSError as error:
        raise from_os_error(error, "write to standard output (write)") from error
