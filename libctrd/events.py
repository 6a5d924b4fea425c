"""Events on their way to those who listen: lanes that keep an order, and streams that are iterated.

Nothing here knows what an event means; that is the client's business.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from libctrd._log import log
from libctrd.errors import ClosedError, DeadlineError, UnavailableError
from libctrd.state import StateInfo

STREAM_LIMIT = 2048
"""How many events a stream holds for a reader that does not come (the number of containerd 0.2)."""


class Listener(Protocol):
    """Who wants to be told of containers (C11)."""

    def state_changed(self, id: str, info: StateInfo, /) -> None:
        """Called for each report: in order for one container, side by side for different ones."""


class Lanes:
    """Runs jobs in the background: strictly in order within a lane, lanes independent of each other (C11).

    A lane that blocks holds back nobody but itself: a thread is started when work is ready and none is idle, one at a
    time, so that quick jobs need few. Idle threads end after a while, so that a quiet client has none.

    One lock guards everything. A lane is in exactly one of three places: not in ``_jobs`` (nothing to do), in
    ``_ready`` (work, no thread) or with a thread that runs its first job. ``submit`` changes the first into the
    second under the lock and then either wakes an idle thread or sees to it that one is being started; a thread looks
    at ``_ready`` under the same lock before it goes idle. So no job waits while a thread sleeps.
    """

    IDLE_SECONDS = 5.0

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._work_ready = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._jobs: dict[Hashable, deque[Callable[[], None]]] = {}
        self._ready: deque[Hashable] = deque()
        self._idle = 0
        self._starting = False
        self._closed = False

    def submit(self, lane: Hashable, job: Callable[[], None]) -> None:
        """Runs *job* after all that was submitted for *lane* before. After `close` nothing is run."""
        with self._lock:
            if self._closed:
                return
            queue = self._jobs.get(lane)
            if queue is not None:
                queue.append(job)
                return
            self._jobs[lane] = deque((job,))
            self._ready.append(lane)
            self._staff()

    def _staff(self) -> None:
        """Called with the lock held: wakes or starts a thread when ready lanes have none coming."""
        if not self._ready:
            return
        if self._idle >= len(self._ready):
            self._work_ready.notify()
        elif not self._starting:
            self._starting = True
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        with self._lock:
            self._starting = False
        while (lane := self._take()) is not None:
            job = self._jobs[lane][0]
            try:
                job()
            except BaseException:
                log.exception("an event could not be handled")
            del job
            with self._lock:
                queue = self._jobs[lane]
                queue.popleft()
                if queue:
                    self._ready.append(lane)
                else:
                    del self._jobs[lane]
                    if not self._jobs:
                        self._all_done.notify_all()

    def _take(self) -> Hashable | None:
        with self._lock:
            while not self._ready:
                if self._closed:
                    return None
                self._idle += 1
                try:
                    woken = self._work_ready.wait(self.IDLE_SECONDS)
                finally:
                    self._idle -= 1
                if not woken and not self._ready:
                    return None
            lane = self._ready.popleft()
            self._staff()
            return lane

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until every job that was submitted has run. False when *timeout* seconds passed first."""
        with self._lock:
            return self._all_done.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """Takes no more jobs; those submitted are still run. Idempotent."""
        with self._lock:
            self._closed = True
            self._work_ready.notify_all()


class EventStream:
    """Events to be iterated: ``for id, info in client.events()``. A context manager; closing ends the iteration.

    It holds `STREAM_LIMIT` events. A reader further behind gets those and then one `UnavailableError`: its memory is
    bounded, and it is told that events are missing rather than left to believe it saw them all.
    """

    def __init__(self, on_close: Callable[[EventStream], None]) -> None:
        self._on_close = on_close
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
            overrun = self._overrun and not self._closed
        if not overrun:
            raise ClosedError("this stream of events is closed")
        self.close()
        raise UnavailableError(
            f"this stream fell more than {STREAM_LIMIT} events behind and missed some: read it faster"
        )

    def close(self) -> None:
        """Ends the iteration; what came before is still handed out. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
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
