"""What a containerd that was away could not delete: kept, and tried again until it is back or the client is closed.

A daemon that is stopped and goes on breaks no connection, so that it is back is found out by trying. ``_lock`` guards
the table and the thread, which there is only while there is something to be deleted. ``_busy`` is held during one
deletion: without it the thread might delete a new container of an id that its owner has just been given again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from libctrd._worker import Worker
from libctrd.engine.base import Record
from libctrd.errors import CtrdError, UnavailableError

log = logging.getLogger("libctrd")

FIRST_WAIT = 0.1
LAST_WAIT = 2.0

Delete = Callable[[str, "Record | None"], None]


class Late:
    """Containers that are to be deleted by *delete* as soon as that works; it may raise and is called again then."""

    def __init__(self, delete: Delete) -> None:
        self._delete = delete
        self._lock = threading.Lock()
        self._busy = threading.Lock()
        self._table: dict[str, Record | None] = {}
        self._thread: Worker | None = None
        self._wake = threading.Event()
        self._closing = False

    def add(self, id: str, record: Record | None) -> None:
        """From now on it is tried. *record* tells the container from a later one of that id, where it is known."""
        with self._lock:
            self._table[id] = record
            self._begin()

    def _begin(self) -> None:
        """With the lock held."""
        if self._thread is None and self._table and not self._closing:
            self._thread = Worker(self._run, "ctrd-late")
            try:
                self._thread.start()
            except UnavailableError as error:
                self._thread = None  # whoever comes next tries anew
                log.warning("what is to be deleted waits for others to come: %s", error)

    def settle(self, id: str) -> None:
        """Deletes the container *id* at once if it is still to be. Raises what *delete* does."""
        with self._busy:
            with self._lock:
                if id not in self._table:
                    return
                record = self._table[id]
            self._delete(id, record)
            with self._lock:
                self._table.pop(id, None)

    def hurry(self) -> None:
        """The daemon may be back: whatever waits is tried now."""
        with self._lock:
            self._begin()
        self._wake.set()

    def _run(self) -> None:
        wait = FIRST_WAIT
        while True:
            self._wake.wait(wait)
            wait = FIRST_WAIT if self._wake.is_set() else min(LAST_WAIT, wait * 2)
            self._wake.clear()
            with self._lock:
                waiting = [] if self._closing else list(self._table)
                if not waiting:
                    self._thread = None
                    return
            for id in waiting:
                try:
                    self.settle(id)
                except CtrdError as error:
                    log.debug("container %s could not be deleted yet: %s", id, error)

    def stop(self) -> None:
        """No deletion is begun any more. Whoever has closed what one waits for calls `join` then."""
        with self._lock:
            self._closing = True
            if self._table:
                log.warning("containerd was away and still has what was to be deleted: %s", ", ".join(self._table))
        self._wake.set()

    def join(self) -> None:
        """Returns when the last deletion that was begun has ended."""
        thread = self._thread
        if thread is not None:
            thread.ended()
