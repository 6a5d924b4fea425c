"""Events on their way to those who listen: lanes that keep an order, and streams that are iterated.

Nothing here knows what an event means; that is the client's business.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from libctrd import reactor
from libctrd._log import log
from libctrd.errors import ClosedError, CtrdError, DeadlineError, UnavailableError
from libctrd.state import StateInfo

STREAM_LIMIT = 2048
"""How many events a stream holds for a reader that does not come (the number of containerd 0.2)."""


class Listener(Protocol):
    """Who wants to be told of containers (C11)."""

    def state_changed(self, id: str, info: StateInfo, /) -> None:
        """Called for each report: in order for one container, side by side for different ones."""


class Lanes:
    """Runs jobs in the background: strictly in order within a lane, lanes independent of each other (C11).

    A lane that blocks holds back nobody but itself, and quick jobs need few threads, however many lanes they are in:

    - As long as they are fewer than `AT_ONCE`, a thread comes for each lane with work: an idle one, or a new one. They
      come one at a time, each calls the next, so that those who come late find nothing left to do and are not called.
    - Beyond that, the threads that there are come to each lane in turn if what they run is quick. Only if none of them
      takes another lane for `LOOKS` looks of `LOOK_SECONDS` are they taken for blocked, and there is one thread more:
      the one that looked, while there was work and nobody free. Nobody looks while there is no such work.

    So threads are as many as jobs that block, and `AT_ONCE` and a lookout. Idle ones end after a while; a quiet client
    has none.

    What it costs: `submit` takes the lock once, and a thread takes it once for up to `BATCH` jobs of a lane: it gives
    that back and gets the next one under the same hold. Jobs are taken off their queue without it, for a lane has one
    thread at most, and a deque's two ends do not meet while something is in it. What waits is woken by name, through a
    lock of its own: a condition would make one for each wait, and wake whoever is first.

    One lock guards everything else. A lane is in exactly one of three places: not in ``_queues`` (nothing to do), in
    ``_ready`` (work, no thread), or with a thread. Whoever puts one into ``_ready`` calls somebody under the same hold
    (`_call`), and nobody goes idle before looking there: no job waits while a thread sleeps.
    """

    AT_ONCE = 8
    BATCH = 64
    LOOKS = 3
    LOOK_SECONDS = 0.002
    IDLE_SECONDS = 5.0
    RETRY_SECONDS = 0.1

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._all_done = threading.Condition(self._lock)
        self._queues: dict[Hashable, deque[Callable[[], None]]] = {}
        self._ready: deque[Hashable] = deque()
        self._busy = 0  # threads with a lane
        self._taken = 0  # lanes that were taken, ever: how the lookout sees that somebody still comes for them
        self._coming = False  # somebody was called, and has not come yet
        self._looking = False
        self._retrying = False  # no thread could be had, and it is tried again
        self._idle: list[threading.Lock] = []  # what each idle thread waits for; the last to go idle is called first
        self._closed = False

    def submit(self, lane: Hashable, job: Callable[[], None]) -> None:
        """Runs *job* after all that was submitted for *lane* before. After `close` nothing is run.

        Raises `UnavailableError` when no thread can be had, and there is none that could try again later.
        """
        with self._lock:
            if self._closed:
                return
            queue = self._queues.get(lane)
            if queue is not None:
                queue.append(job)
                return
            self._queues[lane] = deque((job,))
            self._ready.append(lane)
            if not self._coming:
                try:
                    self._call()
                except UnavailableError:
                    self._ready.remove(lane)
                    del self._queues[lane]
                    raise

    def _call(self) -> None:
        """Has another thread come when there is a lane for it, or when nobody looks out. With the lock held."""
        if self._coming or not self._ready or (self._looking and self._busy >= self.AT_ONCE):
            return
        self._coming = True
        if self._idle:
            self._idle.pop().release()
            return
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # no room for it: those that there are come later, or who is called next
            self._coming = False
            if not self._retrying:
                log.error("events wait, for no thread can be started to handle them: %s", error)
            self._retry()
        except BaseException:  # Ctrl-C
            self._coming = False
            raise

    def _retry(self) -> None:
        """Has somebody called again in a while, though nobody may submit anything any more. With the lock held."""

        def again() -> None:
            with self._lock:
                self._call()
                if not self._ready or self._coming:
                    self._retrying = False

        self._retrying = True
        try:
            reactor.shared().later(self.RETRY_SECONDS, again)
        except UnavailableError:
            self._retrying = False
            if not self._busy:
                raise

    def _work(self) -> None:
        turn = threading.Lock()
        turn.acquire()
        with self._lock:
            self._coming = False
            lane = self._take()
        while lane is not None or (lane := self._wait(turn)) is not None:
            queue = self._queues[lane]
            for _ in range(self.BATCH):
                try:
                    job = queue.popleft()
                except IndexError:
                    break
                try:
                    job()
                except BaseException:
                    log.exception("an event could not be handled")
            del job
            with self._lock:
                self._busy -= 1
                if queue:
                    self._ready.append(lane)
                else:
                    del self._queues[lane]
                    if not self._queues:
                        self._all_done.notify_all()
                lane = self._take()

    def _take(self, blocked: bool = False) -> Hashable | None:
        """The lane that has been ready for longest, unless there are enough threads, none of them *blocked*. With the
        lock held."""
        if not self._ready or (self._busy >= self.AT_ONCE and not blocked):
            return None
        self._busy += 1
        self._taken += 1
        lane = self._ready.popleft()
        self._call()
        return lane

    def _wait(self, turn: threading.Lock) -> Hashable | None:
        """Waits until there is a lane for this thread. ``None`` when there was none for long, or never will be."""
        while True:
            with self._lock:
                lane = self._take()
                if lane is not None:
                    return lane
                looks = bool(self._ready) and not self._looking
                if looks:
                    self._looking = True
                elif self._closed:
                    return None
                else:
                    self._idle.append(turn)
            if looks:
                lane = self._look_out(turn)
                if lane is not None:
                    return lane
                continue
            woken = turn.acquire(timeout=self.IDLE_SECONDS)
            with self._lock:
                if not woken and turn in self._idle:
                    self._idle.remove(turn)
                    return None
                if not woken:
                    turn.acquire()  # called at that moment
                self._coming = False

    def _look_out(self, turn: threading.Lock) -> Hashable | None:
        """A lane, when nobody has come for one for `LOOKS` looks on end; ``None`` when none is waiting any more."""
        seen, looks = -1, 0
        while True:
            with self._lock:
                looks = looks + 1 if seen == self._taken else 0
                seen = self._taken
                if looks >= self.LOOKS or not self._ready or self._busy < self.AT_ONCE:
                    self._looking = False
                    return self._take(blocked=True)
            turn.acquire(timeout=self.LOOK_SECONDS)  # nobody calls a lookout: it is a wait, and no more

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until every job that was submitted has run. False when *timeout* seconds passed first."""
        with self._lock:
            return self._all_done.wait_for(lambda: not self._queues, timeout)

    def close(self) -> None:
        """Takes no more jobs; those submitted are still run. Idempotent."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().release()


class EventStream:
    """Events to be iterated: ``for id, info in client.events()``. A context manager; closing ends the iteration.

    It holds `STREAM_LIMIT` events. A reader further behind gets those and then one `UnavailableError`: its memory is
    bounded, and it is told that events are missing rather than left to believe it saw them all.
    """

    def __init__(self, on_close: Callable[[EventStream], None], on_change: Callable[[], None] = lambda: None) -> None:
        self._on_close = on_close
        self._on_change = on_change  # called without the lock whenever `get_nowait` may have something new to say
        self._changed = threading.Condition()
        self._events: deque[tuple[str, StateInfo]] = deque()
        self._closed = False
        self._overrun = False

    def put(self, id: str, info: StateInfo) -> None:
        """Adds an event; never blocks."""
        with self._changed:
            if len(self._events) >= STREAM_LIMIT:
                self._overrun = True
            elif not self._overrun and not self._closed:
                self._events.append((id, info))
            self._changed.notify_all()
        self._on_change()

    def get(self, timeout: float | None = None) -> tuple[str, StateInfo]:
        """The next event: the container's id and what happened.

        Raises `DeadlineError` after *timeout* seconds, `UnavailableError` when events were missed, `ClosedError` at
        the end.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._closed or self._overrun, timeout):
                raise DeadlineError(f"no event came within {timeout:g} s")
            if self._events:
                return self._events.popleft()
        raise self._over()

    def get_nowait(self) -> tuple[str, StateInfo] | None:
        """The next event, ``None`` when there is none yet. Raises as `get` does."""
        with self._changed:
            if self._events:
                return self._events.popleft()
            if not self._closed and not self._overrun:
                return None
        raise self._over()

    def _over(self) -> CtrdError:
        """Why no event comes any more."""
        if not self._overrun or self._closed:
            return ClosedError("this stream of events is closed")
        self.close()
        return UnavailableError(
            f"this stream fell more than {STREAM_LIMIT} events behind and missed some: read it faster"
        )

    def close(self) -> None:
        """Ends the iteration; what came before is still handed out. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._on_change()
        self._on_close(self)

    def __iter__(self) -> Iterator[tuple[str, StateInfo]]:
        return self

    def __next__(self) -> tuple[str, StateInfo]:
        try:
            return self.get()
        except ClosedError:
            raise StopIteration from None

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
