"""To take over a container from a client that has gone: killed, ended, or the one before this one was started (C22).

All of it under the container's lock, so that what happens meanwhile is handled afterwards. Only the end of one that is
not to live on is waited for without it, for that end must be handled.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from libctrd import attaching, handling
from libctrd._log import log
from libctrd.container import Container
from libctrd.directory import held
from libctrd.engine.base import ProcessSnapshot, Snapshot
from libctrd.errors import (
    AlreadyExistsError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from libctrd.process import Process
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus, StateInfo
from libctrd.stdio import DETACHED, Callback, Choice, Stdio
from libctrd.stdio import path as fifo_path
from libctrd.unread import discard_fifos

if TYPE_CHECKING:
    from libctrd.client import Client


LOOK_SECONDS = 0.1
"""How often the exit of a container that has ended is looked for, when an engine keeps an earlier event of it (C22)."""
EXIT_SECONDS = 10.0
"""For so long; then nobody knows how it ended (C22)."""
TERM_SECONDS = 10.0
"""How long a container that is not to live on has to end on SIGTERM (C22)."""
KILL_SECONDS = 2.0
"""And after SIGKILL, before it is given up (C22)."""

_SIGTERM: Final = 15
_SIGKILL: Final = 9
_UNKNOWN: Final = ExitStatus(UNKNOWN_EXIT, known=False)


def restore(
    client: Client,
    id: str,
    *,
    live: bool,
    stdio: Choice | Stdio | Callback,
    further: Choice | Stdio,
    drain_timeout: float | None,
) -> Container:
    """`Client.restore`."""
    further = further if live else DETACHED
    with client._locked(id):
        container = _take_over(client, id)
        known = client._known(id) is container
        try:
            snapshot = _look(container)
            if snapshot.status == "created":
                raise InvalidArgumentError(f"container {id!r} was not started: there is nothing to restore; start it")
            if snapshot.status == "stopped":
                _ended(container, snapshot, stdio if live else DETACHED, further, drain_timeout)
                return container
            if live:
                _go_on(container, snapshot, stdio, further, drain_timeout)
                return container
            _give_notice(container)
        except BaseException:
            _leave(container, known)
            raise
    _see_it_end(container)
    return container


def _take_over(client: Client, id: str) -> Container:
    """The container, which is this client's from now on and no other's."""
    known = client._known(id)
    if known is not None and (known._owned or known._processes):
        raise AlreadyExistsError(f"container {id!r} is active in this client: it needs no restore")
    record = client._engine.record(id)
    if record.foreign:
        raise UnsupportedError(f"container {id!r} was made by another program, which cleans it: attach to it instead")
    client._owners.take(record, INIT)
    return known or Container(client, record)


def _look(container: Container) -> Snapshot:
    try:
        return container._client._engine.snapshot(container.id)
    except NotFoundError:  # its record is there, and the engine does not know it
        return Snapshot("stopped", exit=_UNKNOWN)


def _leave(container: Container, known: bool) -> None:
    """It could not be restored: it is nobody's again, and as it was."""
    client = container._client
    for name, process in list(container._processes.items()):
        process.streams.close()
        process.let_go_of_ends()
        client._owners.give_back(container._record, name)
    container._processes.clear()
    container.taken_over.clear()
    container._owned = False
    if not known:
        client._forget(container)
        container._told_of = False
    client._owners.give_back(container._record, INIT)


# ---- ended -----------------------------------------------------------------------------------------------------------


def _ended(
    container: Container,
    snapshot: Snapshot,
    stdio: Choice | Stdio | Callback,
    further: Choice | Stdio,
    drain_timeout: float | None,
) -> None:
    """Its output, as far as it was kept for a reader, is read first; then it is cleaned, and its exit reported."""
    client = container._client
    status = snapshot.exit if snapshot.exit is not None and snapshot.exit.known else _exit_of(container)
    if stdio is not DETACHED:
        with contextlib.suppress(NotFoundError):  # what held it has gone
            _connect(container, stdio, drain_timeout)
    container._owned = container._told_of = True
    client._register(container)
    init = container._processes.get(INIT)
    if init is not None:
        init.began()
    for process in _take_over_further(container, further, drain_timeout):
        container.taken_over[process.name].began()
        end = process.exit or _UNKNOWN
        handling.handle(client, container, Event(container.id, "exit", process.name, end))
    handling.ended(client, container, status)


def _exit_of(container: Container) -> ExitStatus:
    """How it has ended, from the events that the engine keeps: 255 when there is none, or its exit does not come."""
    engine = container._client._engine
    deadline = time.monotonic() + EXIT_SECONDS
    with container._client._arrival(container.id) as arrival:
        while True:
            try:
                event = engine.last_event(container.id)
            except NotFoundError:
                return _UNKNOWN
            if event is None:
                return _UNKNOWN
            if event.type == "exit" and event.process == INIT:
                return event.status or _UNKNOWN
            if time.monotonic() >= deadline:
                return _UNKNOWN
            arrival.wait(LOOK_SECONDS)


def _connect(container: Container, stdio: Choice | Stdio | Callback, drain_timeout: float | None) -> Process:
    """Fifos, then the callback (C22)."""
    ends = container._client._engine.attach(container.id, INIT)
    init = Process(container, INIT, container._record.terminal, DETACHED, drain_timeout)
    init.came_later = True
    attaching.connect(init, ends, stdio, discard=True)
    container._processes[INIT] = init
    if init.streams.callback is not None:
        init.streams.callback(init.streams.pipe)
    return init


def _take_over_further(
    container: Container, streams: Choice | Stdio, drain_timeout: float | None
) -> list[ProcessSnapshot]:
    """Further processes that were started before: they are this client's to clean (C3), but for those of clients that
    live. With `DETACHED` their streams wait for `Container.attach`. Returns them.
    """
    client = container._client
    try:
        found = [process for process in client._engine.processes(container.id) if process.name != INIT]
    except NotFoundError:
        return []  # it is not known any more
    taken = []
    for process in found:
        try:
            client._owners.take(container._record, process.name)
        except AlreadyExistsError:
            continue
        ours = Process(container, process.name, process.terminal, DETACHED, drain_timeout)
        ours.came_later = True
        ours.pid = process.pid
        container._processes[process.name] = container.taken_over[process.name] = ours
        if streams is not DETACHED:
            with contextlib.suppress(NotFoundError):  # what held it has gone
                attaching.connect(ours, client._engine.attach(container.id, process.name), streams, discard=True)
        taken.append(process)
    return taken


# ---- alive -----------------------------------------------------------------------------------------------------------


def _go_on(
    container: Container,
    snapshot: Snapshot,
    stdio: Choice | Stdio | Callback,
    further: Choice | Stdio,
    drain_timeout: float | None,
) -> None:
    """Live restore: it runs on as if this client had started it.

    An event that comes between `watch` and `last_event` is told twice, by the report here and by its own; the last word
    is the same.
    """
    client = container._client
    init = _connect(container, stdio, drain_timeout)
    init.pid = snapshot.pid
    _become_owner(container, further, drain_timeout)
    event = client._engine.last_event(container.id)
    for process in (init, *container.taken_over.values()):
        process.began()
    client._tell(container.id, StateInfo("restore", init.pid, at=client._now()))
    if event is not None and event.type in ("pause", "resume"):
        client._tell(container.id, StateInfo(event.type, at=client._now()))


def _become_owner(container: Container, further: Choice | Stdio = DETACHED, drain_timeout: float | None = None) -> None:
    client = container._client
    container._owned = True
    client._register(container)
    _take_over_further(container, further, drain_timeout)
    if not container._told_of:
        container._told_of = True
        client._engine.watch(container.id)


def _give_notice(container: Container) -> None:
    """No live restore: what it prints is let go, so that it can end, and it is asked to."""
    client = container._client
    _become_owner(container)
    if any(os.path.lexists(fifo_path(container.bundle, INIT, stream)) for stream in ("stdout", "stderr")):
        with held(container.bundle, client._root) as where:
            discard_fifos(where, INIT)
    with contextlib.suppress(NotFoundError):
        client._engine.signal(container.id, INIT, _SIGTERM)


def _see_it_end(container: Container) -> None:
    """Waits for its end, and is harder on it by and by. Without the lock: its end is handled meanwhile."""
    client = container._client
    try:
        event = client._engine.last_event(container.id)
        if event is not None and event.type == "pause":
            with contextlib.suppress(InvalidArgumentError, DeadlineError):  # it is not paused any more
                container.resume(TERM_SECONDS)
    except NotFoundError:
        pass  # it has ended
    if container._notified.wait(TERM_SECONDS):
        return
    with contextlib.suppress(NotFoundError):
        client._engine.signal(container.id, INIT, _SIGKILL)
    if container._notified.wait(KILL_SECONDS):
        return
    with client._locked(container.id):
        if container._finished.is_set():
            return  # just now
        log.error("container %s did not end on SIGKILL within %g s: it is given up", container.id, KILL_SECONDS)
        container._exit = _UNKNOWN
        container._owned = False
        client._forget(container)
        client._owners.give_back(container._record, INIT)
        container._finished.set()
    try:
        client._tell(container.id, StateInfo("exit", exit_code=UNKNOWN_EXIT, at=client._now()))
    finally:
        container._notified.set()
