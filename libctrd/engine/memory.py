"""Of which containers of a containerd it was told that their memory ran out: once of each, and by its end.

containerd tells of it at its leisure, maybe twice, maybe after the exit; the cgroup knows it by then.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from libctrd.engine import cgroups

if TYPE_CHECKING:
    from libctrd.engine.base import Record

_KEPT = 1024
"""Of so many it is kept that it was told, the latest ones: also when they have ended, for a second word may come."""


class Memory:
    """The cgroup of each container whose end is to be told, and those of which it was told. ``_lock`` guards both."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cgroups: dict[str, str] = {}
        self._told: dict[str, None] = {}

    def know(self, record: Record) -> None:
        """From now on until its end its cgroup can be asked."""
        with self._lock:
            self._cgroups[record.id] = record.cgroup
            self._told.pop(record.id, None)

    def starts(self, id: str) -> None:
        """One that somebody else made starts now: what was told is of an earlier one of that id."""
        with self._lock:
            if id not in self._cgroups:
                self._told.pop(id, None)

    def is_first(self, id: str) -> bool:
        """Is this the first word of it?"""
        with self._lock:
            return self._tell(id)

    def ended(self, id: str) -> tuple[bool, bool]:
        """Did its memory run out, and was that not told so far? Its cgroup is forgotten."""
        with self._lock:
            cgroup = self._cgroups.pop(id, "")
            ran_out = cgroups.oom_kills(cgroup) > 0
            return ran_out, ran_out and self._tell(id)

    def _tell(self, id: str) -> bool:
        first = id not in self._told
        self._told[id] = None
        if len(self._told) > _KEPT:
            del self._told[next(iter(self._told))]
        return first
