"""The streams of a process as text, and all of its output at once: what `subprocess.Popen` is known for."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from libctrd import relay
from libctrd.errors import ClosedError, InvalidArgumentError, UnavailableError
from libctrd.fifo import Fifo
from libctrd.stdio import OUTPUTS, Stdin, Text

if TYPE_CHECKING:
    from libctrd.process import Process
    from libctrd.state import ExitStatus
    from libctrd.stdio import Streams


class _Out(io.RawIOBase):
    """The read end of a fifo, as `io` wants it."""

    def __init__(self, fifo: Fifo) -> None:
        self._fifo = fifo

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fifo.fileno()

    def readinto(self, buffer: Any) -> int:
        return self._fifo.readinto(buffer)

    def close(self) -> None:
        self._fifo.close()
        super().close()


class _In(io.RawIOBase):
    """Stdin, as `io` wants it."""

    def __init__(self, stdin: Stdin) -> None:
        self._stdin = stdin

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stdin.fileno()

    def write(self, data: Any) -> int:
        return self._stdin.write(bytes(data))

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._stdin.close()


def wanted(text: bool, encoding: str | None, errors: str | None) -> Text | None:
    """What ``text=``, ``encoding=`` and ``errors=`` say together, as in `subprocess`: one of them is enough.

    Raises `InvalidArgumentError` for names that Python does not know.
    """
    if not text and encoding is None and errors is None:
        return None
    chosen = Text(encoding or "utf-8", errors or "strict")
    try:
        codecs.lookup(chosen.encoding)
        codecs.lookup_error(chosen.errors)
    except (LookupError, TypeError) as error:
        raise InvalidArgumentError(f"encoding={encoding!r}, errors={errors!r}: {error}") from error
    return chosen


def stream(streams: Streams, name: str) -> Any:
    """The stream of that name as its user gets it: bytes, or with `Text` an `io.TextIOWrapper`, always the same."""
    bare = getattr(streams.pipe, name)
    if streams.text is None or bare is None:
        return bare
    if name not in streams.wrapped:
        raw = bare if isinstance(bare, io.BytesIO) else io.BufferedReader(_Out(bare)) if name != "stdin" else _In(bare)
        streams.wrapped[name] = io.TextIOWrapper(
            raw, streams.text.encoding, streams.text.errors, write_through=name == "stdin"
        )
    return streams.wrapped[name]


def encoded(data: Any, text: Text | None) -> bytes:
    """What is written to stdin. Raises `InvalidArgumentError` for a str without ``text=True``, and the other way."""
    if text is not None and isinstance(data, str):
        return data.encode(text.encoding, text.errors)
    if text is None and isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    wanted = "bytes, or give text=True" if text is None else "a str, for text=True was given"
    raise InvalidArgumentError(f"input={data!r:.40} cannot be written: give {wanted}")


def decoded(data: bytes | None, text: Text | None) -> Any:
    """An output, as ``text=`` wants it: with the ends of lines as ``\\n``, as in a file that is open for text."""
    if data is None or text is None:
        return data
    return io.TextIOWrapper(io.BytesIO(data), text.encoding, text.errors).read()


class Talk:
    """What `Process.communicate` has begun: it goes on where it was when that is called again after its time limit."""

    def __init__(self, process: Process, data: bytes) -> None:
        self._process = process
        streams, stdin = process.streams, process.streams.pipe.stdin
        if data and not isinstance(stdin, Stdin):
            raise InvalidArgumentError(f"process {process.name!r} has no stdin to write to: start it with stdin=PIPE")
        self._outputs: dict[str, relay.Buffer | io.BytesIO] = {}
        for name in OUTPUTS:
            bare = getattr(streams.pipe, name)
            if isinstance(bare, Fifo) and not bare.closed:
                self._outputs[name] = streams.collect(name, bare)
            elif isinstance(bare, io.BytesIO):
                self._outputs[name] = bare
        if process.status is not None:  # else that is told to what is collected when it ends
            for pump in streams.captured.values():
                pump.no_more_writers()
        if isinstance(stdin, Stdin):
            # It reads no more of it, or has ended: its own business, as with subprocess.
            with contextlib.suppress(UnavailableError, ClosedError):
                if data:
                    _feed(stdin, data)
                else:
                    stdin.close()

    def finish(self, wait: Callable[[float | None], ExitStatus], timeout: float | None) -> tuple[Any, Any]:
        """Waits for the end; returns what was printed to stdout and to stderr. *wait* is that of who is asked."""
        deadline = None if timeout is None else time.monotonic() + timeout
        left = timeout
        for output in self._outputs.values():
            if isinstance(output, relay.Buffer) and not output.wait(left):
                break
            left = _left(deadline)
        wait(left)
        found = {name: decoded(output.read(), self._process.streams.text) for name, output in self._outputs.items()}
        return found.get("stdout"), found.get("stderr")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _feed(stdin: Stdin, data: bytes) -> None:
    """Has the relay write all of that, however slowly it is read: no thread waits for it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("input", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
        stdin.feed(fd)
    finally:
        os.close(fd)
