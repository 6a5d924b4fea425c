"""The records that libctrd hands out: how a container ended, what happened to one, what is known of one. Data only."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
from collections.abc import Callable
from datetime import datetime
from typing import Literal

from msgspec import Struct

INIT = "init"
"""The name of a container's first process (C9)."""

UNKNOWN_EXIT = 255
"""The code that is reported when nobody can know the true one (C22)."""

KILLED_EXIT = 128 + 9
"""The code of a process that was sent SIGKILL, for that its shim was killed."""

Status = Literal["created", "running", "paused", "stopped"]

EventType = Literal["start-container", "start-process", "pause", "resume", "oom", "exit", "exit-process", "restore"]


class ExitStatus(Struct, frozen=True):
    """How a process ended.

    ``code`` is its exit code, or 128 + N when signal N killed it. ``oom_killed`` tells that the kernel killed a
    process of the container for want of memory (children of ``init`` count too). ``exited_at`` is the time of the
    end, in UTC. ``known`` is false when nobody could see the true code: ``code`` is 255 then, and no promise
    (or 137 from a server of containerd 0.2's API, which ends a container whose shim was killed).
    """

    code: int
    oom_killed: bool = False
    exited_at: datetime | None = None
    known: bool = True


class Event(Struct, frozen=True):
    """What an engine tells of a container: raw, before the contract's rules were applied (C10).

    ``find_pid`` is for the start of a process whose ``pid`` did not come with the event: it asks for it, which may take
    a while, and gives 0 when it cannot be known, for the process has ended.
    """

    id: str
    type: EventType
    process: str = INIT
    status: ExitStatus | None = None
    pid: int = 0
    find_pid: Callable[[], int] = lambda: 0


class CPU(Struct, frozen=True):
    """Processor time used, in nanoseconds, and how often and how long its quota held it back."""

    total_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class Memory(Struct, frozen=True):
    """Memory in bytes. ``limit`` and ``swap_limit`` are ``None`` when there is none; ``peak`` when it is not known."""

    usage: int = 0
    limit: int | None = None
    peak: int | None = None
    swap: int = 0
    swap_limit: int | None = None
    anonymous: int = 0
    file: int = 0
    oom_kills: int = 0


class Pids(Struct, frozen=True):
    """How many processes and threads there are, and may be (``None``: no limit)."""

    current: int = 0
    limit: int | None = None


class BlockIO(Struct, frozen=True):
    """What was read from and written to block devices: bytes and requests."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


class Stats(Struct, frozen=True):
    """What a container uses at one moment (C20): the same for cgroup v1 and v2."""

    at: datetime
    cpu: CPU = CPU()
    memory: Memory = Memory()
    pids: Pids = Pids()
    block_io: BlockIO = BlockIO()


class StateInfo(Struct, frozen=True):
    """What a listener is told (C10).

    ``type`` is the event's type, ``pid`` the system pid for ``start-container`` and ``restore`` (0: not known),
    ``process`` the name of the process it is about, ``exit_code`` is set for ``exit`` and ``exit-process``, and
    ``oom_killed`` tells of an OOM kill so far. ``at`` is the time of it, in UTC.
    """

    type: EventType
    pid: int = 0
    process: str = INIT
    exit_code: int | None = None
    oom_killed: bool = False
    at: datetime | None = None


class ContainerInfo(Struct, frozen=True):
    """What is known of a container, for ``ps`` and ``inspect``."""

    id: str
    status: Status
    pid: int
    bundle: str
    runtime: str
    created_at: datetime
    terminal: bool
    exit: ExitStatus | None = None
    image: str = ""
    labels: dict[str, str] = {}
