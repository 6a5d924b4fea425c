"""The streams of a process in an event loop: outputs that the relay reads ahead, and stdin."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
import os
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from libctrd._checks import seconds_of
from libctrd.aio.loop import CALLS, crossing, off, outlast, settle
from libctrd.errors import ClosedError, DeadlineError, InvalidArgumentError, UnavailableError
from libctrd.stdio import OUTPUTS, PIPE, Choice, Stdin, Stdio, Text
from libctrd.text import encoded

if TYPE_CHECKING:
    from libctrd.process import Process
    from libctrd.relay import Buffer
    from libctrd.state import ExitStatus
    from libctrd.stdio import Callback

BLOCK = 65536
LINE = 1 << 20
"""Bytes of a line, at most, that `Reader` gives in one piece."""
_LOOK_SECONDS = 1.0


def gathered(choice: Choice | int) -> Choice | int:
    """What is to be read by the caller is read ahead by the relay, up to 1 MiB: the container then waits."""
    return Choice.GATHER if choice is PIPE else choice


def in_loop(stdio: Choice | Stdio | Callback) -> Choice | Stdio | Callback:
    """The same choice, for a loop."""
    if stdio is PIPE:
        stdio = Stdio(PIPE, PIPE, PIPE)
    if not isinstance(stdio, Stdio):
        return stdio
    stdin, stdout, stderr = stdio.streams
    chosen = Stdio()
    chosen.streams = (stdin, gathered(stdout), gathered(stderr))
    return chosen


class Reader:
    """An output of a process: bytes, or str with ``text=True``. Several may read; each byte goes to one of them."""

    def __init__(self, buffer: Buffer | None, text: Text | None = None) -> None:
        self._buffer = buffer  # None: one that is at its end from the beginning
        self._decoder: io.IncrementalNewlineDecoder | None = None
        if text is not None:
            decoder = codecs.getincrementaldecoder(text.encoding)(text.errors)
            self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._nothing: Any = b"" if text is None else ""
        self._newline: Any = b"\n" if text is None else "\n"
        self._held = self._nothing  # read, and not yet given: from `_at` on
        self._at = 0
        self._lines = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<aio Reader of {self._buffer.source if self._buffer is not None else 'nothing'}>"

    async def read(self, size: int = -1) -> Any:
        """Up to *size* bytes (or characters) as soon as there is one, nothing at the end; -1: all there is up to that.

        When it is cancelled nothing is lost: the next read has it (C28).
        """
        if size >= 0:
            return self._take(size) or (await self._more(size) if size else self._nothing)
        parts = [self._take(-1)]
        try:
            while block := await self._more(-1):
                parts.append(block)
        except BaseException:
            self._held, self._at = self._nothing.join([*parts, self._take(-1)]), 0
            raise
        return self._nothing.join(parts)

    async def readline(self) -> Any:
        """The next line with its end, nothing at the end of all. One of more than `LINE` bytes comes in pieces.

        When it is cancelled nothing is lost: the next read has it (C28).
        """
        if not self._lines.locked() and (end := self._held.find(self._newline, self._at) + 1):
            return self._take(end - self._at)  # as with most lines: nobody is to be waited for
        async with self._lines:
            while True:
                end = self._held.find(self._newline, self._at) + 1
                if end or len(self._held) - self._at >= LINE:
                    return self._take(end - self._at if end else LINE)
                block = await self._more(BLOCK)
                if not block:
                    return self._take(-1)
                self._held = self._take(-1) + block

    def _take(self, size: int) -> Any:
        """Up to *size* of what is held; -1: all of it."""
        begin, end = self._at, len(self._held) if size < 0 else min(self._at + size, len(self._held))
        taken = self._held[begin:end]
        self._at = end
        if end == len(self._held):
            self._held, self._at = self._nothing, 0
        return taken

    async def _more(self, size: int) -> Any:
        """What has come, *size* bytes at most; nothing at the end."""
        while self._buffer is not None:
            while (found := self._buffer.read_nowait(size)) is None:
                await crossing().readable(self._buffer)
            if self._decoder is None:
                return found
            if (text := self._decoder.decode(found, final=not found)) or not found:
                return text  # else it is a part of a character
        return self._nothing

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if line := await self.readline():
            return line
        raise StopAsyncIteration


class Writer:
    """The standard input of a process."""

    def __init__(self, stdin: Stdin, text: Text | None = None) -> None:
        self._stdin = stdin
        self._text = text
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<aio Writer, {'closed' if self.closed else 'open'}>"

    async def write(self, data: bytes | str) -> int:
        """Writes all of *data*, a str with ``text=True``, waiting for the reader and for room; returns its length.

        Raises `UnavailableError` when nobody reads any more, `ClosedError` when it is closed. Cancelled, a part of it
        may have been written.
        """
        await self.write_bytes(encoded(data, self._text))
        return len(data)

    async def write_bytes(self, data: bytes) -> None:
        """`write` of what is encoded already."""
        left = memoryview(data)
        async with self._turn:
            while left:
                written = self._stdin.write_nowait(left)  # type: ignore[arg-type]
                left = left[written:]
                if not written and left:
                    await self._room()

    async def _room(self) -> None:
        """Before its reader has come a descriptor says nothing of use: a thread waits for him then, piece by piece."""
        if not self._stdin.connected:
            with contextlib.suppress(DeadlineError):
                await off(CALLS, partial(self._stdin.wait_connected, _LOOK_SECONDS))
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        fd = os.dup(self._stdin.fileno())  # its end closes the original, of which nothing would be heard any more
        try:
            loop.add_writer(fd, settle, waiter)
            try:
                await waiter
            finally:
                loop.remove_writer(fd)
        finally:
            os.close(fd)

    @property
    def closed(self) -> bool:
        """Closed by us?"""
        return self._stdin.closed

    async def close(self) -> None:
        """Closes it; what was written is read first. Idempotent."""
        await off(CALLS, self._stdin.close)

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await outlast(self.close())


def reader_of(process: Process | None, stream: str) -> Reader | None:
    """The reader of an output: the same for whoever asks, since it keeps the beginning of a line."""
    if process is None or process.streams.chosen[1 if stream == "stdout" else 2] is not Choice.GATHER:
        return None
    streams = process.streams
    if stream not in streams.wrapped:
        streams.wrapped[stream] = Reader(streams.gathered.get(stream), streams.text)
    found = streams.wrapped[stream]
    assert isinstance(found, Reader)
    return found


def writer_of(process: Process | None) -> Writer | None:
    """The writer of stdin: the same for whoever asks, since they take turns."""
    stdin = process.streams.pipe.stdin if process is not None else None
    if process is None or not isinstance(stdin, Stdin):
        return None
    found = process.streams.wrapped.setdefault("stdin", Writer(stdin, process.streams.text))
    assert isinstance(found, Writer)
    return found


async def communicate(
    process: Process, wait: Coroutine[Any, Any, ExitStatus], input: bytes | str | None, timeout: float | None
) -> tuple[Any, Any]:
    """`Process.communicate` in a loop. The input is sent by a task of its own, which no time limit of ours ends."""
    writer, outputs = writer_of(process), [reader_of(process, name) for name in OUTPUTS]
    wrapped = process.streams.wrapped
    try:
        seconds_of(timeout, "timeout=")
        if input is not None and "sent" in wrapped:
            raise InvalidArgumentError("communicate() has sent an input before: call it again without one")
        if input is not None and writer is None:
            raise InvalidArgumentError(f"process {process.name!r} has no stdin to write to: start it with stdin=PIPE")
        data = encoded(input, process.streams.text) if input is not None else b""
    except BaseException:
        wait.close()
        raise
    if writer is not None and "sent" not in wrapped:
        wrapped["sent"] = asyncio.ensure_future(send(writer, data))
    reads = [reader.read() if reader is not None else _no_output() for reader in outputs]
    done = asyncio.gather(*reads, wait)
    try:
        stdout, stderr, _ = await asyncio.wait_for(done, timeout)
    except asyncio.TimeoutError:
        raise DeadlineError(
            f"process {process.name!r} of container {process._container.id!r} did not end within {timeout:g} s"
        ) from None
    return stdout, stderr


async def _no_output() -> None:
    return None


async def send(writer: Writer, data: bytes) -> None:
    """Writes all of *data*, and closes it. That nobody reads it, or ended, is its own business, as with subprocess."""
    with contextlib.suppress(UnavailableError, ClosedError):
        await writer.write_bytes(data)
    with contextlib.suppress(UnavailableError, ClosedError):
        await writer.close()
