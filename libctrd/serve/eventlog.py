"""The events that a server has told, on disk: appended before they are told, so that who was away gets what he missed.

A file of JSON lines. Some hundreds of events are kept; when there are twice as many, the file is written anew and put
in the place of the old one at once. A line that was cut off, as the last one is when the server was killed in the
middle of it, is left out. What is written survives the server, however it ends; it is not forced to the disk, for when
the host goes down its containers go too.

What takes two steps is promised first: an exit is written down, then what the container held is removed, then it is an
event, with the time of that moment. So whoever has read all events up to a time has missed none before it, and a
promise that no event followed, for the server was killed in between, is found by the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec

from libctrd.errors import CtrdError, UnsupportedError, from_os_error

log = logging.getLogger("libctrd")

KEPT = 500
VERSION = 1

# What the wire can carry. A line with another number was damaged.
_Nanoseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Code = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event. ``at`` is in nanoseconds since 1970 and grows from each to the next; ``mark`` tells a container from
    an earlier or later one of its id.
    """

    type: str
    id: str
    at: _Nanoseconds
    pid: str = ""
    status: _Code = 0
    mark: str = ""
    promised: bool = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is about: one promise and one event have it in common."""
        return self.type, self.id, self.pid, self.mark


class _Head(msgspec.Struct):
    """The first line."""

    version: int


_entry = msgspec.json.Decoder(Entry)
_head = msgspec.json.Decoder(_Head)


class EventLog:
    """The log in the file *path*, which is made when it is not there. One process at a time; any of its threads.

    Raises `UnsupportedError` for the log of a later version.
    """

    def __init__(self, path: str, *, keep: int = KEPT, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._promises: dict[tuple[str, str, str, str], Entry] = {}
        self._lines = 0
        self._read()
        self._fd = -1
        self._rewrite()

    def _read(self) -> None:
        try:
            with open(self._path, "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os_error(error, f"read the event log {self._path!r}") from error
        try:
            version = _head.decode(lines[0]).version
        except _UNREADABLE:
            version = VERSION  # it was damaged: what of it can be read counts
        if version > VERSION:
            raise UnsupportedError(
                f"the event log {self._path!r} is of version {version}, and this libctrd knows {VERSION}: "
                "use the libctrd that wrote it, or another state directory"
            )
        damaged = 0
        for line in filter(None, lines[1:]):
            try:
                self._take(_entry.decode(line))
            except _UNREADABLE:
                damaged += 1
        # Damage may have changed a time too: `after` and `_append` take it that each is later than the one before.
        self._entries = deque(sorted(self._entries, key=lambda entry: entry.at), maxlen=self._keep)
        if damaged:
            log.warning("the event log %s has %d lines that cannot be read: they are left out", self._path, damaged)

    def _rewrite(self) -> None:
        """Puts a file with what is kept in the place of the old one, and appends to that from now on."""
        temporary = self._path + ".new"
        kept = sorted([*self._entries, *self._promises.values()], key=lambda entry: entry.at)
        lines = [msgspec.json.encode(_Head(VERSION)), *map(msgspec.json.encode, kept)]
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, b"".join(line + b"\n" for line in lines))
                os.rename(temporary, self._path)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise from_os_error(error, f"write the event log {self._path!r}") from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._lines = len(kept)

    def _take(self, entry: Entry) -> None:
        if entry.promised:
            self._promises[entry.key] = entry
        else:
            self._promises.pop(entry.key, None)
            self._entries.append(entry)

    def append(self, type: str, id: str, pid: str = "", status: int = 0, mark: str = "") -> Entry:
        """Writes down one event, and returns it with its time: later than every one before, whatever the clock says.

        A disk that takes no more is told in the log, and the event counts all the same: nobody may miss an exit for
        that.
        """
        return self._append(type, id, pid, status, mark, promised=False)

    def promise(self, type: str, id: str, pid: str = "", status: int = 0, mark: str = "") -> Entry:
        """Writes down that there will be this event. Nobody is shown it; `promises` are those that are still open."""
        return self._append(type, id, pid, status, mark, promised=True)

    def promises(self) -> list[Entry]:
        """Those that no event has followed yet."""
        with self._lock:
            return list(self._promises.values())

    def _append(self, type: str, id: str, pid: str, status: int, mark: str, *, promised: bool) -> Entry:
        with self._lock:
            last = self._entries[-1].at if self._entries else 0
            entry = Entry(type, id, max(self._clock(), last + 1), pid, status, mark, promised)
            self._take(entry)
            try:
                if self._lines >= 2 * self._keep:
                    self._rewrite()
                else:
                    _write(self._fd, msgspec.json.encode(entry) + b"\n")
                    self._lines += 1
            except (OSError, CtrdError) as error:
                self._lines = 2 * self._keep  # half a line may be there: the next event has the file written anew
                log.error("event %s of container %s is not in the event log %s: %s", type, id, self._path, error)
            return entry

    def after(self, at: int, id: str = "") -> list[Entry]:
        """Those after the time *at*, of the container *id* when there is one, in their order."""
        with self._lock:
            return [entry for entry in self._entries if entry.at > at and id in ("", entry.id)]

    def has(self, type: str, id: str, pid: str, mark: str) -> Entry | None:
        """The event of that kind of that process of that very container, when there was one; of several processes of
        one name that of the last which was started.
        """
        with self._lock:
            for entry in reversed(self._entries):
                if type == "exit" and (entry.type, entry.id, entry.pid, entry.mark) == ("start-process", id, pid, mark):
                    return None
                if (entry.type, entry.id, entry.pid, entry.mark) == (type, id, pid, mark):
                    return entry
            return None

    def last(self, id: str) -> Entry | None:
        """The last event of the container *id*."""
        with self._lock:
            return next((entry for entry in reversed(self._entries) if entry.id == id), None)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
