"""How pumps end: sinks that fail, cancelling, callbacks, forks, and the end of the interpreter."""

from __future__ import annotations

import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fifo_kit import LONG, READ, WRITE, open_files, until
from relay_kit import MIB, data, feed, read_all, steady, threads

from libctrd import relay
from libctrd.errors import CancelledError, UnavailableError
from libctrd.fifo import open_fifo

__all__ = ["steady"]


# C12
def test_when_a_sink_has_gone_the_source_is_drained() -> None:
    read, write = os.pipe()
    to_read, to_write = os.pipe()
    pump = relay.copy(read, to_write, on_sink_error="drain", close_sink=True)
    os.close(to_read)
    assert feed(write, bytes(4 * MIB)).result() == 4 * MIB
    assert pump.wait(LONG)
    assert isinstance(pump.error, UnavailableError)
    assert pump.error.errno == 32
    assert str(to_write) in str(pump.error)
    os.close(read)


# C12
def test_when_a_sink_has_gone_the_source_may_be_closed() -> None:
    read, write = os.pipe()
    to_read, to_write = os.pipe()
    pump = relay.copy(read, to_write, on_sink_error="close", close_sink=True)
    os.close(read)
    os.close(to_read)
    assert pump.wait(LONG)  # though the source gave nothing: a silent one must not keep it
    assert pump.error is not None
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket", "tty"])
def test_a_sink_that_dies_while_the_source_is_silent_is_noticed(kind: str, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    if kind == "pipe":
        peer, sink = os.pipe()
    elif kind == "socket":
        peer, sink = (one.detach() for one in socket.socketpair())
    elif kind == "tty":
        peer, sink = pty.openpty()
    else:
        os.mkfifo(tmp_path / "fifo")
        peer = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        sink = os.open(tmp_path / "fifo", os.O_WRONLY)
    pump = relay.copy(slave, sink, on_sink_error="close", close_sink=True)
    assert not pump.wait(0.02)
    os.close(peer)
    assert pump.wait(LONG)
    assert pump.error is not None
    os.close(master)
    os.close(slave)


def test_a_full_disk_is_told_and_the_writer_goes_on() -> None:
    read, write = os.pipe()
    with open("/dev/full", "wb", buffering=0) as full:
        pump = relay.copy(read, full.fileno())
    assert feed(write, bytes(MIB)).result() == MIB
    assert pump.wait(LONG)
    assert pump.error is not None
    assert pump.error.errno == 28
    assert pump.bytes == 0
    os.close(read)


def test_a_source_that_fails_is_told_after_what_it_gave() -> None:
    ours, theirs = socket.socketpair()
    pump = relay.buffer(ours.fileno())
    theirs.send(b"before")
    until(lambda: pump.bytes == 6)
    ours.send(b"unread")  # closing with this unread resets the connection
    theirs.close()
    assert pump.wait(LONG)
    assert pump.read(100) == b"before"
    with pytest.raises(UnavailableError, match="read"):
        pump.read(100)
    ours.close()


def test_cancel_ends_whatever_state_it_is_in(tmp_path: Path) -> None:
    read, write = os.pipe()
    full_read, full_write = os.pipe()
    os.set_blocking(full_write, False)
    while True:
        try:
            os.write(full_write, bytes(4096))
        except BlockingIOError:
            break
    pumps = [
        relay.discard(read),
        relay.buffer(read, limit=1),
        relay.copy(full_read, full_write),
        relay.copy(read, open_fifo(tmp_path / "never", WRITE | os.O_CREAT)),
        relay.discard(open_fifo(tmp_path / "silent", READ | os.O_CREAT)),
    ]
    for pump in pumps:
        pump.cancel()
        pump.cancel()
    for pump in pumps:
        assert pump.wait(LONG)
        assert isinstance(pump.error, CancelledError)
    with pytest.raises(CancelledError):
        pumps[1].read()  # type: ignore[attr-defined]
    for fd in (read, write, full_read, full_write):
        os.close(fd)


def test_a_buffer_nobody_refers_to_lets_go_of_its_source() -> None:
    read, write = os.pipe()
    pump = relay.buffer(read)
    os.close(read)
    del pump
    until(lambda: relay.active() == 0)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


# C28
def test_a_callback_gets_every_byte_in_order() -> None:
    read, write = os.pipe()
    content, ended = data(16 * MIB), threading.Event()
    got: list[bytes] = []
    pump = relay.call(read, got.append)
    pump.on_done(lambda _: ended.set())
    feed(write, content).result()
    assert ended.wait(LONG)
    assert b"".join(got) == content
    assert pump.error is None
    os.close(read)


def test_a_slow_callback_stops_its_own_source_only() -> None:
    read, write = os.pipe()
    inside, release = threading.Event(), threading.Event()

    def slow(_: bytes) -> None:
        inside.set()
        assert release.wait(LONG)

    pump = relay.call(read, slow, limit=65536)
    writer = feed(write, bytes(2 * MIB))
    assert inside.wait(LONG)
    for _ in range(20):
        other_read, other_write = os.pipe()
        got: list[bytes] = []
        ended = threading.Event()
        relay.call(other_read, got.append).on_done(lambda _, ended=ended: ended.set())  # type: ignore[misc]
        os.write(other_write, b"quick")
        os.close(other_write)
        os.close(other_read)
        assert ended.wait(LONG)
        assert got == [b"quick"]
    assert not pump.done
    assert pump.bytes <= 3 * 65536
    release.set()
    assert writer.result() == 2 * MIB
    assert pump.wait(LONG)
    os.close(read)


@pytest.mark.parametrize("policy", ["drain", "close"])
def test_a_raising_callback_ends_its_own_source(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    read, write = os.pipe()
    calls = []

    def bad(content: bytes) -> None:
        calls.append(content)
        raise ZeroDivisionError("on purpose")

    ended = threading.Event()
    with caplog.at_level(logging.ERROR, "libctrd"):
        pump = relay.call(read, bad, on_sink_error=policy)  # type: ignore[arg-type]
        pump.on_done(lambda _: ended.set())
        os.close(read)
        if policy == "drain":
            assert feed(write, bytes(4 * MIB)).result() == 4 * MIB
        else:
            os.write(write, b"x")
        assert pump.wait(LONG)
        assert ended.wait(LONG)
    assert len(calls) == 1
    assert isinstance(pump.error, UnavailableError)
    assert isinstance(pump.error.__cause__, ZeroDivisionError)
    assert "on purpose" in caplog.text
    if policy == "close":
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)


def test_on_done_is_called_exactly_once_whenever_it_is_registered(caplog: pytest.LogCaptureFixture) -> None:
    for round_ in range(200):
        read, write = os.pipe()
        calls: list[int] = []
        pump = relay.discard(read)

        def raising(_: relay.Pump) -> None:
            raise ValueError("ignored")

        pump.on_done(raising)
        pump.on_done(lambda _, calls=calls: calls.append(1))  # type: ignore[misc]
        os.close(write)
        pump.on_done(lambda _, calls=calls: calls.append(2))  # type: ignore[misc]
        if round_ % 2:
            assert pump.wait(LONG)
        pump.on_done(lambda _, calls=calls: calls.append(3))  # type: ignore[misc]
        until(lambda calls=calls: len(calls) == 3)  # type: ignore[misc]
        os.close(read)
        assert sorted(calls) == [1, 2, 3]
    caplog.clear()


# C17
def test_ctrl_c_interrupts_a_wait() -> None:
    read, write = os.pipe()
    pump = relay.buffer(read)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pump.read(1)
    timer.join()
    os.write(write, b"x")
    assert pump.read(1, timeout=LONG) == b"x"
    os.close(read)
    os.close(write)


def test_a_forked_child_starts_clean_and_the_parent_goes_on() -> None:
    read, write = os.pipe()
    to_read, to_write = os.pipe()
    content = data(8 * MIB)
    writer = feed(write, content)
    pump = relay.copy(read, to_write, close_sink=True)
    os.close(read)
    report_read, report = os.pipe()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(to_read)
                ours, theirs = os.pipe()
                fresh = relay.buffer(ours)
                os.write(theirs, b"child")
                os.close(theirs)
                good = pump.done and isinstance(pump.error, CancelledError) and fresh.read(timeout=10) == b"child"
                code = 0 if good and relay.active() == 0 else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    os.close(report_read)
    os.close(report)
    assert read_all(to_read) == content
    assert pump.wait(LONG)
    assert pump.error is None
    writer.result()


def test_a_child_that_lives_on_does_not_keep_an_end_away() -> None:
    read, write = os.pipe()
    to_read, to_write = os.pipe()
    gate_read, gate_write = os.pipe()
    pump = relay.copy(read, to_write, close_sink=True)  # the relay alone holds that write end
    child = os.fork()
    if child == 0:
        try:
            os.close(write)
            os.close(gate_write)
            os.read(gate_read, 1)
        finally:
            os._exit(0)
    os.write(write, b"x")
    os.close(write)
    assert read_all(to_read) == b"x"
    assert pump.wait(LONG)
    os.close(gate_write)
    assert os.waitpid(child, 0)[1] == 0
    os.close(gate_read)
    os.close(read)


EXITS = {
    "pumps under way": "p = relay.copy(r, w2); d = relay.discard(r); b = relay.buffer(r)",
    "a blocked callback": "go = threading.Event(); relay.call(r, lambda _: (go.set(), threading.Event().wait()));"
    "os.write(w, b'x'); go.wait()",
    "a waiting thread": "b = relay.buffer(r); threading.Thread(target=b.read, daemon=True).start()",
    "a source that never stops": "z = os.open('/dev/zero', os.O_RDONLY); p = relay.discard(z); p.wait(0.05)",
    "on_done registered": "p = relay.discard(r); p.on_done(print)",
    "a fork inside": "p = relay.discard(r); pid = os.fork(); pid and os.waitpid(pid, 0)",
    "new pumps at exit": "import atexit; atexit.register(lambda: relay.discard(r))",
}


@pytest.mark.parametrize("name", EXITS)
def test_the_interpreter_ends_at_once_with(name: str) -> None:
    program = f"import os, threading\nfrom libctrd import relay\nr, w = os.pipe(); r2, w2 = os.pipe()\n{EXITS[name]}\n"
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]  # of the fork, since Python 3.12
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - began < LONG / 2


def test_the_interpreter_ends_at_once_with_stdin_from_a_terminal() -> None:
    master, slave = pty.openpty()
    program = "import os; from libctrd import relay; r, w = os.pipe(); p = relay.copy(0, w); print(p.wait(0.05))"
    done = subprocess.run([sys.executable, "-c", program], stdin=slave, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"False\n", b"")
    assert os.get_blocking(slave)  # its flags are not ours
    os.close(master)
    os.close(slave)


GROWING = """
import fcntl, os, sys
from libctrd import relay
free = sys.argv[1] == "with"
if not free and os.geteuid() == 0:
    os.setuid(54322)   # and by that no capabilities; all pipes of a user count, and of this one there are no others
size = lambda fd: fcntl.fcntl(fd, 1032)
pipes = [os.pipe() for _ in range(12)]
pumps = [relay.discard(read) for read, _ in pipes]
for _, write in pipes:
    for _ in range(64):
        os.write(write, bytes(65536))
import time
end = time.monotonic() + 10
want = 12 if free else 8
while sum(size(read) == 1 << 20 for read, _ in pipes) != want:
    assert time.monotonic() < end, [size(read) for read, _ in pipes]
while not free and any(size(read) != 65536 for read, _ in pipes):   # idle by now: given back
    assert time.monotonic() < end, [size(read) for read, _ in pipes]
print("good")
"""


@pytest.mark.linux("the size of a pipe, which POSIX does not tell nor change")
@pytest.mark.parametrize("capabilities", ["with", "without"])
def test_busy_pipes_grow_and_are_given_back_where_they_are_not_free(capabilities: str) -> None:
    program = [sys.executable, "-c", GROWING, capabilities]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3 * LONG)  # it has limits of its own
    assert (done.stdout, done.stderr, done.returncode) == ("good\n", "", 0)


def test_the_same_descriptors_and_threads_after_thousands_of_pumps() -> None:
    before, files = threads(), open_files()
    for _ in range(2000):
        read, write = os.pipe()
        pump = relay.buffer(read)
        os.write(write, b"x")
        os.close(write)
        os.close(read)
        assert pump.read(timeout=LONG) == b"x"
    assert threads() == before
    until(lambda: open_files() == files)
