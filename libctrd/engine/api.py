"""The api engine: containers through a daemon that speaks `types.API`, as containerd 0.2 and `ctrd serve` do (C25).

That daemon forgets a container when it has ended, and knows nothing of one that was not started. So what there is lies
in our directory for it: of each container the bundle with the fifos, its record, a mark that it was started, and then
how it has ended. Its events say the rest, of which it keeps some hundreds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from libctrd import directory, ids
from libctrd import spec as specs
from libctrd.engine import apifeed, apistart, apiwire, cgroups, exitfile, late, startmark, taskio
from libctrd.engine.apihistory import History
from libctrd.engine.apioperations import CREATE_SECONDS, drain, server_version
from libctrd.engine.apitime import KeptTime
from libctrd.engine.apiwire import API, ENGINE
from libctrd.engine.base import (
    CreateRequest,
    EngineInfo,
    ExecRequest,
    Record,
    Sink,
    Snapshot,
    Spec,
    Wanted,
    unsupported,
)
from libctrd.engine.channel import Channel
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
    from_os_error,
)
from libctrd.reactor import Reactor
from libctrd.state import INIT, UNKNOWN_EXIT, ExitStatus
from libctrd.stdio import fifos_in

if TYPE_CHECKING:
    from libctrd.engine.daemon import Daemon
    from libctrd.images import Images

log = logging.getLogger("libctrd")

RECORD = "state.json"
CONTAINERS = "containers"
"""The directory in ours with those of the containers; beside it lies the time of the last event."""
SIGKILL = 9
START_SECONDS = 30.0
"""How long a start that its client has left behind may go on: the daemon gives it up itself then."""
END_SECONDS = 15.0

_ENDED_AT_ONCE = "exec.fifo: no such file or directory"
"""What runc's start says when the container has run and was deleted before runc came to remove that file: so it was
started, and its end is to come. Where 0.2.9 forgets the container before it has seen that end, nobody knows it.
"""

_record_decoder = msgspec.json.Decoder(Record)
_UNKNOWN = ExitStatus(UNKNOWN_EXIT, known=False)


class ApiEngine(History):
    """Containers of the daemon that *channel* leads to. *base* is our directory for it; *runtime* for those that name
    none; *daemon* is the daemon itself when it is one of ours.
    """

    def __init__(
        self, channel: Channel, base: str, reactor: Reactor, runtime: str | None = None, daemon: Daemon | None = None
    ) -> None:
        self.address = f"serve:{daemon.directory}" if daemon is not None else channel.address
        self._daemon = daemon
        super().__init__(channel)
        self.root = directory.check_state_dir(os.path.join(directory.check_state_dir(base), CONTAINERS))
        self._default_runtime = runtime or ""
        self._late = late.Late(self._delete_late)
        self._kept = KeptTime(base)
        self._feed = apifeed.Feed(
            channel,
            reactor,
            self._kept,
            self._containers,
            self._pid_of_start,
            self._late.hurry,
            self._note_end,
        )
        self._lock = threading.Lock()  # guards the locks of starts that are under way
        self._starting: dict[str, int] = {}

    # ---- what there is -------------------------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        version, revision = server_version(self._channel)
        return EngineInfo(
            ENGINE,
            self.address,
            runtime=apistart.runtime_path(self._default_runtime),
            cgroups="v2" if cgroups.unified() else "v1",
            version=f"{version} ({revision})" if revision else version,
            generation="containerd 0.2 (types.API)",
        )

    @property
    def images(self) -> Images:
        """See `Engine.images`."""
        raise unsupported(ENGINE, "keep images", "unpack one into a directory, and name that in the spec")

    def subscribe(self, sink: Sink) -> None:
        """See `Engine.subscribe`."""
        self._feed.sink = sink

    def records(self) -> list[Record]:
        """See `Engine.records`: those that other programs made, too, as long as they run."""
        found = {}
        for name in os.listdir(self.root):
            try:
                found[name] = self._own_record(ids.check(name))
            except (NotFoundError, InvalidArgumentError):
                continue  # of something else, or half made or removed
            except CtrdError as error:
                log.warning("container %s is left out: %s", name, error)
        for container in self._containers():
            if container.id not in found:
                found[container.id] = _foreign(container)
        return [found[id] for id in sorted(found)]

    def record(self, id: str) -> Record:
        """See `Engine.record`."""
        try:
            return self._own_record(id)
        except NotFoundError:
            container = self._container(id)
            if container is None:
                raise
            return _foreign(container)

    def _own_record(self, id: str) -> Record:
        path = os.path.join(self._directory(id), RECORD)
        try:
            with open(path, "rb") as file:
                return _record_decoder.decode(file.read())
        except FileNotFoundError as error:
            raise NotFoundError(
                f"there is no container {id!r} at {self.address}: `ctrd ps` lists those there are"
            ) from error
        except OSError as error:
            raise from_os_error(error, f"read the record of container {id!r}, {path!r}") from error
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"the record of container {id!r}, {path!r}, is damaged: {error}") from error

    def _directory(self, id: str) -> str:
        return os.path.join(self.root, ids.check(id))

    def spec(self, id: str) -> Spec:
        """See `Engine.spec`."""
        return specs.load(self._running(id).bundlePath)

    def snapshot(self, id: str) -> Snapshot:
        """See `Engine.snapshot`. Whether it is paused the daemon does not say: the last change of it does."""
        container = self._container(id)
        if container is None or container.bundlePath != (record := self.record(id)).bundle:
            return self._not_there(id)
        if container.status != "running":  # it is being started, or has just ended, and may go any moment
            return Snapshot("created") if record.foreign else self._not_there(id)
        paused = self._feed.paused(id)
        if paused is None:
            changes = [event for event in self._stored(id, self._since(id)) if event.type in ("pause", "resume")]
            paused = bool(changes) and changes[-1].type == "pause"
        pid = next((process.systemPid for process in container.processes if process.pid == INIT), 0)
        return Snapshot("paused" if paused else "running", pid)

    def _not_there(self, id: str) -> Snapshot:
        """A container that the daemon does not know was not started yet, or has ended."""
        self._own_record(id)
        where = self._directory(id)
        kept = exitfile.read(where)
        if kept is not None:
            return Snapshot("stopped", exit=kept)
        if not startmark.is_left(where):
            self._own_record(id)  # whoever removes it lets go of the record first
            return Snapshot("created")
        status = self._stored_exit(id, self._since(id))
        if status is not None:
            exitfile.write(where, status)
        return Snapshot("stopped", exit=status or exitfile.read(where) or _UNKNOWN)

    def _since(self, id: str) -> int:
        """From when on events of that id are of the container that has it now."""
        try:
            return apiwire.nanoseconds_of(self._own_record(id).created_at)
        except NotFoundError:
            return 0

    # ---- a start -------------------------------------------------------------------------------------------------

    def plan(self, id: str, bundle: str, spec: Spec, wanted: Wanted) -> tuple[Record, Spec]:
        """See `Engine.plan`. Adds a cgroup of this daemon's own, so that equal ids never meet."""
        if wanted.has_rootfs:
            raise unsupported(ENGINE, "make a root file system of an image, a snapshot or mounts", "give a directory")
        runtime = wanted.runtime or self._default_runtime
        if wanted.runtime_args and not runtime:
            raise InvalidArgumentError(
                f"the {ENGINE} engine hands arguments to a runtime that is named, and to no other: name it (runtime=)"
            )
        linux, process = spec.get("linux") or {}, spec.get("process")
        path = linux.get("cgroupsPath")
        if path is None:
            path = f"/ctrd-{cgroups.mark(self.root)}-{id}"
            spec = {**spec, "linux": {**linux, "cgroupsPath": path}}
        if process and process.get("oomScoreAdj") is None:  # else it would have its shim's, which is the daemon's
            spec = {**spec, "process": {**process, "oomScoreAdj": 0}}
        spec = {**spec, "root": {**spec["root"], "path": os.path.realpath(spec["root"]["path"])}}
        record = Record(
            id=id,
            bundle=bundle,
            created_at=datetime.now(timezone.utc),
            runtime=apistart.runtime_path(runtime),
            runtime_args=wanted.runtime_args,
            labels=wanted.labels,
            terminal=bool((process or {}).get("terminal")),
            own_pid_namespace=specs.own_namespace(spec, "pid"),
            cgroup=path if path.startswith("/") else "",
        )
        return record, spec

    def reserve(self, record: Record, config: bytes) -> None:
        """See `Engine.reserve`. The record is complete when it appears: a name of its own first, then a rename."""
        self._late.settle(record.id)
        if self._container(record.id) is not None:
            raise AlreadyExistsError(f"container {record.id!r} runs at {self.address} already: choose another id")
        path = os.path.join(self._directory(record.id), RECORD)
        try:
            with open(path + ".tmp", "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(msgspec.json.encode(record))
            os.rename(path + ".tmp", path)
        except OSError as error:
            raise from_os_error(error, f"write the record of container {record.id!r}, {path!r}") from error

    def release(self, id: str) -> None:
        """See `Engine.release`. The record goes first, so that nobody takes what is half removed for something else."""
        path = os.path.join(self._directory(id), RECORD)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os_error(error, f"remove the record of container {id!r}, {path!r}") from error

    def claim(self, record: Record) -> None:
        """See `Engine.claim`. What it leaves tells later a container that has ended from one that waits for a start."""
        if record.foreign:
            raise UnsupportedError(f"container {record.id!r} was made by another program: start it with that one")
        self._own_record(record.id)
        lock = startmark.leave(self._directory(record.id), record.id)
        with self._lock:
            self._starting[record.id] = lock

    def unclaim(self, record: Record) -> None:
        """See `Engine.unclaim`."""
        self._start_is_over(record.id)
        startmark.remove(self._directory(record.id))

    def _start_is_over(self, id: str) -> None:
        with self._lock:
            lock = self._starting.pop(id, None)
        if lock is not None:
            os.close(lock)

    def create(self, request: CreateRequest) -> int:
        """See `Engine.create`. It is in the table before the call: the event of its end may overtake the answer."""
        try:
            return self._create(request)
        finally:
            self._start_is_over(request.record.id)

    def _create(self, request: CreateRequest) -> int:
        record = request.record
        stdin, stdout, stderr = apistart.streams(request)
        where, name = os.path.split(os.path.abspath(request.checkpoint)) if request.checkpoint else ("", "")
        wire = API.CreateContainerRequest(
            id=record.id,
            bundlePath=record.bundle,
            checkpoint=name,
            checkpointDir=where,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            labels=[f"{key}={value}" for key, value in record.labels.items()],
            noPivotRoot=request.no_pivot_root,
            runtime=record.runtime,
            runtimeArgs=record.runtime_args,
        )
        self._feed.add(record.id, INIT, since=time.time_ns())
        try:
            # Without a reader a shim would wait for one.
            with taskio.read_ends(stdout, "" if record.terminal else stderr):
                doing = f"start container {record.id!r}"
                reply = self._call("CreateContainer", wire, doing, CREATE_SECONDS, starting=True, whole=True)
        except BaseException as error:
            if isinstance(error, RuntimeFailedError) and _ENDED_AT_ONCE in str(error):
                self._feed.started(record.id, INIT, 0)
                self._feed.lost(record.id)
                return 0
            self._feed.forget(record.id)
            raise
        pid = next((process.systemPid for process in reply.container.processes if process.pid == INIT), 0)
        self._feed.started(record.id, INIT, pid)
        assert isinstance(pid, int)
        return pid

    def exec(self, request: ExecRequest) -> int:
        """See `Engine.exec`."""
        id, name = request.record.id, request.process
        wire = apiwire.add_process(request, request.stderr)
        new = self._feed.add(id, name, since=time.time_ns())
        try:
            with taskio.read_ends(request.stdout, "" if request.terminal else request.stderr):
                doing = f"start process {name!r} ({request.settings['args'][0]}) of container {id!r}"
                pid = self._call("AddProcess", wire, doing, CREATE_SECONDS, starting=True, whole=True).systemPid
        except BaseException:
            if new:  # else another client has a process of that name, which goes on
                self._feed.forget(id, name)
            raise
        self._feed.started(id, name, pid)
        assert isinstance(pid, int)
        return pid

    # ---- events --------------------------------------------------------------------------------------------------

    def watch(self, id: str) -> None:
        """See `Engine.watch`. It is in the table before it is looked at, so what happens meanwhile is told once."""
        if self._feed.known(id):
            return
        since, started = self._since(id), startmark.is_there(self._directory(id))
        self._feed.add(id, INIT, since=since, pid=-1)
        try:
            snapshot = self.snapshot(id)
            if snapshot.status == "created":
                self._feed.is_to_start(id)
            elif snapshot.exit is not None and snapshot.exit.known:
                self._feed.tell(id, INIT, snapshot.exit)
            elif snapshot.exit is not None:
                self._feed.lost(id)
            else:
                if snapshot.status == "paused":
                    self._feed.is_paused(id)
                for process in self.processes(id)[1:]:
                    if process.exit is None:
                        self._feed.add(id, process.name, since=since, pid=process.pid or -1)
        except NotFoundError:
            if not started:
                self._feed.forget(id)
                raise
            status = self._stored_exit(id, since)  # it has ended meanwhile, and was cleaned
            if status is not None:
                self._feed.tell(id, INIT, status)
            else:
                self._feed.lost(id)
        except BaseException:
            self._feed.forget(id)
            raise

    def watch_all(self) -> None:
        """See `Engine.watch_all`."""
        self._feed.everything()

    def _note_end(self, id: str, at: int, status: ExitStatus) -> None:
        """How a container has ended is written down where one of that id was started before: the daemon forgets it."""
        with contextlib.suppress(CtrdError):  # it is none of ours
            where = self._directory(id)
            if at > self._since(id) and startmark.is_there(where) and not exitfile.is_there(where):
                exitfile.write(where, status)

    # ---- the end -------------------------------------------------------------------------------------------------

    def delete_process(self, id: str, process: str) -> None:
        """See `Engine.delete_process`: the daemon has forgotten it."""
        self._feed.forget(id, process)

    def delete(self, id: str, force: bool = False) -> None:
        """See `Engine.delete`. While the daemon is away it is put off until it is back."""
        where = self._directory(id)
        self._start_is_over(id)  # one that failed before it came to `create`
        record = None
        with contextlib.suppress(CtrdError):
            record = self._own_record(id)
        try:
            if force or (startmark.is_left(where) and exitfile.read(where) is None):
                self._end(id, record)
        except (UnavailableError, DeadlineError) as error:
            log.warning("container %s is deleted once the daemon is back: %s", id, error)
            self._late.add(id, record)
        self._feed.forget(id)

    def _delete_late(self, id: str, record: Record | None) -> None:
        """What `delete` could not do while the daemon was away. An id may name another container by then."""
        with contextlib.suppress(NotFoundError):
            if self._own_record(id) != record:
                return
        self._end(id, record)

    def _end(self, id: str, record: Record | None) -> None:
        """Kills the container, if the daemon has it, and returns when it has ended; then the daemon has forgotten it.

        Its output is drained, or its end would wait for a reader. One that is still being started, by a client that was
        killed, takes no signal before it runs.
        """
        if self._container(id) is None:
            return
        with self._feed.waiting(id) as waits:
            container = self._container(id)
            if container is None or (record is not None and container.bundlePath != record.bundle):
                return
            for name in {INIT, *fifos_in(container.bundlePath)}:  # its end comes after those of all its processes
                drain(container.bundlePath, name)
            if container.status != "running":
                waits.started.wait(START_SECONDS)
            try:
                self.signal(id, INIT, SIGKILL)
                with contextlib.suppress(CtrdError):  # frozen by cgroup v1 it takes no signal; most are not paused
                    if self.snapshot(id).status == "paused":
                        self.resume(id)
            except NotFoundError:
                pass  # it ends by itself
            if not waits.ended.wait(END_SECONDS) and self._container(id) is not None:
                raise DeadlineError(f"container {id!r} did not end within {END_SECONDS:g} s of SIGKILL")

    def close(self) -> None:
        """See `Engine.close`."""
        self._late.stop()
        self._feed.close()
        self._channel.close()
        self._late.join()
        if self._daemon is not None:
            self._daemon.close()

    def stop_daemon(self) -> None:
        """See `Engine.stop_daemon`."""
        if self._daemon is None:
            raise UnsupportedError(f"the daemon at {self.address} is not ours to stop: whoever started it can")
        self._daemon.stop()


def _foreign(container: Any) -> Record:
    """The record of a container that another program has made."""
    try:
        made = os.stat(os.path.join(container.bundlePath, "config.json")).st_mtime
    except OSError:
        made = 0.0
    return Record(
        id=container.id,
        bundle=container.bundlePath,
        created_at=datetime.fromtimestamp(made, timezone.utc),
        runtime=container.runtime,
        terminal=any(process.terminal for process in container.processes if process.pid == INIT),
        labels=dict(label.partition("=")[::2] for label in container.labels),
        foreign=True,
    )
