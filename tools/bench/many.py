"""A thousand containers under one client that print a line a second: is any line lost, and what does that cost us?"""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers
from measure import Bar, Result, Series
from shims import processes

import libctrd

CPU = 0.15  # of one core, of all processes of ours


def cpu_seconds(pid: int) -> float:
    """What it has used by now, user and system: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rootfs: str, directory: Path, count: int, ticks: int) -> list[Result]:
    how = f"{count} containers at once under one client, each a static program that prints {ticks} lines, one a second"
    result = Result("many", how, row="P9")
    shutil.copy2(peers.c(directory), os.path.join(rootfs, "peer"))
    spec = libctrd.spec.default(["/peer", "tick", str(ticks)], rootfs)
    outputs = directory / "outputs"
    outputs.mkdir()
    workers = 2 * (os.cpu_count() or 1)
    codes: list[int] = []
    with libctrd.connect(f"local:{directory / 'state'}") as client, ThreadPoolExecutor(workers) as pool:

        def start(number: int) -> libctrd.Container:
            container = client.create(f"many{number}", spec)
            with open(outputs / str(number), "wb") as file:
                container.start(libctrd.Stdio(libctrd.NULL, file, libctrd.NULL))
            return container

        begin = time.perf_counter()
        containers = list(pool.map(start, range(count)))
        started = time.perf_counter() - begin
        shims = processes("ctrd-shim", str(directory / "state"))
        threads = sorted(thread.name for thread in threading.enumerate())
        used = time.process_time() + sum(map(cpu_seconds, shims))
        alive = time.perf_counter()
        # A third of the time, in which none of them begins or ends: those that began first have that much left.
        time.sleep(max(1.0, (ticks - started) / 3))
        span = time.perf_counter() - alive
        share = (time.process_time() + sum(map(cpu_seconds, shims)) - used) / span
        codes = [container.wait().code for container in containers]
        whole = time.perf_counter() - begin
    lines = [(outputs / str(number)).read_text().splitlines() for number in range(count)]
    wanted = [f"line {number}" for number in range(ticks)]
    right = sum(printed == wanted for printed in lines)
    ended = codes.count(0)
    result.series = [
        Series(f"starting {count}", "s", [started]),
        Series("from the first start to the last clean", "s", [whole]),
        Series("processor time while all run, of one core", "%", [share * 100]),
    ]
    result.facts = [f"threads of the client while all run: {', '.join(threads)}"]
    result.bars = [
        Bar("none lost", f"{ended} of {count} ended with 0", ended == count),
        Bar("no line lost", f"{right} of {count} have all {ticks} lines", right == count),
        Bar(f"under {CPU:.0%} of one core", f"{share:.1%}", share < CPU),
        Bar("nothing left", str(len(os.listdir(directory / "state"))), not os.listdir(directory / "state")),
    ]
    return [result]
