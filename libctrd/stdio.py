"""A process's standard streams: which fifos there are, who reads and writes them, and when their end has come.

The container writes straight into the fifos. A caller who asked for `PIPE` reads them himself; whatever goes somewhere
else is moved by the relay. So a slow reader or sink holds the container back, and nothing piles up here (C28).
"""

from __future__ import annotations

import enum
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeAlias

from libctrd import _checks, reactor, relay
from libctrd._checks import fd_of
from libctrd._log import log
from libctrd.errors import CtrdError, InvalidArgumentError, from_os_error
from libctrd.fifo import Fifo, growing_is_free, open_fifo

STDERR_WITH_TERMINAL = _checks.ILLUMOS
"""On Solaris and illumos there is a stderr fifo with a terminal too (C13)."""

DISCARD_SECONDS = 3.0
GROWN = 1 << 20
"""Bytes of a pipe that is grown where that is free: it moves several times what one of 64 KiB does."""

STREAMS = ("stdin", "stdout", "stderr")
"""The names of the three, in their order."""
OUTPUTS = STREAMS[1:]


class Choice(enum.Enum):
    """What becomes of a stream. See `PIPE`, `INHERIT`, `NULL` and `DETACHED`."""

    PIPE = "PIPE"
    INHERIT = "INHERIT"
    NULL = "NULL"
    DETACHED = "DETACHED"
    CAPTURE = "CAPTURE"
    GATHER = "GATHER"  # what `PIPE` is to an event loop: the relay reads ahead

    def __repr__(self) -> str:
        return self.value


PIPE = Choice.PIPE
"""The caller reads and writes: ``container.stdin``, ``.stdout``, ``.stderr``."""
INHERIT = Choice.INHERIT
"""This process's own stream."""
NULL = Choice.NULL
"""No stream: ``/dev/null`` in the container."""
DETACHED = Choice.DETACHED
"""A fifo that no one of this process holds: another client may attach; until then the shim does as it was told. A
container whose streams are all that, or `NULL` beside it, is not cleaned by the client that started it."""


class Text(NamedTuple):
    """How streams are read and written as text."""

    encoding: str
    errors: str


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class IOPipe:
    """The client's ends of a process's fifos, as a stdio callback gets them (C6).

    ``stdin`` is for writing and ``None`` where there is none; ``stdout`` and ``stderr`` are for reading. With a
    terminal ``stderr`` reads as empty (C13).
    """

    def __init__(
        self, stdin: Stdin | Fifo | None, stdout: Output | None, stderr: Output | None, terminal: bool
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal

    def close(self) -> None:
        """Closes all that are open; pending opens are cancelled."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


Output: TypeAlias = "Fifo | io.BytesIO"
Callback = Callable[[IOPipe], Any]
Stream = Choice | int | HasFileno


class Stdio:
    """A choice for each stream, as in ``subprocess``: `PIPE`, `INHERIT`, `NULL`, a descriptor or an open file.

    With a terminal there is no stderr, and what is said of it does not count.
    """

    def __init__(self, stdin: Stream = NULL, stdout: Stream = INHERIT, stderr: Stream = INHERIT) -> None:
        self.streams = (_stream(stdin, "stdin"), _stream(stdout, "stdout"), _stream(stderr, "stderr"))


def _stream(given: Stream, name: str) -> Choice | int:
    if isinstance(given, Choice):
        return given
    try:
        fd = given if isinstance(given, int) else given.fileno()
        os.fstat(fd_of(fd))  # one that is not open must be told before anything runs
        return fd
    except (AttributeError, OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"{name}={given!r} is no stream: give PIPE, INHERIT, NULL, an open descriptor or an open file with one"
        ) from error


def path(directory: str, process: str, stream: str) -> str:
    """The path of a process's fifo in the container's directory (C9)."""
    return os.path.join(directory, f"{process}-{stream}")


def fifos_in(directory: str) -> set[str]:
    """The names of the processes that have fifos in the container's directory; none when that is not there."""
    try:
        return {name.rpartition("-std")[0] for name in os.listdir(directory) if "-std" in name} - {""}
    except OSError:
        return set()


def open_fifos(directory: str, process: str, terminal: bool, *, stdin: bool = True) -> IOPipe:
    """Opens a process's three fifos in *directory* without waiting for a peer (C13).

    The directory is made when it is missing (0700), and so is each fifo. With *terminal* there is no stderr fifo,
    except on Solaris and illumos, and stderr reads as empty. Without *stdin* that fifo is left out. If one fails, those
    already open are closed, those that were made are removed, and the error is raised.
    """
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"make the directory {directory!r} for fifos") from error
    pipe = IOPipe(None, None, None, terminal)
    made: list[str] = []

    def opened(stream: str, flags: int) -> Fifo:
        where = path(directory, process, stream)
        if not os.path.lexists(where):
            made.append(where)
        return open_fifo(where, flags | os.O_CREAT | os.O_NONBLOCK, 0o700)

    try:
        if stdin:
            pipe.stdin = opened("stdin", os.O_WRONLY)
        pipe.stdout = opened("stdout", os.O_RDONLY)
        if not terminal or STDERR_WITH_TERMINAL:
            pipe.stderr = opened("stderr", os.O_RDONLY)
        else:
            pipe.stderr = io.BytesIO()
    except BaseException:
        pipe.close()
        for where in made:
            _remove(where)
        raise
    return pipe


def _remove(where: str) -> None:
    try:
        os.unlink(where)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the fifo %s could not be removed: %s", where, error)


def remove_fifos(directory: str, process: str) -> None:
    """Removes a process's three fifos (C3). One that is missing is fine; one that cannot be removed is a warning."""
    for stream in STREAMS:
        _remove(path(directory, process, stream))


def discard_fifos(directory: str, process: str = "init", streams: Iterable[str] = OUTPUTS) -> list[relay.Pump]:
    """Drains a process's stdout and stderr in the background until their end, so that it never blocks on writing (C12).

    They are not created. The other sides have 3 seconds in all to appear. One that cannot be opened is a logged
    warning, and the other is drained all the same. *streams* names only one of them. Returns what drains them, at once.
    """
    pumps = []
    for stream in streams:
        where = path(directory, process, stream)
        try:
            pumps.append(relay.discard(open_fifo(where, os.O_RDONLY | os.O_NONBLOCK)))
        except CtrdError as error:
            log.warning("the output in %s is not drained: %s", where, error)
    for pump in pumps:
        # From then on a read of nothing is the end: of a fifo whose writer never came, and of no other.
        reactor.shared().later(DISCARD_SECONDS, pump.no_more_writers)
    return pumps


class Stdin:
    """The standard input of a process: a fifo to be written, and the word to the engine when it is closed (C7).

    The first `close` closes the fifo and tells; later ones do nothing. Who is first is decided under ``_lock``.
    """

    def __init__(self, fifo: Fifo, tell: Callable[[], None]) -> None:
        self._fifo = fifo
        self._tell = tell
        self._lock = threading.Lock()
        self._told = False

    def write(self, data: bytes) -> int:
        """Writes all of *data*, waiting for the reader and for room. Raises as `Fifo.write`."""
        return self._fifo.write(data)

    def write_nowait(self, data: bytes) -> int:
        """Writes what there is room for now; 0 when there is none or no reader yet."""
        return self._fifo.write_nowait(data)

    def fileno(self) -> int:
        """The descriptor, for ``select``; ready for writing is meant only once `connected`."""
        return self._fifo.fileno()

    def wait_connected(self, timeout: float | None = None) -> None:
        """Waits until the reader has come. Raises as `Fifo.wait_connected`."""
        self._fifo.wait_connected(timeout)

    def flush(self) -> None:
        """Nothing is ever kept back; here for those who expect a file."""

    @property
    def connected(self) -> bool:
        """Has the reader come?"""
        return self._fifo.connected

    @property
    def closed(self) -> bool:
        """Closed by us?"""
        return self._told or self._fifo.closed

    def close(self) -> None:
        """Closes it; what was written is read first. Idempotent, from any thread."""
        if self._first():
            self._fifo.close()
            self._tell()

    def drop(self) -> None:
        """Closes it without a word to the engine: the process has ended, or never came to be."""
        self._first()
        self._fifo.close()

    def feed(self, source: int) -> relay.Pump:
        """From now on what *source* gives goes into it, and its end closes it."""
        pump = relay.copy(source, self._fifo, on_sink_error="close", close_sink=True)
        pump.on_done(lambda _: self.close())
        return pump

    def _first(self) -> bool:
        with self._lock:
            first, self._told = not self._told, True
            return first

    def __enter__(self) -> Stdin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Streams:
    """The streams of one process that this client has started: opened, moved, and their end awaited."""

    def __init__(self, stdio: Choice | Stdio | Callback, terminal: bool) -> None:
        self.callback: Callback | None = None
        if isinstance(stdio, Stdio):
            chosen = stdio.streams
        elif isinstance(stdio, Choice):
            chosen = (stdio, stdio, stdio)
        elif callable(stdio):
            self.callback, chosen = stdio, (PIPE, PIPE, PIPE)
        else:
            raise InvalidArgumentError(
                f"stdio={stdio!r} is not known: give PIPE, INHERIT, NULL, a Stdio(...) or a function of an IOPipe"
            )
        self.chosen: tuple[Choice | int, ...] = chosen
        self.left_to_others = DETACHED in chosen and all(choice in (NULL, DETACHED) for choice in chosen)
        """This process holds no stream, and others may: so it does not clean after the end either."""
        self.terminal = terminal
        if terminal and chosen[1] is NULL:  # a terminal's output must go somewhere
            self.chosen = (chosen[0], DETACHED, DETACHED)
        self.takes_output = any(choice not in (NULL, DETACHED) for choice in self.chosen[1:])
        """This process takes what is written, or some of it."""
        self.pipe = IOPipe(None, None, None, terminal)
        self.pumps: list[relay.Pump] = []
        self.delivering: dict[str, relay.Pump] = {}
        self.captured: dict[str, relay.Buffer] = {}
        self.gathered: dict[str, relay.Buffer] = {}
        self.text: Text | None = None
        self.wrapped: dict[str, Any] = {}  # what makes text of each, or an event loop reads of it
        self._stdin_pump: relay.Pump | None = None
        self._given_up: set[str] = set()

    def names(self) -> list[str]:
        """Which fifos there are: of ``stdin``, ``stdout`` and ``stderr``."""
        names = [name for name, choice in zip(STREAMS, self.chosen, strict=True) if choice is not NULL]
        return [n for n in names if not (n == "stderr" and self.terminal and not STDERR_WITH_TERMINAL)]

    def open(self, directory: str, process: str, tell: Callable[[], None]) -> None:
        """Opens the fifos and wraps stdin, the first two steps of a start (C6). *tell* is for `Stdin`."""
        self.pipe = open_fifos(directory, process, self.terminal, stdin=self.chosen[0] is not NULL)
        if isinstance(self.pipe.stdin, Fifo):
            self.pipe.stdin = Stdin(self.pipe.stdin, tell)
        self._drop_unwanted(directory, process)
        self._grow()

    def take(self, fifos: dict[str, Fifo], tell: Callable[[], None]) -> None:
        """Takes ends of fifos that are there already, in the place of `open`: those of a process that runs."""
        stdin, self.pipe.stdout, self.pipe.stderr = (fifos.get(stream) for stream in STREAMS)
        if stdin is not None:
            self.pipe.stdin = Stdin(stdin, tell)
        if self.terminal and self.pipe.stderr is None and self.chosen[2] is PIPE:
            self.pipe.stderr = io.BytesIO()
        self._grow()

    def names_taken(self) -> list[str]:
        """Which streams this process has an end of."""
        ends = (self.pipe.stdin, self.pipe.stdout, self.pipe.stderr)
        return [name for name, end in zip(STREAMS, ends, strict=True) if isinstance(end, (Stdin, Fifo))]

    @property
    def read_by_caller(self) -> bool:
        """Does the caller read some of the output himself?"""
        fifos = (self.pipe.stdout, self.pipe.stderr)
        return any(isinstance(fifo, Fifo) and not fifo.closed for fifo in fifos) or any(
            not pump.done for pump in self.gathered.values()
        )

    @property
    def let_go(self) -> set[str]:
        """The outputs that this process had an end of and takes nothing from any more, though it may not have ended."""
        ends = {"stdout": self.pipe.stdout, "stderr": self.pipe.stderr}
        had = {name for name, end in ends.items() if isinstance(end, Fifo) and end.closed}
        relayed = {*self.delivering, *self.captured, *self.gathered}  # what the relay has is closed for us
        return had - relayed | had & self._given_up

    def _grow(self) -> None:
        if growing_is_free():  # what the caller reads himself; the relay grows what it moves
            for fifo, choice in zip((self.pipe.stdout, self.pipe.stderr), self.chosen[1:], strict=True):
                if choice is PIPE and isinstance(fifo, Fifo):
                    fifo.grow(GROWN)

    def _drop_unwanted(self, directory: str, process: str) -> None:
        """What is for nobody is closed; a fifo that the container does not get is removed."""
        names = self.names()
        for name, choice in zip(STREAMS, self.chosen, strict=True):
            if choice not in (NULL, DETACHED):
                continue
            stream = getattr(self.pipe, name)
            if isinstance(stream, Stdin):
                stream.drop()
            elif stream is not None:
                stream.close()
            setattr(self.pipe, name, None)
            if name not in names:
                _remove(path(directory, process, name))

    def begin(self) -> None:
        """Lets the relay move what goes elsewhere. Called when the process runs: what a failed start says stays put."""
        stdin, stdout, stderr = self.chosen
        if isinstance(self.pipe.stdin, Stdin) and stdin is not PIPE:
            source = sys.__stdin__.fileno() if stdin is INHERIT and sys.__stdin__ else stdin
            self._stdin_pump = self.pipe.stdin.feed(source if isinstance(source, int) else 0)
        for name, choice, own in (("stdout", stdout, 1), ("stderr", stderr, 2)):
            fifo = getattr(self.pipe, name)
            if not isinstance(fifo, Fifo) or choice is PIPE:
                continue
            if choice is Choice.GATHER:
                self.gathered[name] = relay.buffer(fifo)
            elif choice is Choice.CAPTURE:
                self.captured[name] = relay.buffer(fifo, limit=None)
                self.pumps.append(self.captured[name])
            else:
                fd = choice if isinstance(choice, int) else own
                self.delivering[name] = relay.copy(fifo, fd, on_sink_error="drain", close_sink=False)
                self.pumps.append(self.delivering[name])

    def collect(self, name: str, fifo: Fifo) -> relay.Buffer:
        """Gathers from now on all that comes of an output that the caller has read himself until now."""
        self.captured[name] = pump = relay.buffer(fifo, limit=None)
        self.pumps.append(pump)
        return pump

    def all_pumps(self) -> list[relay.Pump]:
        """Whatever the relay moves for this process."""
        return [*self.pumps, *([self._stdin_pump] if self._stdin_pump is not None else [])]

    def said(self) -> str:
        """What a start that failed has left in the fifos: a runtime's own words, when it knows no log."""
        found = b""
        for fifo in (self.pipe.stderr, self.pipe.stdout):
            if isinstance(fifo, Fifo) and not fifo.closed:
                found += fifo.read_nowait(4096) or b""
        return found.decode("utf-8", "replace")

    def close(self) -> None:
        """Closes everything at once: the start has failed."""
        self._given_up.update(OUTPUTS)
        for pump in (*self.all_pumps(), *self.gathered.values()):
            pump.cancel()
        if isinstance(self.pipe.stdin, Stdin):
            self.pipe.stdin.drop()
        self.pipe.close()

    def give_up(self) -> None:
        """What goes to a descriptor of the caller's is not delivered any more: whoever reads there may never go on."""
        self._given_up.update(self.delivering)
        for pump in self.delivering.values():
            pump.cancel()

    def exited(self) -> None:
        """The process has ended: nothing is written to it any more, and a read of nothing is the end of its output."""
        if isinstance(self.pipe.stdin, Stdin):
            self.pipe.stdin.drop()
        if self._stdin_pump is not None:
            self._stdin_pump.cancel()
        for fifo in (self.pipe.stdout, self.pipe.stderr):
            if isinstance(fifo, Fifo) and not fifo.closed:
                fifo.no_more_writers()
        for pump in (*self.pumps, *self.gathered.values()):
            pump.no_more_writers()

    def when_ended(self, drain_timeout: float | None, call: Callable[[], None]) -> None:
        """Makes *call* once the output has come to its end; after *drain_timeout* seconds if it is kept open (C28).

        The end: the relay has delivered all of it; or, where the caller reads himself, nobody can write any more, so
        that what he has not taken is in his own descriptor and cannot be lost.
        """
        _Ends(self, drain_timeout, call)


class _Ends:
    """Counts the ends of a process's outputs. ``_lock`` guards ``_left``; the call is made by who takes it to zero."""

    def __init__(self, streams: Streams, drain_timeout: float | None, call: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._call = call
        self._pumps = streams.pumps
        fifos = [f for f in (streams.pipe.stdout, streams.pipe.stderr) if isinstance(f, Fifo) and not f.at_end]
        gathered = list(streams.gathered.values())
        # One for us: nothing may fire before all are counted.
        self._left = 1 + len(fifos) + len(gathered) + len(self._pumps)
        self._hung: dict[int, bool] = {}
        self._timer: reactor.Timer | None = None
        for fifo in fifos:
            self._await_hang_up(lambda fifo=fifo: os.dup(fifo.fileno()))  # type: ignore[misc]
        for buffer in gathered:
            self._await_hang_up(buffer.duplicate)
        for pump in self._pumps:
            pump.on_done(lambda _: self._ended())
        if drain_timeout is not None and self._left > 1:
            self._timer = reactor.shared().later(drain_timeout, self._too_long)
        self._ended()

    def _await_hang_up(self, duplicate: Callable[[], int]) -> None:
        """A duplicate is watched, so that it does not matter when the caller, or the relay, closes his."""
        try:
            fd = duplicate()
        except (CtrdError, OSError):
            self._ended()  # closed meanwhile: that is its end
            return
        self._hung[fd] = True
        reactor.shared().watch(fd, lambda _: self._hung_up(fd), 0)

    def _hung_up(self, fd: int) -> None:
        with self._lock:
            if not self._hung.pop(fd, False):
                return
        reactor.shared().unwatch(fd)
        os.close(fd)
        self._ended()

    def _too_long(self) -> None:
        """What is kept open is not waited for any longer; what was written by then is still delivered."""
        for fd in list(self._hung):
            self._hung_up(fd)
        for pump in self._pumps:
            pump.finish()

    def _ended(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        if self._timer is not None:
            self._timer.cancel()
        self._call()
