"""The client: one lock per container (C18), the way in and out of its table (C19), and what events do (C10, C11).

Locks, in the order in which they are taken: the lock of one container id; then, held for a moment each and with nothing
taken inside: ``_guard`` (the tables) and the engine's own. Listeners and callbacks run under the container's lock where
the contract has a call report straight (C6), which is why it is reentrant; queued reports run under none.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from libctrd import directory, handling, ids
from libctrd import spec as specs
from libctrd._checks import seconds_of
from libctrd._log import log
from libctrd.container import Container
from libctrd.directory import held
from libctrd.engine.base import Engine, EngineInfo, Mount, Record, Wanted
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    from_os_error,
)
from libctrd.locks import Locks
from libctrd.owning import Owners
from libctrd.starting import chosen_spec, chosen_streams, labels_of, strings
from libctrd.state import Event
from libctrd.stdio import DETACHED, PIPE
from libctrd.telling import Telling

if TYPE_CHECKING:
    from libctrd.images import Images
    from libctrd.stdio import Callback, Choice, Stdio, Stream


CONFIG = "config.json"
CLOSE_SECONDS = 5.0


class Client(Telling):
    """Containers of one engine. Made by `libctrd.connect`; a context manager. Any thread may call it."""

    def __init__(self, engine: Engine, root: str) -> None:
        super().__init__()
        self._engine = engine
        self._root = root
        self._containers: dict[str, Container] = {}
        self._locks = Locks()
        self._arrivals: dict[str, threading.Event] = {}
        self._overhears = False
        self._closed = False
        self._process = os.getpid()
        try:
            self._owners = Owners(root)
        except BaseException:
            engine.close()
            raise
        engine.subscribe(self._on_event)

    @property
    def address(self) -> str:
        """The engine's address, such as ``local:/run/ctrd``."""
        return self._engine.address

    def info(self) -> EngineInfo:
        """What engine this is, and with which OCI runtime."""
        return self._engine.info()

    @property
    def images(self) -> Images:
        """The images that its engine has: to list, import, pull and remove them, and to make specs from them.

        Raises `UnsupportedError` for an engine without images.
        """
        self._check_open()
        return self._engine.images

    # ---- containers ----------------------------------------------------------------------------------------------

    def create(
        self,
        id: str,
        spec: dict[str, Any],
        *,
        runtime: str | None = None,
        runtime_args: tuple[str, ...] | list[str] = (),
        labels: Mapping[str, str] | None = None,
        image: str = "",
        snapshot: str = "",
        mounts: Sequence[Mount] = (),
    ) -> Container:
        """Creates a container from an OCI spec: its directory, 0700, with ``config.json`` in it (C5). Nothing runs yet.

        *runtime* (a path or a name) and *runtime_args* (put before the runtime's own) are this container's alone (C1).
        *labels* are kept with it. Its root file system is the directory that the spec names or, on engines that have
        them, a fresh snapshot of *image* (a reference; it goes with the container), the active *snapshot* of that
        key (it stays), or what *mounts* make up.

        Leftovers of an id that is not active are cleaned first; when this fails nothing is left (C19).

        Raises `AlreadyExistsError` for an id that is active, `InvalidArgumentError` for an id or a spec that cannot be,
        `NotFoundError` when the root file system or the runtime is missing.
        """
        self._check_open()
        ids.check(id)
        wanted = Wanted(runtime, strings(runtime_args), labels_of(labels), image, snapshot, tuple(mounts))
        specs.validate(spec)
        if wanted.has_rootfs:
            if (bool(image), bool(snapshot), bool(mounts)).count(True) > 1:
                raise InvalidArgumentError(
                    "image=, snapshot= and mounts= each say what the root file system is: give one"
                )
            spec = {**spec, "root": {**(spec.get("root") or {}), "path": "rootfs"}}
        else:
            specs.check_rootfs(spec)
        directory.check_room()
        with self._locked(id):
            if self._active(id):
                raise AlreadyExistsError(f"container {id!r} is active: clean it first or choose another id")
            claim, path = self._claim(id)
            bundle = path
            try:
                uid, gid = specs.host_root(spec)
                if (uid, gid) not in ((0, 0), (os.geteuid(), os.getegid())):
                    bundle = os.path.join(directory.for_root(self._root, uid, gid), id)
                    directory.remove_tree(bundle, follow=False)
                    directory.make(bundle, uid, gid)
                record, spec = self._engine.plan(id, bundle, spec, wanted)
                config = specs.encode(spec, checked=True)
                _write(
                    os.path.join(path, CONFIG), config
                )  # which is believed; the other one is container root's to change
                if bundle != path:
                    with held(bundle, self._root) as where:
                        _write(os.path.join(where, CONFIG), config)
                self._engine.reserve(record, config)
            except BaseException:
                directory.remove_both(bundle, path)
                raise
            finally:
                os.close(claim)
            container = Container(self, record)
            container._created_here = True
            self._register(container)
            return container

    def container(
        self,
        args: Sequence[str] | None = None,
        *,
        rootfs: str | os.PathLike[str] | None = None,
        image: str | None = None,
        spec: dict[str, Any] | None = None,
        id: str | None = None,
        stdin: Stream | None = None,
        stdout: Stream | None = None,
        stderr: Stream | None = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        drain_timeout: float | None = None,
        runtime: str | None = None,
        runtime_args: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Container:
        """Creates a container and starts it, as ``subprocess.Popen`` does with a process; the arguments are `run`'s.

        As a context manager it is killed, if it still runs, and cleaned at the end of the block. *stdin* is `NULL` and
        *stdout* and *stderr* are `INHERIT` unless they say otherwise: with `PIPE` they are read and written here.
        *text*, *encoding* and *errors* are as in `Container.start`. Raises what `create` and `Container.start` raise;
        then nothing is left.
        """
        wanted = chosen_spec(args, rootfs, image, spec, settings)
        streams = chosen_streams(stdin, stdout, stderr)
        container = self.create(
            id or ids.generate(),
            wanted if wanted is not None else self.images.spec(image or "", args, **settings),
            runtime=runtime,
            runtime_args=tuple(runtime_args),
            labels=labels,
            image=image or "",
        )
        try:
            container.start(streams, drain_timeout=drain_timeout, text=text, encoding=encoding, errors=errors)
        except BaseException:
            container.clean(force=True)
            raise
        return container

    def _claim(self, id: str) -> tuple[int, str]:
        """Makes the directory of a new container; returns its lock and its path.

        Between mkdir and lock another process may take it for a leftover and remove it: then the lock finds nothing,
        and we begin again. So at most one of them gets through.
        """
        path = os.path.join(self._root, id)
        while True:
            try:
                os.mkdir(path, 0o700)
                existed = False
            except FileExistsError:
                existed = True
            except OSError as error:
                raise from_os_error(error, f"make the directory of container {id!r}, {path!r}") from error
            try:
                claim = directory.lock(path)
            except NotFoundError:
                if os.path.lexists(path):
                    raise
                continue
            if not existed:
                return claim, path
            try:
                self._clean_leftover(id, path)
            finally:
                os.close(claim)

    def _clean_leftover(self, id: str, path: str) -> None:
        """Removes what is left of an id that is not active; raises `AlreadyExistsError` for one that is (C19)."""
        try:
            bundle = self._engine.record(id).bundle
            snapshot = self._engine.snapshot(id)
        except NotFoundError:
            directory.remove_tree(path)
            return
        if snapshot.exit is None or snapshot.exit.known:
            state = "has ended and keeps its exit record" if snapshot.exit else f"is {snapshot.status}"
            raise AlreadyExistsError(f"container {id!r} {state}: remove it first (`ctrd rm {id}`) or choose another id")
        self._engine.delete(id, force=True)
        directory.remove_both(bundle, path)

    def _spec_of(self, record: Record) -> specs.Spec:
        """The one that is believed: in a bundle the container's root, who is a user of the host, may write (C19)."""
        if record.foreign:
            return self._engine.spec(record.id)
        ours = os.path.join(self._root, record.id)
        return specs.load(ours if os.path.lexists(os.path.join(ours, CONFIG)) else record.bundle)

    def containers(self) -> list[Container]:
        """Every container of the engine, whoever started it, by id."""
        self._check_open()
        return [self._active(record.id) or Container(self, record) for record in self._engine.records()]

    def get(self, id: str) -> Container:
        """The container *id*, whoever started it. Raises `NotFoundError` when there is none."""
        self._check_open()
        return self._active(ids.check(id)) or Container(self, self._engine.record(id))

    def restore(
        self,
        id: str,
        *,
        live: bool = True,
        stdio: Choice | Stdio | Callback = PIPE,
        further: Choice | Stdio = DETACHED,
        drain_timeout: float | None = None,
    ) -> Container:
        """Takes over a container whose client has gone, and is its owner from then on: it reads and cleans (C22).

        One that runs goes on: its streams are opened as *stdio* says (see `Container.start`; an output that is `NULL`
        is thrown away, an input left as it is), ``restore`` is reported with its pid, and then a pause that it is in.
        What it printed meanwhile comes first. *further* says the same of the streams of further processes in it: they
        are `Container.taken_over`, those that have ended meanwhile too. With `DETACHED` their output is kept for
        `Container.attach` until they end, and then thrown away.

        With ``live=False`` its output is thrown away and it is ended: by SIGTERM, after 10 s by SIGKILL; when 2 s later
        it still runs it is given up, and 255 reported. One that has ended by now is cleaned, once what is left of its
        output was read, and its exit is reported, with 255 when nobody knows the code. `Container.wait` gives that in
        each case.

        Raises `NotFoundError` when there is no such container, `AlreadyExistsError` when it is this client's already or
        that of another which lives, `InvalidArgumentError` for one that was never started, and what the callback, the
        engine or a listener raised; then it is as it was.
        """
        self._check_open()
        seconds_of(drain_timeout, "drain_timeout=")
        from libctrd import restoring  # the rare case

        return restoring.restore(
            self, ids.check(id), live=live, stdio=stdio, further=further, drain_timeout=drain_timeout
        )

    @contextlib.contextmanager
    def _arrival(self, id: str) -> Iterator[threading.Event]:
        """What is set once the engine tells of the end of that container."""
        arrival = threading.Event()
        with self._guard:
            self._arrivals[id] = arrival
        try:
            yield arrival
        finally:
            with self._guard:
                del self._arrivals[id]

    def _known(self, id: str) -> Container | None:
        return self._containers.get(id)  # one look at a table needs no lock

    def _active(self, id: str) -> Container | None:
        """That of this client's table. One that only waits to be started may have been removed by another client."""
        known = self._known(id)
        if known is None or known._told_of:
            return known
        try:
            if self._engine.record(id) == known._record:
                return known
        except NotFoundError:
            pass
        self._forget(known)
        return None

    def _remove(self, container: Container, force: bool = False) -> None:
        """Frees a container that ended or never started, and removes its directories (C2). Called under its lock.

        With *force* also one that is just being started, and one of which nothing can be known.
        """
        id, path = container.id, os.path.join(self._root, container.id)
        if container._record.foreign:
            if not self._is_anothers(container):
                self._engine.delete(id, force)
            container._leave_bundle()
            self._forget(container)
            return
        try:
            claim = directory.lock(path, wait=True)
        except NotFoundError:
            # Another hand has cleaned it, or the directory was taken away under us: the engine may still hold it.
            if not self._is_anothers(container):
                self._engine.delete(id, force)
            self._forget(container)
            return
        try:
            if self._is_anothers(container):
                self._forget(container)
                return
            self._engine.delete(id, force)
            if not directory.clean_disabled():
                self._engine.release(id)
                directory.remove_both(container.bundle, path)
        finally:
            os.close(claim)
        self._forget(container)

    def _register(self, container: Container) -> None:
        with self._guard:
            self._containers[container.id] = container

    def _forget(self, container: Container) -> None:
        with self._guard:
            if self._containers.get(container.id) is container:
                del self._containers[container.id]

    def _watch(self, container: Container) -> Container:
        """From now on events of this container reach it, though another client has started it.

        Returns the object that they reach: of several that were handed out for one container it is the first.
        """
        with self._locked(container.id):
            known = self._known(container.id)
            told = known or container
            if told._told_of:
                return told
            self._register(told)
            told._told_of = True
            try:
                self._engine.watch(told.id)
            except BaseException:
                told._told_of = False
                if known is None:
                    self._forget(told)
                raise
            return told

    def _is_anothers(self, container: Container) -> bool:
        """Has this container gone, and does its id name another by now? Two of one id differ in when they were made."""
        try:
            return self._engine.record(container.id) != container._record
        except CtrdError:
            return False  # there is no record, or only a damaged one: nothing that says so

    def _locked(self, id: str) -> contextlib.AbstractContextManager[None]:
        """For one ``with``: the lock of one container id (C18)."""
        return self._locks.holding(id)

    # ---- events --------------------------------------------------------------------------------------------------

    def watch_all(self) -> None:
        """From now on listeners and streams are told of every container of the engine, whoever started or starts it.

        Of those of other clients ``start-container`` is reported too; of further processes with ``start-process`` by
        engines that tell of it. They stay the other clients': nothing is read, and nothing cleaned. Of those that run
        by now the end is told, and not that they run; see `containers`. Raises `UnsupportedError` where that is not to
        be had, `UnavailableError` when the system has no room for another watch.
        """
        self._check_open()
        self._overhears = True
        self._engine.watch_all()
        for record in self._engine.records():
            try:
                if self._engine.snapshot(record.id).status in ("running", "paused"):
                    self._engine.watch(record.id)
            except NotFoundError:
                continue  # removed meanwhile
            except CtrdError as error:
                log.warning("container %s is not watched: %s", record.id, error)

    def _on_event(self, event: Event) -> None:
        """Called by the engine, by a thread that must not wait: hands the event to the lane of its container.

        Whose event it is is settled here: a container keeps its id until the engine has told all there is of it, but
        by the time the event is handled the id may be another's.
        """
        if event.id in self._arrivals and event.type == "exit":
            self._arrivals[event.id].set()
        container = self._known(event.id)
        if container is None and self._overhears:
            handling.overheard(self, event)
        elif container is None:
            log.debug("event %s of container %s, which is not known here", event.type, event.id)
        else:
            self._lanes.submit(("event", event.id), partial(handling.handle, self, container, event))

    # ---- the end -------------------------------------------------------------------------------------------------

    def stop_daemon(self) -> None:
        """Ends the daemon behind this client, and closes the client, for ``containerd:/DIR``. Containers run on (C23).

        Raises `UnsupportedError` when there is no daemon, or one that is not ours: that is never stopped.
        """
        self._check_open()
        self._engine.stop_daemon()
        self.close()

    def close(self) -> None:
        """Lets go of the engine. Containers run on; events that have come are handled first. Idempotent."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if not self._lanes.drain(CLOSE_SECONDS):
            log.warning("a listener of %s takes longer than %g s; not waited for", self.address, CLOSE_SECONDS)
        self._lanes.close()
        self._engine.close()
        for container in list(self._containers.values()):
            container._let_go()
        self._owners.close()
        for stream in self._streams:
            stream.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this client of {self.address} is closed")
        if self._process != os.getpid():
            raise ClosedError(
                f"this client of {self.address} belongs to the process that forked this one: connect anew"
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"


def _write(path: str, data: bytes) -> None:
    """Writes ``config.json``; a short write is an error, not half a file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"write {path!r}") from error
