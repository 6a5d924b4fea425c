"""What an engine must do for a client: the Protocol, and the records that pass through it.

A client never asks which engine it has. An engine knows nothing of locks, listeners or the order of a start: those are
the client's. What an engine cannot do raises `UnsupportedError` naming itself (C27).
"""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from libctrd.errors import AlreadyExistsError, InvalidArgumentError, UnsupportedError
from libctrd.state import INIT, Event, ExitStatus, Stats, Status

if TYPE_CHECKING:
    from libctrd.images import Images

Spec = dict[str, Any]
Sink = Callable[[Event], None]
Unattended = Literal["hold", "discard", "log"]


class Mount(Struct, frozen=True, omit_defaults=True):
    """One mount that makes up a root file system, as ``mount(8)`` has it: a type, a source, options."""

    type: str
    source: str
    options: tuple[str, ...] = ()


class Wanted(Struct, frozen=True):
    """What the caller of a create asks for beside the spec.

    At most one of *image*, *snapshot* and *mounts* says what the root file system is; else ``root.path`` of the spec.
    """

    runtime: str | None = None
    runtime_args: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    image: str = ""
    snapshot: str = ""
    mounts: tuple[Mount, ...] = ()

    @property
    def has_rootfs(self) -> bool:
        """Is the root file system something else than the directory that the spec names?"""
        return bool(self.image or self.snapshot or self.mounts)


class Record(Struct, frozen=True, omit_defaults=True):
    """What is kept of a container from its creation on, for every client of the engine.

    ``foreign``: it was made by another program than libctrd; of ours there is no directory.
    """

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
    labels: dict[str, str] = {}
    image: str = ""
    snapshot: str = ""
    snapshotter: str = ""
    mounts: tuple[Mount, ...] = ()
    foreign: bool = False


class Log(Struct, frozen=True):
    """A file for output that nobody reads: as it comes, or as lines of *json*. After *limit* bytes (0: none) it becomes
    ``FILE.1``, and so on; *kept* of these are kept.
    """

    path: str
    json: bool = False
    limit: int = 0
    kept: int = 1


class CreateRequest(Struct, frozen=True):
    """What an engine is asked for when a container starts (C8). An empty fifo path means ``/dev/null``."""

    record: Record
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    no_pivot_root: bool = False
    unattended: Unattended = "hold"
    log: Log | None = None
    attended: bool = True
    auto_remove: bool = False
    checkpoint: str = ""


class ExecRequest(Struct, frozen=True):
    """What an engine is asked for when a further process starts (C21). An empty fifo path means ``/dev/null``."""

    record: Record
    process: str
    settings: dict[str, Any]
    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class Snapshot(Struct, frozen=True):
    """What an engine knows of a container at this moment."""

    status: Status
    pid: int = 0
    exit: ExitStatus | None = None


class ProcessSnapshot(Struct, frozen=True):
    """What an engine knows of one process of a container at this moment. ``exit`` says that it has ended."""

    name: str
    pid: int = 0
    exit: ExitStatus | None = None
    terminal: bool = False


class Ends(Struct, frozen=True):
    """The fifos of a process that runs, or has just ended: by stream the path of each that there is.

    `close` says that they are not read any longer; until then the engine keeps its hands off what is written there.
    """

    terminal: bool = False
    paths: dict[str, str] = {}
    close: Callable[[], None] = lambda: None
    passed: dict[str, int] = {}
    """Descriptors of them, by stream, for who may not open those paths; they are the caller's."""


class EngineInfo(Struct, frozen=True):
    """What ``ctrd info`` shows of an engine."""

    name: str
    address: str
    runtime: str = ""
    runtime_version: str = ""
    cgroups: str = ""
    version: str = ""
    generation: str = ""
    namespace: str = ""
    plugins: tuple[str, ...] = ()


class Engine(Protocol):
    """Runs containers. Every method may be called by several threads at once, for one container by one at a time."""

    address: str

    def info(self) -> EngineInfo:
        """What this engine is."""

    @property
    def images(self) -> "Images":
        """The images that containers of this engine can be made from."""

    def subscribe(self, sink: Sink) -> None:
        """From now on *sink* gets every event of a container that this engine created or was told to `watch`."""

    def plan(self, id: str, bundle: str, spec: Spec, wanted: Wanted) -> tuple[Record, Spec]:
        """The record of a new container, and its spec with what this engine adds where the caller left it open."""

    def reserve(self, record: Record, config: bytes) -> None:
        """Makes a container known to every client, before it is started. *config* is its spec as it was encoded."""

    def release(self, id: str) -> None:
        """Makes it unknown to every client, before its directory is removed. One that is not there is success."""

    def claim(self, record: Record) -> None:
        """A start begins, and nothing of it was touched yet. `AlreadyExistsError` for the second of two who start it,
        `NotFoundError` when it is gone. Where both come through, `create` is what tells them apart.
        """

    def unclaim(self, record: Record) -> None:
        """That start came to nothing: the container waits to be started as before."""

    def create(self, request: CreateRequest) -> int:
        """Creates and starts it; returns the system pid of ``init``, 0 if it is not listed (C6)."""

    def attach(self, id: str, process: str) -> Ends:
        """The fifos of a process, for a client that comes later: it reads from now on what is written there.

        `NotFoundError` when there is no such process; `UnsupportedError` when its output goes somewhere else for good.
        """

    def last_event(self, id: str) -> Event | None:
        """The last event of a container since the time that was kept when this client began, else since ever (C22). An
        engine that keeps no events says how it is: paused or ended.
        """

    def exec(self, request: ExecRequest) -> int:
        """Starts a further process; returns its system pid. Its ``exit`` event follows (C21)."""

    def watch(self, id: str) -> None:
        """Tell the sink of this container too, its end included when that is past already."""

    def watch_all(self) -> None:
        """Tell the sink from now on also of each container that anybody starts: its start, then as `watch`."""

    def records(self) -> list[Record]:
        """Every container that there is."""

    def record(self, id: str) -> Record:
        """That of one container. `NotFoundError` when there is none."""

    def snapshot(self, id: str) -> Snapshot:
        """How it is now. `NotFoundError` when there is none."""

    def processes(self, id: str) -> list[ProcessSnapshot]:
        """Its processes that this client can know of, ``init`` first: those that run, and those that have ended and
        whose end nobody has collected (`delete_process`). `NotFoundError` when there is no such container.
        """

    def spec(self, id: str) -> Spec:
        """The spec of a container that another program made, of which there is no directory of ours."""

    def signal(self, id: str, process: str, number: int, everyone: bool = False) -> None:
        """Sends a signal to one process, or to *everyone* in the container. `NotFoundError` when it has ended."""

    def discard(self, id: str, process: str, streams: Iterable[str]) -> None:
        """Nobody takes these outputs (``stdout``, ``stderr``) of a process any more, which was sent SIGKILL. An engine
        whose daemon tells its end only once they were read to theirs throws them away; others need not.
        """

    def close_stdin(self, id: str, process: str) -> None:
        """The client will write no more (C7). `NotFoundError` when the process has ended."""

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """Sets the size of its terminal, in characters."""

    def pause(self, id: str) -> None:
        """Freezes it; its event follows. `InvalidArgumentError` when it is frozen already."""

    def resume(self, id: str) -> None:
        """Thaws it; its event follows. `InvalidArgumentError` when it is not frozen."""

    def pids(self, id: str) -> list[int]:
        """The system pids of all processes in it."""

    def stats(self, id: str) -> Stats:
        """What it uses now, of memory, processors, processes and devices."""

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Sets limits of the running container: *resources* is ``linux.resources`` of the OCI spec, what changes."""

    def checkpoint(self, id: str, path: str, leave_running: bool) -> None:
        """Writes its state into the directory *path* with CRIU, and ends it unless *leave_running*."""

    def delete_process(self, id: str, process: str) -> None:
        """Frees what the engine holds of a further process that ended. One that is not there is success."""

    def delete(self, id: str, force: bool = False) -> None:
        """Frees what the engine holds of an ended container; with *force* of any. One that is not there is success."""

    def stop_daemon(self) -> None:
        """Ends the daemon behind this engine, if it is one of ours; containers run on."""

    def close(self) -> None:
        """Lets go of everything of this client; containers run on."""


def how_it_is(id: str, snapshot: Snapshot) -> Event | None:
    """`Engine.last_event` of an engine that keeps no events."""
    if snapshot.exit is not None:
        return Event(id, "exit", INIT, snapshot.exit)
    return Event(id, "pause") if snapshot.status == "paused" else None


def started_already(id: str) -> AlreadyExistsError:
    """The error of a second start."""
    return AlreadyExistsError(f"container {id!r} was started already: a container starts once")


def so_already(id: str, change: str) -> InvalidArgumentError:
    """The error of a pause of what is paused, or a resume of what is not: the same, whatever a runtime makes of it."""
    state = "is paused already" if change == "pause" else "is not paused"
    return InvalidArgumentError(f"could not {change} container {id!r}: it {state}")


def unsupported(engine: str, what: str, instead: str = "") -> UnsupportedError:
    """The error for *what* an engine cannot do (C27)."""
    return UnsupportedError(f"the {engine} engine cannot {what}" + (f": {instead}" if instead else ""))
