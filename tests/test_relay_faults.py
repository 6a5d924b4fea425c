"""The relay when the system refuses something: what was refused is said, and nothing is lost, left or waited for."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from fault_kit import fails, in_python
from fifo_kit import LONG, READ, WRITE, path_fixture, until
from relay_kit import data, steady

from libctrd import relay
from libctrd.errors import CtrdError, InvalidArgumentError, UnavailableError
from libctrd.fifo import Fifo, open_fifo

__all__ = ["path_fixture", "steady"]  # fixtures
pytestmark = pytest.mark.linux("which of its system calls fails")

STALLED = 0.5
"""Seconds without room: what is between a full pipe and a full socket has stopped."""

START = """
    from libctrd import relay
    from libctrd.errors import CtrdError
    def count():
        return len(os.listdir("/proc/self/fd"))
    for call, number, when, path in (
        ("epoll_create1", errno.EMFILE, "1", ""),
        ("eventfd2", errno.EMFILE, "1", ""),
        ("eventfd2", errno.EMFILE, "2", ""),
        ("pipe,pipe2", errno.EMFILE, "1", ""),
        ("open,openat", errno.EMFILE, "1", "/dev/null"),
        ("epoll_ctl", errno.ENOSPC, "1", ""),
        ("epoll_ctl", errno.ENOSPC, "2", ""),
        ("clone,clone3", errno.EAGAIN, "1+", ""),
    ):
        reads, writes = os.pipe()
        before = count()
        said = "it went well"
        with fails(call, number, when=when, path=path):
            try:
                relay.discard(reads)
            except CtrdError as error:
                said = str(error)
        print(call, "start the relay" in said, count() - before, relay.active())
    pump = relay.discard(reads)
    os.close(reads)
    os.write(writes, b"all the same")
    os.close(writes)
    print(pump.wait(60), pump.bytes, pump.error)
"""


def test_a_relay_that_cannot_start_says_so_leaves_nothing_and_can_start_later() -> None:
    calls = ["epoll_create1", "eventfd2", "eventfd2", "pipe,pipe2", "open,openat", "epoll_ctl", "epoll_ctl"]
    calls.append("clone,clone3")
    *said, last = in_python(START).splitlines()
    assert said == [f"{call} True 0 0" for call in calls]
    assert last == "True 12 None"


def test_a_source_that_cannot_be_watched_fails_its_own_pump_only() -> None:  # C17
    reads, writes = os.pipe()
    with fails("epoll_ctl", errno.ENOSPC):
        pump = relay.discard(reads)
        assert pump.wait(LONG)
    assert isinstance(pump.error, UnavailableError)
    assert "epoll_ctl" in str(pump.error)
    other = relay.discard(reads)
    for fd in (reads, writes):
        os.close(fd)
    assert other.wait(LONG)
    assert other.error is None


def test_a_reader_that_cannot_be_watched_for_is_found_by_the_clock(path: Path) -> None:  # C17
    script = """
        from libctrd import relay
        from libctrd.fifo import open_fifo
        reads, writes = os.pipe()
        sink = open_fifo(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT)
        os.write(writes, b"it comes through")
        os.close(writes)
        with fails(sys.argv[2], int(sys.argv[4]), when=sys.argv[3]):
            pump = relay.copy(reads, sink)
            relay.discard(os.open("/dev/null", os.O_RDONLY)).wait(60)  # what came before it is under way then
            reader = open(sys.argv[1], "rb")
            print(reader.read(), pump.wait(60), pump.error)
    """
    for call, when, number in (
        ("epoll_ctl", "3", errno.ENOSPC),
        ("inotify_init1", "1", errno.EMFILE),
        ("inotify_add_watch", "1", errno.ENOSPC),
    ):
        said = in_python(script, str(path), call, when, str(int(number)))
        assert said == "b'it comes through' True None\n", call


def test_a_callback_waits_for_a_thread_that_cannot_be_started() -> None:  # C28
    """Neither the one that gives out the work nor one that does it: each is tried again."""
    script = """
        from libctrd import relay
        from libctrd.errors import UnavailableError
        called = threading.Event()
        reads, writes = os.pipe()
        relay.discard(reads).cancel()  # so that the relay itself is there
        with fails("clone,clone3", errno.EAGAIN):
            try:
                relay.call(reads, print)
            except UnavailableError as error:
                print("refused:", error)
        started = threading.Event()
        relay.discard(os.open("/dev/null", os.O_RDONLY)).on_done(lambda _: started.set())
        started.wait(60)
        block = threading.Event()
        def wait(data):
            called.set()
            block.wait(60)
        relay.call(reads, wait)
        os.write(writes, b"x")
        called.wait(60)  # the only worker is in a callback that does not return: the next job takes a new one
        later = threading.Event()
        with fails("clone,clone3", errno.EAGAIN, when="1..2"):  # of the thread that starts them
            relay.discard(os.open("/dev/null", os.O_RDONLY)).on_done(lambda _: later.set())
            print(later.wait(60))
        block.set()
    """
    assert in_python(script) == (
        "refused: could not start the thread 'ctrd-relay-dispatch': can't start new thread (the limit of processes or "
        "of memory is reached: see ulimit -u and pids.max of the cgroup)\nTrue\n"
    )


# ---- while bytes move ------------------------------------------------------------------------------------------------


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    return str(path)


def ended(pump: Any) -> str:
    """What it failed with, once it is over."""
    assert pump.wait(LONG)
    return str(pump.error)


def test_a_file_that_cannot_be_read_fails_the_pump(file: str) -> None:
    """Thrown away, read by a callback, kept in a buffer, copied with and without a buffer between."""
    ours, its = socket.socketpair()
    reads, writes = os.pipe()
    for call, make in (
        ("read", relay.discard),
        ("read", relay.buffer),
        ("read", lambda fd: relay.call(fd, lambda data: None)),
        ("read", lambda fd: relay.copy(fd, its.fileno())),
        ("splice", lambda fd: relay.copy(fd, writes)),
    ):
        fd = os.open(file, os.O_RDONLY)
        with fails(call, errno.EIO, path="" if call == "splice" else file):
            said = ended(make(fd))
        assert f"read from descriptor {fd} (read)" in said, call
        assert os.strerror(errno.EIO) in said
        os.close(fd)
    for end in (reads, writes):
        os.close(end)
    ours.close()
    its.close()


def test_a_pipe_that_cannot_be_read_fails_what_throws_it_away() -> None:
    reads, writes = os.pipe()
    os.write(writes, b"x")
    with fails("splice", errno.EIO):
        assert "read from" in ended(relay.discard(reads))
    os.close(reads)
    os.close(writes)


def test_a_file_that_cannot_be_written_fails_the_sink_and_the_source_is_drained(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    reads, writes = os.pipe()
    os.write(writes, b"x" * 1000)
    with fails("splice", errno.EIO):
        pump = relay.copy(reads, out)
        until(lambda: pump.error is not None, "the failure")
    assert f"write to descriptor {out} (write)" in str(pump.error)
    os.write(writes, b"nobody waits")
    for fd in (reads, writes, out):
        os.close(fd)
    assert pump.wait(LONG)


def test_what_a_sink_did_not_take_is_lost_with_it_and_said_to_be(steady: None) -> None:
    """It stalls, and then it fails: the rest that waits for it must not wait for ever."""
    ours, its = socket.socketpair()
    reads, writes = os.pipe()
    pump = relay.copy(reads, its.fileno())
    os.set_blocking(writes, False)
    while select.select([], [writes], [], STALLED)[1]:  # until both are full, and so something waits between them
        with contextlib.suppress(BlockingIOError):
            os.write(writes, data(65536))
    with fails("sendto", errno.ENETDOWN):
        ours.recv(1 << 20)
        until(lambda: pump.error is not None, "the failure")
    assert os.strerror(errno.ENETDOWN) in str(pump.error)
    for fd in (reads, writes):
        os.close(fd)
    ours.close()
    its.close()
    assert pump.wait(LONG)


def test_what_cannot_say_how_much_it_holds_is_finished_at_once() -> None:
    """Of a device without an end, which a `finish` would else never end."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    pump = relay.discard(fd)
    os.close(fd)
    pump.finish()
    assert pump.wait(LONG)
    assert pump.error is None


@pytest.mark.parametrize("way", ["a callback", "a callback that raises", "on_done"])
def test_a_callback_that_forks_is_over_in_the_child(way: str) -> None:  # C17
    """In the child nothing more is called, and it ends; the parent goes on as if nothing had been."""
    script = """
        from libctrd import relay
        reads, writes = os.pipe()
        told, children = [], []
        def fork():
            if children:
                return
            pid = os.fork()
            if pid:
                children.append(pid)
            elif sys.argv[1] == "a callback that raises":
                os.close(2)
                raise ValueError("in the child")
        def take(data):
            told.append(data)
            if sys.argv[1] != "on_done":
                fork()
        pump = relay.call(reads, take)
        over = threading.Event()
        if sys.argv[1] == "on_done":
            pump.on_done(lambda _: fork())
        pump.on_done(lambda _: over.set())
        os.write(writes, b"one")
        while not told or (sys.argv[1] != "on_done" and not children):
            os.sched_yield()
        os.write(writes, b"two")
        os.close(writes)
        print(over.wait(60), b"".join(told), os.waitpid(children[0], 0)[1])
    """
    assert in_python(script, way) == "True b'onetwo' 0\n"


# ---- what a fifo has read ahead --------------------------------------------------------------------------------------


class Enough(Exception):
    """What a handler of signals raises."""


@pytest.fixture
def ahead(path: Path) -> tuple[Fifo, Fifo]:
    """A read end that has read ahead: a handler of signals raised in the middle of a read to the end."""
    reader = open_fifo(path, READ | os.O_CREAT)
    writer = open_fifo(path, WRITE)
    writer.write(b"read before")

    def raise_it(*_: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Enough):
            reader.read()
    finally:
        signal.signal(signal.SIGALRM, before)
    writer.write(b", and after")
    writer.close()
    return reader, writer


@pytest.mark.parametrize("kind", ["discard", "copy", "buffer", "call"])
def test_what_a_fifo_has_read_ahead_comes_first(ahead: tuple[Fifo, Fifo], kind: str) -> None:  # C28
    reader, _ = ahead
    told: list[bytes] = []
    reads, writes = os.pipe()
    pump = {
        "discard": relay.discard,
        "copy": lambda fifo: relay.copy(fifo, writes),
        "buffer": relay.buffer,
        "call": lambda fifo: relay.call(fifo, told.append),
    }[kind](reader)
    if kind == "buffer":
        told.append(pump.read())  # type: ignore[attr-defined]
    assert pump.wait(LONG)
    os.close(writes)
    with open(reads, "rb") as copied:
        told.append(copied.read())
    assert b"".join(told) == (b"" if kind == "discard" else b"read before, and after")
    assert pump.bytes == len(b"read before, and after")


def test_a_fifo_to_which_no_writer_comes_any_more_is_at_its_end_for_a_pump(path: Path) -> None:
    reader = open_fifo(path, READ | os.O_CREAT)
    reader.no_more_writers()
    pump = relay.discard(reader)
    assert pump.wait(LONG)
    assert pump.error is None


# ---- what it refuses by itself ---------------------------------------------------------------------------------------


def test_a_descriptor_that_is_none_or_cannot_be_duplicated() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with pytest.raises(CtrdError, match="fcntl"):
        relay.discard(reads)
    null = os.open("/dev/null", os.O_RDONLY)
    with fails("fcntl", errno.EMFILE, when="2"), pytest.raises(UnavailableError, match="duplicate"):
        relay.copy(null, writes)
    for fd in (null, writes):
        os.close(fd)


def test_what_an_event_loop_waits_for_takes_descriptors() -> None:
    with fails("eventfd2", errno.EMFILE), pytest.raises(UnavailableError, match="event loop"):
        relay.Bell()
    reads, writes = os.pipe()
    pump = relay.buffer(reads)
    with fails("fcntl", errno.EMFILE), pytest.raises(UnavailableError, match="duplicate the descriptor"):
        pump.duplicate()
    pump.cancel()
    assert pump.wait(LONG)
    for fd in (reads, writes):
        os.close(fd)


def test_what_a_pump_is_not_made_by_and_does_not_take() -> None:
    with pytest.raises(TypeError, match="made by copy"):
        relay.Pump()
    reads, writes = os.pipe()
    pump = relay.buffer(reads)
    with pytest.raises(InvalidArgumentError, match="a function of a pump"):
        pump.on_done("no function")  # type: ignore[arg-type]
    assert pump.read(0) == pump.read_nowait(0) == b""
    assert (pump.source, pump.sink) == (f"descriptor {reads}", None)
    pump.cancel()
    assert pump.wait(LONG)
    with pytest.raises(CtrdError, match="cancelled"):
        pump.read_nowait()
    for fd in (reads, writes):
        os.close(fd)
