"""What an event does to a container and its processes (C10): told by the engine, handled in the container's lane.

An end is told last of all: after the output has come to its end (C28) and what the engine and the directory hold is
cleaned, so that in the listener the id is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from libctrd._log import log
from libctrd.errors import CtrdError
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus, StateInfo

if TYPE_CHECKING:
    from libctrd.client import Client
    from libctrd.container import Container
    from libctrd.process import Process


def handle(client: Client, container: Container, event: Event) -> None:
    """What an event does, under the container's lock (C10)."""
    with client._locked(event.id):
        if container._finished.is_set():
            log.debug("event %s of container %s, whose end was told", event.type, event.id)
        elif event.type == "exit" and event.process != INIT:
            _process_exited(client, container, event.process, event.status or ExitStatus(UNKNOWN_EXIT, known=False))
        elif event.type == "exit":
            ended(client, container, event.status or ExitStatus(UNKNOWN_EXIT, known=False))
        elif event.type in ("pause", "resume"):
            change = event.type

            def wake() -> None:
                with client._locked(container.id):
                    container._changes.wake(change)

            client._report(container.id, StateInfo(change, at=client._now()), wake)
            if change == "pause" and container._condemned:
                _thaw(container)
        elif event.type == "oom":
            container._oom_killed = True
            client._report(container.id, StateInfo("oom", oom_killed=True, at=client._now()))
        else:
            log.debug("event %s of container %s is none that is handled", event.type, event.id)


def _thaw(container: Container) -> None:
    """It was frozen by another when it was to be killed (`Container._condemn`): it would never end."""
    try:
        container._thaw()
    except CtrdError as error:
        log.warning("container %s is being killed and was frozen meanwhile, and: %s", container.id, error)


def overheard(client: Client, event: Event) -> None:
    """What happened to a container of another client is reported as it was told: nothing of it is ours to handle."""
    at, kind, code, oom_killed = client._now(), event.type, None, event.type == "oom"
    if kind == "exit":
        status = event.status or ExitStatus(UNKNOWN_EXIT, known=False)
        at, code, oom_killed = status.exited_at or at, status.code, status.oom_killed
        if event.process != INIT:
            kind = "exit-process"

    def report() -> None:
        # A pid is asked for here, in the container's lane, where that holds up no other container's events.
        pid = event.pid or event.find_pid()
        client._report_now(event.id, StateInfo(kind, pid, event.process, code, oom_killed, at), None)

    client._lanes.submit(("report", event.id), report)


def ended(client: Client, container: Container, status: ExitStatus) -> None:
    """``init`` has ended: its output is waited for, without the lock, before anything is cleaned (C28)."""
    if container._exit is not None:
        return
    container._exit = status
    container._oom_killed = container._oom_killed or status.oom_killed
    container._changes.end()
    init = container._processes.get(INIT)

    def drained() -> None:
        client._lanes.submit(("event", container.id), lambda: _settle(client, container, init))

    if init is None:
        _settle(client, container, None)
    else:
        init.exited(status)
        init.streams.when_ended(init.drain_timeout, drained)


def _process_exited(client: Client, container: Container, name: str, status: ExitStatus) -> None:
    """A further process has ended: its output is waited for too, before it is cleaned and told of (C10, C28)."""
    process = container._processes.get(name)
    if process is None:  # another client's: that it has ended is told, and no file is touched (C3)
        _tell_process_exit(client, container, name, status)
    elif process.status is None:
        process.exited(status)

        def drained() -> None:
            client._lanes.submit(("event", container.id), lambda: _settle(client, container, process))

        process.streams.when_ended(process.drain_timeout, drained)


def _settle(client: Client, container: Container, process: Process | None) -> None:
    """The output of *process* has come to its end. A container is through when all its processes are: with ``init``
    they were killed, and each has an end of its own to be told before that of the container.
    """
    with client._locked(container.id):
        if process is not None:
            process.drained()
            if process.name != INIT:
                _finish_process(client, container, process)
        others = any(name != INIT for name in container._processes)
        init = container._processes.get(INIT)
        if container._exit is not None and not others and (init is None or init._drained):
            _finish(client, container, container._exit)


def _finish_process(client: Client, container: Container, process: Process) -> None:
    """Cleans a further process and forgets it, then queues the report (C10)."""
    assert process.status is not None
    if not process.came_later or container._owned:
        try:
            client._engine.delete_process(container.id, process.name)
        except CtrdError as error:
            log.warning("process %s of container %s has ended, but: %s", process.name, container.id, error)
        container.clean_process(process.name)
        container._leave_bundle()
    container._processes.pop(process.name, None)
    client._owners.give_back(container._record, process.name)
    process._finished.set()
    _tell_process_exit(client, container, process.name, process.status, process._notified.set)


def _tell_process_exit(
    client: Client, container: Container, name: str, status: ExitStatus, then: Callable[[], None] = lambda: None
) -> None:
    at = status.exited_at or client._now()
    client._report(container.id, StateInfo("exit-process", 0, name, status.code, container._oom_killed, at), then)


def _finish(client: Client, container: Container, status: ExitStatus) -> None:
    """Cleans the container and forgets it, then queues the report: in the listener the id is free already (C10).

    Called under its lock.
    """
    try:
        if container._owned:
            client._remove(container)
    except CtrdError as error:
        log.error("container %s has ended and could not be cleaned: %s", container.id, error)
    client._forget(container)
    client._owners.give_back(container._record, INIT)
    container._finished.set()
    init = container._processes.get(INIT)
    if init is not None:
        init._finished.set()

    def told() -> None:
        container._notified.set()
        if init is not None:
            init._notified.set()

    at = status.exited_at or client._now()
    client._report(container.id, StateInfo("exit", 0, INIT, status.code, container._oom_killed, at), told)
