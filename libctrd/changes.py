"""Who waits for a container to be paused or resumed: joined under its lock, waited for without it (C11, C18)."""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import TYPE_CHECKING, Literal

from libctrd.errors import DeadlineError, NotFoundError, RuntimeFailedError

if TYPE_CHECKING:
    from libctrd.container import Container

Change = Literal["pause", "resume"]


_GONE = re.compile(r"container not running|is not running|no such process", re.IGNORECASE)
"""How runtimes say that there is no process any more."""


def has_ended(container: Container, error: RuntimeFailedError) -> bool:
    """Has a runtime failed because the container ended while it was at it? Each has other words for what it met."""
    try:
        return bool(_GONE.search(str(error))) or container._client._engine.snapshot(container.id).status == "stopped"
    except NotFoundError:
        return True


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
            except BaseException as error:
                if waiter in waiting:
                    waiting.remove(waiter)
                if isinstance(error, RuntimeFailedError) and has_ended(container, error):
                    raise NotFoundError(f"container {self._id!r} ended before it could {change}") from error
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
