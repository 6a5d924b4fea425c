"""The way into an event loop: from the relay, from the threads of a client, from calls that have to wait (C28).

A loop has one descriptor for all of it, a `relay.Bell`, whatever it waits for and for however many containers. What
waits for the engine, the runtime or a disk is done by a few threads, the same for all loops of this process: starts by
one for each processor, for more at once make none of them quicker, and everything else by a few of its own, so that a
signal does not queue behind a thousand starts.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from libctrd import relay
from libctrd.locks import Milestone

T = TypeVar("T")

CALLERS = 4


def processors() -> int:
    """On how many processors this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Threads:
    """Made with the first call, and anew in the child of a fork."""

    def __init__(self, name: str, count: Callable[[], int]) -> None:
        self._name = name
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._pool = None

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Has *function* called by one of them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count(), self._name)
        return self._pool.submit(function)


STARTS = _Threads("ctrd-start", processors)
CALLS = _Threads("ctrd-call", lambda: CALLERS)
IMAGES = _Threads("ctrd-image", lambda: CALLERS)  # which take minutes


class Crossing:
    """The way into one event loop. All but `call` is for the thread of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell = relay.Bell()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: dict[relay.Buffer, list[asyncio.Future[None]]] = {}
        loop.add_reader(self._bell.fileno(), self._hear)

    def call(self, function: Callable[[], None]) -> None:
        """Has *function* called in the loop, in order. From any thread; it is put down before the bell rings."""
        self._calls.append(function)
        self._bell.ring()

    def _hear(self) -> None:
        for buffer in self._bell.heard():
            for waiter in self._waiting.pop(buffer, ()):
                settle(waiter)
        for _ in range(len(self._calls)):  # what comes meanwhile rings again
            self._calls.popleft()()

    async def readable(self, buffer: relay.Buffer) -> None:
        """Returns once *buffer* has something, or its end."""
        if not self._bell.ask(buffer):
            return
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(buffer, [])
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters and self._waiting.get(buffer) is waiters:
                    del self._waiting[buffer]
                    self._bell.forget(buffer)


def settle(waiter: asyncio.Future[None]) -> None:
    """Lets go whoever waits, unless he has given up."""
    if not waiter.done():
        waiter.set_result(None)


_crossings: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Crossing] = weakref.WeakKeyDictionary()


def crossing() -> Crossing:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    found = _crossings.get(loop)
    if found is None:
        found = _crossings[loop] = Crossing(loop)
    return found


async def reached(milestone: Milestone) -> None:
    """Returns once it has happened."""
    if milestone.is_set():
        return
    way, waiter = crossing(), asyncio.get_running_loop().create_future()
    milestone.when_set(lambda: way.call(lambda: settle(waiter)))
    await waiter


async def outlast(work: Coroutine[Any, Any, T]) -> T:
    """Does *work* to its end though the caller is cancelled meanwhile: that is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # is not reported as one that nobody has looked at
        raise cancelled
    return task.result()


async def off(threads: _Threads, function: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Calls *function* in one of the *threads*, and waits for it.

    Cancelled before it began, it is not called. Later it cannot be taken back: it is waited for, what it has done is
    undone by *undo*, in a thread as well, and then the cancellation goes on.
    """
    way, waiter = crossing(), asyncio.get_running_loop().create_future()
    job = threads.submit(function)
    job.add_done_callback(lambda _: way.call(lambda: settle(waiter)))
    try:
        await asyncio.wait([waiter])
    except asyncio.CancelledError:
        if not job.cancel():
            await outlast(_finish(job, waiter, undo))
        raise
    return job.result()


async def _finish(job: Future[T], waiter: asyncio.Future[None], undo: Callable[[T], object] | None) -> None:
    await waiter
    if undo is not None and job.exception() is None:
        await off(CALLS, lambda: undo(job.result()))
