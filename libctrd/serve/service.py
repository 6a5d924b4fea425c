"""The calls of `types.API`, each done by the local engine (C25). What gRPC has to do with it is in ``server.py``.

A container that came by this API is in the state directory like every other: its record and its ``config.json``, which
is the caller's with its paths made absolute; and beside them ``served``, what that API wants to hear again. The
caller's bundle is only read, his fifos are opened where he has made them. What he has not read of them when a process
has ended is kept for him (``keeper.py``), though the exit is told and the container is gone.

**Order.** The lock of a container's id is held while it is created, while a process is added, and while an exit is
handled: so its start is told before its end, however soon that comes. An exit is promised in the log first, then the
container is removed, then it is told: whoever hears of it finds the id free, and a server that was killed in between is
followed by one that either hears of the exit from the engine again or, when that has nothing left of it, finds the
promise. Signals take no lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Final

import grpc

from libctrd import directory, ids
from libctrd import spec as specs
from libctrd.engine import details
from libctrd.engine.base import CreateRequest, ExecRequest, ProcessSnapshot, Record, Wanted
from libctrd.engine.further import write_new
from libctrd.engine.local import RECORD, LocalEngine
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError, from_os_error
from libctrd.events import Lanes
from libctrd.locks import Locks
from libctrd.serve import checkpoints, wire
from libctrd.serve.changes import Changes
from libctrd.serve.descriptions import Descriptions
from libctrd.serve.eventlog import Entry, EventLog
from libctrd.serve.keeper import Keeper
from libctrd.serve.wire import API
from libctrd.state import INIT, UNKNOWN_EXIT, Event

log = logging.getLogger("libctrd")

VERSION: Final = (0, 2, 3)
"""What release 0.2.9 says of itself."""
CHANGE_SECONDS: Final = 10.0
_CHANGES: Final = {"running": "resume", "paused": "pause"}
_ANY_SPEC: Final = {"ociVersion": "1.0.0", "root": {"path": "/"}}
"""One for a process that is to be checked: all that there must be beside it."""
_NO_CONTAINER: Final = "containerd: container not found"
_NO_PROCESS: Final = "containerd: process not found for container"


class Refusal(Exception):
    """A call that fails: with the status and the text that clients of this API look for."""

    def __init__(self, text: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> None:
        super().__init__(wire.short(text))
        self.code = code


class Service:
    """`types.API` in front of *engine*. *publish* is called with every event once it is in the log, in their order for
    a container; it must not wait.
    """

    def __init__(self, engine: LocalEngine, events: EventLog, revision: str, publish: Callable[[Entry], None]) -> None:
        self._engine = engine
        self._events = events
        self._revision = revision
        self._publish = publish
        self._descriptions = Descriptions(engine)
        self._keeper = Keeper(engine.root, os.path.join(engine.root, ".serve"))
        self._locks = Locks()
        self._lanes = Lanes("ctrd-serve")
        self._changes = Changes()
        engine.subscribe(self._on_event)

    # ---- the beginning and the end -------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Finds what there is: containers that run are watched, ends that nobody told are told, and what a server that
        was killed in the middle of a create has left is removed.
        """
        self._clear_leftovers()
        self._keep_promises()
        for record in self._engine.records():
            try:
                with self._locks.holding(record.id):
                    if self._engine.snapshot(record.id).status == "created":
                        self._remove(record, force=True)
                        continue
                    if self._events.has("start-container", record.id, "", _mark(record)) is None:
                        self._tell("start-container", record)
                self._engine.watch(record.id)
            except CtrdError as error:
                log.warning("container %s could not be taken over: %s", record.id, error)

    def _clear_leftovers(self) -> None:
        """Removes directories without a record: of a container that was half made or half removed. Whoever is at it in
        this moment holds the directory's lock.
        """
        known = {record.id for record in self._engine.records()}
        for name in os.listdir(self._engine.root):
            path = os.path.join(self._engine.root, name)
            if name.startswith(".") or name in known or not os.path.isdir(path):
                continue
            try:
                held = directory.lock(path)
            except CtrdError:
                continue  # somebody makes or removes it
            try:
                if not os.path.lexists(os.path.join(path, RECORD)):
                    directory.remove_tree(path)
            except CtrdError as error:
                log.warning("what is left in %s could not be removed: %s", path, error)
            finally:
                os.close(held)

    def _keep_promises(self) -> None:
        """Tells the exits that a server had promised, where nothing is left by which the engine could tell them
        again.
        """
        there: set[tuple[str, str, str]] = set()
        for record in self._engine.records():
            with contextlib.suppress(NotFoundError):
                names = [process.name for process in self._engine.processes(record.id)]
                there.update((record.id, _mark(record), name) for name in (INIT, *names))
        for promise in self._events.promises():
            if (promise.id, promise.mark, promise.pid) not in there:
                kind, id, pid, mark = promise.key
                self._publish(self._events.append(kind, id, pid, promise.status, mark))

    def close(self) -> None:
        """Handles what has come and lets go of everything; containers run on."""
        self._lanes.drain(CHANGE_SECONDS)
        self._lanes.close()
        self._engine.close()
        self._events.close()

    # ---- calls ---------------------------------------------------------------------------------------------------

    def get_server_version(self, _: Any) -> Any:
        """GetServerVersion."""
        major, minor, patch = VERSION
        return API.GetServerVersionResponse(major=major, minor=minor, patch=patch, revision=self._revision)

    def create_container(self, request: Any) -> Any:
        """CreateContainer."""
        if not request.bundlePath:
            raise Refusal("empty bundle path")
        _absolute("the bundle path", request.bundlePath)
        _check_stdio(request)
        ids.check(request.id)
        checkpoint = ""
        if request.checkpoint:
            checkpoint = checkpoints.path(request.bundlePath, request.checkpointDir, request.checkpoint)
        spec = specs.resolve(specs.load(request.bundlePath), request.bundlePath)
        specs.validate(spec)
        with self._locks.holding(request.id):
            claim, where = self._claim(request.id)
            record = None
            try:
                arguments = tuple(request.runtimeArgs) if request.runtime else ()
                wanted = Wanted(request.runtime or None, arguments)
                record, spec = self._engine.plan(request.id, where, spec, wanted)
                config = specs.encode(spec)
                write_new(os.path.join(where, "config.json"), config)
                served = self._descriptions.begin(request, spec, record.runtime, where)
                self._engine.reserve(record, config)
            except BaseException:
                directory.remove_tree(where)
                raise
            finally:
                os.close(claim)
            try:
                stderr = "" if record.terminal else request.stderr
                pid = self._engine.create(
                    CreateRequest(
                        record,
                        request.stdin,
                        request.stdout,
                        stderr,
                        no_pivot_root=request.noPivotRoot,
                        attended=bool(request.stdout or stderr),
                        unattended="hold" if request.stdout or stderr else "discard",  # a terminal must be read
                        checkpoint=checkpoint,
                    )
                )
            except BaseException as error:
                self._remove(record, force=True)
                if isinstance(error, NotFoundError) and error.errno is None:  # of a path it has a number
                    raise Refusal("containerd: shim exited before container process was started") from error
                raise
            served.status = "running"
            served.processes[0].systemPid = pid
            self._descriptions.keep(served)
            self._tell("start-container", record)
        return API.CreateContainerResponse(container=served)

    def update_container(self, request: Any) -> Any:
        """UpdateContainer: with a status the resources do not count."""
        self._known(request.id)
        if request.status:
            if request.status not in _CHANGES:
                raise Refusal("containerd: unknown container status ")
            self._change(request.id, _CHANGES[request.status])
        elif changed := wire.resources(request.resources):
            with self._locks.holding(request.id):
                self._engine.update(request.id, specs.check_resources(changed))
        return API.UpdateContainerResponse()

    def signal(self, request: Any) -> Any:
        """Signal. It hits the one process."""
        self._process(request.id, request.pid)
        if not 0 <= request.signal <= 64:
            raise Refusal(f"containerd: there is no signal {request.signal}: they go from 1 to 64")
        try:
            self._engine.signal(request.id, request.pid, request.signal)
        except NotFoundError as error:
            raise Refusal(f"{_NO_PROCESS}: no such process") from error
        return API.SignalResponse()

    def update_process(self, request: Any) -> Any:
        """UpdateProcess."""
        process = self._process(request.id, request.pid)
        if request.closeStdin:
            with contextlib.suppress(NotFoundError):  # it has ended since
                self._engine.close_stdin(request.id, process.name)
        if max(request.width, request.height) > 0xFFFF:
            raise Refusal(f"containerd: no terminal is {request.width} x {request.height}: 65535 is the most")
        if process.terminal and max(request.width, request.height) > 0:
            self._engine.resize(request.id, process.name, request.width, request.height)
        return API.UpdateProcessResponse()

    def add_process(self, request: Any) -> Any:
        """AddProcess."""
        if not request.id:
            raise Refusal("container id cannot be empty")
        if not request.pid:
            raise Refusal("process id cannot be empty")
        if not request.args:
            raise Refusal("containerd: process without args: name a program at least")
        ids.check(request.pid, "process id")
        _check_stdio(request)
        document = wire.document(request)
        specs.validate({**_ANY_SPEC, "process": document})
        with self._locks.holding(request.id):
            record = self._known(request.id)
            pid = self._engine.exec(
                ExecRequest(
                    record, request.pid, document, request.terminal, request.stdin, request.stdout, request.stderr
                )
            )
            served = self._descriptions.of(record.id)
            stdio = (request.stdin, request.stdout, request.stderr)
            served.processes.append(wire.process_of_spec(document, name=request.pid, system_pid=pid, stdio=stdio))
            self._descriptions.keep(served)
            self._tell("start-process", record, request.pid)
        return API.AddProcessResponse(systemPid=pid)

    def create_checkpoint(self, request: Any) -> Any:
        """CreateCheckpoint."""
        wanted = request.checkpoint
        if not wanted.name:
            raise Refusal("checkpoint name cannot be empty")
        self._known(request.id)
        path = checkpoints.path(self._descriptions.bundle(request.id), request.checkpointDir, wanted.name)
        with self._locks.holding(request.id):
            checkpoints.make_parent(path)
            self._engine.checkpoint(request.id, path, not wanted.exit)
            checkpoints.describe(path, wanted)
        return API.CreateCheckpointResponse()

    def delete_checkpoint(self, request: Any) -> Any:
        """DeleteCheckpoint: of one that is not there it is success."""
        self._known(request.id)
        if not request.name:
            raise Refusal("checkpoint name cannot be empty")
        directory.remove_tree(
            checkpoints.path(self._descriptions.bundle(request.id), request.checkpointDir, request.name)
        )
        return API.DeleteCheckpointResponse()

    def list_checkpoint(self, request: Any) -> Any:
        """ListCheckpoint."""
        try:
            self._known(request.id)
        except Refusal as error:
            raise Refusal("no such containers", grpc.StatusCode.NOT_FOUND) from error
        found = checkpoints.found(checkpoints.parent(self._descriptions.bundle(request.id), request.checkpointDir))
        return API.ListCheckpointResponse(checkpoints=found)

    def state(self, request: Any) -> Any:
        """State: of one container, or of all."""
        records = [self._known(request.id)] if request.id else self._engine.records()
        containers = []
        for record in records:
            try:
                containers.append(self._descriptions.now(record))
            except NotFoundError:
                if request.id:
                    raise Refusal(_NO_CONTAINER) from None
        return API.StateResponse(containers=containers, machine=wire.machine())

    def stats(self, request: Any) -> Any:
        """Stats."""
        record = self._known(request.id)
        measured = self._engine.stats(request.id)
        return wire.stats(measured, details.of(record.cgroup), wire.host_cpu_time())

    # ---- what they share -----------------------------------------------------------------------------------------

    def _known(self, id: str) -> Record:
        """The record of a container. `Refusal` when there is none."""
        try:
            return self._engine.record(id)
        except (NotFoundError, InvalidArgumentError) as error:
            raise Refusal(_NO_CONTAINER) from error

    def _process(self, id: str, name: str) -> ProcessSnapshot:
        """A process that has not ended. `Refusal` when there is none."""
        self._known(id)
        try:
            for process in self._engine.processes(id):
                if process.name == name and process.exit is None:
                    return process
        except NotFoundError as error:
            raise Refusal(_NO_CONTAINER) from error
        raise Refusal(_NO_PROCESS)

    def _change(self, id: str, change: str) -> None:
        """Pauses or resumes it; returns once that was told, so that the event comes before the answer, or it ended."""
        with self._changes.expected(id, change) as told:
            with self._locks.holding(id):
                (self._engine.pause if change == "pause" else self._engine.resume)(id)
            told.wait(CHANGE_SECONDS)

    def _claim(self, id: str) -> tuple[int, str]:
        """Makes the directory of a container; returns its lock and its path. What is left there of one that is not
        known is removed first. `Refusal` for an id that is in use.
        """
        where = os.path.join(self._engine.root, id)
        try:
            os.mkdir(where, 0o700)
        except FileExistsError:
            try:
                self._engine.record(id)
            except NotFoundError:
                directory.remove_tree(where)
                return self._claim(id)
            raise Refusal(f"containerd: container {id} is there already: mkdir {where}: file exists") from None
        except OSError as error:
            raise from_os_error(error, f"make the directory of container {id!r}, {where!r}") from error
        try:
            return directory.lock(where), where
        except AlreadyExistsError as error:
            raise Refusal(f"containerd: container {id} is there already: mkdir {where}: file exists") from error

    def _remove(self, record: Record, force: bool = False) -> None:
        """Frees what the engine holds of a container, and removes its directory."""
        where = os.path.join(self._engine.root, record.id)
        self._engine.delete(record.id, force)
        self._engine.release(record.id)
        directory.remove_tree(where)

    # ---- events --------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, record: Record, pid: str = "", status: int = 0) -> None:
        self._publish(self._events.append(kind, record.id, pid, status, _mark(record)))

    def _on_event(self, event: Event) -> None:
        """Called by the engine's thread, which must not wait."""
        self._lanes.submit(event.id, lambda: self._handle(event))

    def _handle(self, event: Event) -> None:
        with self._locks.holding(event.id):
            try:
                record = self._engine.record(event.id)
            except CtrdError:
                log.debug("event %s of container %s, which is gone", event.type, event.id)
                return
            if event.type == "exit" and event.process != INIT:
                self._process_exited(record, event)
            elif event.type == "exit":
                self._exited(record, event)
            elif event.type in ("pause", "resume", "oom"):
                self._tell(event.type, record)
        if event.type in ("pause", "resume"):
            self._changes.told(event.id, event.type)

    def _process_exited(self, record: Record, event: Event) -> None:
        told, code = self._promise(record, event)
        self._keeper.keep(os.path.join(self._engine.root, record.id), event.process)
        try:
            self._engine.delete_process(record.id, event.process)
            self._descriptions.forget(record.id, event.process)
        except (CtrdError, OSError) as error:
            log.warning("process %s of container %s has ended, but: %s", event.process, record.id, error)
        if not told:
            self._tell("exit", record, event.process, code)

    def _exited(self, record: Record, event: Event) -> None:
        lost = self._lost(record, event)
        told, code = self._promise(record, event)
        self._keeper.keep(os.path.join(self._engine.root, record.id), INIT)
        try:
            self._remove(record)
        except CtrdError as error:
            log.warning("container %s has ended and is removed by force: %s", record.id, error)
            try:
                self._remove(record, force=True)
            except CtrdError as left:
                log.error("container %s has ended and could not be removed: %s", record.id, left)
        self._changes.told(record.id, "pause", "resume")  # an end is the end of every wait for a change
        for further in lost:
            self._tell("exit", record, further.process, further.status.code if further.status else UNKNOWN_EXIT)
        if not told:
            self._tell("exit", record, INIT, code)

    def _lost(self, record: Record, event: Event) -> list[Event]:
        """The exits of further processes that nobody will tell any more, for their shim is gone and *event* is the end
        of all: what it had written down of them, else they have ended like init. They are promised.
        """
        if event.status is None or event.status.known:
            return []
        lost = []
        try:
            known = {process.name: process.exit for process in self._engine.processes(record.id)}
            for name in [process.pid for process in self._descriptions.of(record.id).processes]:
                exit = Event(record.id, "exit", name, known.get(name) or event.status)
                if name != INIT and not self._promise(record, exit)[0]:
                    lost.append(exit)
        except CtrdError as error:
            log.warning(
                "the ends of processes of container %s, whose shim is gone, are not known: %s", record.id, error
            )
        return lost

    def _promise(self, record: Record, event: Event) -> tuple[bool, int]:
        """Writes an exit down, before anything of it is removed. Was it told before, by a server that was killed before
        it could remove the container? And its code: the engine's, which stays the same however often it tells it.
        """
        mark, code = _mark(record), event.status.code if event.status is not None else UNKNOWN_EXIT
        told = self._events.has("exit", record.id, event.process, mark) is not None
        if not told:
            self._events.promise("exit", record.id, event.process, code, mark)
        return told, code


def _absolute(what: str, path: str) -> None:
    if "\0" in path:
        raise Refusal(f"containerd: {what} {path!r} has a NUL in it")
    if not os.path.isabs(path):
        raise Refusal(f"containerd: {what} {path!r} is not absolute")


def _check_stdio(request: Any) -> None:
    """Relative ones would be taken from where a shim runs."""
    for stream in ("stdin", "stdout", "stderr"):
        if path := getattr(request, stream):
            _absolute(stream, path)


def _mark(record: Record) -> str:
    """What tells a container from others of its id."""
    return record.created_at.isoformat()
