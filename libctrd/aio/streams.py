"""The streams of a process in an event loop: outputs that the relay reads ahead, and stdin."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from libctrd.aio.loop import CALLS, crossing, off, outlast, settle
from libctrd.errors import DeadlineError
from libctrd.stdio import PIPE, Choice, Stdin, Stdio

if TYPE_CHECKING:
    from libctrd.process import Process
    from libctrd.relay import Buffer
    from libctrd.stdio import Callback

BLOCK = 65536
LINE = 1 << 20
"""Bytes of a line, at most, that `Reader` gives in one piece."""
_LOOK_SECONDS = 1.0


def in_loop(stdio: Choice | Stdio | Callback) -> Choice | Stdio | Callback:
    """What is to be read by the caller is read ahead by the relay, up to 1 MiB: the container then waits."""
    if stdio is PIPE:
        stdio = Stdio(PIPE, PIPE, PIPE)
    if not isinstance(stdio, Stdio):
        return stdio
    gathered = Stdio()
    first, *outputs = stdio.streams
    stdout, stderr = (Choice.GATHER if choice is PIPE else choice for choice in outputs)
    gathered.streams = (first, stdout, stderr)
    return gathered


class Reader:
    """An output of a process. Several coroutines may read; each byte goes to one of them."""

    def __init__(self, buffer: Buffer | None) -> None:
        self._buffer = buffer  # None: one that is at its end from the beginning
        self._held = b""  # read, and not yet given: from `_at` on
        self._at = 0
        self._lines = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<aio Reader of {self._buffer.source if self._buffer is not None else 'nothing'}>"

    async def read(self, size: int = -1) -> bytes:
        """Up to *size* bytes as soon as there is one, ``b""`` at the end; -1: all there is up to the end (C28)."""
        if size >= 0:
            return self._take(size) or (await self._more(size) if size else b"")
        parts = [self._take(-1)]
        while block := await self._more(-1):
            parts.append(block)
        return b"".join(parts)

    async def readline(self) -> bytes:
        """The next line with its end, ``b""`` at the end of all. One of more than `LINE` bytes comes in pieces.

        When it is cancelled nothing is lost: the next read has it.
        """
        if not self._lines.locked() and (end := self._held.find(b"\n", self._at) + 1):
            return self._take(end - self._at)  # as with most lines: nobody is to be waited for
        async with self._lines:
            while True:
                end = self._held.find(b"\n", self._at) + 1
                if end or len(self._held) - self._at >= LINE:
                    return self._take(end - self._at if end else LINE)
                block = await self._more(BLOCK)
                if not block:
                    return self._take(-1)
                self._held = self._take(-1) + block

    def _take(self, size: int) -> bytes:
        """Up to *size* bytes of what is held; -1: all of it."""
        begin, end = self._at, len(self._held) if size < 0 else min(self._at + size, len(self._held))
        taken = self._held[begin:end]
        self._at = end
        if end == len(self._held):
            self._held, self._at = b"", 0
        return taken

    async def _more(self, size: int) -> bytes:
        if self._buffer is None:
            return b""
        while (found := self._buffer.read_nowait(size)) is None:
            await crossing().readable(self._buffer)
        return found

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration


class Writer:
    """The standard input of a process."""

    def __init__(self, stdin: Stdin) -> None:
        self._stdin = stdin
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<aio Writer, {'closed' if self.closed else 'open'}>"

    async def write(self, data: bytes) -> int:
        """Writes all of *data*, waiting for the reader and for room; returns how many bytes that were.

        Raises `UnavailableError` when nobody reads any more, `ClosedError` when it is closed. Cancelled, a part of it
        may have been written.
        """
        left = memoryview(data).cast("B")
        async with self._turn:
            while left:
                written = self._stdin.write_nowait(left)  # type: ignore[arg-type]
                left = left[written:]
                if not written and left:
                    await self._room()
        return len(data)

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
    if stream not in streams.readers:
        streams.readers[stream] = Reader(streams.gathered.get(stream))
    found = streams.readers[stream]
    assert isinstance(found, Reader)
    return found


def writer_of(process: Process | None) -> Writer | None:
    if process is None or process.stdin is None:
        return None
    readers = process.streams.readers
    found = readers.setdefault("stdin", Writer(process.stdin))
    assert isinstance(found, Writer)
    return found
