"""What a shim costs: its private memory and its threads, alone and as one of many."""

from __future__ import annotations

import statistics
from pathlib import Path

from measure import Bar, Result, Series

import libctrd

KIB = 400.0  # private memory of one shim
MANY = 20


def private_kib(pid: int) -> float:
    """What goes with the process when it goes: Private_Clean and Private_Dirty of ``smaps_rollup``, proc(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))))


def status(pid: int, name: str) -> int:
    """A number of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(name)


def shim_of(bundle: str) -> int:
    """The pid of the shim that serves *bundle*. Not simply the parent of ``init``: for a moment that is the runtime."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if arguments[0].endswith(b"/ctrd-shim") and bundle.encode() in arguments:
            return int(directory.name)
    raise SystemExit(f"no shim serves {bundle}")


def measure(rootfs: str, directory: Path) -> list[Result]:
    result = Result("shim", f"private memory and threads of ctrd-shim while its container runs: one, then {MANY}")
    spec = libctrd.spec.default(["/bin/sleep", "3600"], rootfs)
    shims = []
    with libctrd.connect(f"local:{directory / 'state'}") as client:
        try:
            for number in range(MANY):
                container = client.create(f"shim{number}", spec)
                container.start(libctrd.PIPE)
                shims.append(shim_of(container.bundle))
                if number == 0:
                    alone = Series("one shim, alone", "KiB", [private_kib(shims[0])])
            many = Series(f"each of {MANY} shims", "KiB", [private_kib(pid) for pid in shims])
            threads = max(status(pid, "Threads") for pid in shims)
        finally:
            for container in client.containers():
                container.clean(force=True)
    result.series = [alone, many]
    result.facts = [f"sum of {MANY}: {sum(many.values):.0f} KiB, mean {statistics.mean(many.values):.0f} KiB"]
    most = max(alone.values + many.values)
    result.bars = [
        Bar(f"less than {KIB:g} KiB of private memory", f"{most:g} KiB", most < KIB),
        Bar("one thread", str(threads), threads == 1),
    ]
    return [result]
