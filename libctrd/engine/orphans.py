"""Containers of the local engine whose shim was killed: they run on, can be ended, and nobody will know how they did.

For `ctrd serve` they are ended instead, as the daemon of containerd 0.2 does it: with SIGKILL, and that is told as the
end of each of their processes (137).

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from libctrd import proc
from libctrd._log import log
from libctrd.engine import cgroups, shim
from libctrd.errors import CtrdError, NotFoundError
from libctrd.state import INIT, KILLED_EXIT, UNKNOWN_EXIT, Event, ExitStatus

if TYPE_CHECKING:
    from libctrd.engine.base import Record, Sink, Snapshot
    from libctrd.reactor import Reactor


class Orphans:
    """What `LocalEngine` does with them."""

    _reactor: Reactor
    _sink: Sink
    _served: bool

    if TYPE_CHECKING:

        def record(self, id: str) -> Record: ...
        def snapshot(self, id: str) -> Snapshot: ...
        def _further_pid(self, id: str, name: str) -> int: ...
        def _told_end(self, id: str, name: str) -> int: ...
        def _orphaned_of(self, id: str) -> list[str]: ...
        def _arguments(self, record: Record, flags: str) -> list[str]: ...

    def _shim_gone(self, id: str, seen: bool = False) -> bool:
        """Tells the end of a container whose shim does not serve: from the record, or when ``init`` is seen to end.

        *seen*: it served until this moment, so that it was killed. Else nobody knows what came first. False when there
        is nothing that could be told: it was removed meanwhile.
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
        if snapshot.exit is None:
            self._watch_orphan(id, snapshot.pid)
        elif self._served and seen and not snapshot.exit.known:
            self._tell_orphan(id, INIT)
        else:
            self._sink(Event(id, "exit", INIT, snapshot.exit))
        return True

    def _watch_orphan(self, id: str, pid: int, name: str = INIT) -> None:
        """Tells the end of a process that nobody is the parent of, when it comes, and brings it about if that is
        wanted.
        """
        try:
            if not pid:
                raise NotFoundError("it has never been known")
            pidfd = proc.pidfd_open(pid)
        except NotFoundError:
            self._tell_orphan(id, name)
            return

        def ended(_: int) -> None:
            self._reactor.unwatch(pidfd)
            os.close(pidfd)
            # Where init was quicker it is told already.
            if name == INIT or not self._served or name in self._orphaned_of(id):
                self._tell_orphan(id, name, datetime.now(timezone.utc))

        self._reactor.watch(pidfd, ended, select.POLLIN)
        if self._served:
            try:
                self._send(id, pid, pidfd, signal.SIGKILL)
            except CtrdError as error:
                log.debug("process %s of container %s, whose shim is gone, is not killed: %s", name, id, error)

    def _tell_orphan(self, id: str, name: str, at: datetime | None = None) -> None:
        """Nobody will know how it has ended; when it was killed for that its shim was, then at least that is told, and
        of the others before it is told of init.
        """
        if name == INIT and self._served:
            for other in self._orphaned_of(id):
                self._tell_orphan(id, other, at)
        code = KILLED_EXIT if self._served else UNKNOWN_EXIT
        self._told_end(id, name)
        self._sink(Event(id, "exit", name, ExitStatus(code, exited_at=at, known=False)))

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
            self._send(id, pid, pidfd, number)
        except NotFoundError as error:
            raise NotFoundError(f"{what} is not running any more") from error
        finally:
            os.close(pidfd)

    def _resume_orphan(self, id: str) -> bool:
        """Thaws a container whose shim was killed while it was paused; else nobody could. False when it is not so."""
        snapshot = self.snapshot(id)
        if snapshot.status != "paused":
            return False
        cgroups.thaw(snapshot.pid)
        self._sink(Event(id, "resume"))
        return True

    def _send(self, id: str, pid: int, pidfd: int, number: int) -> None:
        """Sends a signal to the process *pid* of a container, if it is in there: looked at now that *pidfd* is open, so
        that the pid cannot become another's.
        """
        if not cgroups.holds(self.record(id).cgroup, pid):
            raise NotFoundError(f"process {pid} is not of container {id!r} any more")
        proc.pidfd_send_signal(pidfd, number)
        if number == signal.SIGKILL:
            cgroups.thaw(pid)

    def _clear_cgroup(self, id: str) -> None:
        """A runtime that deletes by force does not wait until all processes have gone, and one that was killed knows of
        none: what is still there goes, if it is that container's alone.
        """
        with contextlib.suppress(NotFoundError):
            cgroup = self.record(id).cgroup
            if cgroups.is_alone(cgroup, id) and cgroups.directories(cgroup):
                cgroups.clear(cgroup)

    def _delete_orphan(self, id: str, where: str) -> None:
        """Deletes what a shim that was killed has left with the runtime."""
        if os.path.isdir(os.path.join(where, "runtime", id)):
            shim.undo(where, self._arguments(self.record(id), "x"))
