"""Fifos when the system refuses something: the error says which call on which fifo, and no descriptor is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fault_kit import fails, in_python
from fifo_kit import LONG, READ, WRITE, Background, both, path_fixture, steady_fixture, until, waiting

from libctrd.errors import CtrdError, UnavailableError
from libctrd.fifo import adopt_fifo, open_fifo

__all__ = ["path_fixture", "steady_fixture"]
pytestmark = [pytest.mark.linux("which of its system calls fails"), pytest.mark.usefixtures("steady")]


@pytest.mark.parametrize("when", ["2", "3"])
def test_a_descriptor_that_cannot_be_set_up_is_not_taken_over(path: Path, when: str) -> None:
    reader, writer = both(path)
    fd = os.dup(reader.fileno())
    with fails("fcntl", errno.EPERM, when=when), pytest.raises(CtrdError, match="set up descriptor"):
        adopt_fifo(fd, str(path))
    os.close(fd)  # it is the caller's still
    for end in (reader, writer):
        end.close()


@pytest.mark.parametrize(
    ("call", "number", "when"),
    [("mknod,mknodat", errno.ENOSPC, "1"), ("open,openat", errno.EMFILE, "1+"), ("fstat,newfstatat", errno.EIO, "1+")],
)
@pytest.mark.parametrize("flags", [READ, WRITE])
def test_a_fifo_that_cannot_be_opened_leaves_no_descriptor(
    path: Path, flags: int, call: str, number: int, when: str
) -> None:
    with fails(call, number, when=when, path=str(path)), pytest.raises(CtrdError, match=str(path)) as raised:
        open_fifo(path, flags | os.O_CREAT)
    assert raised.value.errno == number


def test_a_fifo_that_cannot_be_read_or_written_says_so(path: Path) -> None:
    reader, writer = both(path)
    with fails("read", errno.EIO, path=str(path)), pytest.raises(CtrdError, match=r"read fifo .* \(read\)"):
        reader.read(1)
    with fails("pwritev2,writev", errno.ENOSPC, path=str(path)), pytest.raises(CtrdError, match=r"write fifo"):
        writer.write(b"x")
    assert writer.write(b"x") == 1
    assert reader.read(1) == b"x"
    for end in (reader, writer):
        end.close()


def test_a_kernel_without_a_quiet_write_is_found_out_once(path: Path) -> None:
    """Linux before 6.18: no SIGPIPE reaches the process all the same."""
    script = """
        import signal
        from libctrd.fifo import open_fifo
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        reader = open_fifo(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK | os.O_CREAT)
        writer = open_fifo(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
        with fails("pwritev2", errno.EOPNOTSUPP):
            print(writer.write(b"one"), reader.read(3))
        print(writer.write(b"two"), reader.read(3))
        reader.close()
        try:
            writer.write(b"three")
        except Exception as error:
            print(type(error).__name__)
    """
    assert in_python(script, str(path)) == "3 b'one'\n3 b'two'\nUnavailableError\n"


def test_a_peer_is_found_where_nothing_can_be_watched(path: Path) -> None:  # C17
    writer = open_fifo(path, WRITE | os.O_CREAT)
    with fails("inotify_add_watch", errno.ENOSPC, when="1+"):
        writing = Background(writer.write, b"x")
        until(lambda: waiting() == 1)
        fd = os.open(path, os.O_RDONLY)
        assert writing.result() == 1
    assert os.read(fd, 2) == b"x"
    os.close(fd)
    writer.close()


def test_a_wait_without_a_descriptor_of_its_own_is_a_short_one(path: Path) -> None:
    script = """
        from libctrd.fifo import open_fifo
        reader = open_fifo(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK | os.O_CREAT)
        got = []
        with fails("eventfd2", errno.EMFILE, when="1+"):
            thread = threading.Thread(target=lambda: got.append(reader.read(1)))
            thread.start()
            fd = os.open(sys.argv[1], os.O_WRONLY)
            os.write(fd, b"x")
            thread.join(60)
        print(got)
    """
    assert in_python(script, str(path)) == "[b'x']\n"


def test_a_hand_over_while_a_thread_reads_that_fails_leaves_the_fifo_as_it_is(path: Path) -> None:
    from libctrd import relay

    reader, writer = both(path)
    reading = Background(reader.read, 1)
    until(lambda: waiting() == 1)
    with fails("fcntl", errno.EMFILE), pytest.raises(UnavailableError, match="hand over"):
        relay.discard(reader)
    writer.write(b"x")
    assert reading.result(LONG) == b"x"
    for end in (reader, writer):
        end.close()
