"""What the processes of a cgroup use, v1 and v2: read from its files, in the one shape that libctrd has for it (C20).

No process is started for that and nothing is kept open: a look costs a dozen small reads. Source: cgroups(7), the
kernel's ``admin-guide/cgroup-v1`` and ``admin-guide/cgroup-v2``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone

from libctrd.engine import cgroups
from libctrd.errors import NotFoundError
from libctrd.state import CPU, BlockIO, Memory, Pids, Stats

_UNLIMITED = 1 << 62
"""A limit from here on is none: v1 has the largest multiple of a page for it."""

Read = Callable[[str, str], str]
"""What stands in a file: the controller (v1), its name. Empty when this cgroup or this kernel has none."""


def stats(path: str) -> Stats:
    """What the cgroup *path* uses now. Raises `NotFoundError` when there is none."""
    if not cgroups.directories(path):
        raise NotFoundError(f"there is no cgroup {path!r}: its processes have ended")
    at = datetime.now(timezone.utc)
    return of_v2(reader(path), at) if cgroups.unified() else of_v1(reader(path), at)


def pids(path: str) -> list[int]:
    """The system pids in the cgroup *path* and those below it, in order. Raises `NotFoundError` when there is none."""
    found: set[int] = set()
    directories = cgroups.directories(path)
    if not directories:
        raise NotFoundError(f"there is no cgroup {path!r}: its processes have ended")
    # Of several hierarchies each holds them all, but for one who moves a process in a single one of them.
    for top in directories:
        for directory, _, _ in os.walk(top):
            try:
                with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                    found.update(int(line) for line in file)
            except OSError:
                continue  # it has gone meanwhile, or is a threaded one, whose processes its parent lists
    return sorted(found - {0})  # 0: one outside of our pid namespace


def reader(path: str) -> Read:
    """Reads files of the cgroup *path*."""

    def read(controller: str, name: str) -> str:
        where = cgroups.TOP if cgroups.unified() else os.path.join(cgroups.TOP, controller)
        try:
            with open(os.path.join(where, path.lstrip("/"), name), encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    return read


def of_v1(read: Read, at: datetime) -> Stats:
    """The statistics in the files of cgroup v1."""
    cpu, memory = words(read("cpu", "cpu.stat")), words(read("memory", "memory.stat"))
    usage = number(read("memory", "memory.usage_in_bytes")) or 0
    both = number(read("memory", "memory.memsw.usage_in_bytes")) or 0  # memory and swap together
    transferred = devices_v1(read("blkio", "blkio.throttle.io_service_bytes_recursive"))
    served = devices_v1(read("blkio", "blkio.throttle.io_serviced_recursive"))
    return Stats(
        at,
        CPU(
            number(read("cpuacct", "cpuacct.usage")) or 0,
            number(read("cpuacct", "cpuacct.usage_user")) or 0,
            number(read("cpuacct", "cpuacct.usage_sys")) or 0,
            cpu.get("nr_throttled", 0),
            cpu.get("throttled_time", 0),
        ),
        Memory(
            usage=usage,
            limit=number(read("memory", "memory.limit_in_bytes")),
            peak=number(read("memory", "memory.max_usage_in_bytes")),
            swap=max(0, both - usage),
            swap_limit=number(read("memory", "memory.memsw.limit_in_bytes")),
            anonymous=memory.get("total_rss", 0),
            file=memory.get("total_cache", 0),
            oom_kills=words(read("memory", "memory.oom_control")).get("oom_kill", 0),
        ),
        Pids(number(read("pids", "pids.current")) or 0, number(read("pids", "pids.max"))),
        BlockIO(transferred.get("Read", 0), transferred.get("Write", 0), served.get("Read", 0), served.get("Write", 0)),
    )


def of_v2(read: Read, at: datetime) -> Stats:
    """The statistics in the files of cgroup v2."""
    cpu, memory = words(read("", "cpu.stat")), words(read("", "memory.stat"))
    io = devices_v2(read("", "io.stat"))
    return Stats(
        at,
        CPU(
            cpu.get("usage_usec", 0) * 1000,
            cpu.get("user_usec", 0) * 1000,
            cpu.get("system_usec", 0) * 1000,
            cpu.get("nr_throttled", 0),
            cpu.get("throttled_usec", 0) * 1000,
        ),
        Memory(
            usage=number(read("", "memory.current")) or 0,
            limit=number(read("", "memory.max")),
            peak=number(read("", "memory.peak")),
            swap=number(read("", "memory.swap.current")) or 0,
            swap_limit=number(read("", "memory.swap.max")),
            anonymous=memory.get("anon", 0),
            file=memory.get("file", 0),
            oom_kills=words(read("", "memory.events")).get("oom_kill", 0),
        ),
        Pids(number(read("", "pids.current")) or 0, number(read("", "pids.max"))),
        BlockIO(io.get("rbytes", 0), io.get("wbytes", 0), io.get("rios", 0), io.get("wios", 0)),
    )


def number(text: str) -> int | None:
    """The number in a file that holds one; ``None`` for ``max``, for a limit that is none, and for no file."""
    text = text.strip()
    value = int(text) if text.isdecimal() else _UNLIMITED
    return value if value < _UNLIMITED else None


def words(text: str) -> dict[str, int]:
    """A file of lines ``NAME NUMBER``; others are left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def devices_v1(text: str) -> dict[str, int]:
    """Lines ``MAJOR:MINOR OPERATION NUMBER``, summed up over the devices by operation."""
    total: dict[str, int] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[2].isdecimal():
            total[parts[1]] = total.get(parts[1], 0) + int(parts[2])
    return total


def devices_v2(text: str) -> dict[str, int]:
    """Lines ``MAJOR:MINOR NAME=NUMBER …``, summed up over the devices by name."""
    total: dict[str, int] = {}
    for line in text.splitlines():
        for part in line.split()[1:]:
            name, _, value = part.partition("=")
            if value.isdecimal():
                total[name] = total.get(name, 0) + int(value)
    return total
