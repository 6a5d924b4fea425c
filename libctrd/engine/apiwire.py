"""Between what engines take and give and the messages of `types.API`. Pure: nothing is asked or kept here (C25)."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any, Final

from libctrd import protos
from libctrd.engine.base import ExecRequest, unsupported
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
)
from libctrd.state import CPU, BlockIO, ExitStatus, Memory, Pids, Stats

API: Final = protos.package("types")
ENGINE: Final = "api"
"""What this engine is called in errors (C27)."""

_NANOSECONDS: Final = 1_000_000_000
_UNLIMITED: Final = 1 << 62
"""A limit from here on is none."""
_WORD: Final = (1 << 64) - 1

# containerd 0.2 has one code for all that goes wrong, so its words are what tells errors apart; `ctrd serve` uses the
# same, and for the rest those of the local engine.
_KINDS: Final[tuple[tuple[re.Pattern[str], type[CtrdError]], ...]] = (
    (
        re.compile(
            r"container not found|process not found|no such process|no such containers|has ended|has no process"
        ),
        NotFoundError,
    ),
    (
        re.compile(r"(: |^)file exists|is there already|has a process .* already|(container|process) already exists"),
        AlreadyExistsError,
    ),
    (re.compile(r"did not start before the specified timeout|context deadline exceeded"), DeadlineError),
    (
        re.compile(r"not paused|paused already|already paused|cannot be empty|empty bundle path|invalid parameter"),
        InvalidArgumentError,
    ),
)
_STARTS: Final = re.compile(r"oci runtime error|shim error")


def error_of(error: RuntimeFailedError, starting: bool = False) -> CtrdError:
    """The error of the family that a text of that daemon means. While *starting* the runtime's own words are only that:
    a file that it did not find is no container that is missing.
    """
    said = str(error)
    for pattern, kind in _KINDS:
        if pattern.search(said) and not (
            starting and kind in (NotFoundError, InvalidArgumentError) and _STARTS.search(said)
        ):
            found = kind(said)
            found.__cause__ = error.__cause__
            return found
    if starting and said.endswith("said nothing"):  # what it said went into the container's stderr
        return RuntimeFailedError(said)
    return error


# ---- time ------------------------------------------------------------------------------------------------------------


def nanoseconds(timestamp: Any) -> int:
    """A timestamp in nanoseconds since 1970."""
    return int(timestamp.seconds) * _NANOSECONDS + int(timestamp.nanos)


def events_request(since: int, id: str = "", stored_only: bool = False) -> Any:
    """The request for the events after *since*, in nanoseconds; none of the stored ones for 0."""
    request = API.EventsRequest(id=id, storedOnly=stored_only)
    if since:
        request.timestamp.seconds, request.timestamp.nanos = divmod(since, _NANOSECONDS)
    return request


def nanoseconds_of(moment: datetime) -> int:
    """A moment in nanoseconds since 1970."""
    delta = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (delta.days * 86400 + delta.seconds) * _NANOSECONDS + delta.microseconds * 1000


def exit_status(event: Any) -> ExitStatus:
    """How a process ended, from its ``exit`` event. 255 is what that API says when nobody knows, and what a process
    itself may end with: it is taken for the latter.
    """
    return ExitStatus(event.status, exited_at=protos.moment(event.timestamp))


# ---- processes -------------------------------------------------------------------------------------------------------

_CARRIED: Final = {
    "terminal",
    "user",
    "args",
    "env",
    "cwd",
    "capabilities",
    "apparmorProfile",
    "selinuxLabel",
    "noNewPrivileges",
    "rlimits",
    "consoleSize",
    "oomScoreAdj",
}
"""What an AddProcess carries of the settings of a process, or need not: a size is set by a call of its own, and a
further process has the OOM score of the daemon's choice.
"""


def add_process(request: ExecRequest, stderr: str) -> Any:
    """The AddProcess for a further process (C21). Raises `UnsupportedError` for a setting that it cannot carry."""
    settings = request.settings
    for name, value in settings.items():
        if value and name not in _CARRIED:
            raise unsupported(ENGINE, f"set {name!r} for a further process")
    user = settings.get("user") or {}
    return API.AddProcessRequest(
        id=request.record.id,
        pid=request.process,
        terminal=request.terminal,
        user=API.User(uid=user.get("uid", 0), gid=user.get("gid", 0), additionalGids=user.get("additionalGids") or ()),
        args=settings.get("args") or (),
        env=settings.get("env") or (),
        cwd=settings.get("cwd") or "/",
        capabilities=_capabilities(settings.get("capabilities") or {}),
        apparmorProfile=settings.get("apparmorProfile") or "",
        selinuxLabel=settings.get("selinuxLabel") or "",
        noNewPrivileges=bool(settings.get("noNewPrivileges")),
        rlimits=[
            API.Rlimit(type=limit["type"], soft=limit["soft"], hard=limit["hard"])
            for limit in settings.get("rlimits") or ()
        ],
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=stderr,
    )


def _capabilities(sets: dict[str, list[str]]) -> list[str]:
    """The one list of that API stands for all sets: what is in each of those that count, so that nobody gains any."""
    counting = [set(sets.get(name) or ()) for name in ("effective", "permitted")]
    return [name for name in sets.get("bounding") or () if all(name in names for names in counting)]


# ---- limits ----------------------------------------------------------------------------------------------------------

_LIMITS: Final = {
    ("memory", "limit"): "memoryLimit",
    ("memory", "swap"): "memorySwap",
    ("memory", "reservation"): "memoryReservation",
    ("memory", "kernel"): "kernelMemoryLimit",
    ("memory", "kernelTCP"): "kernelTCPMemoryLimit",
    ("cpu", "shares"): "cpuShares",
    ("cpu", "period"): "cpuPeriod",
    ("cpu", "quota"): "cpuQuota",
    ("cpu", "cpus"): "cpusetCpus",
    ("cpu", "mems"): "cpusetMems",
    ("pids", "limit"): "pidsLimit",
    ("blockIO", "weight"): "blkioWeight",
    ("blockIO", "leafWeight"): "blkioLeafWeight",
}
_THROTTLES: Final = {
    "throttleReadBpsDevice": "blkioThrottleReadBpsDevice",
    "throttleWriteBpsDevice": "blkioThrottleWriteBpsDevice",
    "throttleReadIOPSDevice": "blkioThrottleReadIopsDevice",
    "throttleWriteIOPSDevice": "blkioThrottleWriteIopsDevice",
}


def resources(limits: dict[str, Any]) -> Any:
    """The UpdateResource for ``linux.resources``. -1, "no limit", is the largest number there.

    Raises `UnsupportedError` for a limit that it cannot carry.
    """
    update = API.UpdateResource()
    for group, values in limits.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            if value is None or value in ([], {}, ""):
                continue
            if field := _LIMITS.get((group, name)):
                setattr(update, field, value if isinstance(value, str) else value & _WORD)
            elif group == "blockIO" and name in _THROTTLES:
                getattr(update, _THROTTLES[name]).extend(
                    API.ThrottleDevice(blkIODevice=_device(entry), rate=entry["rate"]) for entry in value
                )
            elif group == "blockIO" and name == "weightDevice":
                update.blkioWeightDevice.extend(
                    API.WeightDevice(
                        blkIODevice=_device(entry),
                        weight=entry.get("weight") or 0,
                        leafWeight=entry.get("leafWeight") or 0,
                    )
                    for entry in value
                )
            else:
                raise unsupported(ENGINE, f"change the limit {'.'.join(filter(None, (group, name)))!r}")
    return update


def _device(entry: dict[str, int]) -> Any:
    return API.BlockIODevice(major=entry["major"], minor=entry["minor"])


# ---- statistics ------------------------------------------------------------------------------------------------------


def stats(reply: Any) -> Stats:
    """What a container uses, in the one shape that libctrd has for it (C20)."""
    group = reply.cgroup_stats
    cpu, memory, block = group.cpu_stats, group.memory_stats, group.blkio_stats
    further = memory.stats
    return Stats(
        protos.moment(reply.timestamp) or datetime.now(timezone.utc),
        CPU(
            cpu.cpu_usage.total_usage,
            cpu.cpu_usage.usage_in_usermode,
            cpu.cpu_usage.usage_in_kernelmode,
            cpu.throttling_data.throttled_periods,
            cpu.throttling_data.throttled_time,
        ),
        Memory(
            usage=memory.usage.usage,
            limit=_limit(memory.usage.limit),
            peak=memory.usage.max_usage or None,
            swap=further.get("swap", memory.swap_usage.usage),
            swap_limit=_limit(memory.swap_usage.limit),
            anonymous=further.get("rss", 0),
            file=further.get("cache", memory.cache),
            oom_kills=further.get("oom_kill", 0),
        ),
        Pids(group.pids_stats.current, _limit(group.pids_stats.limit)),
        BlockIO(
            _sum(block.io_service_bytes_recursive, "read"),
            _sum(block.io_service_bytes_recursive, "write"),
            _sum(block.io_serviced_recursive, "read"),
            _sum(block.io_serviced_recursive, "write"),
        ),
    )


def _limit(value: int) -> int | None:
    return value if 0 < value < _UNLIMITED else None


def _sum(entries: Any, operation: str) -> int:
    return sum(entry.value for entry in entries if entry.op.lower() == operation)
