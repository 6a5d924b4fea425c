"""The keeper of unread output when the system refuses something, and when it is given what it cannot keep."""

from __future__ import annotations

import array
import errno
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from fault_kit import fails, faulty, started_alone
from field_kit import until

from libctrd.engine import shim

pytestmark = pytest.mark.local("what is beside the shims")


def keeper(directory: Path, program: str = "") -> tuple[socket.socket, int]:
    """A keeper of what is unread, as `libctrd.unread` starts it: the connection to it, and the code of its starter."""
    return started_alone(directory, program or shim.PROGRAM, ["--state", str(directory), "--keep"])


def give(peer: socket.socket, *fds: int) -> str:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([b"keep"], control)
    return peer.recv(shim.PACKET).decode()


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("fchdir", errno.ESTALE, "fchdir the state directory"),
        ("inotify_init1", errno.EMFILE, "inotify_init see fs.inotify"),
        ("bind", errno.ENOSPC, "bind keep.sock"),
        ("clone,clone3,fork", errno.EAGAIN, "fork the keeper"),
    ],
)
def test_a_keeper_that_cannot_begin_says_why(tmp_path: Path, call: str, number: int, words: str) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    peer, code = keeper(directory, faulty(tmp_path / "shim", shim.PROGRAM, call, number))
    with peer:
        assert code == 1
        assert peer.recv(shim.PACKET).decode().startswith(f"broken {number} {words}")


def pid_of(directory: Path) -> int:
    """Of the keeper there."""
    words = (str(directory), "--keep")
    return next(p.pid for p in psutil.process_iter(["cmdline"]) if set(words) <= set(p.info["cmdline"] or []))


def unread(path: Path, content: bytes) -> int:
    """A reading end of a fifo there, with something in it and no writer any more."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, content)
    os.close(writer)
    return reader


def test_of_more_than_it_can_hold_the_oldest_goes(tmp_path: Path) -> None:
    """And who waited for that has its end."""
    peer, _ = keeper(tmp_path)
    with peer:
        for number in range(257):
            fd = unread(tmp_path / f"fifo{number}", b"x")
            assert give(peer, fd) == "ok"
            os.close(fd)
        oldest = os.open(tmp_path / "fifo0", os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(oldest, 10) == b"", "it was in no hand any more"
        os.close(oldest)
        for number in range(1, 257):
            with open(tmp_path / f"fifo{number}", "rb") as fifo:
                assert fifo.read() == b"x", number
    until(lambda: not (tmp_path / "keep.sock").exists())


def test_a_keeper_that_missed_events_looks_at_all_it_has(tmp_path: Path) -> None:
    """More happened while it was held up than the kernel keeps: nothing is kept for ever, and nothing is lost."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    peer, _ = keeper(tmp_path)
    pid = pid_of(tmp_path)
    with peer:
        for name in ("one", "two"):
            fd = unread(tmp_path / name, b"unread")
            assert give(peer, fd) == "ok"
            os.close(fd)
        os.kill(pid, signal.SIGSTOP)
        for number in range(most // 2 + 10):  # an event that is as the last one is none
            os.close(os.open(tmp_path / ("one" if number % 2 else "two"), os.O_RDONLY | os.O_NONBLOCK))
        os.unlink(tmp_path / "one")
        os.kill(pid, signal.SIGCONT)
        for _ in range(most // 128):  # it takes up to 256 events a turn, and one request: by then it has taken all
            assert give(peer) == "ok"
        with open(tmp_path / "two", "rb") as fifo:
            assert fifo.read() == b"unread"
    until(lambda: not psutil.pid_exists(pid))


def test_what_has_nothing_in_it_is_not_kept(tmp_path: Path) -> None:
    peer, _ = keeper(tmp_path)
    pid = pid_of(tmp_path)
    with peer:
        fd = unread(tmp_path / "fifo", b"")
        assert give(peer, fd) == "ok"
        os.close(fd)
    until(lambda: not psutil.pid_exists(pid))


def test_a_fifo_that_cannot_be_opened_again_is_kept_as_it_is(tmp_path: Path) -> None:
    peer, _ = keeper(tmp_path)
    with peer:
        fd = unread(tmp_path / "fifo", b"unread")
        with fails("openat", errno.EACCES, when="1+", pid=pid_of(tmp_path)):
            assert give(peer, fd) == "ok"
        os.close(fd)
        with open(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as fifo:
            assert fifo.read(10) == b"unread"


def test_what_the_system_refuses_a_keeper_ends_nothing_that_it_keeps(tmp_path: Path) -> None:
    peer, _ = keeper(tmp_path)
    pid = pid_of(tmp_path)
    with peer:
        fd = unread(tmp_path / "fifo", b"unread")
        with fails("recvmsg", errno.EINTR, pid=pid):
            assert give(peer, fd) == "ok"
        os.close(fd)
        with fails("getsockopt", errno.ENOBUFS, pid=pid):  # who is it?
            other = shim.connect(str(tmp_path), "keep.sock")
            assert other.recv(shim.PACKET) == b""
            other.close()
        assert give(peer) == "ok"
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(reader, 10) == b"unread"
        os.close(reader)
    until(lambda: not psutil.pid_exists(pid))


def test_a_keeper_that_cannot_wait_ends(tmp_path: Path) -> None:
    """It must not turn round and round for ever."""
    peer, _ = keeper(tmp_path)
    pid = pid_of(tmp_path)
    with peer, fails("poll", errno.ENOMEM, when="1+", pid=pid):
        peer.sendmsg([b"keep"])
        assert peer.recv(shim.PACKET) in (b"ok", b"")
        until(lambda: not psutil.pid_exists(pid))


def test_a_keeper_keeps_only_what_it_can(tmp_path: Path) -> None:
    """Reading ends of fifos and nothing else; what it cannot watch it refuses; of one fifo it keeps one end."""
    peer, code = keeper(tmp_path)
    assert code == 0
    pid = pid_of(tmp_path)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    null = os.open("/dev/null", os.O_RDONLY)
    with peer:
        assert give(peer, null) == give(peer, writer) == f"error {errno.EINVAL}"
        with fails("inotify_add_watch", errno.ENOSPC, pid=pid):
            assert give(peer, reader) == f"error {errno.ENOSPC}"
        os.write(writer, b"unread")
        assert give(peer, reader, reader) == "ok"
        other = shim.connect(str(tmp_path), "keep.sock")
        assert give(other, reader) == "ok"
        other.close()
    for fd in (reader, writer, null):
        os.close(fd)
    with open(path, "rb") as again:
        assert again.read() == b"unread"
    until(lambda: not psutil.pid_exists(pid))
