"""What an engine must do for a client: the Protocol, and the records that pass through it.

A client never asks which engine it has. An engine knows nothing of locks, listeners or the order of a start: those are
the client's. What an engine cannot do raises `UnsupportedError` naming itself (C27).
"""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec import Struct

from libctrd.state import Event, ExitStatus, Status

Spec = dict[str, Any]
Sink = Callable[[Event], None]
Unattended = Literal["hold", "discard", "log"]


class Record(Struct, frozen=True, omit_defaults=True):
    """What is kept of a container from its creation on, for every client of the engine."""

    id: str
    bundle: str
    created_at: datetime
    runtime: str
    runtime_args: tuple[str, ...] = ()
    terminal: bool = False
    own_pid_namespace: bool = True
    cgroup: str = ""
    plain: bool = False
    version: int = 1


class CreateRequest(Struct, frozen=True):
    """What an engine is asked for when a container starts (C8). An empty fifo path means ``/dev/null``."""

    record: Record
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    no_pivot_root: bool = False
    unattended: Unattended = "hold"
    log: str = ""
    auto_remove: bool = False


class Snapshot(Struct, frozen=True):
    """What an engine knows of a container at this moment."""

    status: Status
    pid: int = 0
    exit: ExitStatus | None = None


class EngineInfo(Struct, frozen=True):
    """What ``ctrd info`` shows of an engine."""

    name: str
    address: str
    runtime: str = ""
    runtime_version: str = ""
    cgroups: str = ""


class Engine(Protocol):
    """Runs containers. Every method may be called by several threads at once, for one container by one at a time."""

    address: str

    def info(self) -> EngineInfo:
        """What this engine is."""

    def subscribe(self, sink: Sink) -> None:
        """From now on *sink* gets every event of a container that this engine created or was told to `watch`."""

    def plan(
        self, id: str, bundle: str, spec: Spec, runtime: str | None, runtime_args: tuple[str, ...]
    ) -> tuple[Record, Spec]:
        """The record of a new container, and its spec with what this engine adds where the caller left it open."""

    def reserve(self, record: Record) -> None:
        """Makes a container known to every client, before it is started."""

    def release(self, id: str) -> None:
        """Makes it unknown to every client, before its directory is removed. One that is not there is success."""

    def create(self, request: CreateRequest) -> int:
        """Creates and starts it; returns the system pid of ``init``, 0 if it is not listed (C6)."""

    def watch(self, id: str) -> None:
        """Tell the sink of this container too, its end included when that is past already."""

    def records(self) -> list[Record]:
        """Every container that there is."""

    def record(self, id: str) -> Record:
        """That of one container. `NotFoundError` when there is none."""

    def snapshot(self, id: str) -> Snapshot:
        """How it is now. `NotFoundError` when there is none."""

    def signal(self, id: str, process: str, number: int) -> None:
        """Sends a signal to one process. `NotFoundError` when it has ended."""

    def close_stdin(self, id: str, process: str) -> None:
        """The client will write no more (C7). `NotFoundError` when the process has ended."""

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """Sets the size of its terminal, in characters."""

    def pause(self, id: str) -> None:
        """Freezes it; its event follows."""

    def resume(self, id: str) -> None:
        """Thaws it; its event follows."""

    def delete(self, id: str, force: bool = False) -> None:
        """Frees what the engine holds of an ended container; with *force* of any. One that is not there is success."""

    def close(self) -> None:
        """Lets go of everything of this client; containers run on."""
