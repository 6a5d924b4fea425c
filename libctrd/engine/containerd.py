"""The containerd engine: containers through a containerd 1.x or 2.x, over its own services (C26).

Of ours on the host is one directory per daemon and namespace: in it each container's bundle with the fifos, which the
daemon's shims open by path. What is known of a container lies with containerd, as labels, so every client sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from libctrd import directory, protos
from libctrd import spec as specs
from libctrd.engine import cgroups, cutstart, exitfile, late, runc, startmark, store, taskio
from libctrd.engine.base import CreateRequest, EngineInfo, ExecRequest, Record, Sink, Snapshot, Spec, Wanted, how_it_is
from libctrd.engine.channel import Channel
from libctrd.engine.exits import PAUSED, STOPPED, TASKS, Exits, exit_status
from libctrd.engine.memory import Memory
from libctrd.engine.operations import CREATE_SECONDS, Operations
from libctrd.engine.rootfs import Rootfs
from libctrd.errors import (
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
)
from libctrd.reactor import Reactor
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus, Status
from libctrd.stdio import path as fifo_path

if TYPE_CHECKING:
    from libctrd.engine.daemon import Daemon
    from libctrd.images import Images

log = logging.getLogger("libctrd")

PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"

DELETE_SECONDS = 15.0
SIGKILL = 9

_STATUS: dict[int, Status] = {0: "stopped", 1: "created", 2: "running", STOPPED: "stopped"}
_STATUS.update(dict.fromkeys(PAUSED, "paused"))


class ContainerdEngine(Operations):
    """Containers of the namespace of *channel*. *base* is our directory for that daemon; *runtime* for those that name
    none; *daemon* is the containerd itself when it is one of ours.
    """

    def __init__(
        self, channel: Channel, base: str, reactor: Reactor, runtime: str | None = None, daemon: Daemon | None = None
    ) -> None:
        self.address = f"containerd:{daemon.directory}" if daemon is not None else channel.address
        self._daemon = daemon
        super().__init__(channel)
        self.root = directory.check_state_dir(os.path.join(base, channel.namespace))
        self._runc_root = os.path.join(base, ".runc")
        self._default_runtime = runtime
        self._sink: Sink = lambda event: None
        self._late = late.Late(self._delete_late)
        self._exits = Exits(channel, reactor, self._late.hurry, self._keep)
        self._exits.sink = self._tell
        self._store = store.Store(channel, self.root)
        self._rootfs = Rootfs(channel)
        # Guards the tables: the records of what this client made, for what is asked of each of them again and again;
        # the locks of starts that are under way; how those have ended that are to be removed.
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._starting: dict[str, int] = {}
        self._exited: dict[str, ExitStatus] = {}
        self._memory = Memory()

    # ---- what there is -------------------------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        version = store.version(self._channel)
        return EngineInfo(
            "containerd",
            self.address,
            runtime=self._default_runtime or runc.SHIM,
            cgroups="v2" if cgroups.unified() else "v1",
            version=version,
            generation=f"containerd {version.partition('.')[0]}.x",
            namespace=self._channel.namespace,
            plugins=tuple(f"{kind} {name}" for kind, name in store.plugins(self._channel)),
        )

    @property
    def images(self) -> Images:
        """See `Engine.images`."""
        return self._rootfs.images

    def subscribe(self, sink: Sink) -> None:
        """See `Engine.subscribe`."""
        self._sink = sink

    def records(self) -> list[Record]:
        """See `Engine.records`: those that other programs made, too."""
        return self._store.list()

    def record(self, id: str) -> Record:
        """See `Engine.record`."""
        return self._store.record(id)

    def spec(self, id: str) -> Spec:
        """See `Engine.spec`."""
        return self._store.spec(id)

    def snapshot(self, id: str) -> Snapshot:
        """See `Engine.snapshot`."""
        try:
            process = self._process(id)
            status = _STATUS.get(process.status, "stopped")
            how = exit_status(process.exit_status, process.exited_at)
            if status == "stopped" and not how.known:  # the runtime sees an end a moment before the shim has reaped it
                how = self._see_end(id)
        except NotFoundError:
            return self._without_task(id)
        if status == "stopped":
            oom_killed = cgroups.oom_kills(self.record(id).cgroup) > 0
            return Snapshot(status, exit=msgspec.structs.replace(how, oom_killed=oom_killed))
        return Snapshot(status, process.pid)

    def _process(self, id: str) -> Any:
        return self._get(id, INIT)

    def _see_end(self, id: str) -> ExitStatus:
        """Waits for the end of a container that ends."""
        wait = protos.message("containerd.services.tasks.v1.WaitRequest")(container_id=id)
        reply = self._call(f"{TASKS}/Wait", wait, f"see the end of container {id!r}", DELETE_SECONDS)
        return exit_status(reply.exit_status, reply.exited_at)

    def _without_task(self, id: str) -> Snapshot:
        """A container without a task was not started yet; or newer daemons have forgotten how it ended (C26)."""
        self._store.record(id)
        where = os.path.join(self.root, id)
        kept = exitfile.read(where)
        if kept is not None:
            return Snapshot("stopped", exit=kept)
        over = startmark.is_left(where)
        self._store.record(id)  # whoever removes it lets go of the directory last
        return Snapshot("stopped", exit=ExitStatus(UNKNOWN_EXIT, known=False)) if over else Snapshot("created")

    def last_event(self, id: str) -> Event | None:
        """See `Engine.last_event`: containerd keeps none."""
        return how_it_is(id, self.snapshot(id))

    # ---- a start -------------------------------------------------------------------------------------------------

    def plan(self, id: str, bundle: str, spec: Spec, wanted: Wanted) -> tuple[Record, Spec]:
        """See `Engine.plan`. Adds a cgroup of this daemon's and namespace's own, so that equal ids never meet."""
        runtime = runc.choose(wanted.runtime or self._default_runtime, wanted.runtime_args, self._runc_root)
        linux = spec.get("linux") or {}
        path = linux.get("cgroupsPath")
        if path is None:
            mark = cgroups.mark(self.root)
            path = f"system.slice:ctrd-{mark}:{id}" if runtime.systemd_cgroup else f"/ctrd-{mark}-{id}"
            spec = {**spec, "linux": {**linux, "cgroupsPath": path}}
        process = spec.get("process")
        if process and process.get("oomScoreAdj") is None:  # else it would have the shim's, which is containerd's
            spec = {**spec, "process": {**process, "oomScoreAdj": 0}}
        if not wanted.has_rootfs:
            spec = {**spec, "root": {**spec["root"], "path": os.path.realpath(spec["root"]["path"])}}
        record = Record(
            id=id,
            bundle=bundle,
            created_at=datetime.now(timezone.utc),
            runtime=runtime.binary or runtime.name,
            runtime_args=wanted.runtime_args,
            terminal=bool((spec.get("process") or {}).get("terminal")),
            own_pid_namespace=specs.own_namespace(spec, "pid"),
            cgroup=path if path.startswith("/") else "",
            labels=wanted.labels,
            image=wanted.image,
            snapshot=wanted.snapshot or (id if wanted.image else ""),
            snapshotter=self._rootfs.snapshotter if wanted.image or wanted.snapshot else "",
            mounts=wanted.mounts,
        )
        return record, spec

    def _runtime(self, record: Record) -> runc.Runtime:
        return runc.choose(record.runtime, record.runtime_args, self._runc_root)

    def reserve(self, record: Record, config: bytes) -> None:
        """See `Engine.reserve`."""
        self._late.settle(record.id)
        with self._rootfs.prepared(record) as lease:
            try:
                self._store.add(record, self._runtime(record), config, record.snapshotter, lease)
            except (UnavailableError, DeadlineError):
                self._late.add(record.id, record)  # it may be there all the same: only the answer is missing
                raise
            except CtrdError:
                raise
            except BaseException:  # a signal: it is there
                self._delete_late(record.id, record)
                raise
        with self._lock:
            self._records[record.id] = record

    def release(self, id: str) -> None:
        """See `Engine.release`: containerd has forgotten it with `delete`."""

    def claim(self, record: Record) -> None:
        """See `Engine.claim`. What it leaves tells later a container that has ended from one that waits for a start."""
        if record.foreign:
            raise UnsupportedError(f"container {record.id!r} was made by another program: start it with that one")
        where = os.path.join(self.root, record.id)
        if not os.path.isdir(where):
            self._store.record(record.id)  # it may be gone; else its directory is, as after the host was started anew
        lock = startmark.leave(where, record.id)
        with self._lock:
            self._starting[record.id] = lock

    def unclaim(self, record: Record) -> None:
        """See `Engine.unclaim`."""
        self._start_is_over(record.id)
        startmark.remove(os.path.join(self.root, record.id))

    def _start_is_over(self, id: str) -> None:
        with self._lock:
            lock = self._starting.pop(id, None)
        if lock is not None:
            os.close(lock)

    def create(self, request: CreateRequest) -> int:
        """See `Engine.create`."""
        try:
            return self._create(request)
        finally:
            self._start_is_over(request.record.id)

    def _create(self, request: CreateRequest) -> int:
        record = request.record
        options = self._runtime(record).options(request.no_pivot_root, request.checkpoint)
        stdin, stdout, stderr = taskio.of_start(request)
        package = protos.package("containerd.services.tasks.v1")
        task = package.CreateTaskRequest(
            container_id=record.id,
            rootfs=self._rootfs.mounts(record),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=record.terminal,
            options=options,
        )
        # Without a reader the shim would wait for one: it opens stdout, then stderr, each until somebody has come.
        try:
            with taskio.read_ends(stdout, stderr):
                reply = self._failing(f"{TASKS}/Create", task, f"create container {record.id!r}", CREATE_SECONDS)
        except RuntimeFailedError as error:
            if isinstance(error.__cause__, NotFoundError):
                self._store.record(record.id)  # raises when it is the container that is not there
            raise
        self._memory.know(record)
        self._exits.starts_here(record.id, reply.pid)
        self._exits.add(record.id, INIT, reply.pid, terminal=record.terminal)
        start = package.StartRequest(container_id=record.id)
        try:
            pid = self._failing(f"{TASKS}/Start", start, f"start container {record.id!r}").pid
        except BaseException:
            with contextlib.suppress(CtrdError):  # the error of the start is what counts
                self._delete_task(record.id, force=True)
            raise
        assert isinstance(pid, int)
        return pid

    def close_stdin(self, id: str, process: str) -> None:
        """See `Engine.close_stdin`."""
        if not self._exits.known(id, process):
            super().close_stdin(id, process)
            return
        record = self._records.get(id)
        bundle = record.bundle if record is not None else os.path.join(self.root, id)
        path = fifo_path(bundle, process, "stdin")
        if self._exits.has_terminal(id, process):
            taskio.end_terminal(path)
            return
        with taskio.until_read(path):
            super().close_stdin(id, process)

    def exec(self, request: ExecRequest) -> int:
        """See `Engine.exec`. A process that could not be started is gone again."""
        id, name = request.record.id, request.process
        if name == id:
            raise InvalidArgumentError(f"a process of container {id!r} cannot have the name of the container")
        package = protos.package("containerd.services.tasks.v1")
        stdin, stdout, stderr = taskio.names(request.stdin, request.stdout, request.stderr, request.terminal)
        what = package.ExecProcessRequest(
            container_id=id,
            exec_id=name,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=request.terminal,
            spec=protos.any(PROCESS, msgspec.json.encode(request.settings)),
        )
        self._call(f"{TASKS}/Exec", what, f"make process {name!r} of container {id!r}")
        self._exits.add(id, name, 0, terminal=request.terminal)
        try:
            with taskio.read_ends(stdout, stderr):
                start = package.StartRequest(container_id=id, exec_id=name)
                pid = self._failing(f"{TASKS}/Start", start, f"start process {name!r} of container {id!r}").pid
            self._exits.started(id, name, pid)
        except BaseException:
            self._exits.forget(id, name)
            with contextlib.suppress(CtrdError):  # the error of the start is what counts
                self.delete_process(id, name)
            raise
        assert isinstance(pid, int)
        return pid

    # ---- events --------------------------------------------------------------------------------------------------

    def watch(self, id: str) -> None:
        """See `Engine.watch`."""
        if self._exits.known(id):
            return
        snapshot = self.snapshot(id)
        if snapshot.pid:
            self._exits.subscribed()
            snapshot = self.snapshot(id)  # what happens from here on the stream tells
        record = self.record(id)
        if snapshot.pid:
            self._memory.know(record)
            self._exits.add(id, INIT, snapshot.pid, terminal=record.terminal, paused=snapshot.status == "paused")
        for process in self._with_fifos(record, {process.name for process in self._exits.further(id)}):
            if process.exit is not None:
                self._sink(Event(id, "exit", process.name, process.exit))
            elif process.pid:
                self._exits.add(id, process.name, process.pid, terminal=process.terminal)
        if snapshot.exit is not None:
            self._sink(Event(id, "exit", INIT, snapshot.exit))
        elif not snapshot.pid:
            self._exits.start()

    def watch_all(self) -> None:
        """See `Engine.watch_all`."""
        self._exits.watch_all()

    def _tell(self, event: Event) -> None:
        """Called by a thread that must not wait: hands on what happened. That memory ran out is told once."""
        id = event.id
        if event.type == "oom":
            if self._memory.is_first(id):
                self._sink(event)
            return
        if event.type == "start-container":
            self._memory.starts(id)
        if event.type == "exit" and event.process == INIT:
            ran_out, news = self._memory.ended(id)
            if event.status is not None and ran_out:
                event = msgspec.structs.replace(event, status=msgspec.structs.replace(event.status, oom_killed=True))
                if news:
                    self._sink(Event(id, "oom"))
            with self._lock:
                if id in self._records and event.status is not None:
                    self._exited[id] = event.status
        self._sink(event)

    def _keep(self, id: str, status: ExitStatus) -> None:
        """For who asks when containerd knows it no more."""
        exitfile.write(os.path.join(self.root, id), status)

    def _delete_late(self, id: str, record: Record | None) -> None:
        """What `delete` or `reserve` could not do while containerd was away. An id may name another's by then."""
        if record is not None:
            with contextlib.suppress(NotFoundError):
                if self._store.record(id) != record:
                    return
            with self._lock:
                self._records[id] = record
        self._delete(id, force=True)

    # ---- the end -------------------------------------------------------------------------------------------------

    def delete_process(self, id: str, process: str) -> None:
        """See `Engine.delete_process`. It throws away what was not read: called once the output has come to its end."""
        self._exits.forget(id, process)
        request = protos.message("containerd.services.tasks.v1.DeleteProcessRequest")(container_id=id, exec_id=process)
        with contextlib.suppress(NotFoundError):
            self._call(f"{TASKS}/DeleteProcess", request, f"delete process {process!r} of {id!r}", DELETE_SECONDS)

    def delete(self, id: str, force: bool = False) -> None:
        """See `Engine.delete`. While containerd is away it is put off until it is back."""
        self._start_is_over(id)  # one that failed before it came to `create`
        try:
            self._delete(id, force)
        except (UnavailableError, DeadlineError) as error:
            log.warning("container %s is deleted once containerd is back: %s", id, error)
            self._late.add(id, self._records.get(id))

    def _delete(self, id: str, force: bool) -> None:
        """Task, container, snapshot: in this order, for a container that is deleted first strands its task.

        How it has ended is written down before: who looks when the task has gone finds that, or that all has gone.
        """
        if force:
            self._end(id)
        cut_off = self._keep_exit(id)
        self._delete_task(id)
        record = self._records.get(id)
        if record is None:
            with contextlib.suppress(NotFoundError):
                record = self.record(id)
        self._store.remove(id)
        if cut_off is not None:  # a create that had not begun before fails from here on: there is no such container
            cutstart.see_end(cut_off)
        if record is not None:
            # What deletes for a shim that was killed does not wait until its processes are gone; it is its alone.
            if cgroups.is_alone(record.cgroup, id) and cgroups.directories(record.cgroup):
                cgroups.clear(record.cgroup)
            self._rootfs.remove(record)
        with self._lock:
            self._records.pop(id, None)

    def _keep_exit(self, id: str) -> cutstart.Start | None:
        """Writes down how it has ended. Where nobody knows, its start may have been cut off: that is returned."""
        with self._lock:
            status = self._exited.pop(id, None)
        if status is None:
            with contextlib.suppress(NotFoundError):
                status = self.snapshot(id).exit
        if status is not None and status.known:
            self._keep(id, status)
        elif status is not None:  # it was started and no task is there: its client may have been killed amid the create
            return self._take_back(id)
        return None

    def _take_back(self, id: str) -> cutstart.Start:
        record = self.record(id)
        cut_off = cutstart.Start(self._channel.path, self._channel.namespace, record, self._runtime(record))
        cutstart.see_end(cut_off)
        self._end(id)  # the create may have come to its end all the same
        return cut_off

    def _delete_task(self, id: str, force: bool = False) -> None:
        if force:
            self._end(id)
        self._exits.forget(id)
        task = protos.message("containerd.services.tasks.v1.DeleteTaskRequest")(container_id=id)
        with contextlib.suppress(NotFoundError):
            self._call(f"{TASKS}/Delete", task, f"delete the task of container {id!r}", DELETE_SECONDS)

    def _end(self, id: str) -> None:
        """Kills whatever runs in the container, and returns when it has ended.

        What waits to be started is killed too: a shim that is to delete it first gives its output two seconds to end.
        """
        try:
            process = self._process(id)
            if _STATUS.get(process.status) not in ("created", "running", "paused"):
                return
            self.signal(id, INIT, SIGKILL, everyone=True)
            if _STATUS[process.status] == "paused":  # frozen by cgroup v1, it takes no signal
                with contextlib.suppress(CtrdError):
                    self.resume(id)
            self._see_end(id)
        except NotFoundError:
            pass  # there is none

    def close(self) -> None:
        """See `Engine.close`."""
        self._late.stop()
        self._exits.close()
        self._channel.close()
        self._late.join()
        if self._daemon is not None:
            self._daemon.close()

    def stop_daemon(self) -> None:
        """See `Engine.stop_daemon`."""
        if self._daemon is None:
            raise UnsupportedError(f"the containerd at {self.address} is not ours to stop: whoever started it can")
        self._daemon.stop()
