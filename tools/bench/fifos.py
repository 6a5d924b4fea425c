"""What a fifo costs: made, opened at both ends, one byte through it, closed, removed; against the bare system calls."""

from __future__ import annotations

import os
import time
from pathlib import Path

from measure import Result, at_most_times, in_turns

from libctrd import open_fifo

TIMES = 3.0  # of the bare system calls, as Python's os module makes them
BATCH = 500


def ours(path: str) -> None:
    reader = open_fifo(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK)
    writer = open_fifo(path, os.O_WRONLY | os.O_NONBLOCK)
    writer.write(b"x")
    if reader.read(1) != b"x":
        raise SystemExit("the byte did not come through")
    writer.close()
    reader.close()
    os.unlink(path)


def bare(path: str) -> None:
    os.mkfifo(path, 0o700)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(writer, b"x")
    if os.read(reader, 1) != b"x":
        raise SystemExit("the byte did not come through")
    os.close(writer)
    os.close(reader)
    os.unlink(path)


def measure(directory: Path, rounds: int) -> list[Result]:
    path = str(directory / "fifo")

    def batch_of_ours() -> float:
        begin = time.perf_counter()
        for _ in range(BATCH):
            ours(path)
        return (time.perf_counter() - begin) / BATCH * 1e6

    def batch_of_bare() -> float:
        begin = time.perf_counter()
        for _ in range(BATCH):
            bare(path)
        return (time.perf_counter() - begin) / BATCH * 1e6

    result = Result("fifo", f"a fifo from its making to its removal, a byte through it; batches of {BATCH}")
    result.series = in_turns(rounds, "us", {"open_fifo": batch_of_ours, "bare system calls": batch_of_bare})
    result.bars = [at_most_times(TIMES, *result.series)]
    return [result]
