"""What threads wait for: a lock for each of any number of names, and something that happens once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Locks:
    """Locks by name, each there while somebody holds it or waits for it. Who holds one may take it again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, _Counted] = {}

    def holding(self, name: str) -> _Hold:
        """For one ``with``: holds the lock of *name* meanwhile."""
        return _Hold(self, name)

    def __len__(self) -> int:
        return len(self._locks)


class _Counted:
    """A lock, and how many hold it or wait for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0


class _Hold:
    """Whoever wants a lock is counted before he waits, under the guard, and leaves the count under it: so the last one
    to leave removes it, and nobody waits for one that is not in the table.

    (A class of its own and no generator: each event of a container takes its lock, and this takes half as long.)
    """

    __slots__ = ("_counted", "_locks", "_name")

    def __init__(self, locks: Locks, name: str) -> None:
        self._locks = locks
        self._name = name

    def __enter__(self) -> None:
        locks = self._locks
        with locks._guard:
            counted = locks._locks.get(self._name)
            if counted is None:
                counted = locks._locks[self._name] = _Counted()
            counted.users += 1
        self._counted = counted
        try:
            counted.lock.acquire()
        except BaseException:  # Ctrl-C while it waits
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        self._counted.lock.release()
        self._leave()

    def _leave(self) -> None:
        locks, counted = self._locks, self._counted
        with locks._guard:
            counted.users -= 1
            if not counted.users:
                del locks._locks[self._name]


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
