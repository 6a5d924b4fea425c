"""The local engine: containers without any daemon, through an OCI runtime and a shim for each.

All that there is to know of a container lies in ``<state directory>/<id>``: its record, its exit record, the shim's
socket, the runtime's own state. So every process of this user sees every container, and none owns it.
"""

from __future__ import annotations

import _socket as socket  # see `libctrd.engine.shim`
import contextlib
import os
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from libctrd import directory, ids
from libctrd import spec as specs
from libctrd._log import log
from libctrd.engine import cgroups, filters, sealed, shim
from libctrd.engine import runtime as runtimes
from libctrd.engine.base import (
    CreateRequest,
    EngineInfo,
    Record,
    Sink,
    Snapshot,
    Spec,
    Wanted,
    started_already,
    unsupported,
)
from libctrd.engine.latecomer import Latecomer
from libctrd.engine.localops import LocalOperations
from libctrd.errors import (
    CtrdError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
    from_os_error,
)
from libctrd.fifo import growing_is_free
from libctrd.reactor import Reactor
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus

if TYPE_CHECKING:
    from libctrd.images import Images


RECORD = "state.json"
RECORD_VERSION = 1


_record_decoder = msgspec.json.Decoder(Record)  # see `libctrd._spec_check`


class LocalEngine(Latecomer, LocalOperations):
    """Containers of the state directory *root*. *runtime* names the OCI runtime for those that name none.

    *served*: by `ctrd serve`, whose clients do not wait for output. Then what a terminal has told last goes on into its
    fifo when the container is deleted, while somebody may read it; and a container whose shim was killed is ended, see
    `Orphans`.
    """

    def __init__(self, root: str, reactor: Reactor, runtime: str | None = None, *, served: bool = False) -> None:
        self.root = directory.check_state_dir(root)
        self.address = f"local:{self.root}"
        shim.reap_left()
        self._reactor = reactor
        self._default_runtime = runtime
        Latecomer.__init__(self)
        LocalOperations.__init__(self)
        self._served = served
        self._sink: Sink = lambda event: None
        # Guards the tables below. Callers put entries in; only the reactor's thread takes them out, when the shim
        # ends: it has read every packet by then, so no event is lost, and each process is reaped once.
        self._lock = threading.Lock()
        self._shims: dict[str, shim.Shim] = {}
        self._watches: dict[str, socket.socket] = {}
        self._told: set[socket.socket] = set()  # those on which an exit was told: their end tells nothing more

    # ---- what there is -------------------------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        runtime = runtimes.find(self._default_runtime)
        version = runtimes.version(runtime.path)
        return EngineInfo("local", self.address, runtime.path, version, "v2" if cgroups.unified() else "v1")

    @property
    def images(self) -> Images:
        """See `Engine.images`."""
        raise unsupported("local", "hold images", "a containerd engine can")

    def subscribe(self, sink: Sink) -> None:
        """See `Engine.subscribe`."""
        self._sink = sink

    def records(self) -> list[Record]:
        """See `Engine.records`. A directory that is half made or half removed is no container yet, or no more."""
        try:
            names = sorted(name for name in os.listdir(self.root) if not name.startswith("."))  # a server's, say
        except OSError as error:
            raise from_os_error(error, f"list the state directory {self.root!r}") from error
        found = []
        for name in names:
            try:
                found.append(self.record(name))
            except NotFoundError:
                continue
            except CtrdError as error:
                log.warning("container %s is left out: %s", name, error)
        return found

    def record(self, id: str) -> Record:
        """See `Engine.record`."""
        path = os.path.join(self._directory(id), RECORD)
        try:
            record = _record_decoder.decode(shim.read_whole(path))
        except FileNotFoundError as error:
            raise NotFoundError(
                f"there is no container {id!r} in {self.root!r}: `ctrd ps` lists those there are"
            ) from error
        except OSError as error:
            raise from_os_error(error, f"read the record of container {id!r}, {path!r}") from error
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"the record of container {id!r}, {path!r}, is damaged: {error}") from error
        if record.version > RECORD_VERSION:
            raise UnsupportedError(
                f"container {id!r} was made by a later libctrd: its record {path!r} is of version {record.version}, "
                f"and this one knows {RECORD_VERSION}: use that one, or another state directory"
            )
        return record

    def snapshot(self, id: str) -> Snapshot:
        """See `Engine.snapshot`."""
        where = self._directory(id)
        record = self.record(id)
        status = shim.read_exit(where)
        if status is not None:
            return Snapshot("stopped", exit=status)
        try:
            with shim.connection(where) as peer:
                _, state, number = shim.ask(peer, where, "watch").split()
                if state == "starting":
                    return Snapshot("created")
                if state == "stopped":
                    return Snapshot("stopped", exit=shim.read_exit(where))
                return Snapshot("paused" if state == "paused" else "running", int(number))
        except NotFoundError:
            pass
        status = shim.read_exit(where)  # it may have ended between the two looks
        if status is not None:
            return Snapshot("stopped", exit=status)
        pid = shim.read_pid(where)
        if not shim.was_started(where):
            self.record(id)  # still there? While it is removed the record goes first
            return Snapshot("created")
        if pid and cgroups.runs(pid, record.cgroup):
            return Snapshot("running", pid)  # its shim was killed
        return Snapshot("stopped", exit=ExitStatus(UNKNOWN_EXIT, known=False))

    def _directory(self, id: str) -> str:
        return os.path.join(self.root, ids.check(id))

    # ---- a start -------------------------------------------------------------------------------------------------

    def plan(self, id: str, bundle: str, spec: Spec, wanted: Wanted) -> tuple[Record, Spec]:
        """See `Engine.plan`. Adds a cgroup path of this state directory's own, so that equal ids never meet."""
        if wanted.has_rootfs:
            raise unsupported("local", "make a root file system of an image, a snapshot or mounts", "give a directory")
        if os.geteuid() != 0:
            from libctrd.engine import rootless

            rootless.check(spec)
        linux = spec.get("linux") or {}
        path = linux.get("cgroupsPath")
        if path is None and os.geteuid() == 0:
            path = self._own_cgroup(id)
            spec = {**spec, "linux": {**linux, "cgroupsPath": path}}
        chosen = runtimes.find(wanted.runtime or self._default_runtime)
        record = Record(
            id=id,
            bundle=bundle,
            created_at=datetime.now(timezone.utc),
            runtime=chosen.path,
            runtime_args=wanted.runtime_args,
            labels=wanted.labels,
            terminal=bool((spec.get("process") or {}).get("terminal")),
            own_pid_namespace=specs.own_namespace(spec, "pid"),
            cgroup=path if path and path.startswith("/") else "",
            plain=runtimes.leaves_little(chosen, spec) and not wanted.runtime_args,
        )
        return record, filters.hand_over(chosen, spec)

    def reserve(self, record: Record, config: bytes) -> None:
        """See `Engine.reserve`. The record is complete when it appears: a name of its own first, then a rename."""
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
        """See `Engine.claim`. It leaves nothing: `create` decides, under the lock of the directory."""
        where = self._directory(record.id)
        if shim.was_started(where):
            raise started_already(record.id)
        if not os.path.lexists(os.path.join(where, RECORD)):
            self.record(record.id)  # which says that it is not there

    def unclaim(self, record: Record) -> None:
        """See `Engine.unclaim`."""

    def create(self, request: CreateRequest) -> int:
        """See `Engine.create`."""
        record = request.record
        where = self._directory(record.id)
        if not request.checkpoint:
            return self._create(request, where)
        from libctrd.engine import criu  # few containers come from a checkpoint

        criu.require(record.runtime)
        keys = criu.kept(request.checkpoint, (request.stdin, request.stdout, request.stderr))
        with criu.configured(where, "inherit-fd", keys):
            try:
                return self._create(request, where)
            except RuntimeFailedError as error:
                raise criu.explained(error, request.checkpoint) from error

    def _create(self, request: CreateRequest, where: str) -> int:
        record = request.record
        flags = "".join(
            letter
            for letter, wanted in {
                "t": record.terminal,
                "d": request.unattended == "discard",
                "k": not record.own_pid_namespace,
                "p": request.no_pivot_root,
                "r": request.auto_remove,
                "a": request.attended,
                "j": request.log is not None and request.log.json,
                "g": request.unattended != "hold" and growing_is_free(),
                "f": self._served,
            }.items()
            if wanted
        )
        arguments = ["--memory-cgroup", cgroups.memory(record.cgroup)] if record.cgroup else []
        if record.cgroup and record.plain:
            arguments += ["--cgroup", record.cgroup]
        copy = sealed.copy(record.runtime) if runtimes.find(record.runtime).works else None
        if copy is not None:
            flags += "s"
        paths = {"--stdin": request.stdin, "--stdout": request.stdout, "--stderr": request.stderr}
        for option, path in {**paths, "--restore": request.checkpoint}.items():
            if path:
                arguments += [option, path]
        if (file := request.log) is not None:
            arguments += ["--log", file.path, "--log-limit", str(file.limit), "--log-kept", str(file.kept)]
        arguments += self._arguments(record, flags)
        # Under the lock of the directory, so that of two who start it one is first, and nobody removes it half started.
        lock = directory.lock(where, wait=True)
        with self._lock:
            self._starting.add(record.id)
        try:
            return self._start(record, arguments, lock, copy)
        finally:
            with self._lock:
                self._starting.discard(record.id)

    def _start(self, record: Record, arguments: list[str], lock: int, copy: sealed.Copy | None) -> int:
        where = self._directory(record.id)
        try:
            if shim.was_started(where):
                raise started_already(record.id)
            starter = shim.Shim(where, arguments, lock, copy.fd if copy is not None else None)
        finally:
            os.close(lock)  # the shim has it now
        pid = starter.started()
        with self._lock:
            self._shims[record.id] = starter
        try:
            self._reactor.watch(starter.socket.fileno(), lambda _: self._read(record.id, starter.socket))
        except BaseException:
            with self._lock:
                del self._shims[record.id]
            starter.undo()
            raise
        return pid

    def _arguments(self, record: Record, flags: str) -> list[str]:
        where = self._directory(record.id)
        maps: list[str] = []
        if runtimes.find(record.runtime).hide_unified:
            flags += "u"
            if os.geteuid() != 0:
                from libctrd.engine import rootless

                maps = rootless.maps_of_shim()
        return [
            *("--state", where, "--bundle", record.bundle, "--root", os.path.join(where, "runtime"), *maps),
            *("--flags", flags or "-", record.id, "--", record.runtime, *record.runtime_args),
        ]

    # ---- events --------------------------------------------------------------------------------------------------

    def watch(self, id: str) -> None:
        """See `Engine.watch`."""
        where = self._directory(id)
        with self._lock:
            starter = self._shims.get(id)
            before = starter.socket if starter is not None else self._watches.get(id)
            told = before in self._told
            if before is not None and not told:
                return
        peer = None if told else self._ask_to_watch(where)
        if peer is None:  # to whoever asks only now it was not told
            if not self._shim_gone(id):
                raise NotFoundError(f"container {id!r} was removed by another hand, and its end is not known any more")
            return
        peer.setblocking(False)
        with self._lock:
            other = self._watches.setdefault(id, peer)
        if other is not peer:
            peer.close()
            return
        self._reactor.watch(peer.fileno(), lambda _: self._read(id, peer))

    def _ask_to_watch(self, where: str) -> socket.socket | None:
        """A connection on which the shim tells all that happens from now on; ``None`` when it has ended, or ends."""
        try:
            peer = shim.connect(where)
        except NotFoundError:
            return None
        try:
            peer.sendall(b"watch")
        except OSError:
            peer.close()
            return None
        return peer

    def _read(self, id: str, peer: socket.socket) -> None:
        """Called by the reactor's thread alone: takes one packet of a shim and hands on what it says."""
        try:
            packet = self._packet(id, peer)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # it ended with something unread: what it said before comes with the next look, and then its end
        if not packet:
            self._shim_of_processes_gone(id)
            if not self._take(id, peer) and not self._shim_gone(id, seen=True):
                # Its directory was taken away with its shim: nobody can know the code, but nobody may wait for ever.
                self._sink(Event(id, "exit", INIT, ExitStatus(UNKNOWN_EXIT, known=False)))
            return
        word, _, rest = packet.decode().partition(" ")
        if word == "exit":
            code, oom, seconds, nanoseconds = (int(number) for number in rest.split())
            with self._lock:
                self._told.add(peer)
            self._sink(Event(id, "exit", INIT, shim.exit_status(code, bool(oom), seconds, nanoseconds)))
        elif word == "ended":
            self._process_ended(id, rest.split())
        elif word == "process":
            self._process_began(id, *rest.split())
        elif word in ("state", "started"):  # "state running PID", "started PID"
            self._runs(id, int(rest.split()[-1]))
        elif word in ("pause", "resume", "oom"):
            self._sink(Event(id, word))  # type: ignore[arg-type]

    def _packet(self, id: str, peer: socket.socket) -> bytes:
        """The next one. None (`BlockingIOError`) of a shim whose end another thread waits for by now: see `_retire`."""
        with self._lock:
            starter = self._shims.get(id)
            if peer is not (starter.socket if starter is not None else None) and peer is not self._watches.get(id):
                raise BlockingIOError
            return peer.recv(shim.PACKET, socket.MSG_DONTWAIT)

    def _retire(self, id: str) -> shim.Shim | None:
        """Takes a shim that this client has started, and that has told the exit, out of the reactor's hands.

        Nothing but the reply to whoever takes it will come from it. The reactor reads under the same lock, and only
        what is in the table: so not one byte of that goes to it, though it may just have been woken.
        """
        with self._lock:
            starter = self._shims.get(id)
            if starter is None or starter.socket not in self._told:
                return None
            del self._shims[id]
            self._told.discard(starter.socket)
            self._reactor.unwatch(starter.socket.fileno())
            return starter

    def _take_back(self, id: str, starter: shim.Shim) -> None:
        """It did not end: the reactor waits for it again."""
        starter.socket.setblocking(False)
        with self._lock:
            self._shims[id] = starter
            self._told.add(starter.socket)
        self._reactor.watch(starter.socket.fileno(), lambda _: self._read(id, starter.socket))

    def _take(self, id: str, peer: socket.socket) -> bool:
        """Takes *peer* out of its table and lets go of it. True when its end tells nothing more."""
        with self._lock:
            starter = self._shims.get(id)
            if starter is not None and starter.socket is peer:
                del self._shims[id]
            elif self._watches.get(id) is peer:
                del self._watches[id]
                starter = None
            else:
                return True  # `close` was quicker
            told = peer in self._told
            self._told.discard(peer)
            self._reactor.unwatch(peer.fileno())
        if starter is not None:
            starter.ended()
        else:
            peer.close()
        return told

    # ---- the end -------------------------------------------------------------------------------------------------

    def delete(self, id: str, force: bool = False) -> None:
        """See `Engine.delete`. When it returns the shim has ended and, where it was ours, is reaped."""
        where = self._directory(id)
        if not os.path.isdir(where):  # another hand has removed it, or taken it away: its shim cannot be asked
            return
        plain = not force and self._is_plain(id)
        retired = None if force else self._retire(id)
        try:
            if retired is not None:
                retired.end(plain)
                return
            with shim.connection(where) as peer:
                if force:
                    shim.ask(peer, where, "undo")
                    shim.until_gone(peer)
                else:
                    shim.end(peer, where, plain)
        except NotFoundError:
            if retired is not None:
                retired.ended()
            self._delete_orphan(id, where)
        except BaseException:
            if retired is not None:
                self._take_back(id, retired)
            raise
        with self._lock:
            starter = self._shims.get(id)
        if starter is not None:
            starter.gone.wait()
        if force:
            with contextlib.suppress(NotFoundError):
                cgroup = self.record(id).cgroup
                if cgroup == self._own_cgroup(id) and cgroups.directories(cgroup):
                    cgroups.clear(cgroup)

    def _is_plain(self, id: str) -> bool:
        try:
            return self.record(id).plain
        except NotFoundError:
            return False

    def _own_cgroup(self, id: str) -> str:
        """The cgroup that a container gets when its spec names none: it is that container's alone."""
        return f"/ctrd-{cgroups.mark(self.root)}-{id}"

    def stop_daemon(self) -> None:
        """See `Engine.stop_daemon`: there is none."""
        raise unsupported("local", "stop a daemon", "it has none")

    def close(self) -> None:
        """See `Engine.close`."""
        self._stop_watching()
        with self._lock:
            shims, watches = dict(self._shims), dict(self._watches)
            self._shims.clear()
            self._watches.clear()
        for starter in shims.values():
            self._reactor.unwatch(starter.socket.fileno())
            starter.let_go()
        for peer in watches.values():
            self._reactor.unwatch(peer.fileno())
            peer.close()
