"""Who waits for a container to be paused or resumed: joined under its lock, waited for without it (C11, C18)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Literal

from libctrd.errors import DeadlineError, NotFoundError

if TYPE_CHECKING:
    from libctrd.container import Container

Change = Literal["pause", "resume"]


class Waiter:
    """One caller who waits for a pause or a resume (C11)."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.ended = False


class Changes:
    """Those who wait for a change of one container. Everything here is changed under its lock."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._waiting: dict[Change, deque[Waiter]] = {"pause": deque(), "resume": deque()}

    def make(self, container: Container, change: Change, timeout: float | None) -> None:
        """Sends under the lock, joins the waiters before it is let go of, and waits without it (C18)."""
        client = container._client
        waiter = Waiter()
        with client._locked(self._id):
            container._require_running()
            waiting = client._watch(container)._changes._waiting[change]
            waiting.append(waiter)
            try:
                (client._engine.pause if change == "pause" else client._engine.resume)(self._id)
            except BaseException:
                if waiter in waiting:
                    waiting.remove(waiter)
                raise
        if not waiter.woken.wait(timeout):
            raise DeadlineError(f"container {self._id!r} did not {change} within {timeout:g} s")
        if waiter.ended:
            raise NotFoundError(f"container {self._id!r} ended before it could {change}")

    def wake(self, change: Change) -> None:
        """Wakes the oldest caller that waits for *change* (C11). Called under the lock."""
        if self._waiting[change]:
            self._waiting[change].popleft().woken.set()

    def end(self) -> None:
        """An exit ends every wait for a pause or a resume, with an error (C11). Called under the lock."""
        for waiters in self._waiting.values():
            while waiters:
                waiter = waiters.popleft()
                waiter.ended = True
                waiter.woken.set()
