"""The fifos against a model: who has a fifo open, what was written into it, and so what each must read.

One thread, no waiting: every rule is one call whose outcome the model foretells. Foreign ends, opened with
plain system calls, take part, so that the two sides also hold each other to the truth. The path is replaced
now and then: each inode is a pipe of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from examples_kit import examples
from fifo_kit import LONG, READ, WRITE, open_files
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from libctrd import fifo as fifo_module
from libctrd.errors import ClosedError, NotFoundError, UnavailableError
from libctrd.fifo import PORTABLE, Fifo, open_fifo

SMALL = 2000  # bytes; a pipe has room for as much as this in any state


class Pipe:
    """The model of one inode."""

    def __init__(self) -> None:
        self.content = b""
        self.ends: list[End] = []

    @property
    def writers(self) -> list[End]:
        return [end for end in self.ends if end.writes]

    @property
    def readers(self) -> list[End]:
        return [end for end in self.ends if end.reads]

    def writer_came(self) -> None:
        for end in self.readers:
            end.saw_writer = True

    def leave(self, end: End) -> None:
        self.ends.remove(end)
        if not self.ends:
            self.content = b""  # the kernel's pipe goes with the last one who has it open


class End:
    """The model of one end: *thing* is a `Fifo` or the number of a foreign descriptor."""

    def __init__(self, pipe: Pipe, thing: Any, reads: bool, writes: bool) -> None:
        self.pipe, self.thing, self.reads, self.writes = pipe, thing, reads, writes
        self.connected = reads and writes
        self.saw_writer = bool(pipe.writers)
        self.no_more_writers = False
        pipe.ends.append(self)
        if writes:
            pipe.writer_came()


@contextmanager
def promptly() -> Iterator[None]:
    """Nothing here waits, whatever the model thinks: what does is a failure, not a hang."""

    def too_long(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGVTALRM, too_long)
    timer = threading.Timer(LONG, signal.pthread_kill, (threading.main_thread().ident, signal.SIGVTALRM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGVTALRM, before)


class FifoMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = open_files()
        self.folder = Path(tempfile.mkdtemp(prefix="fifo-model-"))
        self.path = self.folder / "fifo"
        self.pipe: Pipe | None = None
        self.ends: list[End] = []
        self.waiting: list[End] = []  # portable writers that have no descriptor yet: nobody sees them
        self.closed: list[Fifo] = []

    def pick(self, data: st.DataObject, ends: list[End]) -> End:
        return ends[data.draw(st.integers(0, len(ends) - 1))]

    def fifos(self, *, reads: bool = False, writes: bool = False) -> list[End]:
        ends = [end for end in self.ends if isinstance(end.thing, Fifo)]
        return [end for end in ends if (not reads or end.reads) and (not writes or end.writes or end in self.waiting)]

    @initialize()
    def begin(self) -> None:
        with pytest.raises(NotFoundError):
            open_fifo(self.path, READ)

    # Opening

    @rule(access=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]))
    def open(self, access: int) -> None:
        fifo = open_fifo(self.path, access | os.O_NONBLOCK | os.O_CREAT)
        self.pipe = self.pipe or Pipe()
        reads, writes = access != os.O_WRONLY, access != os.O_RDONLY
        early = writes and not reads and not self.pipe.readers
        end = End(self.pipe, fifo, reads, writes and not (early and PORTABLE))
        if early and PORTABLE:
            self.pipe.ends.remove(end)
            self.waiting.append(end)
        end.connected = end.connected or (writes and not early)
        self.ends.append(end)

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def foreign_reader_opens(self) -> None:
        assert self.pipe is not None
        self.ends.append(End(self.pipe, os.open(self.path, READ), reads=True, writes=False))

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def foreign_writer_opens(self) -> None:
        assert self.pipe is not None
        if self.pipe.readers:
            self.ends.append(End(self.pipe, os.open(self.path, WRITE), reads=False, writes=True))
        else:
            with pytest.raises(OSError, match="No such device or address"):
                os.open(self.path, WRITE)

    @precondition(lambda self: self.pipe is not None and not self.waiting)
    @rule()
    def path_is_replaced(self) -> None:
        self.path.unlink()
        os.mkfifo(self.path)
        self.pipe = Pipe()

    # Bytes

    @precondition(lambda self: self.fifos(writes=True))
    @rule(data=st.data(), content=st.binary(min_size=1, max_size=300))
    def write(self, data: st.DataObject, content: bytes) -> None:
        end = self.pick(data, self.fifos(writes=True))
        if len(end.pipe.content) + len(content) > SMALL:
            return
        self.look(end)
        if not end.connected:
            assert end.thing.write_nowait(content) == 0
        elif not end.pipe.readers:
            with promptly(), pytest.raises(UnavailableError, match="reader has gone"):
                end.thing.write(content)
        else:
            with promptly():
                assert end.thing.write(content) == len(content)
            end.pipe.content += content

    @precondition(lambda self: self.fifos(writes=True))
    @rule(data=st.data(), parts=st.lists(st.binary(max_size=40), max_size=5))
    def write_several(self, data: st.DataObject, parts: list[bytes]) -> None:
        end = self.pick(data, self.fifos(writes=True))
        if end.connected and end.pipe.readers and len(end.pipe.content) + 200 <= SMALL:
            with promptly():
                assert end.thing.writev(parts) == len(b"".join(parts))
            end.pipe.content += b"".join(parts)

    def look(self, end: End) -> None:
        """What a fresh look at a write end, or at a read end, does to the model."""
        if end in self.waiting and end.pipe.readers:
            self.waiting.remove(end)
            end.writes = True
            end.pipe.ends.append(end)
            end.pipe.writer_came()
        if end.writes and end.pipe.readers:
            end.connected = True
        if end.reads and (end.pipe.writers or end.pipe.content or end.saw_writer):
            end.connected = True

    @precondition(lambda self: self.fifos(reads=True))
    @rule(data=st.data(), size=st.integers(1, 400), how=st.sampled_from(["nowait", "read", "into"]))
    def read(self, data: st.DataObject, size: int, how: str) -> None:
        end = self.pick(data, self.fifos(reads=True))
        expected: bytes | None = end.pipe.content[:size]
        if not expected:
            ended = not end.pipe.writers and (end.saw_writer or end.no_more_writers)
            expected = b"" if ended else None
            end.connected = end.connected or bool(end.pipe.writers) or end.saw_writer
        else:
            end.connected = True
        if how == "nowait" or expected is None:
            assert end.thing.read_nowait(size) == expected
        elif how == "read":
            with promptly():
                assert end.thing.read(size) == expected
        else:
            target = bytearray(size)
            with promptly():
                assert target[: end.thing.readinto(target)] == expected
        if expected:
            end.pipe.content = end.pipe.content[len(expected) :]

    @precondition(lambda self: self.fifos(reads=True))
    @rule(data=st.data())
    def read_to_the_end(self, data: st.DataObject) -> None:
        end = self.pick(data, self.fifos(reads=True))
        if not end.pipe.writers and (end.saw_writer or end.no_more_writers):
            with promptly():
                assert end.thing.read() == end.pipe.content
            end.connected = end.connected or bool(end.pipe.content) or end.saw_writer
            end.pipe.content = b""

    @precondition(lambda self: any(isinstance(end.thing, int) for end in self.ends))
    @rule(data=st.data(), content=st.binary(min_size=1, max_size=300))
    def foreign_end_moves_bytes(self, data: st.DataObject, content: bytes) -> None:
        end = self.pick(data, [end for end in self.ends if isinstance(end.thing, int)])
        pipe = end.pipe
        if end.reads and not pipe.content and pipe.writers:
            with pytest.raises(BlockingIOError):
                os.read(end.thing, len(content))
        elif end.reads:
            assert os.read(end.thing, len(content)) == pipe.content[: len(content)]
            pipe.content = pipe.content[len(content) :]
        elif not pipe.readers:
            with pytest.raises(BrokenPipeError):
                os.write(end.thing, content)
        elif len(pipe.content) + len(content) <= SMALL:
            assert os.write(end.thing, content) == len(content)
            pipe.content += content

    # Looking and ending

    @precondition(lambda self: self.fifos())
    @rule(data=st.data())
    def look_for_the_peer(self, data: st.DataObject) -> None:
        end = self.pick(data, self.fifos())
        self.look(end)
        assert end.thing.connected == end.connected
        if end.connected:
            end.thing.wait_connected(timeout=0)

    @precondition(lambda self: self.fifos(reads=True))
    @rule(data=st.data())
    def look_for_the_end(self, data: st.DataObject) -> None:
        end = self.pick(data, self.fifos(reads=True))
        hung_up = not end.pipe.writers and end.saw_writer
        over = end.no_more_writers and not end.pipe.writers and not end.pipe.content
        assert end.thing.at_end == (hung_up or over)

    @precondition(lambda self: self.fifos(reads=True))
    @rule(data=st.data())
    def no_more_writers(self, data: st.DataObject) -> None:
        end = self.pick(data, self.fifos(reads=True))
        end.thing.no_more_writers()
        end.no_more_writers = True

    @precondition(lambda self: self.ends)
    @rule(data=st.data(), detached=st.booleans())
    def close(self, data: st.DataObject, detached: bool) -> None:
        self.let_go(self.pick(data, self.ends), detached)

    def let_go(self, end: End, detached: bool) -> None:
        self.ends.remove(end)
        if isinstance(end.thing, int):
            os.close(end.thing)
        else:
            if end in self.waiting:
                with pytest.raises(UnavailableError):
                    end.thing.detach()
            elif detached:
                os.close(end.thing.detach())
            end.thing.close()
            self.closed.append(end.thing)
        if end in self.waiting:
            self.waiting.remove(end)
        else:
            end.pipe.leave(end)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def use_a_closed_one(self, data: st.DataObject) -> None:
        fifo = self.closed[data.draw(st.integers(0, len(self.closed) - 1))]
        assert fifo.closed
        fifo.close()
        with pytest.raises(ClosedError):
            fifo.fileno()
        with pytest.raises(ClosedError):
            fifo.read(1) if fifo.mode != "write" else fifo.write(b"x")

    def teardown(self) -> None:
        for end in list(self.ends):
            self.let_go(end, detached=False)
        shutil.rmtree(self.folder)
        assert open_files() == self.files
        assert fifo_module._counts()[:2] == (0, 0)


TestFifos = FifoMachine.TestCase  # C13 to C16, C28
TestFifos.settings = settings(
    max_examples=examples(150), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
