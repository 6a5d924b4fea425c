"""Between the messages of `types.API` and what the local engine takes and gives. Pure: nothing is asked or kept
here.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any, Final

from libctrd import protos
from libctrd.engine.details import Counter, Details, Device
from libctrd.errors import AlreadyExistsError, CtrdError, DeadlineError, NotFoundError, RuntimeFailedError
from libctrd.serve.eventlog import Entry
from libctrd.state import Stats

API: Final = protos.package("types")
_NANOSECONDS: Final = 1_000_000_000
_YEAR_ONE: Final = -62_135_596_800
_YEAR_10000: Final = 253_402_300_800
_UNLIMITED: Final = (1 << 64) - 1

# What clients of that time look for in the text of a failed start, whatever the runtime's own words are.
_PHRASES: Final = (
    (re.compile(r"executable file .*not found|exec: .*: not found", re.IGNORECASE), "executable file not found"),
    (re.compile("no such file or directory", re.IGNORECASE), "no such file or directory"),
    (re.compile("permission denied", re.IGNORECASE), "permission denied"),
    (re.compile("not a directory", re.IGNORECASE), "not a directory"),
)


_ON_RUNNING: Final = frozenset(("UpdateContainer", "Signal", "UpdateProcess", "AddProcess", "Stats"))
"""Calls that look for nothing but a container that runs."""


def failure(error: CtrdError, call: str) -> str:
    """The text of an error of *call*, as that daemon would put it: who failed, then why; with the phrases that clients
    look for. A container that ends amid a call is one that is not found.
    """
    if isinstance(error, DeadlineError):
        return "containerd: container did not start before the specified timeout"
    if isinstance(error, AlreadyExistsError):
        return f"containerd: {error}: file exists"
    # Of a file that is missing, such as a fifo, the number is another.
    if call in _ON_RUNNING and isinstance(error, NotFoundError) and error.errno in (None, errno.ESRCH):
        return f"containerd: container not found: {error}"
    said = error.output if isinstance(error, RuntimeFailedError) and error.output else str(error)
    whole = f"{'oci runtime error' if isinstance(error, RuntimeFailedError) else 'shim error'}: {said}"
    text = short(whole)
    missing = [phrase for pattern, phrase in _PHRASES if pattern.search(whole) and phrase not in text]
    return f"{text} ({', '.join(missing)})" if missing else text


def short(text: str) -> str:
    """*text* as a status can have it: gRPC sends it in a header, percent-encoded, and a client takes 8 KiB of headers.
    What clients look for stands at its beginning or its end; so it is the middle that goes.
    """
    most = 2000 if text.isascii() else 500
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def event(entry: Entry) -> Any:
    """An event of the log as the stream has it."""
    message = API.Event(type=entry.type, id=entry.id, status=entry.status, pid=entry.pid)
    message.timestamp.seconds, message.timestamp.nanos = divmod(entry.at, _NANOSECONDS)
    return message


def nanoseconds(timestamp: Any) -> int:
    """A timestamp of a request, in nanoseconds since 1970; 0 for none. One before 1970 is before every event: 1. Raises
    `ValueError` for one that cannot be. Source: ``google/protobuf/timestamp.proto``, from the year 1 to 9999.
    """
    if not 0 <= timestamp.nanos < _NANOSECONDS:
        raise ValueError(f"a time with {timestamp.nanos} nanoseconds")
    if not _YEAR_ONE <= timestamp.seconds < _YEAR_10000:
        raise ValueError(f"a time with {timestamp.seconds} seconds")
    if timestamp.seconds == _YEAR_ONE and not timestamp.nanos:
        return 0  # what a client has that has set none
    return int(timestamp.seconds) * _NANOSECONDS + int(timestamp.nanos) if timestamp.seconds >= 0 else 1


def process_of_spec(document: dict[str, Any], *, name: str, system_pid: int, stdio: tuple[str, str, str]) -> Any:
    """The process of a spec, as `State` lists it. *stdio* are its fifos; of one that was not given it has the null
    device.
    """
    user = document.get("user") or {}
    message = API.Process(
        pid=name,
        terminal=bool(document.get("terminal")),
        user=API.User(uid=user.get("uid", 0), gid=user.get("gid", 0), additionalGids=user.get("additionalGids", ())),
        args=document.get("args", ()),
        env=document.get("env", ()),
        cwd=document.get("cwd", ""),
        systemPid=system_pid,
        capabilities=(document.get("capabilities") or {}).get("bounding", ()),
        apparmorProfile=document.get("apparmorProfile", ""),
        selinuxLabel=document.get("selinuxLabel", ""),
        noNewPrivileges=bool(document.get("noNewPrivileges")),
        rlimits=[
            API.Rlimit(type=limit["type"], soft=limit["soft"], hard=limit["hard"])
            for limit in document.get("rlimits") or ()
        ],
    )
    message.stdin, message.stdout, message.stderr = (path or os.devnull for path in stdio)
    return message


def document(request: Any) -> dict[str, Any]:
    """The OCI ``process`` of an AddProcess: all of it is the request's. A user that is missing is root."""
    names = list(request.capabilities)
    process: dict[str, Any] = {
        "terminal": request.terminal,
        "user": {"uid": request.user.uid, "gid": request.user.gid},
        "args": list(request.args),
        "env": list(request.env),
        "cwd": request.cwd or "/",
        "noNewPrivileges": request.noNewPrivileges,
    }
    if request.user.additionalGids:
        process["user"]["additionalGids"] = list(request.user.additionalGids)
    if names:
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "inheritable", "permitted"), names)
    if request.apparmorProfile:
        process["apparmorProfile"] = request.apparmorProfile
    if request.selinuxLabel:
        process["selinuxLabel"] = request.selinuxLabel
    if request.rlimits:
        process["rlimits"] = [{"type": limit.type, "soft": limit.soft, "hard": limit.hard} for limit in request.rlimits]
    return process


_MEMORY: Final = {
    "limit": "memoryLimit",
    "swap": "memorySwap",
    "reservation": "memoryReservation",
    "kernel": "kernelMemoryLimit",
    "kernelTCP": "kernelTCPMemoryLimit",
}
_CPU: Final = {
    "shares": "cpuShares",
    "period": "cpuPeriod",
    "quota": "cpuQuota",
    "cpus": "cpusetCpus",
    "mems": "cpusetMems",
}
_THROTTLES: Final = {
    "throttleReadBpsDevice": "blkioThrottleReadBpsDevice",
    "throttleWriteBpsDevice": "blkioThrottleWriteBpsDevice",
    "throttleReadIOPSDevice": "blkioThrottleReadIopsDevice",
    "throttleWriteIOPSDevice": "blkioThrottleWriteIopsDevice",
}


def resources(update: Any) -> dict[str, Any]:
    """``linux.resources`` of an UpdateResource. A zero is what a client sends that has nothing to say: it is left out,
    as the runtimes of that time took it; so is what is empty. The numbers of that API have no sign, and those of the
    specification do where -1 is no limit: that is the largest one here.
    """
    found: dict[str, Any] = {
        "memory": {name: _signed(value) for name, value in _set(update, _MEMORY).items()},
        "cpu": _set(update, _CPU),
        "blockIO": _set(update, {"weight": "blkioWeight", "leafWeight": "blkioLeafWeight"}),
        "pids": {"limit": _signed(update.pidsLimit)} if update.pidsLimit else {},
    }
    if "quota" in found["cpu"]:
        found["cpu"]["quota"] = _signed(found["cpu"]["quota"])
    block = found["blockIO"]
    if update.blkioWeightDevice:
        block["weightDevice"] = [
            {**_device(entry), "weight": entry.weight, "leafWeight": entry.leafWeight}
            for entry in update.blkioWeightDevice
        ]
    for name, field in _THROTTLES.items():
        if entries := getattr(update, field):
            block[name] = [{**_device(entry), "rate": entry.rate} for entry in entries]
    return {name: limits for name, limits in found.items() if limits}


def _set(update: Any, fields: dict[str, str]) -> dict[str, Any]:
    return {name: value for name, field in fields.items() if (value := getattr(update, field))}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _device(entry: Any) -> dict[str, int]:
    return {"major": entry.blkIODevice.major, "minor": entry.blkIODevice.minor}


def stats(measured: Stats, more: Details, system_usage: int) -> Any:
    """What a container uses, in that API's shape. Of no limit the number is the largest."""
    cpu, memory, pids = measured.cpu, measured.memory, measured.pids
    group = API.CgroupStats(
        cpu_stats=API.CpuStats(
            cpu_usage=API.CpuUsage(
                total_usage=cpu.total_ns,
                percpu_usage=more.by_processor,
                usage_in_kernelmode=cpu.system_ns,
                usage_in_usermode=cpu.user_ns,
            ),
            throttling_data=API.ThrottlingData(
                throttled_periods=cpu.throttled_periods, throttled_time=cpu.throttled_ns
            ),
            system_usage=system_usage,
        ),
        memory_stats=API.MemoryStats(
            cache=memory.file,
            usage=_memory(Counter(memory.usage, memory.peak or 0, memory.limit, more.limit_failures)),
            swap_usage=_memory(more.memory_and_swap),
            kernel_usage=_memory(more.kernel),
            stats=more.memory,
        ),
        pids_stats=API.PidsStats(current=pids.current, limit=pids.limit or 0),
        blkio_stats=API.BlkioStats(
            io_service_bytes_recursive=_devices(more.transferred), io_serviced_recursive=_devices(more.served)
        ),
    )
    message = API.StatsResponse(cgroup_stats=group)
    message.timestamp.FromDatetime(measured.at.replace(tzinfo=None))
    return message


def _memory(counter: Counter) -> Any:
    limit = _UNLIMITED if counter.limit is None else counter.limit
    return API.MemoryData(usage=counter.usage, max_usage=counter.peak, limit=limit, failcnt=counter.failures)


def _devices(devices: list[Device]) -> list[Any]:
    return [
        API.BlkioStatsEntry(major=device.major, minor=device.minor, op=device.operation, value=device.value)
        for device in devices
    ]


def host_cpu_time() -> int:
    """The processor time of the whole host since it was started, all that it did and idled, in nanoseconds."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = sum(int(word) for word in file.readline().split()[1:8])
    return ticks * (_NANOSECONDS // os.sysconf("SC_CLK_TCK"))


def machine() -> Any:
    """This host: its processors, its memory in MiB."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return API.Machine(cpus=os.cpu_count() or 1, memory=pages >> 20)
