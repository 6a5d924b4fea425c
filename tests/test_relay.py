"""The relay moves every byte from any source to any sink, in order, and nobody waits for another."""

from __future__ import annotations

import os
import resource
import socket
import threading
from pathlib import Path

import pytest
from fifo_kit import LONG, READ, WRITE, Background, until
from relay_kit import MIB, Sink, Source, data, feed, read_all, sha, steady, threads

from libctrd import relay
from libctrd.errors import DeadlineError, InvalidArgumentError
from libctrd.fifo import Fifo, open_fifo

__all__ = ["steady"]
SOURCES = ["pipe", "fifo", "socket", "file", "tty", "master"]
SINKS = ["pipe", "fifo", "socket", "file", "append", "tty", "master", "null"]


# C28
@pytest.mark.parametrize("sink_kind", SINKS)
@pytest.mark.parametrize("source_kind", SOURCES)
def test_every_source_goes_into_every_sink(source_kind: str, sink_kind: str, tmp_path: Path) -> None:
    source, sink = Source(source_kind, tmp_path), Sink(sink_kind, tmp_path)
    content = data(300_000)
    writer = source.give(content)
    sink.begin(len(content))
    pump = relay.copy(source.end, sink.end, close_sink=sink_kind != "master")
    source.hang_up(lambda: pump.bytes == len(content))
    assert pump.wait(LONG)
    if writer is not None:
        writer.result()
    source.close()
    got = sink.got()
    assert pump.error is None
    assert pump.bytes == len(content)
    assert got is None or sha(got) == sha(content)


# C28
@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket", "tty", "file"])
@pytest.mark.parametrize("source_kind", ["fifo", "socket"])
def test_64_mib_with_a_reader_that_sleeps(source_kind: str, kind: str, tmp_path: Path) -> None:
    source, sink = Source(source_kind, tmp_path), Sink(kind, tmp_path)
    content = data((16 if kind == "tty" else 64) * MIB)
    writer = source.give(content)
    sink.begin(len(content), pause=0.01)
    pump = relay.copy(source.end, sink.end, close_sink=True)
    assert pump.wait(60)
    assert writer is not None
    writer.result()
    source.close()
    assert sha(sink.got() or b"") == sha(content)


# C28
def test_nothing_piles_up_behind_a_sink_that_is_not_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    to_read, to_write = socket.socketpair()
    pump = relay.copy(read, to_write.fileno())
    to_write.close()
    os.set_blocking(write, False)
    block, given = bytes(65536), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    idle = 0
    while idle < 20:  # until the writer has been held back for a while
        try:
            given += os.write(write, block)
            idle = 0
        except BlockingIOError:
            idle += 1
            threading.Event().wait(0.005)
    assert given < 3 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB
    os.close(write)
    os.close(read)
    assert len(read_all(to_read.detach())) == given == (pump.wait(LONG) and pump.bytes)


# Field: our own standard output is read slowly
def test_a_slow_sink_stops_its_own_source_only() -> None:
    stuck_read, stuck_write = os.pipe()
    slow_read, slow_write = os.pipe()
    stuck = relay.copy(stuck_read, slow_write)
    writer = feed(stuck_write, data(4 * MIB))
    for _ in range(20):
        read, write = os.pipe()
        content = data(MIB)
        other = feed(write, content)
        assert relay.buffer(read).read(timeout=LONG) == content
        other.result()
        os.close(read)
    assert not stuck.done
    os.close(slow_write)
    os.close(stuck_read)
    assert len(read_all(slow_read)) == 4 * MIB
    writer.result()
    assert stuck.wait(LONG)


# C17
def test_a_thousand_pumps_at_once_need_one_thread() -> None:
    before = threads()
    pipes = [os.pipe() for _ in range(1000)]
    pumps = [relay.buffer(read) for read, _ in pipes]
    assert threads() == before
    assert relay.active() >= 1000
    for number, (_, write) in enumerate(pipes):
        os.write(write, b"%d" % number)
    for read, write in pipes:
        os.close(read)
        os.close(write)
    for number, pump in enumerate(pumps):
        assert pump.read(timeout=LONG) == b"%d" % number


# C12
def test_discard_keeps_the_writer_going_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    pump = relay.discard(open_fifo(path, READ | os.O_CREAT))
    assert not pump.wait(0.02)  # a read of nothing before the first writer is not the end
    writer = feed(os.open(path, os.O_WRONLY), bytes(8 * MIB))
    assert pump.wait(LONG)
    assert writer.result() == pump.bytes == 8 * MIB


# C12
def test_no_more_writers_ends_what_never_had_one(tmp_path: Path) -> None:
    pump = relay.discard(open_fifo(tmp_path / "fifo", READ | os.O_CREAT))
    assert not pump.wait(0.01)
    pump.no_more_writers()
    assert pump.wait(LONG)
    assert pump.error is None


# C12
def test_no_more_writers_awaits_the_writer_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    pump = relay.buffer(open_fifo(path, READ | os.O_CREAT))
    write = os.open(path, os.O_WRONLY)
    pump.no_more_writers()
    assert not pump.wait(0.02)
    os.write(write, b"last words")
    os.close(write)
    assert pump.read(timeout=LONG) == b"last words"


# C28
def test_finish_delivers_what_is_there_and_waits_for_no_more() -> None:
    read, write = os.pipe()
    to_read, to_write = os.pipe()
    copied = relay.copy(read, to_write)
    os.write(write, b"first")
    assert os.read(to_read, 10) == b"first"
    os.write(write, b"second")
    copied.finish()
    assert copied.wait(LONG)
    assert copied.error is None
    assert os.read(to_read, 10) == b"second"
    for fd in (read, write, to_read, to_write):
        os.close(fd)


# Field: a fifo is opened and its peer never comes
def test_a_sink_whose_reader_comes_late_gets_everything(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    sink = open_fifo(path, WRITE | os.O_CREAT)
    read, write = os.pipe()
    pump = relay.copy(read, sink)
    content = data(3 * MIB)
    writer = feed(write, content)
    assert not pump.wait(0.05)
    assert pump.bytes == 0
    assert read_all(os.open(path, os.O_RDONLY)) == content
    assert pump.wait(LONG)
    assert pump.error is None
    writer.result()
    os.close(read)


# Field: stdin is at its end before the container exists
def test_an_end_that_came_first_reaches_a_reader_that_comes_late(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    with open(os.devnull, "rb") as nothing:
        pump = relay.copy(nothing.fileno(), open_fifo(path, WRITE | os.O_CREAT))
    assert not pump.wait(0.02)  # closing now would leave the reader waiting for ever
    assert read_all(os.open(path, os.O_RDONLY)) == b""
    assert pump.wait(LONG)


# C17
def test_a_hundred_pending_sinks_each_find_their_reader(tmp_path: Path) -> None:
    pumps = []
    for number in range(100):
        read, write = os.pipe()
        os.write(write, b"%d" % number)
        os.close(write)
        pumps.append(relay.copy(read, open_fifo(tmp_path / str(number), WRITE | os.O_CREAT)))
        os.close(read)
    for number in range(99, -1, -1):
        assert read_all(os.open(tmp_path / str(number), os.O_RDONLY)) == b"%d" % number
    assert all(pump.wait(LONG) and pump.error is None for pump in pumps)


def test_a_fifo_is_handed_over_and_a_descriptor_stays_the_callers(tmp_path: Path) -> None:
    fifo = open_fifo(tmp_path / "fifo", READ | os.O_CREAT)
    read, write = os.pipe()
    flags = os.get_blocking(write)
    pump = relay.copy(fifo, write)
    assert isinstance(fifo, Fifo)
    assert fifo.closed
    pump.no_more_writers()
    assert pump.wait(LONG)
    os.write(write, b"still mine")
    assert os.read(read, 100) == b"still mine"
    assert os.get_blocking(write) == flags
    os.close(read)
    os.close(write)


def test_a_buffer_holds_its_source_back_at_the_limit() -> None:
    read, write = os.pipe()
    content = data(5 * MIB)
    pump = relay.buffer(read, limit=1000)
    writer = feed(write, content)
    until(lambda: pump.bytes == 1000)
    assert not pump.wait(0.02)
    assert pump.bytes == 1000
    first = pump.read(10)
    assert first + pump.read(timeout=LONG) == content
    assert writer.result() == len(content)
    assert pump.read() == b""
    os.close(read)


def test_a_buffer_without_a_limit_takes_all_before_it_is_read() -> None:
    read, write = os.pipe()
    content = data(20 * MIB)
    pump = relay.buffer(read, limit=None)
    feed(write, content).result()
    assert pump.wait(LONG)
    assert pump.read() == content
    os.close(read)


def test_a_read_that_ran_out_of_time_has_lost_nothing() -> None:
    read, write = os.pipe()
    pump = relay.buffer(read, limit=10)
    os.write(write, b"0123456789abcdef")
    with pytest.raises(DeadlineError):
        pump.read(timeout=0.05)
    os.close(write)
    assert pump.read(5) == b"01234"
    assert pump.read(timeout=LONG) == b"56789abcdef"
    os.close(read)


def test_many_readers_of_one_buffer_share_it_without_loss() -> None:
    read, write = os.pipe()
    pump = relay.buffer(read, limit=5000)

    def take() -> list[bytes]:
        return list(iter(lambda: pump.read(777, timeout=LONG), b""))

    readers = [Background(take) for _ in range(4)]
    content = data(2 * MIB)
    feed(write, content).result()
    parts = [part for reader in readers for part in reader.result()]
    assert sorted(b"".join(parts)) == sorted(content)
    os.close(read)


def test_read_nowait_tells_nothing_yet_from_the_end() -> None:
    read, write = os.pipe()
    pump = relay.buffer(read)
    assert pump.read_nowait() is None
    os.close(write)
    os.close(read)
    assert pump.wait(LONG)
    assert pump.read_nowait() == b""


def test_arguments_that_cannot_be_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    writer = open_fifo(tmp_path / "fifo", WRITE | os.O_CREAT)
    reader = open_fifo(tmp_path / "fifo", READ)
    directory = os.open(tmp_path, os.O_RDONLY)
    for source, sink in ((write, write), (read, read), (writer, write), (read, reader), (directory, write)):
        with pytest.raises(InvalidArgumentError):
            relay.copy(source, sink)
    with pytest.raises(InvalidArgumentError):
        relay.copy(read, write, on_sink_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        relay.buffer(read, limit=0)
    with pytest.raises(InvalidArgumentError):
        relay.discard("path")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        relay.call(read, None)  # type: ignore[arg-type]
    for end in (writer, reader):
        end.close()
    for fd in (read, write, directory):
        os.close(fd)


def test_what_a_line_left_in_a_fifo_goes_first(tmp_path: Path) -> None:
    reader = open_fifo(tmp_path / "fifo", READ | os.O_CREAT)
    with open_fifo(tmp_path / "fifo", WRITE) as writer:
        writer.write(b"one\ntwo\nthree")
    assert reader.readline() == b"one\n"
    assert relay.buffer(reader).read() == b"two\nthree"
