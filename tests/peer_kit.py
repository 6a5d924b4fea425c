"""Peers at a socket that are no containerd: silent, talking nonsense, or with no room for another connection."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534


class Peer:
    """Whoever listens at *path*. It accepts and is silent until it is told what to say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unix://{path}"
        self._words: bytes | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._accepted: list[socket.socket] = []
        self._thread: threading.Thread | None = None

    def says(self, words: bytes) -> None:
        """From now on each connection gets those words and is closed."""
        self._words = words
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # it was shut down
            with connection, contextlib.suppress(OSError):
                assert self._words is not None
                connection.sendall(self._words)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):  # else what it has not read would reset the connection
                    pass

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Meanwhile it has no room for another connection."""
        self._listener.listen(0)
        with contextlib.ExitStack() as held:
            while True:
                waiting = held.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                try:
                    waiting.connect(os.fspath(self.path))
                except BlockingIOError:
                    break
            yield

    def close(self) -> None:
        """Ends it; its socket stays, with nobody listening."""
        self._listener.shutdown(socket.SHUT_RDWR)  # it wakes the thread
        if self._thread is not None:
            self._thread.join()
        self._listener.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that is silent, in a directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="ctrd-peer-"))
    directory.chmod(0o755)
    made = Peer(directory / "s")
    yield made
    made.close()
    shutil.rmtree(directory)


def as_nobody(ask: Callable[[], str]) -> str:
    """What *ask* returns in a child that is another user, without any privilege.

    The child must not have used gRPC before: that does not survive a fork. So *ask* may only fail before it does.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, ask().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said
