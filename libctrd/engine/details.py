"""What cgroups tell beyond `Stats`, for those who pass on all of it: by processor, by device, and each line of a file.

Read like `usage`, from files of v1 or v2; of v2, which has fewer of these numbers, what can be said in their place.
"""

from __future__ import annotations

import os

from msgspec import Struct

from libctrd.engine import cgroups
from libctrd.engine.usage import Read, number, reader, words


class Counter(Struct, frozen=True):
    """A kind of memory: bytes used now and at most, the limit (``None``: none), how often it was hit."""

    usage: int = 0
    peak: int = 0
    limit: int | None = None
    failures: int = 0


class Device(Struct, frozen=True):
    """What one device did: ``Read``, ``Write`` and the like, in bytes or requests."""

    major: int
    minor: int
    operation: str
    value: int


class Details(Struct, frozen=True):
    """All of that, of one cgroup at one moment."""

    by_processor: list[int] = []
    memory: dict[str, int] = {}
    limit_failures: int = 0
    memory_and_swap: Counter = Counter()
    kernel: Counter = Counter()
    transferred: list[Device] = []
    served: list[Device] = []


def of(path: str) -> Details:
    """Those of the cgroup *path*; what it has not is empty."""
    return _v2(reader(path)) if cgroups.unified() else _v1(reader(path))


def _v1(read: Read) -> Details:
    return Details(
        [int(word) for word in read("cpuacct", "cpuacct.usage_percpu").split() if word.isdecimal()],
        words(read("memory", "memory.stat")),
        number(read("memory", "memory.failcnt")) or 0,
        _counter(read, "memory.memsw"),
        _counter(read, "memory.kmem"),
        _devices_v1(read("blkio", "blkio.throttle.io_service_bytes_recursive")),
        _devices_v1(read("blkio", "blkio.throttle.io_serviced_recursive")),
    )


def _counter(read: Read, prefix: str) -> Counter:
    return Counter(
        number(read("memory", f"{prefix}.usage_in_bytes")) or 0,
        number(read("memory", f"{prefix}.max_usage_in_bytes")) or 0,
        number(read("memory", f"{prefix}.limit_in_bytes")),
        number(read("memory", f"{prefix}.failcnt")) or 0,
    )


def _devices_v1(text: str) -> list[Device]:
    found = []
    for line in filter(str.strip, text.splitlines()):
        device, *rest = line.split()
        major, colon, minor = device.partition(":")
        if colon and len(rest) == 2 and major.isdecimal() and minor.isdecimal() and rest[1].isdecimal():
            found.append(Device(int(major), int(minor), rest[0], int(rest[1])))
    return found


def _v2(read: Read) -> Details:
    memory, swap = number(read("", "memory.current")) or 0, number(read("", "memory.swap.current")) or 0
    most, most_swap = number(read("", "memory.max")), number(read("", "memory.swap.max"))
    total, processors = words(read("", "cpu.stat")).get("usage_usec", 0) * 1000, os.cpu_count() or 1
    devices = _devices_v2(read("", "io.stat"))
    return Details(
        # v2 does not tell them apart, but whoever divides by their number must get it right.
        [total // processors] * processors,
        words(read("", "memory.stat")),
        words(read("", "memory.events")).get("max", 0),
        Counter(memory + swap, 0, most + most_swap if most is not None and most_swap is not None else None),
        Counter(),
        [device for device in devices if device.operation in ("Read", "Write")],
        [
            Device(device.major, device.minor, device.operation.removesuffix("s"), device.value)
            for device in devices
            if device.operation in ("Reads", "Writes")
        ],
    )


_V2 = {"rbytes": "Read", "wbytes": "Write", "rios": "Reads", "wios": "Writes"}


def _devices_v2(text: str) -> list[Device]:
    found = []
    for line in filter(str.strip, text.splitlines()):
        device, *rest = line.split()
        major, colon, minor = device.partition(":")
        for part in rest:
            name, _, value = part.partition("=")
            if colon and name in _V2 and major.isdecimal() and minor.isdecimal() and value.isdecimal():
                found.append(Device(int(major), int(minor), _V2[name], int(value)))
    return found
