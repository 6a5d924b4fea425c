"""Something that happens once, and is waited for: by threads, and by who asks to be called."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Milestone(threading.Event):
    """An event that is never cleared and can call back.

    No call is lost or made twice, without a lock: `set` raises the flag and then makes the calls, `when_set` adds a
    call and then looks at the flag, so at least one of the two makes it, and a deque gives each away once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: deque[Callable[[], None]] = deque()

    def set(self) -> None:
        """It has happened. The calls are made by this thread: they must not wait for anything, and not raise."""
        super().set()
        self._make_calls()

    def when_set(self, call: Callable[[], None]) -> None:
        """Makes *call* once it has happened: by the thread that says so, or at once by this one."""
        self._calls.append(call)
        if self.is_set():
            self._make_calls()

    def _make_calls(self) -> None:
        while self._calls:
            try:
                call = self._calls.popleft()
            except IndexError:
                return  # another thread was quicker
            call()
