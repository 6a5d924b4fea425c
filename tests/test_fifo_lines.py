"""Lines of a fifo: nothing is lost of them, whatever else is read in between, and whoever interrupts."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from fifo_kit import Background, both, path_fixture, steady_fixture  # noqa: F401 (fixtures)
from hypothesis import given
from hypothesis import strategies as st

from libctrd.errors import InvalidArgumentError
from libctrd.fifo import open_fifo

pytestmark = pytest.mark.usefixtures("steady")

PIECES = st.lists(st.sampled_from([b"\n", b"a", b"word", b"\n\n", b"x" * 70_000, b"end\n"]), max_size=20)
CALLS = st.lists(st.sampled_from(["line", "read", "nowait", "into"]), max_size=30)


def filled(path: Path, data: bytes) -> tuple:  # type: ignore[type-arg]
    """A read end whose writer writes all of that and goes."""
    reader, writer = both(path)

    def write() -> None:
        with writer:
            writer.write(data)

    return reader, Background(write)


@given(PIECES, CALLS)
def test_lines_and_other_reads_share_the_bytes(pieces: list[bytes], calls: list[str]) -> None:  # C28
    data = b"".join(pieces)
    with tempfile.TemporaryDirectory() as directory:
        reader, writing = filled(Path(directory) / "fifo", data)
        found = b""
        with reader:
            for call in calls:
                if call == "line":
                    line = reader.readline()
                    assert b"\n" not in line[:-1]
                    assert line.endswith(b"\n") or found + line == data
                    found += line
                elif call == "read":
                    found += reader.read(7)
                elif call == "nowait":
                    found += reader.read_nowait(5) or b""
                else:
                    into = bytearray(3)
                    found += into[: reader.readinto(into)]
            rest = list(reader)
            assert found + b"".join(rest) == data
            assert all(line.endswith(b"\n") for line in rest[:-1])
            writing.result()


def test_a_line_without_an_end_comes_in_pieces(path: Path) -> None:
    data = bytes(3 << 20) + b"\nlast"
    reader, writing = filled(path, data)
    with reader:
        lines = list(reader)
        writing.result()
    assert b"".join(lines) == data
    assert lines[-1] == b"last"
    assert max(map(len, lines)) <= (1 << 20) + 65536


def test_what_a_signal_interrupts_is_given_by_the_next_read(path: Path) -> None:
    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    reader, writer = both(path)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        writer.write(b"begun")
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Interruption):
            reader.readline()
        timer.join()
        writer.write(b" and ended\n")
        assert reader.readline() == b"begun and ended\n"
    finally:
        signal.signal(signal.SIGUSR1, before)
        reader.close()
        writer.close()


def test_a_write_end_has_no_lines(path: Path) -> None:
    with open_fifo(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK) as writer, pytest.raises(InvalidArgumentError):
        writer.readline()
