"""Waiting for the peer, for bytes and for room: who wakes whom, what interrupts, and what it costs."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fifo_kit import (  # noqa: F401
    READ,
    WRITE,
    Background,
    both,
    open_files,
    path_fixture,
    steady_fixture,
    until,
    waiting,
    way_fixture,
)

from libctrd import fifo as fifo_module
from libctrd.errors import CancelledError, ClosedError, DeadlineError, UnavailableError
from libctrd.fifo import Cancellation, Fifo, open_fifo

pytestmark = pytest.mark.usefixtures("steady", "way")


def blocked_in_open(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Whether the kernel holds *process* in its open of a fifo, the other side of which nobody has."""
    return b"wait_for_partner" in Path(f"/proc/{process.pid}/wchan").read_bytes()


# --- the peer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False], ids=["peer first", "peer later"])
def test_a_peer_process_that_writes_is_read(path: Path, early: bool) -> None:  # C14
    os.mkfifo(path)
    command = ["sh", "-c", f"echo hello > {path}"]
    if early:
        process = subprocess.Popen(command)
        until(lambda: blocked_in_open(process, path))
        reader = open_fifo(path, os.O_RDONLY)
    else:
        opening = Background(open_fifo, path, os.O_RDONLY)
        until(waiting)
        process = subprocess.Popen(command)
        reader = opening.result()
    with reader:
        assert reader.connected
        assert reader.read() == b"hello\n"
    assert process.wait() == 0


@pytest.mark.parametrize("early", [True, False], ids=["peer first", "peer later"])
def test_a_peer_process_that_reads_is_written_to(path: Path, early: bool) -> None:  # C14
    os.mkfifo(path)
    command = ["cat", str(path)]
    if early:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        until(lambda: blocked_in_open(process, path))
        writer = open_fifo(path, os.O_WRONLY)
    else:
        opening = Background(open_fifo, path, os.O_WRONLY)
        until(waiting)
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        writer = opening.result()
    with writer:
        assert writer.connected
        assert writer.write(b"hello\n") == 6
    assert process.communicate()[0] == b"hello\n"


def test_a_reader_that_blocks_in_its_open_comes_through_to_a_writer_that_does_not_wait(
    path: Path,
) -> None:  # C14
    os.mkfifo(path)
    process = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE)
    until(lambda: blocked_in_open(process, path))
    with open_fifo(path, WRITE) as writer:
        assert writer.connected
        writer.write(b"x")
    assert process.communicate()[0] == b"x"


def test_a_writer_that_has_written_nothing_ends_the_wait_of_an_open(path: Path) -> None:  # C14
    os.mkfifo(path)
    opening = Background(open_fifo, path, os.O_RDONLY)
    until(waiting)
    peer = os.open(path, os.O_WRONLY)
    with opening.result() as reader:
        assert reader.connected
        assert reader.read_nowait(1) is None
        os.close(peer)
        assert reader.read() == b""


def test_a_writer_that_came_and_went_ends_the_wait_of_an_open(path: Path) -> None:  # C14
    os.mkfifo(path)
    opening = Background(open_fifo, path, os.O_RDONLY)
    until(waiting)
    path.open("wb").close()
    with opening.result() as reader:
        assert reader.read() == b""


def test_the_first_read_waits_for_the_writer(path: Path) -> None:  # C14
    with open_fifo(path, READ | os.O_CREAT) as reader:
        reading = Background(reader.read, 100)
        until(waiting)
        with open_fifo(path, WRITE) as writer:
            writer.write(b"x")
            assert reading.result() == b"x"


def test_the_first_write_waits_for_the_reader(path: Path) -> None:  # C14
    with open_fifo(path, WRITE | os.O_CREAT) as writer:
        writing = Background(writer.write, b"x")
        until(waiting)
        with open_fifo(path, READ) as reader:
            assert reader.read(100) == b"x"
            assert writing.result() == 1


def test_one_reader_wakes_every_writer_on_its_inode(path: Path) -> None:  # C16
    writers = [open_fifo(path, WRITE | os.O_CREAT) for _ in range(5)]
    writings = [Background(writer.write, b"x") for writer in writers]
    until(lambda: waiting() == 5)
    with open_fifo(path, READ) as reader:
        assert [writing.result() for writing in writings] == [1] * 5
        for writer in writers:
            writer.close()
        assert reader.read() == b"xxxxx"


def test_a_writer_that_opens_beside_another_is_not_taken_for_its_reader(path: Path) -> None:  # C14
    with open_fifo(path, WRITE | os.O_CREAT) as first:
        writing = Background(first.write, b"first")
        until(waiting)
        for _ in range(200):
            open_fifo(path, WRITE).close()
        until(waiting)  # it looks at each of them, and goes on waiting
        with open_fifo(path, READ) as reader:
            assert writing.result() == 5
            assert reader.read(10) == b"first"


def test_two_ends_that_open_at_the_same_time_always_meet(path: Path) -> None:  # C14
    dice = random.Random(7)
    for turn in range(100):
        ends: list[Callable[[], Fifo]] = [
            lambda: open_fifo(path, os.O_RDONLY | os.O_CREAT),
            lambda: open_fifo(path, os.O_WRONLY | os.O_CREAT),
        ]
        dice.shuffle(ends)
        opening = [Background(end) for end in ends]
        opened = {fifo.mode: fifo for fifo in (one.result() for one in opening)}
        assert opened["write"].write(b"%d" % turn) > 0
        opened["write"].close()
        assert opened["read"].read() == b"%d" % turn
        opened["read"].close()
        if turn % 3 == 0:
            path.unlink()


# --- what ends a wait ---------------------------------------------------------------------------------------


def waits(path: Path) -> dict[str, tuple[Fifo, Callable[[], object]]]:
    """Every way to wait on a fifo whose peer is not there."""
    reader, writer = (
        open_fifo(path.with_name("r"), READ | os.O_CREAT),
        open_fifo(path.with_name("w"), WRITE | os.O_CREAT),
    )
    third, fourth = (
        open_fifo(path.with_name("r2"), READ | os.O_CREAT),
        open_fifo(path.with_name("w2"), WRITE | os.O_CREAT),
    )
    return {
        "read": (reader, reader.read),
        "write": (writer, lambda: writer.write(b"x")),
        "reader's peer": (third, third.wait_connected),
        "writer's peer": (fourth, fourth.wait_connected),
    }


@pytest.mark.parametrize("what", ["read", "write", "reader's peer", "writer's peer"])
def test_a_close_from_another_thread_ends_it(path: Path, what: str) -> None:  # C15
    kinds = waits(path)
    fifo, wait = kinds[what]
    under_way = [Background(wait) for _ in range(3)]
    until(lambda: waiting() == 3)
    fifo.close()
    for one in under_way:
        with pytest.raises(ClosedError, match="closed"):
            one.result()
    for other, _ in kinds.values():
        other.close()


@pytest.mark.parametrize("what", ["close", "no_more_writers"])
def test_a_close_or_an_end_told_at_any_moment_is_never_missed(path: Path, what: str) -> None:  # C15
    for _ in range(300):
        reader = open_fifo(path, READ | os.O_CREAT)
        reading = Background(reader.read)
        getattr(reader, what)()  # before the read, in the middle of its look, or while it waits
        if what == "close":
            with pytest.raises(ClosedError):
                reading.result()
        else:
            assert reading.result() == b""
        reader.close()


def test_a_close_ends_the_wait_of_connected_ends_too(path: Path) -> None:  # C15
    reader, writer = both(path)
    reading = Background(reader.read)
    until(waiting)
    reader.close()
    with pytest.raises(ClosedError):
        reading.result()
    with open_fifo(path, READ) as reader:
        room = writer.write_nowait(bytes(1 << 21))
        writing = Background(writer.write, b"x")
        until(waiting)
        writer.close()
        with pytest.raises(ClosedError, match="written"):
            writing.result()
        assert len(reader.read()) == room


def test_a_reader_that_goes_ends_the_wait_for_room(path: Path) -> None:  # C15
    reader, writer = both(path)
    with writer:
        writing = Background(writer.write, bytes(1 << 21))
        until(waiting)
        reader.close()
        with pytest.raises(UnavailableError, match="reader has gone"):
            writing.result()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_an_open_that_waits_can_be_cancelled(path: Path, flags: int) -> None:  # C14 C15
    files, cancel = open_files(), Cancellation()
    opening = [Background(lambda: open_fifo(path, flags | os.O_CREAT, cancel=cancel)) for _ in range(3)]
    until(lambda: waiting() == 3)
    assert not cancel.cancelled
    cancel.cancel()
    cancel.cancel()
    for one in opening:
        with pytest.raises(CancelledError, match="cancelled before its peer came"):
            one.result()
    assert cancel.cancelled
    with pytest.raises(CancelledError):
        open_fifo(path, flags, cancel=cancel)
    assert open_files() == files


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_an_open_that_waits_has_a_deadline(path: Path, flags: int) -> None:  # C15
    files = open_files()
    for timeout in (0, 0.05):
        start = time.monotonic()
        with pytest.raises(DeadlineError, match="did not come in time"):
            open_fifo(path, flags | os.O_CREAT, timeout=timeout)
        assert timeout <= time.monotonic() - start < timeout + 2
    assert open_files() == files


@pytest.mark.parametrize("what", ["read", "read_nowait", "write", "write_nowait", "wait_connected"])
def test_what_bounds_an_open_that_did_not_wait_ends_its_first_use(path: Path, what: str) -> None:  # C15
    flags = (READ if "read" in what else WRITE) | os.O_CREAT
    argument = {"read": (1,), "read_nowait": (1,), "write": (b"x",), "write_nowait": (b"x",)}.get(what, ())
    fifo = open_fifo(path, flags, timeout=0.02)
    if "nowait" in what:
        assert not getattr(fifo, what)(*argument), "in time"
        end = time.monotonic() + 0.02
        until(lambda: time.monotonic() > end)
    with pytest.raises(DeadlineError):
        getattr(fifo, what)(*argument)
    assert fifo.closed
    cancel = Cancellation()
    fifo = open_fifo(path, flags, cancel=cancel)
    if "nowait" not in what:
        using = Background(getattr(fifo, what), *argument)
        until(waiting)
        cancel.cancel()
        with pytest.raises(CancelledError):
            using.result()
    else:
        cancel.cancel()
        with pytest.raises(CancelledError):
            getattr(fifo, what)(*argument)
    assert fifo.closed


def test_once_the_peer_has_come_neither_deadline_nor_cancellation_matter(path: Path) -> None:  # C15
    cancel = Cancellation()
    with open_fifo(path, READ | os.O_CREAT, timeout=0.02, cancel=cancel) as reader:
        peer = os.open(path, os.O_WRONLY)  # it writes nothing: poll does not tell of it
        reading = Background(reader.read)
        until(waiting)
        cancel.cancel()
        end = time.monotonic() + 0.04
        until(lambda: time.monotonic() > end)
        os.write(peer, b"late")
        os.close(peer)
        assert reading.result() == b"late"


def test_waiting_for_the_peer_has_a_limit_of_its_own(path: Path) -> None:  # C12
    with open_fifo(path, WRITE | os.O_CREAT) as writer:
        with pytest.raises(DeadlineError, match="still waited for"):
            writer.wait_connected(timeout=0.03)
        assert not writer.closed
        with open_fifo(path, READ):
            writer.wait_connected(timeout=0)
            writer.wait_connected()


# --- Ctrl-C and other signals -------------------------------------------------------------------------------


def interrupt_once_waiting() -> None:
    until(waiting)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("what", ["open to read", "open to write", "read", "write", "room"])
def test_ctrl_c_interrupts_it_and_nothing_is_leaked(path: Path, what: str) -> None:  # C17
    files = open_files()
    reader, writer = both(path.with_name("connected"))
    if what == "room":
        writer.write_nowait(bytes(1 << 21))
    blocking: dict[str, Callable[[], object]] = {
        "open to read": lambda: open_fifo(path, os.O_RDONLY | os.O_CREAT),
        "open to write": lambda: open_fifo(path, os.O_WRONLY | os.O_CREAT),
        "read": reader.read,
        "write": lambda: open_fifo(path, WRITE | os.O_CREAT).write(b"x"),
        "room": lambda: writer.write(b"x"),
    }
    for _ in range(5):
        interrupting = Background(interrupt_once_waiting)
        with pytest.raises(KeyboardInterrupt):
            blocking[what]()
        interrupting.result()
    reader.close()
    writer.close()
    assert open_files() == files


def test_what_an_interrupted_read_to_the_end_had_taken_is_not_lost(path: Path) -> None:  # C28
    reader, writer = both(path)
    with reader:
        writer.write(b"taken ")
        interrupting = Background(interrupt_once_waiting)
        with pytest.raises(KeyboardInterrupt):
            reader.read()
        interrupting.result()
        with pytest.raises(UnavailableError, match="6 bytes were read ahead"):
            reader.detach()
        writer.write(b"and more")
        writer.close()
        assert reader.read_nowait(2) == b"ta"
        assert reader.read(3) == b"ken"
        assert reader.read() == b" and more"


def test_ctrl_c_gets_through_to_a_read_whose_writer_never_pauses(path: Path) -> None:  # C17
    reader = open_fifo(path, READ | os.O_CREAT)
    process = subprocess.Popen(["sh", "-c", f"exec yes > {path}"], stderr=subprocess.DEVNULL)
    with reader:
        reader.wait_connected()
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            reader.read()
        timer.join()
    assert process.wait() != 0


def test_a_signal_that_is_handled_does_not_end_a_read(path: Path) -> None:  # C17
    """It is sent to the thread that reads: the system may give one of the whole process to another, and then Python
    calls no handler before the main thread is back.
    """
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    reader, writer = both(path)

    def disturb() -> None:
        for count in range(20):
            until(waiting)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            until(lambda count=count: len(seen) > count)
        writer.write(b"undisturbed")

    with reader, writer:
        disturbing = Background(disturb)
        assert reader.read(100) == b"undisturbed"
        disturbing.result()
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_close_the_fifo_that_is_read(path: Path) -> None:  # C15
    reader, writer = both(path)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: reader.close())

    def disturb() -> None:
        until(waiting)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    with writer:
        disturbing = Background(disturb)
        with pytest.raises(ClosedError):
            reader.read(100)
        disturbing.result()
    signal.signal(signal.SIGUSR1, before)


# --- what waiting costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["read", "write", "reader's peer", "writer's peer"])
def test_a_thread_that_waits_sleeps(path: Path, what: str, way: str) -> None:  # C17
    kinds = waits(path)
    fifo, wait = kinds[what]
    woken: list[int] = []

    def watched() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        try:
            wait()
        except ClosedError:
            woken.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before)

    watching = Background(watched)
    until(waiting)
    end = time.monotonic() + 0.25
    until(lambda: time.monotonic() > end)
    fifo.close()
    watching.result()
    # The GIL costs some switches; a retry every 25 ms, where nothing announces a peer, makes 10 turns.
    assert woken[0] <= (8 if way == "linux" or what == "read" else 30)
    for other, _ in kinds.values():
        other.close()


def test_watches_go_with_those_who_waited(path: Path, way: str) -> None:  # C17
    writers = [open_fifo(path.with_name(f"w{i % 10}"), WRITE | os.O_CREAT) for i in range(40)]
    under_way = [Background(writer.wait_connected) for writer in writers]
    until(lambda: waiting() == 40)
    if way == "linux":
        until(lambda: fifo_module._counts()[0] == 40)
    for writer in writers:
        writer.close()
    for one in under_way:
        with pytest.raises(ClosedError):
            one.result()
    assert fifo_module._counts()[:2] == (0, 0)
