"""Random writes, reads, stalls and cancels, against a model of what each pump must have delivered."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from examples_kit import examples
from fifo_kit import LONG, READ, WRITE, until
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from relay_kit import steady

from libctrd import relay
from libctrd.errors import CancelledError
from libctrd.fifo import open_fifo

__all__ = ["steady"]
CONTENT = st.integers(1, 40_000)


class Line:
    """A pump under test: where is written, where is read, and what was written and not yet read."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.owed = bytearray()
        self.written = 0
        self.got_by_callback = bytearray()
        self.reader: int | None = None
        self.path = directory / "sink"
        read, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.pump: relay.Pump
        if kind == "pipe":
            self.reader, sink = os.pipe()
            self.pump = relay.copy(read, sink, close_sink=True)
        elif kind == "pending":
            self.pump = relay.copy(read, open_fifo(self.path, WRITE | os.O_CREAT))
        elif kind == "buffer":
            self.pump = relay.buffer(read, limit=5000)
        elif kind == "call":
            self.pump = relay.call(read, self.got_by_callback.extend, limit=5000)
        else:
            self.pump = relay.discard(read)
        os.close(read)
        if self.reader is not None:
            os.set_blocking(self.reader, False)

    def connect(self) -> None:
        if self.kind == "pending" and self.reader is None:
            self.reader = os.open(self.path, READ)

    def take(self, size: int) -> bytes | None:
        """Up to *size* bytes, ``None`` when there is nothing now, ``b""`` at the end."""
        if isinstance(self.pump, relay.Buffer):
            return self.pump.read_nowait(size)
        if self.kind == "call":
            done = self.pump.done
            part = bytes(self.got_by_callback[:size])
            del self.got_by_callback[:size]
            return part or (b"" if done else None)
        if self.kind == "discard":
            self.owed.clear()
            return b"" if self.pump.done else None
        if self.reader is None:
            return None
        try:
            part = os.read(self.reader, size)
        except BlockingIOError:
            return None
        return part if part or self.pump.done else None

    def check(self, part: bytes | None) -> None:
        if part:
            assert bytes(self.owed[: len(part)]) == part
            del self.owed[: len(part)]

    def close(self) -> None:
        for fd in (self.writer, self.reader):
            if fd is not None and fd >= 0:
                os.close(fd)


class Pumps(RuleBasedStateMachine):
    lines = Bundle("lines")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.open: list[Line] = []
        self.active = relay.active()
        self.count = 0

    @rule(target=lines, kind=st.sampled_from(["pipe", "pending", "buffer", "call", "discard"]))
    def make(self, kind: str) -> Line:
        self.count += 1
        directory = Path(self.directory.name) / str(self.count)
        directory.mkdir()
        line = Line(kind, directory)
        self.open.append(line)
        return line

    @rule(line=lines, size=CONTENT)
    def write(self, line: Line, size: int) -> None:
        content = bytes((line.written + i) % 251 for i in range(size))
        try:
            taken = os.write(line.writer, content)
        except BlockingIOError:
            return  # held back, as it must be when nobody reads
        line.written += taken
        line.owed += content[:taken]

    @rule(line=lines, size=CONTENT)
    def read(self, line: Line, size: int) -> None:
        line.check(line.take(size))

    @rule(line=lines)
    def connect(self, line: Line) -> None:
        line.connect()

    @rule(line=lines)
    def a_writer_less(self, line: Line) -> None:
        line.pump.no_more_writers()  # its writer is there still, so that this changes nothing

    @rule(line=consumes(lines))
    def end(self, line: Line) -> None:
        """The writer ends: everything that is owed comes, and then the end."""
        line.connect()
        os.close(line.writer)
        line.writer = -1

        def ended() -> bool:
            part = line.take(100_000)
            line.check(part)
            return part == b""

        until(ended, "the end")
        assert line.pump.wait(LONG)
        line.check(line.take(100_000))
        assert not line.owed
        assert line.pump.error is None
        assert line.pump.bytes == line.written
        self.forget(line)

    @rule(line=consumes(lines))
    def finish(self, line: Line) -> None:
        """Like an end, though the writer stays."""
        line.connect()
        line.pump.finish()

        def ended() -> bool:
            line.check(line.take(100_000))
            return line.pump.done

        until(ended, "the end")
        while part := line.take(100_000):
            line.check(part)
        assert not line.owed
        assert line.pump.error is None
        self.forget(line)

    @rule(line=consumes(lines))
    def cancel(self, line: Line) -> None:
        line.pump.cancel()
        assert line.pump.wait(LONG)
        assert isinstance(line.pump.error, CancelledError)
        self.forget(line)

    def forget(self, line: Line) -> None:
        line.close()
        self.open.remove(line)

    @invariant()
    def as_many_are_under_way_as_were_made(self) -> None:
        until(lambda: relay.active() - self.active == len(self.open))

    def teardown(self) -> None:
        for line in self.open:
            line.pump.cancel()
            assert line.pump.wait(LONG)
            line.close()
        self.directory.cleanup()


TestPumps = Pumps.TestCase
TestPumps.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
