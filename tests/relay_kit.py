"""What the tests of the relay share: pairs of descriptors of every kind, and a comparison of before and after."""

from __future__ import annotations

import hashlib
import os
import pty
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fifo_kit import LONG, READ, WRITE, Background, open_files, until

from libctrd import relay
from libctrd.fifo import Fifo, open_fifo

MIB = 1 << 20


def threads() -> int:
    """Threads of this process, less the workers for callbacks, which end by themselves some seconds later."""
    workers = sum(thread.name == "ctrd-relay-callback" for thread in threading.enumerate())
    return len(os.listdir("/proc/self/task")) - workers


def warm_up() -> None:
    """Starts what stays: the relay, the dispatcher."""
    called = threading.Event()
    with open(os.devnull, "rb") as nothing:
        relay.discard(nothing.fileno()).on_done(lambda _: called.set())
        assert called.wait(LONG)


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    """Threads, descriptors and pumps after a test are what they were before it."""
    warm_up()
    before, files, active = threads(), open_files(), relay.active()
    yield
    until(lambda: relay.active() == active, "as many pumps as before")
    until(lambda: threads() == before, "as many threads as before")
    until(lambda: open_files() == files, "as many descriptors as before")


def data(size: int) -> bytes:
    """Bytes of which no two blocks are alike."""
    block = os.urandom(65536 + 7)
    return (block * (size // len(block) + 1))[:size]


def feed(fd: int, content: bytes) -> Background:
    """Writes all of it from another thread and closes the descriptor."""

    def run() -> int:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view[:65536]) :]
            return len(content)
        finally:
            os.close(fd)

    return Background(run)


def read_all(fd: int, pause: float = 0.0, count: int | None = None) -> bytes:
    """Reads to the end and closes, or *count* bytes; sleeps for *pause* seconds after each MiB."""
    parts, total, slept, rest = [], 0, 0, threading.Event()
    while count is None or total < count:
        try:
            part = os.read(fd, 65536)
        except OSError:  # the other side of a terminal has hung up
            part = b""
        if not part:
            break
        parts.append(part)
        total += len(part)
        if pause and total // MIB > slept:
            slept = total // MIB
            rest.wait(pause)
    if count is None:
        os.close(fd)
    return b"".join(parts)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Source:
    """One kind of source: ``end`` is given to the relay, and what ``give`` was told comes out of it."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.end: int | Fifo
        self._own: list[int] = []
        self._path = directory / "source"
        if kind == "pipe":
            read, self._write = os.pipe()
            self._keep(read)
        elif kind == "fifo":
            self.end = open_fifo(self._path, READ | os.O_CREAT)
            self._write = os.open(self._path, os.O_WRONLY)
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            self._keep(ours.detach())
            self._write = theirs.detach()
        elif kind == "file":
            self._write = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        elif kind in ("tty", "master"):
            master, slave = pty.openpty()
            tty.setraw(slave)
            self._write, end = (master, slave) if kind == "tty" else (slave, master)
            self._keep(end)
        else:
            raise AssertionError(kind)

    def _keep(self, fd: int) -> None:
        self._own.append(fd)
        self.end = fd

    def give(self, content: bytes) -> Background | None:
        if self.kind == "file":
            os.write(self._write, content)
            os.close(self._write)
            self._keep(os.open(self._path, os.O_RDONLY))
            return None
        return feed(os.dup(self._write) if self.kind == "tty" else self._write, content)

    def hang_up(self, delivered: Callable[[], bool]) -> None:
        """A terminal that hangs up takes with it what was not read yet: so its other end is closed after that."""
        if self.kind == "tty":
            until(delivered)
            os.close(self._write)

    def close(self) -> None:
        for fd in self._own:
            os.close(fd)


class Sink:
    """One kind of sink: ``end`` is given to the relay, and ``got`` returns what came out of it up to the end."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.end: int | Fifo
        self._path = directory / "sink"
        self._read = -1
        if kind == "pipe":
            self._read, self.end = os.pipe()
        elif kind == "fifo":
            self._read = os.open(self._path_made(), os.O_RDONLY | os.O_NONBLOCK)
            os.set_blocking(self._read, True)
            self.end = open_fifo(self._path, WRITE)
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            self.end, self._read = ours.detach(), theirs.detach()
        elif kind == "file":
            self.end = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        elif kind == "append":
            self._path.write_bytes(b"before ")
            self.end = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        elif kind in ("tty", "master"):
            master, slave = pty.openpty()
            tty.setraw(slave)
            self.end, self._read = (slave, master) if kind == "tty" else (master, slave)
        elif kind == "null":
            self.end = os.open(os.devnull, os.O_WRONLY)
        else:
            raise AssertionError(kind)

    def _path_made(self) -> Path:
        os.mkfifo(self._path)
        return self._path

    def begin(self, size: int, pause: float = 0.0) -> None:
        """Somebody reads it from now on, to the end, which a terminal's master does not have: *size* bytes there."""
        count = size if self.kind == "master" else None
        self._reader = Background(read_all, self._read, pause, count) if self._read >= 0 else None

    def got(self) -> bytes | None:
        if self._reader is not None:
            content: bytes = self._reader.result()
            if self.kind == "master":  # closed before all was read, it would have taken the rest with it
                assert isinstance(self.end, int)
                os.close(self.end)
                os.close(self._read)
            return content
        if self.kind == "null":
            return None
        content = self._path.read_bytes()
        return content.removeprefix(b"before ") if self.kind == "append" else content
