"""What can be asked of a container of containerd while it runs: calls to its task, one each, that keep no state here.

An engine is made of them and of what has an order and a memory: starts, ends, events (``containerd.py``).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from libctrd import ids, protos
from libctrd.engine import metrics
from libctrd.engine.base import Ends, ProcessSnapshot, so_already
from libctrd.engine.channel import Channel
from libctrd.engine.exits import CREATED, STOPPED, TASKS, Exits, exec_id, exit_status
from libctrd.errors import InvalidArgumentError, NotFoundError, RuntimeFailedError
from libctrd.state import INIT, Stats
from libctrd.stdio import STREAMS, fifos_in

if TYPE_CHECKING:
    from libctrd.engine.base import Record, Snapshot

RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
CREATE_SECONDS = 35.0  # the shim itself gives up after 30

_ENDED = re.compile(r"cannot \w+( in)? a (stopped|deleted) (container|process|state)|process already finished")
"""How a shim refuses what would need a running process."""
_SO_ALREADY = re.compile(r"cannot (pause a paused|resume a running) |not paused")
"""How it, or the runtime, refuses to pause what is paused and to resume what is not."""


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except OSError:
        return False  # it was removed


class Operations:
    """The requests of an engine over *channel* that are a call each."""

    _exits: Exits

    if TYPE_CHECKING:

        def record(self, id: str) -> Record: ...
        def snapshot(self, id: str) -> Snapshot: ...

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def _call(self, method: str, request: Any, doing: str, timeout: float | None = 10.0, *, whole: bool = False) -> Any:
        try:
            return self._channel.call(method, request, doing=doing, timeout=timeout, whole=whole)
        except RuntimeFailedError as error:
            if _ENDED.search(str(error)):  # a shim has no code for that either
                raise NotFoundError(f"could not {doing}: it has ended") from error
            raise

    def processes(self, id: str) -> list[ProcessSnapshot]:
        """See `Engine.processes`: containerd lists no names, so of other clients' those with fifos."""
        snapshot = self.snapshot(id)
        if snapshot.status == "created":
            return []
        record, ours = self.record(id), self._exits.further(id)
        init = ProcessSnapshot(INIT, snapshot.pid, snapshot.exit, record.terminal)
        return [init, *ours, *self._with_fifos(record, {process.name for process in ours})]

    def _with_fifos(self, record: Record, known: set[str]) -> list[ProcessSnapshot]:
        """The further processes that have fifos in the container's directory, but for those that are *known*."""
        found = []
        for name in sorted(fifos_in(record.bundle) - known - {INIT}):
            with contextlib.suppress(NotFoundError, InvalidArgumentError):  # they are left of one that has gone
                process = self._get(record.id, name)
                if process.status == CREATED:  # it runs once its client asks for that; one that was killed never will
                    continue
                end = exit_status(process.exit_status, process.exited_at) if process.status == STOPPED else None
                found.append(ProcessSnapshot(name, process.pid, end, process.terminal))
        return found

    def _get(self, id: str, process: str) -> Any:
        request = protos.message("containerd.services.tasks.v1.GetRequest")(
            container_id=ids.check(id), exec_id=exec_id(process)
        )
        return self._call(f"{TASKS}/Get", request, f"look at process {process!r} of container {id!r}").process

    def _failing(self, method: str, request: Any, doing: str, timeout: float = 10.0) -> Any:
        """A call in which the OCI runtime may fail: containerd has no code for that, and sends its words.

        Given up in the middle it would take seconds until what it has made can be deleted: so it is whole.
        """
        try:
            return self._call(method, request, doing, timeout, whole=True)
        except (InvalidArgumentError, NotFoundError) as error:
            raise RuntimeFailedError(str(error), output=str(error.__cause__ or error)) from error

    def signal(self, id: str, process: str, number: int, everyone: bool = False) -> None:
        """See `Engine.signal`."""
        request = protos.message("containerd.services.tasks.v1.KillRequest")(
            container_id=id, exec_id=exec_id(process), signal=number, all=everyone
        )
        self._call(f"{TASKS}/Kill", request, f"send signal {number} to process {process!r} of container {id!r}")

    def discard(self, id: str, process: str, streams: Iterable[str]) -> None:
        """See `Engine.discard`: containerd tells the end when it comes."""

    def close_stdin(self, id: str, process: str) -> None:
        """See `Engine.close_stdin`."""
        request = protos.message("containerd.services.tasks.v1.CloseIORequest")(
            container_id=id, exec_id=exec_id(process), stdin=True
        )
        try:
            self._call(f"{TASKS}/CloseIO", request, f"close stdin of process {process!r} of container {id!r}")
        except RuntimeFailedError as error:
            if error.output.endswith(": not found"):  # a shim has no code for a further process that is gone
                raise NotFoundError(str(error)) from error
            raise

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """See `Engine.resize`."""
        request = protos.message("containerd.services.tasks.v1.ResizePtyRequest")(
            container_id=id, exec_id=exec_id(process), width=width, height=height
        )
        self._call(f"{TASKS}/ResizePty", request, f"resize the terminal of process {process!r} of container {id!r}")

    def pause(self, id: str) -> None:
        """See `Engine.pause`."""
        self._change(id, "Pause", protos.message("containerd.services.tasks.v1.PauseTaskRequest")(container_id=id))

    def resume(self, id: str) -> None:
        """See `Engine.resume`."""
        self._change(id, "Resume", protos.message("containerd.services.tasks.v1.ResumeTaskRequest")(container_id=id))

    def _change(self, id: str, method: str, request: Any) -> None:
        self._exits.subscribed()
        change = method.lower()
        try:
            self._call(f"{TASKS}/{method}", request, f"{change} container {id!r}")
        except RuntimeFailedError as error:
            if _SO_ALREADY.search(str(error)):  # a shim has no code for that either
                raise so_already(id, change) from error
            raise

    def attach(self, id: str, process: str) -> Ends:
        """See `Engine.attach`. What its shim writes into is what it was told at the start, and stays so."""
        found = self._get(id, process)
        paths = {stream: getattr(found, stream) for stream in STREAMS}
        fifos = {stream: path for stream, path in paths.items() if path.startswith("/") and _is_fifo(path)}
        return Ends(found.terminal, fifos)

    def pids(self, id: str) -> list[int]:
        """See `Engine.pids`."""
        request = protos.message("containerd.services.tasks.v1.ListPidsRequest")(container_id=id)
        found = self._call(f"{TASKS}/ListPids", request, f"list the processes of container {id!r}").processes
        return sorted(process.pid for process in found)

    def stats(self, id: str) -> Stats:
        """See `Engine.stats`."""
        request = protos.message("containerd.services.tasks.v1.MetricsRequest")(filters=[f"id=={ids.check(id)}"])
        found = self._call(f"{TASKS}/Metrics", request, f"measure container {id!r}").metrics
        if not found:
            raise NotFoundError(f"container {id!r} is not running any more")
        return metrics.stats(found[0])

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Engine.update`."""
        request = protos.message("containerd.services.tasks.v1.UpdateTaskRequest")(
            container_id=id, resources=protos.any(RESOURCES, msgspec.json.encode(resources))
        )
        self._failing(f"{TASKS}/Update", request, f"change the limits of container {id!r}")

    def checkpoint(self, id: str, path: str, leave_running: bool) -> None:
        """See `Engine.checkpoint`."""
        options = protos.message("containerd.runc.v1.CheckpointOptions")(
            exit=not leave_running,
            open_tcp=True,
            external_unix_sockets=True,
            empty_namespaces=["network"],
            image_path=path,
        )
        request = protos.message("containerd.services.tasks.v1.CheckpointTaskRequest")(
            container_id=id,
            options=protos.any("containerd.runc.v1.CheckpointOptions", options.SerializeToString()),
        )
        self._failing(f"{TASKS}/Checkpoint", request, f"checkpoint container {id!r}", CREATE_SECONDS)
