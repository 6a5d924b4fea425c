"""How fast a container's output goes: read by the caller, moved by the relay, discarded; against a raw pipe.

The same static busybox writes in every case, in blocks of 64 KiB, and the clock runs from the return of the start of
the writer to the end of file: what a start takes is measured elsewhere. A raw pipe is what ``subprocess`` would give: a
pipe of 64 KiB between the two, and nothing else.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import Result, at_most_times, in_turns

import libctrd

TIMES = 1.25  # of the time that a raw pipe takes
RELAYED_TIMES = 1.5  # the same for bytes that are moved twice, from pipe to pipe
BLOCK = 1 << 20
SINK = """
import os
buffer, got = [bytearray(1 << 20)], 0
while count := os.readv(0, buffer):
    got += count
print(got)
"""
_numbers = itertools.count()


class Streams:
    """The writers and readers, for *size* MiB."""

    def __init__(self, client: libctrd.Client, rootfs: str, size: int) -> None:
        self.client = client
        self.busybox = os.path.join(rootfs, "bin/busybox")
        self.size = size << 20
        self.arguments = ["dd", "if=/dev/zero", "bs=64k", f"count={size * 16}", "status=none"]
        self.spec = libctrd.spec.default(["/bin/busybox", *self.arguments], rootfs)

    def raw_read(self) -> float:
        """Writer, pipe, a reader in this process."""
        with subprocess.Popen([self.busybox, *self.arguments], stdout=subprocess.PIPE, bufsize=0) as writer:
            begin = time.perf_counter()
            assert writer.stdout is not None
            buffer, got = bytearray(BLOCK), 0
            while count := writer.stdout.readinto(buffer):  # type: ignore[attr-defined]
                got += count
        return self._seconds(begin, got)

    def pipe_read(self) -> float:
        """Container, `PIPE`, a reader in this process."""
        container, begin = self._start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.NULL))
        buffer, got = bytearray(BLOCK), 0
        assert isinstance(container.stdout, libctrd.Fifo)
        while count := container.stdout.readinto(buffer):
            got += count
        seconds = self._seconds(begin, got)
        container.stdout.close()
        self._end(container)
        return seconds

    def raw_count(self) -> float:
        """Writer, pipe, another process that counts."""
        with _counter() as sink, subprocess.Popen([self.busybox, *self.arguments], stdout=sink.stdin):
            begin = time.perf_counter()
            count, _ = sink.communicate()
        return self._seconds(begin, int(count))

    def inherit_count(self) -> float:
        """Container, the relay, a pipe, another process that counts: what `INHERIT` does when stdout is a pipe."""
        with _counter() as sink:
            assert sink.stdin is not None
            container, begin = self._start(libctrd.Stdio(libctrd.NULL, sink.stdin.fileno(), libctrd.NULL))
            self._end(container)
            count, _ = sink.communicate()
        return self._seconds(begin, int(count))

    def discard(self) -> float:
        """Container, its shim, nowhere: what nobody reads."""
        both = libctrd.Stdio(libctrd.NULL, libctrd.DETACHED, libctrd.NULL)
        container, begin = self._start(both, unattended="discard")
        self._end(container)
        seconds = self._seconds(begin, self.size)
        container.clean()
        return seconds

    def _start(self, stdio: libctrd.Stdio, unattended: str = "hold") -> tuple[libctrd.Container, float]:
        container = self.client.create(f"stream{next(_numbers)}", self.spec)
        container.start(stdio, unattended=unattended)  # type: ignore[arg-type]
        return container, time.perf_counter()

    @staticmethod
    def _end(container: libctrd.Container) -> None:
        code = container.wait().code
        if code:
            raise SystemExit(f"the container that writes ended with exit code {code}")

    def _seconds(self, begin: float, got: int) -> float:
        seconds = time.perf_counter() - begin
        if got != self.size:
            raise SystemExit(f"{got} of {self.size} bytes came")
        return seconds


def _counter() -> subprocess.Popen[bytes]:
    """A process that reads its stdin to the end and prints how many bytes came."""
    return subprocess.Popen([sys.executable, "-IS", "-c", SINK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def measure(rootfs: str, directory: Path, rounds: int, size: int) -> list[Result]:
    results = [
        Result("pipe", f"{size} MiB of stdout, read by the caller; a raw pipe read by the same code"),
        Result("inherit", f"{size} MiB of stdout, relayed into another process; a raw pipe to the same"),
        Result(
            "discard", f"{size} MiB of stdout that nobody reads, to the end of the container; a raw pipe to a process"
        ),
    ]
    with libctrd.connect(f"local:{directory / 'state'}") as client:
        streams = Streams(client, rootfs, size)
        takers = {
            "container, PIPE": streams.pipe_read,
            "raw pipe, read": streams.raw_read,
            "container, relayed": streams.inherit_count,
            "raw pipe, counted": streams.raw_count,
            "container, discarded": streams.discard,
        }
        pipe, raw_read, relayed, raw_count, discarded = in_turns(rounds, "s", takers)
    compared = ((pipe, raw_read, TIMES), (relayed, raw_count, RELAYED_TIMES), (discarded, raw_count, TIMES))
    for result, (ours, theirs, limit) in zip(results, compared, strict=True):
        result.series = [ours, theirs]
        result.facts = [f"{s.label}: {size / s.median:.0f} MiB/s" for s in result.series]
        result.bars = [at_most_times(limit, ours, theirs)]
    return results
