"""One thread that waits for descriptors and clocks for every client: the shims' sockets, late ends, time limits.

It moves no bytes of containers (the relay does, without the GIL) and runs no user code: its callbacks only read a
packet and hand it on. So it never blocks, whatever listeners and sinks do.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections.abc import Callable

from libctrd._log import log
from libctrd.errors import from_os_error


class Timer:
    """A call that is due later; `cancel` takes it back."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """The call will not be made, unless it has begun. Idempotent, from any thread."""
        self._call = None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Reactor:
    """Calls back when a descriptor has something to say or a time has come. Every method may be called by any thread.

    ``_lock`` guards ``_callbacks`` and ``_timers``; it is never held during a callback. Who adds a timer writes to the
    eventfd afterwards, and the thread looks at the timers after each wait, so none is missed.
    A callback may still come once after `unwatch` when it had begun; callers hold what it needs until then.
    """

    def __init__(self, name: str = "ctrd-events") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        try:
            self._epoll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise from_os_error(error, "make the descriptors that events are waited for with (epoll)") from error
        self._epoll.register(self._wake, select.EPOLLIN)

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Calls *callback* with the epoll mask whenever *fd* has one of *events*, or an error or hang-up."""
        with self._lock:
            self._start()
            self._callbacks[fd] = callback
            try:
                self._epoll.register(fd, events)
            except OSError as error:
                del self._callbacks[fd]
                raise from_os_error(error, f"wait for descriptor {fd} (epoll_ctl)") from error

    def unwatch(self, fd: int) -> None:
        """Forgets *fd*, before it is closed. An unknown one is fine."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Makes *call* after *seconds* of the monotonic clock."""
        timer = Timer(call)
        with self._lock:
            self._start()
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        self._poke()
        return timer

    def abandon(self) -> None:
        """Closes the descriptors without a word to the thread: for a child after fork, in which there is none."""
        self._epoll.close()
        os.close(self._wake)

    def _start(self) -> None:
        """Called with the lock held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _poke(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            for fd, mask in self._epoll.poll(self._next_timeout()):
                if fd == self._wake:
                    os.eventfd_read(fd)
                    continue
                with self._lock:
                    callback = self._callbacks.get(fd)
                if callback is not None and _is_ready(fd, mask):
                    self._guard(lambda callback=callback, mask=mask: callback(mask))  # type: ignore[misc]
            for timer in self._due():
                self._guard(timer.fire)

    def _next_timeout(self) -> float | None:
        with self._lock:
            if not self._timers:
                return None
            return max(0.0, self._timers[0][0] - time.monotonic())

    def _due(self) -> list[Timer]:
        with self._lock:
            now = time.monotonic()
            due = []
            while self._timers and self._timers[0][0] <= now:
                due.append(heapq.heappop(self._timers)[2])
            return due

    @staticmethod
    def _guard(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException:
            log.exception("an event could not be handled")


def _is_ready(fd: int, mask: int) -> bool:
    """Is it so still? The number may be another descriptor's by now: epoll tells several at once, and one of those that
    were called before may have closed this one and opened another."""
    look = select.poll()
    look.register(fd, mask)
    return any(not seen & select.POLLNVAL for _, seen in look.poll(0))


_shared: Reactor | None = None
_shared_lock = threading.Lock()


def shared() -> Reactor:
    """The reactor of this process, made when it is first asked for. It lives as long as the process does."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Reactor()
        return _shared


def _after_fork() -> None:
    """A child starts clean: its parent's thread is not there, and its parent's descriptors are none of its business."""
    global _shared, _shared_lock
    _shared_lock = threading.Lock()
    if _shared is not None:
        _shared.abandon()
        _shared = None


os.register_at_fork(after_in_child=_after_fork)
