"""What the log of a container holds: written by its shim while nobody reads its output, read by whoever wants it.

A log is a file as it comes, or one of lines of JSON, each with ``stream``, ``time`` and ``log``, the part of a line
that it has. When it is full it becomes ``FILE.1``, that ``FILE.2``, and so on. What it is called and how it is written
stands in the container's directory.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from libctrd import inotify, reactor
from libctrd._checks import short
from libctrd.engine.base import Log
from libctrd.errors import InvalidArgumentError, NotFoundError, from_os_error

if TYPE_CHECKING:
    from libctrd.container import Container
    from libctrd.locks import Milestone

_RECORD: Final = "log.json"
_MODIFY: Final = 0x2
_BLOCK: Final = 1 << 16
_LINE: Final = 1 << 20  # bytes of a line that are kept, waiting for its end


class LogEntry(Struct, frozen=True):
    """A line of output, with its end; the last may have none. A raw log knows neither ``time`` nor stderr."""

    data: bytes
    stream: str = "stdout"
    time: datetime | None = None


def wanted(path: str, form: str, size: int, files: int) -> Log:
    """What `Container.start` was told. Raises `InvalidArgumentError` for what cannot be."""
    if form not in ("raw", "json"):
        raise InvalidArgumentError(f"log_format={form!r} is not known: say 'raw' or 'json'")
    for name, number, least in (("log_size", size, 0), ("log_files", files, 1)):
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number < 2**62:
            raise InvalidArgumentError(f"{name}={short(number)} is no number of {least} or more")
    if files > 1000:
        raise InvalidArgumentError(f"log_files={files}: more than 1000 old files are not kept")
    if len(os.fsencode(path)) > 4000:
        raise InvalidArgumentError(f"log={short(path)} is too long: give a path of at most 4000 bytes")
    return Log(path, form == "json", size, files)


def _record(container: Container) -> str:
    """In our own directory for it: the bundle may be another user's, who could name any file there (C19)."""
    return os.path.join(container._client._root, container.id, _RECORD)


def remember(container: Container, log: Log) -> None:
    """Writes down what the log of a container that is about to start will be."""
    path = _record(container)
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(msgspec.json.encode(log))
    except OSError as error:
        raise from_os_error(error, f"write down where the log is, in {path!r}") from error


def forget(container: Container) -> None:
    """It did not start: takes back what `remember` has written."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_record(container))


def _recorded(container: Container) -> Log:
    try:
        with open(_record(container), "rb") as file:
            return msgspec.json.decode(file.read(), type=Log)
    except (FileNotFoundError, msgspec.MsgspecError):
        raise NotFoundError(
            f"container {container.id!r} has no log: start it with unattended='log' (ctrd run -d --log FILE)"
        ) from None
    except OSError as error:
        raise from_os_error(error, f"read where the log of container {container.id!r} is") from error


class Entries(Iterator[LogEntry]):
    """The lines of a log, as `Container.logs` gives them. Those who do not iterate it to its end close it.

    One look after the other is taken at what is there. Before the last one the end was told, so nothing comes after it.
    """

    def __init__(self, container: Container, *, follow: bool, since: datetime | None, tail: int | None) -> None:
        log = _recorded(container)
        if since is not None and not log.json:
            raise InvalidArgumentError(
                f"the log of container {container.id!r} is raw and has no times: start it with log_format='json'"
            )
        if tail is not None and (not isinstance(tail, int) or tail < 0):
            raise InvalidArgumentError(f"tail={short(tail)} is no number of lines")
        self.finished = False
        """Was all of it given?"""
        self._since = since.astimezone() if since is not None and since.tzinfo is None else since
        self._parse = _Json() if log.json else _Raw()
        self._watch: _Watch | None = None
        self._files = _Files(log)
        try:
            if follow:
                self._watch = _Watch(container, log.path)
            self.look()
        except BaseException:
            self.close()
            raise
        if tail is not None:
            self._there: Iterator[LogEntry] = iter(deque(self._there, tail))

    def look(self) -> None:
        """Begins a look at what is there now; the one before has given all."""
        self._last = self._watch is None or self._watch.over  # before the look
        there = self._parse.entries(self._files.lines(last=self._last))
        if self._last:
            there = itertools.chain(there, self._parse.rest())
        self._there = _after(there, self._since)

    def take(self, most: int) -> list[LogEntry]:
        """Up to *most* lines of this look. None: it has given all, and `ask` says when to take another."""
        found = [] if self.finished else list(itertools.islice(self._there, most))
        if not found and self._last:
            self.finished = True
            self.close()
        return found

    def ask(self, call: Callable[[], None]) -> None:
        """Has *call* called, by some thread, once there is more to look at. For who follows and is not finished."""
        if self._watch is not None:
            self._watch.ask(call)

    def close(self) -> None:
        """Lets go of the files. Idempotent."""
        self._files.close()
        if self._watch is not None:
            self._watch.close()

    def __iter__(self) -> Entries:
        return self

    def __next__(self) -> LogEntry:
        while True:
            for entry in self.take(1):
                return entry
            if self.finished:
                raise StopIteration
            news = threading.Event()
            self.ask(news.set)
            news.wait()
            self.look()


def _after(entries: Iterator[LogEntry], since: datetime | None) -> Iterator[LogEntry]:
    for entry in entries:
        if since is None or entry.time is None or entry.time >= since:
            yield entry


class _Files:
    """The files of a log, from the oldest on, as one: also when they are renamed meanwhile."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = b""
        self._files: list[io.FileIO] = []
        self._open_newer(None)
        if not self._files:
            raise NotFoundError(f"the log {log.path!r} is not there: it was removed or renamed by somebody")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _open_newer(self, known: int | None) -> None:
        """Opens what is newer than the file of the inode *known*, the newest first.

        A file only ever moves on to the next name, so that one which moves meanwhile is met again, and never missed.
        """
        found: dict[int, io.FileIO] = {}
        for name in (self._log.path, *(f"{self._log.path}.{number}" for number in range(1, self._log.kept + 1))):
            try:
                file = io.FileIO(name, "r")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise from_os_error(error, f"read the log {name!r}") from error
            inode = os.fstat(file.fileno()).st_ino
            if inode in found:
                file.close()
                continue
            if inode == known:
                file.close()
                break
            found[inode] = file
        self._files += reversed(found.values())

    def lines(self, last: bool) -> Iterator[bytes]:
        """Whole lines that are there now; when it is the *last* time also the beginning of one that has no end."""
        while True:
            file = self._files[0]
            while block := file.read(_BLOCK):
                *whole, self._begun = (self._begun + block).split(b"\n")
                for line in whole:
                    yield line + b"\n"
                if len(self._begun) > _LINE:
                    yield self._begun
                    self._begun = b""
            if len(self._files) == 1:
                inode = os.fstat(file.fileno()).st_ino
                try:
                    same = os.stat(self._log.path).st_ino == inode
                except FileNotFoundError:
                    same = True  # between two names
                if same:
                    break
                if block := file.read(1):  # what came before it was renamed
                    file.seek(-1, os.SEEK_CUR)
                    continue
                self._open_newer(inode)
                if len(self._files) == 1:
                    break
            self._files.pop(0).close()
        if last and self._begun:
            yield self._begun
            self._begun = b""


class _Raw:
    """Lines of a raw log."""

    def entries(self, lines: Iterator[bytes]) -> Iterator[LogEntry]:
        for line in lines:
            yield LogEntry(line)

    def rest(self) -> Iterator[LogEntry]:
        return iter(())


class _Line(Struct):
    stream: str
    time: datetime
    log: str


class _Json:
    """Lines of a log of JSON: a line of output may be in several, all but the last without its end."""

    def __init__(self) -> None:
        self._begun: dict[str, LogEntry] = {}

    def entries(self, lines: Iterator[bytes]) -> Iterator[LogEntry]:
        for line in lines:
            try:
                found = _line(line)
            except (msgspec.MsgspecError, ValueError):
                yield LogEntry(line)  # of a disk that was full: what is left of it is shown as it is
                continue
            begun = self._begun.pop(found.stream, None)
            entry = found if begun is None else LogEntry(begun.data + found.data, begun.stream, begun.time)
            if entry.data.endswith(b"\n") or len(entry.data) > _LINE:
                yield entry
            else:
                self._begun[entry.stream] = entry

    def rest(self) -> Iterator[LogEntry]:
        """What has no end."""
        yield from self._begun.values()
        self._begun.clear()


def _line(line: bytes) -> LogEntry:
    import json  # which takes the halves of surrogate pairs that stand for bytes that are no text

    found: Any = json.loads(line)
    entry = msgspec.convert({**found, "log": ""}, _Line)
    return LogEntry(str(found["log"]).encode("utf-8", "surrogateescape"), entry.stream, entry.time)


class _Watch:
    """Tells of more in a log, and of the end of its container.

    The watch is there before the first look and is read when it has told, before the next: what is written after a look
    is told by it. The reactor's thread only lets go of the descriptor and calls: it is read here, so it can be closed.
    """

    def __init__(self, container: Container, path: str) -> None:
        self._inotify = inotify.Inotify()
        self._end: Milestone | None = None
        self._calls: deque[Callable[[], None]] = deque()
        try:
            self._inotify.add(os.path.dirname(path), _MODIFY | inotify.MOVED_TO | inotify.CREATE)
            self._end = container._told()._notified
            self._end.when_set(self._tell)
        except NotFoundError:
            pass  # it has gone: there is nothing to wait for
        except BaseException:
            self._inotify.close()
            raise

    @property
    def over(self) -> bool:
        """Has it ended? What was told until now is taken back first, so that it wakes nobody once more."""
        for _ in self._inotify.read():
            pass
        return self._end is None or self._end.is_set()

    def ask(self, call: Callable[[], None]) -> None:
        """Has *call* called once. It is put down first, so that whoever tells, however soon, finds it."""
        self._calls.append(call)
        reactor.shared().watch(self._inotify.fileno(), lambda _: self._tell())
        if self._end is None or self._end.is_set():
            self._tell()

    def _tell(self) -> None:
        reactor.shared().unwatch(self._inotify.fileno())
        while self._calls:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._calls.popleft()()

    def close(self) -> None:
        """Idempotent."""
        if self._inotify.fileno() >= 0:
            reactor.shared().unwatch(self._inotify.fileno())
            self._inotify.close()


def moment(text: str) -> datetime:
    """The time that *text* says: how long ago, such as ``10m`` or ``1.5h`` (s, m, h, d), or by RFC 3339.

    Raises `InvalidArgumentError` for anything else.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    now = datetime.now(timezone.utc)
    try:
        if text[-1:] in units and text[:1].isdigit():
            return datetime.fromtimestamp(now.timestamp() - float(text[:-1]) * units[text[-1]], timezone.utc)
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidArgumentError(
            f"{text!r} is no time: say how long ago, such as 10m, or 2026-11-30T12:00:00Z"
        ) from error
