"""Further processes of the local engine: each is started by the container's shim, its parent, which tells its end.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

import msgspec

from libctrd.engine import shim
from libctrd.engine.base import ExecRequest, ProcessSnapshot
from libctrd.engine.orphans import Orphans
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    from_os_error,
)
from libctrd.state import INIT, Event


class Further(Orphans):
    """What `LocalEngine` does with them."""

    _lock: threading.Lock

    if TYPE_CHECKING:

        def _directory(self, id: str) -> str: ...

    def __init__(self) -> None:
        # By container and name, the pids of those that this client has started and whose end was not told: should their
        # shim be killed, they are looked after here. An entry is made before the shim is asked (its pid is 0 then), so
        # that an end that is told before the answer has come finds it. Guarded by the engine's lock.
        self._further: dict[str, dict[str, int]] = {}
        self._orphaned: set[tuple[str, str]] = set()  # those of them whose shim is known to be gone

    def exec(self, request: ExecRequest) -> int:
        """See `Engine.exec`. The shim keeps 63 of them, ended ones that nobody has collected included."""
        id, name = request.record.id, request.process
        where = self._directory(id)
        token = os.urandom(8).hex()
        document = os.path.join(where, f"exec-{token}.json")
        flags = "t" if request.terminal else "-"
        with self._lock:
            names = self._further.setdefault(id, {})
            if name in names:
                raise _in_use(id, name)
            names[name] = 0
        try:
            write_new(document, msgspec.json.encode(request.settings))
            fields = (name, token, flags, request.stdin, request.stdout, "" if request.terminal else request.stderr)
            pid = self._ask_to_start(request, fields)
        except BaseException:
            self._told_end(id, name)
            raise
        finally:
            with contextlib.suppress(OSError):  # the shim has removed it, or the container is gone
                os.unlink(document)
        with self._lock:
            names = self._further.get(id, {})
            if name in names:
                names[name] = pid
        return pid

    def _ask_to_start(self, request: ExecRequest, fields: tuple[str, ...]) -> int:
        id, name = request.record.id, request.process
        what = f"process {name!r} ({request.settings['args'][0]})"
        try:
            return shim.start_process(self._directory(id), what, fields)
        except CtrdError as error:
            refusals: dict[int | None, CtrdError] = {
                errno.EEXIST: _in_use(id, name),
                errno.EBUSY: InvalidArgumentError(f"container {id!r} is paused: resume it, then start a process in it"),
                errno.ENOSPC: UnavailableError(f"container {id!r} runs as many processes as its shim can hold: 64"),
                errno.ESRCH: NotFoundError(f"container {id!r} is not running any more"),
            }
            if error.errno in refusals and not error.call:  # else it is about a file, such as that of its exit
                raise refusals[error.errno] from error
            raise

    def processes(self, id: str) -> list[ProcessSnapshot]:
        """See `Engine.processes`. Of a container whose shim was killed there is what it had written."""
        where = self._directory(id)
        record, snapshot = self.record(id), self.snapshot(id)
        if snapshot.status == "created":
            return []
        init = ProcessSnapshot(INIT, snapshot.pid, snapshot.exit, record.terminal)
        try:
            return [init, *shim.processes(where)]
        except NotFoundError:
            ended = shim.read_process_exits(where)
            return [init, *(ProcessSnapshot(name, exit=status) for name, status in ended.items())]

    def delete_process(self, id: str, process: str) -> None:
        """See `Engine.delete_process`."""
        self._told_end(id, process)
        with contextlib.suppress(NotFoundError):  # with its shim all of it has gone
            shim.request(self._directory(id), f"forget {process}")

    def _further_pid(self, id: str, name: str) -> int:
        with self._lock:
            return self._further.get(id, {}).get(name, 0)

    # ---- their ends ----------------------------------------------------------------------------------------------

    def _told_end(self, id: str, name: str) -> int:
        """Its end is told, or it never was; returns its pid, 0 when that is not known."""
        with self._lock:
            self._orphaned.discard((id, name))
            names = self._further.get(id, {})
            pid = names.pop(name, 0)
            if not names:
                self._further.pop(id, None)
        return pid

    def _orphaned_of(self, id: str) -> list[str]:
        """Those of its further processes whose shim is gone and whose end was not told yet."""
        with self._lock:
            return [name for of, name in self._orphaned if of == id]

    def _process_ended(self, id: str, words: list[str]) -> None:
        """The shim has said so: NAME CODE SECONDS NANOSECONDS."""
        name, code, seconds, nanoseconds = words[0], *(int(word) for word in words[1:])
        self._told_end(id, name)
        self._sink(Event(id, "exit", name, shim.exit_status(code, False, seconds, nanoseconds)))

    def _process_began(self, id: str, name: str, pid: str) -> None:
        with self._lock:
            ours = name in self._further.get(id, {})
        if not ours:
            self._sink(Event(id, "start-process", name, pid=int(pid)))

    def _shim_of_processes_gone(self, id: str) -> None:
        """Nobody tells the ends of this client's processes in that container any more: what the shim has written down
        is told, and of the others that they have ended, once they have.
        """
        with self._lock:
            # Until their ends are told they stay in the table: whoever sends one a signal finds its pid there.
            names = {name: pid for name, pid in self._further.get(id, {}).items() if (id, name) not in self._orphaned}
            self._orphaned.update((id, name) for name in names)
        ended = shim.read_process_exits(self._directory(id)) if names else {}
        for name, pid in names.items():
            if name in ended:
                self._told_end(id, name)
                self._sink(Event(id, "exit", name, ended[name]))
            else:
                self._watch_orphan(id, pid, name)


def _in_use(id: str, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"container {id!r} has a process {name!r} already: choose another name")


def write_new(path: str, data: bytes) -> None:
    """Writes a file in a container's directory that only this user may read, and that was not there."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(data)
    except FileNotFoundError as error:
        raise NotFoundError(f"the container in {os.path.dirname(path)!r} was removed by another hand") from error
    except OSError as error:
        raise from_os_error(error, f"write {path!r}") from error
