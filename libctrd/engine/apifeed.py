"""The events of a daemon that speaks `types.API`: none is lost and no exit is told twice, whatever becomes of the
daemon (C24).

One thread reads one stream. When it breaks it is taken up again a moment before the last event that was seen, for two
events may be sent in another order than that of their times; what was seen before is left out. So nothing falls between
two streams, as far as the daemon has kept it. What it has not is found by a look at its `State` after every break: a
process that is not there and whose end does not come in `LOST_SECONDS` has ended, and nobody knows how.

A process is in ``_live`` from before its start until its end is told or it is forgotten. What changes it does so under
``_lock``, which is held for a moment and never during a call or while the sink is told; who takes a process out of the
table tells its end, so it is told once. Exits of an earlier container of an id are older than the process in the table.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from libctrd._worker import Worker
from libctrd.engine import apiwire
from libctrd.engine.apitime import NANOSECONDS, KeptTime
from libctrd.engine.base import Sink
from libctrd.engine.channel import Channel
from libctrd.errors import CtrdError, NotFoundError, UnavailableError
from libctrd.reactor import Reactor
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus

log = logging.getLogger("libctrd")

FIRST_BACKOFF = 0.02
LAST_BACKOFF = 2.0
"""The longest wait before the stream is taken up again (C24)."""
LASTED = 1.0
"""A stream that has lasted for so many seconds was a good one: the next wait is the shortest again."""
LOST_SECONDS = 10.0
OVERLAP = NANOSECONDS
REMEMBERED = 4096

_UNKNOWN = ExitStatus(UNKNOWN_EXIT, known=False)


class Live:
    """A process whose end is to be told. *since*: events of that time and earlier ones are of another one."""

    def __init__(self, id: str, name: str, since: int, pid: int, ours: bool) -> None:
        self.id = id
        self.name = name
        self.since = since
        self.changes_since = time.time_ns()  # what came before that is no news, but tells how it is
        self.pid = pid
        self.ours = ours
        self.paused = False
        self.oom = False


class Waits:
    """What is waited for of one container."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()
        self.status: ExitStatus | None = None


class Feed:
    """Reads the events that come over *channel*. ``sink`` gets those of the processes in the table.

    *state* asks the daemon for a container, ``""`` for all; *pid_of_start* asks it for the pid of a process, by its
    container, its name and the time of its start; *back* is called when it is back; *ended* gets the end of every
    container and its time, of whoever it is.
    """

    def __init__(
        self,
        channel: Channel,
        reactor: Reactor,
        kept: KeptTime,
        state: Callable[[str], list[Any]],
        pid_of_start: Callable[[str, str, int], int],
        back: Callable[[], None],
        ended: Callable[[str, int, ExitStatus], None],
    ) -> None:
        self._channel = channel
        self._reactor = reactor
        self._kept = kept
        self._state = state
        self._pid_of_start = pid_of_start
        self._back = back
        self._ended = ended
        self.sink: Sink = lambda event: None
        self._lock = threading.Lock()
        self._live: dict[tuple[str, str], Live] = {}
        self._waits: dict[str, list[Waits]] = {}
        self._thread: Worker | None = None
        self._closing = threading.Event()
        self._asked = threading.Event()
        self._stream: Any = None
        self._everything_since = 0  # when that was asked for, in nanoseconds since 1970
        # Only the thread of the stream touches these.
        self._since = kept.at_start or 1
        self._seen: set[tuple[str, str, str, int]] = set()
        self._order: deque[tuple[str, str, str, int]] = deque()

    # ---- what is watched -----------------------------------------------------------------------------------------

    def add(self, id: str, name: str, *, since: int, pid: int = 0, paused: bool = False) -> bool:
        """From now on its end is told. *pid* is 0 for one that this client is about to start. False: it is already.

        Of such a one the stream is begun once it runs: it tells what was before, and a failed start costs none.
        """
        with self._lock:
            new = (id, name) not in self._live
            if new:
                live = self._live[id, name] = Live(id, name, since, pid, not pid)
                live.paused = paused
        if pid:
            self.start()
        return new

    def started(self, id: str, name: str, pid: int) -> None:
        """The process, which had none yet, has that pid now; 0 if it is not known."""
        with self._lock:
            live = self._live.get((id, name))
            if live is not None:
                live.pid = pid or -1
        self.start()

    def is_to_start(self, id: str) -> None:
        """A look has shown that the container has no pid yet."""
        with self._lock:
            live = self._live.get((id, INIT))
            if live is not None:
                live.pid = 0

    def forget(self, id: str, name: str | None = None) -> None:
        """Its end, or that of every process of the container, was told, or is nobody's business any more."""
        with self._lock:
            for key in [key for key in self._live if key[0] == id and name in (None, key[1])]:
                del self._live[key]

    def known(self, id: str, name: str = INIT) -> bool:
        """Is that process watched, and its end not told yet?"""
        with self._lock:
            return (id, name) in self._live

    def paused(self, id: str) -> bool | None:
        """Is the container paused, as far as the events tell? ``None`` for one that is not watched."""
        with self._lock:
            live = self._live.get((id, INIT))
            return None if live is None else live.paused

    def is_paused(self, id: str) -> None:
        """A look has shown it paused."""
        with self._lock:
            live = self._live.get((id, INIT))
            if live is not None:
                live.paused = True

    def tell(self, id: str, name: str, status: ExitStatus) -> None:
        """The end of that process, which was found in another way; told if it was not yet."""
        with self._lock:
            live = self._live.get((id, name))
        if live is not None:
            self._tell(live, status)

    def lost(self, id: str, name: str = INIT) -> None:
        """That process is not there any more: if no event tells its end soon, nobody knows how it ended."""
        with self._lock:
            live = self._live.get((id, name))
        if live is not None:
            self._give_time(live)

    def everything(self) -> None:
        """The sink is told of what anybody starts from now on, too."""
        self._everything_since = self._everything_since or time.time_ns()
        self.start()

    @contextlib.contextmanager
    def waiting(self, id: str) -> Iterator[Waits]:
        """For the start and the end of a container of which nothing else need be known."""
        waits = Waits()
        with self._lock:
            self._waits.setdefault(id, []).append(waits)
        self.start()
        try:
            yield waits
        finally:
            with self._lock:
                left = self._waits[id]
                left.remove(waits)
                if not left:
                    del self._waits[id]

    def _tell(self, live: Live, status: ExitStatus) -> None:
        with self._lock:
            if self._live.get((live.id, live.name)) is not live:
                return
            del self._live[live.id, live.name]
            gone = [other for key, other in self._live.items() if live.name == INIT and key[0] == live.id]
            for other in gone:
                del self._live[other.id, other.name]
        for other in gone:  # theirs are sent before that of `init`: these were not kept
            log.warning("process %s of container %s has ended and its exit code is not known", other.name, other.id)
            self.sink(Event(other.id, "exit", other.name, _UNKNOWN))
        if not status.known:
            log.warning("process %s of container %s has ended and its exit code is not known", live.name, live.id)
        if live.oom:
            status = ExitStatus(status.code, True, status.exited_at, status.known)
        self.sink(Event(live.id, "exit", live.name, status))

    def _give_time(self, live: Live) -> None:
        self._reactor.later(LOST_SECONDS, lambda: self._tell(live, _UNKNOWN))

    # ---- the stream ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts to read the stream of events; returns once that was asked for, or cannot be. Idempotent."""
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = Worker(self._run, "ctrd-api")
                try:
                    self._thread.start()
                except UnavailableError:
                    self._thread = None  # whoever comes next tries anew
                    raise
        self._asked.wait(LAST_BACKOFF)

    def close(self) -> None:
        """Ends the stream; returns when nothing is told any more. Idempotent."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.ended(LAST_BACKOFF)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        again = False
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                if again:
                    self._compare()
                since = max(1, self._since - OVERLAP) if again else self._since
                request = apiwire.events_request(since)
                self._stream = self._channel.stream("types.API/Events", request, doing="read the events of containerd")
                self._asked.set()
                if self._closing.is_set():  # `close` may have looked for a stream before there was this one
                    self._stream.cancel()
                if again:
                    self._back()
                for event in self._stream:
                    self._handle(event)
            except CtrdError as error:
                if self._closing.is_set():
                    return
                log.debug("the events of %s broke off: %s", self._channel.address, error)
            except Exception:  # a sink, or a message that no daemon sends: no exit is lost for that
                log.exception("the events of %s could not be handled", self._channel.address)
            self._stream = None
            self._asked.set()
            again = True
            if time.monotonic() - began > LASTED:
                backoff = FIRST_BACKOFF
            self._closing.wait(backoff)
            backoff = min(LAST_BACKOFF, backoff * 2)

    def _compare(self) -> None:
        """After a break: what is not there has ended, and its exit is to come. What is being started has no pid yet."""
        with self._lock:
            before = [live for live in self._live.values() if live.pid]
            waits = list(self._waits)
        there = {container.id: {process.pid for process in container.processes} for container in self._state("")}
        for live in before:
            if live.id not in there or (live.name != INIT and live.name not in there[live.id]):
                self._give_time(live)
        for id in waits:
            if id not in there:
                self._wake(id, ended=True)

    def _wake(self, id: str, ended: bool, status: ExitStatus | None = None) -> None:
        with self._lock:
            waits = list(self._waits.get(id, ()))
        for one in waits:
            one.started.set()
            if ended:
                one.status = status
                one.ended.set()

    def _handle(self, event: Any) -> None:
        """What an event does. Only the thread of the stream calls it."""
        id, kind, at = event.id, event.type, apiwire.nanoseconds(event.timestamp)
        key = (kind, id, event.pid, at)
        if key in self._seen:
            return
        self._seen.add(key)
        self._order.append(key)
        if len(self._order) > REMEMBERED:
            self._seen.discard(self._order.popleft())
        self._since = max(self._since, at)
        if kind == "exit":
            known = self._exited(event, at)
        elif kind in ("pause", "resume", "oom"):
            known = self._changed(id, kind, at)
        elif kind in ("start-container", "start-process"):
            known = self._was_started(id, event.pid or INIT, kind, at)
        else:
            log.debug("event %s of container %s is none that is known", kind, id)
            return
        if known:
            self._kept.advance(at)

    def _exited(self, event: Any, at: int) -> bool:
        id, name, status = event.id, event.pid or INIT, apiwire.exit_status(event)
        with self._lock:
            live = self._live.get((id, name))
        if live is not None and at <= live.since and (not live.pid or self._is_there(id, name)):
            live = None  # it is of an earlier one, and not of this one after the clock was set back
        if name == INIT:
            self._ended(id, at, status)
            self._wake(id, ended=True, status=status)
        if live is None:
            return name != INIT and self._ended_elsewhere(id, name, at, status)
        self._tell(live, status)
        return True

    def _ended_elsewhere(self, id: str, name: str, at: int, status: ExitStatus) -> bool:
        """A process that another client has started, or has ended before it was looked for, in one that is watched."""
        with self._lock:
            init, own = self._live.get((id, INIT)), self._live.get((id, name))
        if init is None or own is not None or at <= init.since:
            return False
        self.sink(Event(id, "exit", name, status))
        return True

    def _is_there(self, id: str, name: str) -> bool:
        try:
            return any(process.pid == name for container in self._state(id) for process in container.processes)
        except NotFoundError:
            return False

    def _changed(self, id: str, kind: Any, at: int) -> bool:
        with self._lock:
            live = self._live.get((id, INIT))
            if live is None or at <= live.since:
                return False
            if kind == "oom":
                told = live.oom  # once is enough
                for other in self._live.values():
                    if other.id == id:
                        other.oom = True
            else:
                told = False
                live.paused = kind == "pause"
        if not told and at > live.changes_since:
            self.sink(Event(id, kind))
        return True

    def _was_started(self, id: str, name: str, kind: Any, at: int) -> bool:
        self._wake(id, ended=False)
        with self._lock:
            live = self._live.get((id, name))
            if live is not None or not 0 < self._everything_since < at:
                return live is not None
        # Its pid is no part of the event. This thread, which all events come by, must not wait for an answer.
        self.sink(Event(id, kind, name, find_pid=lambda: self._pid_of_start(id, name, at)))
        self.add(id, name, since=at - 1, pid=-1)
        return True
