"""One end of a named pipe, and what it does with bytes: situation by situation."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import selectors
import threading
from pathlib import Path

import pytest
from fifo_kit import (  # noqa: F401
    LONG,
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

from libctrd.errors import ClosedError, InvalidArgumentError, UnavailableError
from libctrd.fifo import PORTABLE, Fifo, open_fifo

pytestmark = pytest.mark.usefixtures("steady", "way")


# --- while the peer is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [READ, WRITE])
def test_waiting_for_a_peer_that_never_comes_costs_one_descriptor_and_no_thread(path: Path, flags: int) -> None:  # C17
    files, threads, tasks = len(open_files()), threading.active_count(), len(os.listdir("/proc/self/task"))
    with open_fifo(path, flags | os.O_CREAT) as fifo:
        assert not fifo.connected
        assert len(open_files()) <= files + 1
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/task")) == tasks


@pytest.mark.parametrize("flags", [READ, WRITE, os.O_RDWR])
def test_closing_before_the_peer_came_works_and_closing_again_does_nothing(path: Path, flags: int) -> None:  # C15
    fifo = open_fifo(path, flags | os.O_CREAT)
    fifo.close()
    fifo.close()
    assert fifo.closed


def test_a_closed_fifo_is_neither_read_nor_written(path: Path) -> None:  # C15
    reader, writer = both(path)
    assert reader.connected
    reader.close()
    writer.close()
    for attempt in (
        lambda: reader.read(1),
        lambda: reader.read(),
        lambda: reader.read_nowait(1),
        lambda: reader.readinto(bytearray(1)),
        lambda: next(reader),
        lambda: reader.readline(),
        lambda: writer.write(b"x"),
        lambda: writer.writev([b"x"]),
        lambda: writer.write_nowait(b"x"),
        lambda: writer.wait_connected(),
        lambda: writer.fileno(),
        lambda: writer.detach(),
        lambda: writer.grow(4096),
    ):
        with pytest.raises(ClosedError, match="closed"):
            attempt()
    assert reader.connected, "what was seen before the close"
    assert reader.at_end


def test_each_end_does_only_what_it_was_opened_for(path: Path) -> None:  # C15
    reader, writer = both(path)
    with reader, writer:
        for attempt in (
            lambda: reader.write(b"x"),
            lambda: reader.writev([b"x"]),
            lambda: reader.write_nowait(b"x"),
        ):
            with pytest.raises(InvalidArgumentError, match="for reading only"):
                attempt()
        for attempt in (
            lambda: writer.read(1),
            lambda: writer.read(),
            lambda: writer.readinto(bytearray(1)),
            lambda: writer.read_nowait(1),
            lambda: writer.no_more_writers(),
            lambda: writer.at_end,
        ):
            with pytest.raises(InvalidArgumentError, match="for writing only"):
                attempt()
        assert reader.mode == "read"
        assert writer.mode == "write"


def test_nothing_is_written_before_a_reader_has_come(path: Path) -> None:  # C14
    with open_fifo(path, WRITE | os.O_CREAT) as writer:
        assert writer.write_nowait(b"early") == 0
        with open_fifo(path, READ) as reader:
            assert writer.write_nowait(b"late") == 4
            assert reader.read(10) == b"late"


def test_a_reader_alone_has_nothing_to_read_and_no_end(path: Path) -> None:  # C14
    with open_fifo(path, READ | os.O_CREAT) as reader:
        assert reader.read_nowait(10) is None
        assert not reader.at_end
        assert not reader.connected


# --- bytes --------------------------------------------------------------------------------------------------


def test_a_read_returns_what_is_there_up_to_its_size(path: Path) -> None:  # C14
    reader, writer = both(path)
    with reader:
        assert writer.write(b"hello world") == 11
        assert reader.read(5) == b"hello"
        assert reader.read(100_000) == b" world"
        writer.write(b"x" * 5000)
        assert reader.read(4097) == b"x" * 4097
        assert reader.read_nowait(10_000) == b"x" * 903
        assert reader.read_nowait(1) is None
        assert reader.read(0) == b""
        writer.close()
        assert reader.read(1) == b""
        assert reader.read_nowait(1) == b""
        assert reader.read() == b""


def test_reading_into_a_buffer(path: Path) -> None:  # C14
    reader, writer = both(path)
    with reader:
        target = bytearray(b"........")
        with writer:
            writer.write(memoryview(b"abc"))
            assert reader.readinto(memoryview(target)[2:]) == 3
            assert target == b"..abc..."
            assert reader.readinto(bytearray()) == 0
            with pytest.raises(BufferError):
                reader.readinto(b"fixed")
        assert reader.readinto(target) == 0


def test_several_buffers_are_written_as_if_they_were_one(path: Path) -> None:  # C14
    reader, writer = both(path)
    parts = [b"", b"a", bytearray(b"bc"), memoryview(b"def"), b""] + [bytes([65 + i % 26]) * i for i in range(2000)]
    whole = b"".join(parts)
    with reader:
        reading = Background(reader.read)
        with writer:
            assert writer.writev(parts) == len(whole)
            assert writer.writev([]) == 0
            assert writer.writev([b"", b""]) == 0
            assert writer.write(b"") == 0
        assert reading.result() == whole


def test_what_is_no_buffer_is_refused_and_nothing_of_it_is_written(path: Path) -> None:
    reader, writer = both(path)
    with reader, writer:
        with pytest.raises(TypeError):
            writer.write("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            writer.writev([b"good", 7])  # type: ignore[list-item]
        with pytest.raises(InvalidArgumentError):
            reader.read_nowait(0)
        assert reader.read_nowait(10) is None


def test_every_byte_of_a_long_stream_arrives(path: Path) -> None:  # C28
    data = os.urandom(1 << 20) * 8
    reader, writer = both(path)

    def write() -> None:
        with writer:
            view = memoryview(data)
            step = 100_003  # no divisor of anything
            for start in range(0, len(view), step):
                writer.write(view[start : start + step])

    with reader:
        writing = Background(write)
        digest = hashlib.sha256()
        for line in reader:
            assert b"\n" not in line[:-1]
            digest.update(line)
        writing.result()
    assert digest.digest() == hashlib.sha256(data).digest()


def test_reading_to_the_end_hands_back_everything(path: Path) -> None:  # C28
    data = os.urandom(3_000_001)
    reader, writer = both(path)

    def write() -> None:
        with writer:
            writer.write(data)

    with reader:
        writing = Background(write)
        assert reader.read() == data
        writing.result()


def test_no_room_is_told_and_a_write_waits_for_it(path: Path) -> None:  # C14
    reader, writer = both(path)
    with reader, writer:
        room = fcntl.fcntl(writer.fileno(), fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 65536
        assert writer.write_nowait(bytes(room + 1)) == room
        assert writer.write_nowait(b"x") == 0
        writing = Background(writer.write, b"y" * 10)
        until(waiting)
        assert len(reader.read(room)) == room
        assert writing.result() == 10
        assert reader.read(100) == b"y" * 10


def test_a_reader_that_has_gone_is_an_error_and_no_signal(path: Path) -> None:  # C15
    reader, writer = both(path)
    with writer:
        reader.close()
        with pytest.raises(UnavailableError, match="its reader has gone") as caught:
            writer.write(b"x")
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        with pytest.raises(UnavailableError):
            writer.write_nowait(b"x")


def test_one_that_is_open_for_both_never_waits(path: Path) -> None:  # C14
    with open_fifo(path, os.O_RDWR | os.O_CREAT) as fifo:
        assert fifo.connected
        assert fifo.mode == "read-write"
        assert fifo.write(b"to myself") == 9
        assert fifo.read(100) == b"to myself"
        assert fifo.read_nowait(1) is None
        assert not fifo.at_end


# --- the end ------------------------------------------------------------------------------------------------


def test_a_writer_that_came_and_went_before_anyone_looked_leaves_its_bytes_and_an_end(
    path: Path,
) -> None:  # C28
    with open_fifo(path, READ | os.O_CREAT) as reader:
        with open(path, "wb") as peer:
            peer.write(b"quick")
        assert reader.at_end
        assert reader.connected
        assert reader.read() == b"quick"
        assert reader.at_end


def test_a_writer_that_wrote_nothing_leaves_an_end(path: Path) -> None:  # C14
    with open_fifo(path, READ | os.O_CREAT) as reader:
        open(path, "wb").close()
        assert reader.connected
        assert reader.read_nowait(1) == b""
        assert reader.read() == b""


def test_a_later_writer_is_read_as_well(path: Path) -> None:  # C28
    with open_fifo(path, READ | os.O_CREAT) as reader:
        for text in (b"one", b"two"):
            path.open("wb").write(text)
            assert reader.read() == text


def test_once_no_writer_can_come_a_read_of_nothing_is_the_end(path: Path) -> None:  # C14
    with open_fifo(path, READ | os.O_CREAT) as reader:
        reader.no_more_writers()
        reader.no_more_writers()
        assert reader.at_end
        assert reader.read(10) == b""
        assert reader.read() == b""
        reader.wait_connected()
        assert not reader.connected


def test_a_reader_that_waits_is_told_that_no_writer_can_come(path: Path) -> None:  # C14
    with open_fifo(path, READ | os.O_CREAT) as reader:
        reading, looking = Background(reader.read), Background(reader.wait_connected)
        until(lambda: waiting() == 2)
        reader.no_more_writers()
        assert reading.result() == b""
        assert looking.result() is None


def test_what_a_writer_left_is_read_before_the_end_that_was_told(path: Path) -> None:  # C28
    holder = os.open(path, os.O_RDWR) if path.exists() else None
    assert holder is None
    os.mkfifo(path)
    holder = os.open(path, READ)  # like the far end that a shim holds
    with open(path, "wb") as peer:
        peer.write(b"left behind")
    with open_fifo(path, READ) as reader:
        reader.no_more_writers()
        assert reader.read() == b"left behind"
        assert reader.at_end
    os.close(holder)


def test_a_writer_that_is_still_there_is_awaited_though_none_was_expected(path: Path) -> None:  # C28
    with open_fifo(path, READ | os.O_CREAT) as reader:
        peer = os.open(path, os.O_WRONLY)
        reader.no_more_writers()
        assert not reader.at_end
        reading = Background(reader.read)
        until(waiting)
        os.write(peer, b"a leftover child")
        os.close(peer)
        assert reading.result() == b"a leftover child"


# --- as an object among others ------------------------------------------------------------------------------


def test_it_works_with_selectors(path: Path) -> None:
    reader, writer = both(path)
    with selectors.DefaultSelector() as selector, reader:
        selector.register(reader, selectors.EVENT_READ)
        assert selector.select(0) == []
        writer.write(b"x")
        assert selector.select(LONG)[0][0].fileobj is reader
        assert reader.read_nowait(5) == b"x"
        assert selector.select(0) == []
        writer.close()
        assert selector.select(LONG)
        assert reader.read_nowait(5) == b""
        selector.unregister(reader)


def test_a_detached_descriptor_is_the_callers(path: Path) -> None:
    reader, writer = both(path)
    with writer:
        number = reader.detach()
        assert reader.closed
        reader.close()
        writer.write(b"x")
        assert os.read(number, 10) == b"x"
        os.close(number)


def test_a_descriptor_that_is_handed_over_while_it_is_read_stays_valid(path: Path) -> None:  # C15
    reader, writer = both(path)
    reading = Background(reader.read)
    until(waiting)
    number = reader.detach()
    with pytest.raises(ClosedError):
        reading.result()
    with writer:
        writer.write(b"x")
    assert os.read(number, 10) == b"x"
    os.close(number)


def test_it_grows_where_the_system_lets_it(path: Path) -> None:
    reader, writer = both(path)
    with reader, writer:
        if PORTABLE:
            assert reader.grow(4096) == writer.grow(1 << 60) == 0, "the system does not tell"
            return
        before = reader.grow(4096)
        after = writer.grow(1 << 17)
        assert after >= before
        assert writer.grow(1 << 60) >= 4096, "a refusal is no error"


def test_it_is_made_by_opening_only() -> None:
    with pytest.raises(TypeError, match="open_fifo"):
        Fifo()


def test_it_says_what_it_is(path: Path) -> None:
    with open_fifo(path, READ | os.O_CREAT) as reader:
        assert repr(reader) == f"<Fifo '{path}' read opening>"
        assert reader.path == str(path)
    assert repr(reader) == f"<Fifo '{path}' read closed>"


def test_a_fifo_that_is_forgotten_leaves_no_descriptor(path: Path) -> None:
    files = open_files()
    reader, writer = both(path)
    assert len(open_files()) == len(files) + 2
    del reader, writer
    assert open_files() == files


def test_memory_and_descriptors_of_ten_thousand_that_wait(tmp_path: Path) -> None:  # C17
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 200:
        pytest.skip(f"RLIMIT_NOFILE may not pass {hard} here: too few descriptors for this test")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    files, threads = len(open_files()), len(os.listdir("/proc/self/task"))
    names = [tmp_path / str(i) for i in range(count)]
    fifos: list[Fifo] = []
    before = resident()
    fifos.extend(open_fifo(name, (WRITE if i % 2 else READ) | os.O_CREAT) for i, name in enumerate(names))
    grown = resident() - before
    assert len(open_files()) <= files + count
    assert len(os.listdir("/proc/self/task")) <= threads  # those of an earlier test that are idle end meanwhile
    assert grown < count * 2048
    assert not any(fifo.connected for fifo in fifos)
    for fifo in fifos:
        fifo.close()
    fifos.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
