"""What containerd measures of a container, cgroup v1 and v2, in the one shape that libctrd has for it (C20)."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from libctrd import protos
from libctrd.errors import UnsupportedError
from libctrd.state import CPU, BlockIO, Memory, Pids, Stats

V1 = "io.containerd.cgroups.v1.Metrics"
V2 = "io.containerd.cgroups.v2.Metrics"

_UNLIMITED = 1 << 62
"""A limit from here on is none: v1 has the largest multiple of a page for it, v2 the largest number of 64 bits."""


def stats(metric: Any) -> Stats:
    """The statistics in one ``containerd.types.Metric``. Raises `UnsupportedError` for a shim with ones of its own."""
    kind = metric.data.type_url.rpartition("/")[2]
    if kind not in (V1, V2):
        raise UnsupportedError(f"the containerd engine cannot read statistics of the type {kind!r}")
    measured = protos.message(kind)()
    measured.ParseFromString(metric.data.value)
    at = protos.moment(metric.timestamp) or datetime.now(timezone.utc)
    return _v1(measured, at) if kind == V1 else _v2(measured, at)


def _limit(value: int) -> int | None:
    return value if 0 < value < _UNLIMITED else None


def _v1(measured: Any, at: datetime) -> Stats:
    cpu, memory, block = measured.cpu, measured.memory, measured.blkio
    return Stats(
        at,
        CPU(
            cpu.usage.total,
            cpu.usage.user,
            cpu.usage.kernel,
            cpu.throttling.throttled_periods,
            cpu.throttling.throttled_time,
        ),
        Memory(
            usage=memory.usage.usage,
            limit=_limit(memory.usage.limit),
            peak=memory.usage.max,
            swap=max(0, memory.swap.usage - memory.usage.usage),  # v1 counts both together
            swap_limit=_limit(memory.swap.limit),
            anonymous=memory.total_rss,
            file=memory.total_cache,
            oom_kills=measured.memory_oom_control.oom_kill,
        ),
        Pids(measured.pids.current, _limit(measured.pids.limit)),
        BlockIO(
            _sum(block.io_service_bytes_recursive, "Read"),
            _sum(block.io_service_bytes_recursive, "Write"),
            _sum(block.io_serviced_recursive, "Read"),
            _sum(block.io_serviced_recursive, "Write"),
        ),
    )


def _sum(entries: Any, operation: str) -> int:
    return sum(entry.value for entry in entries if entry.op.lower() == operation.lower())


def _v2(measured: Any, at: datetime) -> Stats:
    cpu, memory, devices = measured.cpu, measured.memory, measured.io.usage
    return Stats(
        at,
        CPU(
            cpu.usage_usec * 1000,
            cpu.user_usec * 1000,
            cpu.system_usec * 1000,
            cpu.nr_throttled,
            cpu.throttled_usec * 1000,
        ),
        Memory(
            usage=memory.usage,
            limit=_limit(memory.usage_limit),
            peak=memory.max_usage or None,
            swap=memory.swap_usage,
            swap_limit=_limit(memory.swap_limit),
            anonymous=memory.anon,
            file=memory.file,
            oom_kills=measured.memory_events.oom_kill,
        ),
        Pids(measured.pids.current, _limit(measured.pids.limit)),
        BlockIO(
            sum(device.rbytes for device in devices),
            sum(device.wbytes for device in devices),
            sum(device.rios for device in devices),
            sum(device.wios for device in devices),
        ),
    )
