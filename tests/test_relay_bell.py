"""A bell: one descriptor by which an event loop hears of any number of buffers (pyx/bells.pxi)."""

from __future__ import annotations

import os
import select
import threading

import pytest
from fifo_kit import LONG, until
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_kit import steady

from libctrd import relay
from libctrd.errors import ClosedError, InvalidArgumentError

__all__ = ["steady"]


def rings(bell: relay.Bell, seconds: float = LONG) -> bool:
    """Does it become readable within that time?"""
    look = select.poll()
    look.register(bell.fileno(), select.POLLIN)
    return bool(look.poll(seconds * 1000))


def source() -> tuple[relay.Buffer, int]:
    reads, writes = os.pipe()
    buffer = relay.buffer(reads)
    os.close(reads)
    return buffer, writes


def test_it_rings_for_bytes_and_for_the_end_and_for_nothing_else() -> None:
    bell = relay.Bell()
    buffer, writes = source()
    assert bell.ask(buffer)
    assert not rings(bell, 0.01)
    os.write(writes, b"some")
    assert rings(bell)
    assert bell.heard() == [buffer]
    assert not rings(bell, 0)
    assert not bell.ask(buffer), "something is there"
    assert buffer.read_nowait() == b"some"
    assert bell.ask(buffer)
    os.close(writes)
    assert rings(bell)
    assert bell.heard() == [buffer]
    assert not bell.ask(buffer), "its end is there"
    assert buffer.read_nowait() == b""
    bell.close()


def test_it_does_not_ring_for_what_was_not_asked_or_is_forgotten() -> None:
    bell = relay.Bell()
    buffer, writes = source()
    assert bell.ask(buffer)
    bell.forget(buffer)
    os.write(writes, b"x")
    until(lambda: buffer.bytes == 1, "the byte")
    assert not rings(bell, 0)
    assert buffer.read_nowait() == b"x"
    assert bell.ask(buffer), "it may be asked again"
    os.write(writes, b"y")
    assert rings(bell)
    bell.forget(buffer)  # it has rung by now
    assert bell.heard() == []
    os.close(writes)
    buffer.cancel()
    bell.close()


def test_anyone_may_ring_it_for_something_else() -> None:
    bell = relay.Bell()
    ringer = threading.Thread(target=bell.ring)
    ringer.start()
    assert rings(bell)
    assert bell.heard() == []
    assert not rings(bell, 0)
    ringer.join()
    bell.close()


def test_a_buffer_is_read_in_one_loop_only() -> None:
    one, other = relay.Bell(), relay.Bell()
    buffer, writes = source()
    assert one.ask(buffer)
    with pytest.raises(InvalidArgumentError, match="is read in another event loop"):
        other.ask(buffer)
    os.close(writes)
    assert rings(one)
    one.close()
    other.close()


def test_a_closed_bell_is_refused_and_harms_nobody() -> None:
    bell = relay.Bell()
    buffer, writes = source()
    assert bell.ask(buffer)
    bell.close()
    bell.close()
    bell.ring()
    assert bell.fileno() == -1
    with pytest.raises(ClosedError, match="the event loop that waits for"):
        bell.ask(buffer)
    os.write(writes, b"on it goes")
    os.close(writes)
    assert buffer.read() == b"on it goes"


def test_a_bell_that_nobody_keeps_goes_with_those_that_were_asked() -> None:
    buffer, writes = source()
    assert relay.Bell().ask(buffer)
    os.write(writes, b"x")
    assert buffer.read(1) == b"x"
    os.close(writes)
    assert buffer.read() == b""


def test_the_child_of_a_fork_does_not_ring_the_bell_of_its_parent() -> None:
    bell = relay.Bell()
    buffer, writes = source()
    assert bell.ask(buffer)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if buffer.done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not rings(bell, 0.01)
    os.write(writes, b"x")
    assert rings(bell)
    assert bell.heard() == [buffer]
    os.close(writes)
    buffer.cancel()
    bell.close()


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 3000), max_size=30), min_size=1, max_size=6),
    st.integers(1, 5000),
    st.booleans(),
)
def test_every_byte_is_heard_of_however_it_comes(plans: list[list[int]], size: int, forgetful: bool) -> None:
    """Writers side by side, one reader of all through one bell: who waited for a word that never comes would hang."""
    bell = relay.Bell()
    pairs = [source() for _ in plans]
    buffers = {buffer: number for number, (buffer, _) in enumerate(pairs)}
    found = [bytearray() for _ in plans]

    def write(fd: int, pieces: list[int]) -> None:
        for number, length in enumerate(pieces):
            os.write(fd, bytes([number]) * length)
        os.close(fd)

    writers = [threading.Thread(target=write, args=(fd, plan)) for (_, fd), plan in zip(pairs, plans, strict=True)]
    for writer in writers:
        writer.start()
    ready = list(buffers)
    while buffers:
        for buffer in ready:
            while (data := buffer.read_nowait(size)) is not None:
                if not data:
                    del buffers[buffer]
                    break
                found[buffers[buffer]] += data
            else:
                if not bell.ask(buffer):
                    bell.ring()  # there is something again: not to be waited for
                elif forgetful:
                    bell.forget(buffer)
                    if not bell.ask(buffer):
                        bell.ring()
        if buffers:
            assert rings(bell), "it never rang"
        heard = bell.heard()
        ready = [buffer for buffer in buffers if buffer in heard or not bell.ask(buffer)]
    for writer in writers:
        writer.join()
    assert [bytes(one) for one in found] == [
        b"".join(bytes([number]) * length for number, length in enumerate(plan)) for plan in plans
    ]
    bell.close()
