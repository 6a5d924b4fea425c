"""One thread that waits for descriptors and clocks for every client: the shims' sockets, late ends, time limits.

It moves no bytes of containers (the relay does, without the GIL) and runs no user code: its callbacks only read a
packet and hand it on. So it never blocks, whatever listeners and sinks do.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from libctrd import _checks
from libctrd._log import log
from libctrd._worker import Worker
from libctrd.errors import UnavailableError, from_os_error


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


class _Waker:
    """What wakes a thread that waits for ``fd`` among others: an eventfd on Linux, elsewhere a pipe."""

    def __init__(self) -> None:
        if _checks.LINUX:
            self.fd = self._write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fd, self._write = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write, False)

    def wake(self) -> None:
        """``fd`` is readable until it is drained."""
        with contextlib.suppress(BlockingIOError):  # as full as that it wakes anyhow
            os.write(self._write, _ONE)

    def drain(self) -> None:
        """Takes back every `wake` so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def close(self) -> None:
        """Closes its descriptors; once."""
        os.close(self.fd)
        if self._write != self.fd:
            os.close(self._write)


_ONE = (1).to_bytes(8, sys.byteorder)  # what an eventfd takes


class _Poll:
    """poll(2) with as much of ``select.epoll`` as is needed here: *changed* ends a wait that does not know it all."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._events: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        os.fstat(fd)  # raises when it is not open
        self._events[fd] = events
        self._changed()

    def unregister(self, fd: int) -> None:
        del self._events[fd]
        self._changed()

    def poll(self, seconds: float | None) -> list[tuple[int, int]]:
        look = select.poll()
        for fd, events in self._events.copy().items():
            look.register(fd, events)
        return look.poll(None if seconds is None else math.ceil(seconds * 1000))

    def close(self) -> None:
        self._events.clear()


class Reactor:
    """Calls back when a descriptor has something to say or a time has come. Every method may be called by any thread.

    ``_lock`` guards ``_callbacks`` and ``_timers``; it is never held during a callback. Who adds a timer wakes the
    thread afterwards, which looks at the timers after each wait, so none is missed.
    A callback may still come once after `unwatch` when it had begun; callers hold what it needs until then.
    """

    def __init__(self, name: str = "ctrd-events") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._thread: Worker | None = None
        try:
            self._waker = _Waker()
            self._poller = select.epoll() if _checks.LINUX else _Poll(self._waker.wake)
        except OSError as error:
            raise from_os_error(error, "make the descriptors that events are waited for with (epoll, pipe)") from error
        self._poller.register(self._waker.fd, select.POLLIN)

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN) -> None:
        """Calls *callback* with what poll(2) says whenever *fd* has one of *events*, or an error or hang-up.

        Raises `UnavailableError` when it cannot be, or when the system has no thread for the first.
        """
        with self._lock:
            self._start()
            self._callbacks[fd] = callback
            try:
                self._poller.register(fd, events)
            except OSError as error:
                del self._callbacks[fd]
                raise from_os_error(error, f"wait for descriptor {fd} (epoll_ctl)") from error

    def unwatch(self, fd: int) -> None:
        """Forgets *fd*, before it is closed. An unknown one is fine."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                self._poller.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Makes *call* after *seconds* of the monotonic clock."""
        timer = Timer(call)
        with self._lock:
            self._start()
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        self._waker.wake()
        return timer

    def abandon(self) -> None:
        """Closes the descriptors without a word to the thread: for a child after fork, in which there is none."""
        self._poller.close()
        self._waker.close()

    def _start(self) -> None:
        """Called with the lock held."""
        if self._thread is None:
            self._thread = Worker(self._run, self._name)
            try:
                self._thread.start()
            except UnavailableError:
                self._thread = None  # whoever comes next tries anew
                raise

    def _run(self) -> None:
        while True:
            for fd, mask in self._poller.poll(self._next_timeout()):
                if fd == self._waker.fd:
                    self._waker.drain()
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
    """Is it so still? The number may be another descriptor's by now: several are told at once, and one of those that
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
