"""The exits of what runs in a containerd: none is missed, each is told once, whatever becomes of the daemon (C26).

Three sources tell of an end, and whichever is first counts. ``Tasks.Wait``, asked before the start. The event stream,
which also tells of pauses, of memory that ran out and of processes that others started. And, while containerd is away,
the containers' own shims: each is asked to tell the end, at once when the stream breaks, because newer daemons forget
what has ended when they start.

A process is in ``_live`` from before its start until its end is told or it is forgotten. What changes it does so under
``_lock``, which is held for a moment and never during a call or while the sink is told; who takes the process out of
the table tells its end, so it is told once. One thread reads the stream and, when that breaks, asks the shims, connects
anew, and compares: subscribe first (containerd confirms nothing, so an event of ours must come back), then look at
every process, then wait for it again. What happens before the look is seen by it, what happens after by the stream or
the wait, so nothing falls between.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from libctrd import _checks, ids, protos
from libctrd._worker import Worker
from libctrd.engine import taskshim
from libctrd.engine.base import ProcessSnapshot, Sink
from libctrd.engine.channel import Channel
from libctrd.errors import ClosedError, CtrdError, DeadlineError, NotFoundError, UnavailableError
from libctrd.reactor import Reactor
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus

log = logging.getLogger("libctrd")

TASKS = "containerd.services.tasks.v1.Tasks"
EVENTS = "containerd.services.events.v1.Events"
FIRST_BACKOFF = 0.02
LAST_BACKOFF = 2.0
LOST_SECONDS = 1.0
CONFIRM_SECONDS = 0.02
READY_SECONDS = 10.0
_HOLDS = {
    "exit": "containerd.events.TaskExit",
    "oom": "containerd.events.TaskOOM",
    "paused": "containerd.events.TaskPaused",
    "resumed": "containerd.events.TaskResumed",
    "start": "containerd.events.TaskStart",
    "exec-started": "containerd.events.TaskExecStarted",
}
"""What an event's envelope holds, by the last part of its topic."""
CREATED, STOPPED, PAUSED = 1, 3, (4, 5)
"""Of containerd's task states: ``STOPPED``; ``PAUSED`` and ``PAUSING``."""


def exec_id(process: str) -> str:
    """The name of a process on the wire, where the first one has none."""
    return "" if process == INIT else process


class Live:
    """A process whose end is to be told."""

    def __init__(self, id: str, name: str, pid: int, terminal: bool) -> None:
        self.id = id
        self.name = name
        self.pid = pid
        self.terminal = terminal
        self.paused = False
        self.forgotten = False  # containerd does not know it any more: only its shim can tell
        self.wait: Any = None
        self.shim: taskshim.Watch | None = None

    @property
    def exec_id(self) -> str:
        """Its name on the wire, where the first process has none."""
        return exec_id(self.name)


class Exits:
    """Watches the processes of one namespace. ``sink`` gets their events.

    *back* is called when containerd is back; *keep* gets the end of a container that only its shim has told.
    """

    def __init__(
        self,
        channel: Channel,
        reactor: Reactor,
        back: Callable[[], None],
        keep: Callable[[str, ExitStatus], None],
    ) -> None:
        self._channel = channel
        self._reactor = reactor
        self._back = back
        self._keep = keep
        self.sink: Sink = lambda event: None
        self._lock = threading.Lock()
        self._live: dict[tuple[str, str], Live] = {}
        self._told: set[tuple[str, str]] = set()  # further processes whose end was told, of containers still in _live
        self._thread: Worker | None = None
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._stream: Any = None
        self._marker = f"/libctrd/{ids.generate()}"
        self._everything = self._hears_starts = False
        self._started_here: dict[str, int] = {}
        self._state_dir: str | None = None

    # ---- what is watched -----------------------------------------------------------------------------------------

    def add(self, id: str, name: str, pid: int, *, terminal: bool = False, paused: bool = False) -> None:
        """From now on its end is told. It must have been created and must not have been started yet, or be running.

        *terminal*: this client gave it one.
        """
        with self._lock:
            if (id, name) in self._live:
                return
            live = self._live[id, name] = Live(id, name, pid, terminal)
            live.paused = paused
            self._told.discard((id, name))
        self.start()
        self._learn_state_dir(id, pid)
        self._wait(live)

    def started(self, id: str, name: str, pid: int) -> None:
        """The process, which had none yet, has that pid now."""
        with self._lock:
            live = self._live.get((id, name))
            if live is not None:
                live.pid = pid

    def forget(self, id: str, name: str | None = None) -> None:
        """Its end, or that of every process of the container, was told, or is nobody's business any more."""
        with self._lock:
            gone = [key for key in self._live if key[0] == id and name in (None, key[1])]
            for key in gone:
                self._take(self._live[key])

    def known(self, id: str, name: str = INIT) -> bool:
        """Is that process watched, and its end not told yet?"""
        with self._lock:
            return (id, name) in self._live

    def further(self, id: str) -> list[ProcessSnapshot]:
        """Its further processes that are watched."""
        with self._lock:
            found = [live for live in self._live.values() if live.id == id and live.name != INIT]
        return [ProcessSnapshot(live.name, live.pid, terminal=live.terminal) for live in found]

    def has_terminal(self, id: str, name: str) -> bool:
        """Did this client give that process, which is watched, a terminal?"""
        with self._lock:
            live = self._live.get((id, name))
            return live is not None and live.terminal

    def _tell(self, live: Live, status: ExitStatus) -> None:
        with self._lock:
            if not self._take(live):
                return
        if not status.known:
            log.warning("process %s of container %s has ended and its exit code is not known", live.name, live.id)
        self.sink(Event(live.id, "exit", live.name, status))

    def _take(self, live: Live) -> bool:
        """Called with the lock held: takes *live* out of the table; true for the first who does."""
        if self._live.get((live.id, live.name)) is not live:
            return False
        del self._live[live.id, live.name]
        if live.name != INIT:
            self._told.add((live.id, live.name))
        else:
            self._told -= {key for key in self._told if key[0] == live.id}
        self._release(live)
        return True

    def _release(self, live: Live) -> None:
        """Called with the lock held: its shim is not asked any longer."""
        if live.shim is not None:
            self._reactor.unwatch(live.shim.fileno())
            live.shim.close()
            live.shim = None

    def _learn_state_dir(self, id: str, pid: int) -> None:
        """Where containerd keeps its bundles, from a process of it that runs: only so can the shims be found later."""
        if self._state_dir is None and pid:
            self._state_dir = (
                taskshim.state_dir_of(pid)
                if _checks.LINUX
                else taskshim.state_dir_beside(self._channel.path, self._channel.namespace, id)
            )

    # ---- the wait ------------------------------------------------------------------------------------------------

    def _wait(self, live: Live) -> None:
        request = protos.package("containerd.services.tasks.v1").WaitRequest(container_id=live.id, exec_id=live.exec_id)
        live.wait = self._channel.future(f"{TASKS}/Wait", request)
        live.wait.add_done_callback(lambda future: self._waited(live, future))

    def _waited(self, live: Live, future: Any) -> None:
        """Called by gRPC's thread. A wait that fails says nothing of the process: the stream, which breaks with the
        daemon too, brings us to look, and one that the daemon no longer knows is looked at by the stream's thread."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            status = exit_status(future.result().exit_status, future.result().exited_at)
            if status.known or live.pid:  # else it never came to be: whoever tried to start it hears of that
                self._tell(live, status)
        elif isinstance(self._channel.error(error, "wait"), NotFoundError):
            # Another hand has deleted it: the stream has the end, or it is one of before we listened.
            self._reactor.later(LOST_SECONDS, lambda: self._tell(live, ExitStatus(UNKNOWN_EXIT, known=False)))

    # ---- the stream ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts to read the stream of events. Idempotent."""
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = Worker(self._run, "ctrd-containerd")
                try:
                    self._thread.start()
                except UnavailableError:
                    self._thread = None  # whoever comes next tries anew
                    raise

    def subscribed(self) -> None:
        """Returns once events come in, so that none of what is asked for from now on is missed."""
        self.start()
        if not self._ready.wait(READY_SECONDS):
            raise DeadlineError(f"{self._channel.address} sent no events within {READY_SECONDS:g} s: is it busy?")
        if self._closing.is_set():
            raise ClosedError(f"this client of {self._channel.address} is closed")

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        again = False
        while not self._closing.is_set():
            try:
                for envelope in self._subscribe():
                    if envelope.topic != self._marker:
                        self._handle(envelope)
                    elif not self._ready.is_set():
                        self._ready.set()
                        backoff = FIRST_BACKOFF
                        if again:
                            self._compare()
                            self._back()
            except CtrdError as error:
                if self._closing.is_set():
                    return
                log.debug("the events of %s broke off: %s", self._channel.address, error)
            except Exception:  # a sink, or a message that no containerd sends: no exit is lost for that
                log.exception("the events of %s could not be handled", self._channel.address)
            self._stream = None
            self._ready.clear()
            again = True
            self._ask_shims()
            self._closing.wait(backoff)
            backoff = min(LAST_BACKOFF, backoff * 2)

    def _subscribe(self) -> Any:
        """The stream of events, from an event of ours on, which is published until it has come back."""
        package = protos.package("containerd.services.events.v1")
        namespace = self._channel.namespace
        self._hears_starts = self._everything
        starts = "|start|exec-started" if self._hears_starts else ""
        topics = f"^({self._marker}|/tasks/(exit|oom|paused|resumed{starts}))$"
        request = package.SubscribeRequest(filters=[f'namespace=={namespace},topic~="{topics}"'])
        self._stream = self._channel.stream(f"{EVENTS}/Subscribe", request, doing="read the events of containerd")
        if self._closing.is_set():  # `close` may have looked for a stream before there was this one
            self._stream.cancel()
        self._publish()
        return self._stream

    def _publish(self) -> None:
        """Publishes the event of ours, again and again until it was seen: containerd sends none to who comes later.

        Only one is ever under way. A daemon that is stopped takes some two hundred messages, and from the next on gRPC
        ends no call of the channel any more, whatever its deadline is.
        """
        if self._ready.is_set() or self._closing.is_set():
            return
        stream = self._stream
        event = protos.any(
            "containerd.events.TaskPaused", protos.message("containerd.events.TaskPaused")().SerializeToString()
        )
        request = protos.package("containerd.services.events.v1").PublishRequest(topic=self._marker, event=event)

        def once_more() -> None:
            if stream is self._stream:
                with contextlib.suppress(ClosedError):  # just now
                    self._publish()

        sent = self._channel.future(f"{EVENTS}/Publish", request)
        sent.add_done_callback(lambda _: self._reactor.later(CONFIRM_SECONDS, once_more))

    def _handle(self, envelope: Any) -> None:
        kind = envelope.topic.rpartition("/")[2]
        event = None
        if envelope.event.type_url.rpartition("/")[2] == _HOLDS.get(kind):  # anybody may publish anything on any topic
            event = protos.unpack(envelope.event)
        id = getattr(event, "container_id", "")
        if event is None or not id:
            log.debug("an event on %s is of a kind that is not known: %s", envelope.topic, envelope.event.type_url)
        elif kind == "exit":
            self._ended(id, INIT if event.id == id else event.id, event)
        elif kind == "oom":
            self.sink(Event(id, "oom"))
        elif kind == "start":
            self._started_by_anybody(id, event.pid)
        elif kind == "exec-started":
            if not self.known(id, event.exec_id):
                self.sink(Event(id, "start-process", event.exec_id, pid=event.pid))
        else:
            self._paused(id, kind == "paused")

    def watch_all(self) -> None:
        """From now on each start is told too, and each container watched that anybody starts."""
        with self._lock:
            before, self._everything = self._everything, True
            stream = self._stream
        if not before and stream is not None:  # what it is to send was said when it was begun
            self._ready.clear()
            stream.cancel()
        self.subscribed()
        while not self._hears_starts:  # what came last from the stream before
            self._closing.wait(CONFIRM_SECONDS)
            self.subscribed()

    def starts_here(self, id: str, pid: int) -> None:
        """That process is the container's that this client is about to start: its start is told by who called."""
        with self._lock:
            if self._everything:
                self._started_here[id] = pid

    def _started_by_anybody(self, id: str, pid: int) -> None:
        with self._lock:
            if self._started_here.get(id) == pid:
                del self._started_here[id]
                return
        self.sink(Event(id, "start-container", pid=pid))
        self.add(id, INIT, pid)

    def _paused(self, id: str, paused: bool) -> None:
        with self._lock:
            live = self._live.get((id, INIT))
            if live is not None:
                live.paused = paused
        self.sink(Event(id, "pause" if paused else "resume"))

    def _ended(self, id: str, name: str, event: Any) -> None:
        """A shim sends again what it could not get rid of: the pid tells whether it is of this life of the id."""
        status = exit_status(event.exit_status, event.exited_at)
        with self._lock:
            live = self._live.get((id, name))
            others = live is None and name != INIT and (id, INIT) in self._live and (id, name) not in self._told
        if live is not None and live.pid == event.pid:
            self._tell(live, status)
        elif others:  # another client has started it
            self.sink(Event(id, "exit", name, status))

    # ---- while containerd is away, and after ---------------------------------------------------------------------

    def _ask_shims(self) -> None:
        """Every shim is asked to tell the end of what we watch, from now on. What has ended is told at once."""
        if self._state_dir is None:
            return
        with self._lock:
            asked = [live for live in self._live.values() if live.shim is None]
        for live in asked:
            try:
                address = taskshim.find(self._state_dir, self._channel.namespace, live.id)
                shim = taskshim.Watch(address, live.id, live.exec_id)
            except CtrdError as error:
                log.debug("the shim of container %s was not to be asked: %s", live.id, error)
                continue
            with self._lock:
                if self._live.get((live.id, live.name)) is not live:
                    shim.close()
                    continue
                live.shim = shim
                # Within the lock, so that nobody closes it before it is watched.
                says = functools.partial(self._shim_says, live, shim)
                self._reactor.watch(shim.fileno(), says)

    def _shim_says(self, live: Live, shim: taskshim.Watch, _: int) -> None:
        """Called by the reactor. A shim that only goes has told nothing: then containerd is asked, once it is back."""
        status = None
        try:
            status = shim.on_readable()
            if status is None:
                return
        except CtrdError as error:
            log.debug("the shim of container %s went: %s", live.id, error)
        with self._lock:
            if live.shim is shim:
                self._release(live)
            forgotten = live.forgotten
        if status is not None and live.name == INIT:
            self._keep(live.id, status)
        if status is not None or forgotten:
            self._tell(live, status or ExitStatus(UNKNOWN_EXIT, known=False))

    def _compare(self) -> None:
        """containerd is back: what has ended without our hearing is told, the rest is waited for again."""
        with self._lock:
            watched = list(self._live.values())
        for live in watched:
            try:
                process = self._get(live)
            except NotFoundError:
                with self._lock:
                    live.forgotten = True
                    asked = live.shim is not None
                if not asked:  # else the shim still tells, or goes: then it is told there
                    self._tell(live, ExitStatus(UNKNOWN_EXIT, known=False))
                continue
            except CtrdError as error:
                log.debug("process %s of container %s: %s", live.name, live.id, error)
                self._wait(live)
                continue
            status = exit_status(process.exit_status, process.exited_at)
            if process.status == STOPPED and status.known:
                self._tell(live, status)
            else:  # the runtime says that one has stopped a moment before the shim has reaped it: the wait tells then
                if process.status != STOPPED and live.name == INIT and live.paused != (process.status in PAUSED):
                    self._paused(live.id, not live.paused)
                self._wait(live)
                with self._lock:
                    self._release(live)

    def _get(self, live: Live) -> Any:
        request = protos.package("containerd.services.tasks.v1").GetRequest(container_id=live.id, exec_id=live.exec_id)
        return self._channel.call(f"{TASKS}/Get", request, doing=f"look at container {live.id!r}").process

    def close(self) -> None:
        """Lets go of everything; containers run on."""
        self._closing.set()
        self._ready.set()
        with self._lock:
            lives = list(self._live.values())
            self._live.clear()
            for live in lives:
                self._release(live)
        for live in lives:
            if live.wait is not None:
                live.wait.cancel()
        if self._stream is not None:
            with contextlib.suppress(CtrdError):
                self._stream.cancel()
        if self._thread is not None:
            self._thread.ended(READY_SECONDS)


def exit_status(code: int, exited_at: Any) -> ExitStatus:
    """The status of an end as containerd tells it. Without a time it is none: nobody saw it (C22)."""
    at = protos.moment(exited_at)
    return ExitStatus(code, exited_at=at) if at is not None else ExitStatus(UNKNOWN_EXIT, known=False)
