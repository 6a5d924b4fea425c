"""Containers of the local engine whose shim was killed: they run on, can be ended, and nobody will know how they did.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from libctrd import proc
from libctrd.engine import cgroups, shim
from libctrd.errors import CtrdError, NotFoundError
from libctrd.state import INIT, UNKNOWN_EXIT, Event, ExitStatus

if TYPE_CHECKING:
    from libctrd.engine.base import Record, Sink, Snapshot
    from libctrd.reactor import Reactor

log = logging.getLogger("libctrd")


class Orphans:
    """What `LocalEngine` does with them."""

    _reactor: Reactor
    _sink: Sink

    if TYPE_CHECKING:

        def record(self, id: str) -> Record: ...
        def snapshot(self, id: str) -> Snapshot: ...
        def _further_pid(self, id: str, name: str) -> int: ...
        def _told_end(self, id: str, name: str) -> int: ...
        def _arguments(self, record: Record, flags: str) -> list[str]: ...

    def _shim_gone(self, id: str) -> bool:
        """Tells the end of a container whose shim does not serve: from the record, or when ``init`` is seen to end.

        False when there is nothing that could be told: it was removed meanwhile.
        """
        try:
            snapshot = self.snapshot(id)
        except NotFoundError:
            return False
        except CtrdError as error:
            log.warning("the end of container %s cannot be told: %s", id, error)
            return False
        if snapshot.exit is None and not snapshot.pid:
            return False
        if snapshot.exit is None or not snapshot.exit.known:
            log.warning("the shim of container %s is gone: the exit code is not known", id)
        if snapshot.exit is not None:
            self._sink(Event(id, "exit", INIT, snapshot.exit))
        else:
            self._watch_orphan(id, snapshot.pid)
        return True

    def _watch_orphan(self, id: str, pid: int, name: str = INIT) -> None:
        """Tells the end of a process that nobody is the parent of, when it comes: its code nobody will know."""
        try:
            if not pid:
                raise NotFoundError("it has never been known")
            pidfd = proc.pidfd_open(pid)
        except NotFoundError:
            self._told_end(id, name)
            self._sink(Event(id, "exit", name, ExitStatus(UNKNOWN_EXIT, known=False)))
            return

        def ended(_: int) -> None:
            self._reactor.unwatch(pidfd)
            os.close(pidfd)
            now = datetime.now(timezone.utc)
            self._told_end(id, name)
            self._sink(Event(id, "exit", name, ExitStatus(UNKNOWN_EXIT, exited_at=now, known=False)))

        self._reactor.watch(pidfd, ended, select.POLLIN)

    def _signal_orphan(self, id: str, number: int, name: str) -> None:
        """Sends a signal to a process of a container whose shim was killed. `NotFoundError` if it has ended, or where
        only another client knows which it is.
        """
        pid = self.snapshot(id).pid if name == INIT else self._further_pid(id, name)
        what = f"container {id!r}" if name == INIT else f"process {name!r} of container {id!r}"
        pidfd = proc.pidfd_open(pid) if pid else -1
        if pidfd < 0:
            raise NotFoundError(f"{what} is not running any more")
        try:
            # Looked at again, now that the pid cannot become another's.
            if not cgroups.holds(self.record(id).cgroup, pid):
                raise NotFoundError(f"{what} is not running any more")
            proc.pidfd_send_signal(pidfd, number)
            if number == signal.SIGKILL:
                cgroups.thaw(pid)
        finally:
            os.close(pidfd)

    def _delete_orphan(self, id: str, where: str) -> None:
        """Deletes what a shim that was killed has left with the runtime."""
        if os.path.isdir(os.path.join(where, "runtime", id)):
            shim.undo(where, self._arguments(self.record(id), "x"))
