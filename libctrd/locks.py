"""A lock for each of any number of names, which exists while somebody holds it or waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Locks:
    """Locks by name. Each may be taken again by the thread that holds it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, list[None]]] = {}

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Holds the lock of *name* meanwhile.

        Whoever wants it is counted before he waits, under the guard, and leaves the count under it: so the last one to
        leave removes it, and nobody waits for one that is not in the table.
        """
        with self._guard:
            lock, users = self._locks.setdefault(name, (threading.RLock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                users.pop()
                if not users:
                    del self._locks[name]

    def __len__(self) -> int:
        return len(self._locks)
