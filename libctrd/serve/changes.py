"""Who waits until a pause or a resume of a container was told: the call is answered after the event (C25)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Changes:
    """The waits of calls that are under way. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[threading.Event, str]] = {}

    @contextlib.contextmanager
    def expected(self, id: str, change: str) -> Iterator[threading.Event]:
        """What is set once *change* of that container is told, from now on, or the container has ended."""
        told = threading.Event()
        with self._lock:
            self._waiting.setdefault(id, {})[told] = change
        try:
            yield told
        finally:
            with self._lock:
                of_it = self._waiting[id]
                del of_it[told]
                if not of_it:
                    del self._waiting[id]

    def told(self, id: str, *changes: str) -> None:
        """Lets those go on who wait for one of these changes."""
        with self._lock:
            for told, change in self._waiting.get(id, {}).items():
                if change in changes:
                    told.set()
