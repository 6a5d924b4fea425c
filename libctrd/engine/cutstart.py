"""A start that was cut off: its client was killed while containerd still created the task.

containerd takes the create back then, and this is what its releases 1.6 to 2.3 may leave of it, with no task that could
be deleted:

- its shim waits for somebody to open the fifos that it writes into, for ever, and the daemon, which asks it to end and
  gives it five seconds for that, twice, has given it up by then. It does end once the fifos are opened.
- The daemon asks the shim to end before the shim has begun to create: it says that there is nothing, creates, and keeps
  the container, whose bundle the daemon has removed.
- The daemon kills ``containerd-shim start``, which has started the shim already: that one waits for ever for the daemon
  to read its log.

As long as the bundle is there, its name is taken: "mkdir …: file exists" is what the next start of that id would hear.
Once it has gone the daemon has done all it ever will, and no runtime can create anything in it any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from libctrd import _checks, proc
from libctrd.engine import cgroups, runc, taskshim
from libctrd.engine.base import Record
from libctrd.errors import CtrdError, DeadlineError, NotFoundError, RuntimeFailedError
from libctrd.state import INIT
from libctrd.stdio import path as fifo_path

log = logging.getLogger("libctrd")

LOOK_SECONDS = 0.05
GRACE_SECONDS = 1.0
"""How long a shim that has no bundle any more may take to end by itself. It takes some 0.02 on an idle host."""
END_SECONDS = 15.0
"""How long the daemon may take to give a start up: its own limits are 13 together."""
LAST_SECONDS = 5.0
"""How long what was killed after that may take to go."""

_SOCKETS = "/run/containerd/s"  # of every daemon of the host, wherever its state directory is


class Start(NamedTuple):
    """A start that was cut off: of which container, in which *namespace* of the daemon that listens at *socket*."""

    socket: str
    namespace: str
    record: Record
    runtime: runc.Runtime


class _Shim(NamedTuple):
    """A process of containerd's shim: its command line, and its bundle, "" where that cannot be seen."""

    pid: int
    words: tuple[str, ...]
    bundle: str

    @property
    def helps(self) -> bool:
        """Was it only started to start a shim, or to delete what one has left? Then it ends by itself."""
        return self.words[-1] in ("start", "delete")


def see_end(start: Start) -> None:
    """Returns when nothing is left of *start*: no shim, no bundle. Where nothing is, that is at once.

    Meanwhile it holds the fifos open, and it ends what the daemon has given up. Raises `RuntimeFailedError` that names
    what is still there after `END_SECONDS` and `LAST_SECONDS`.
    """
    with contextlib.ExitStack() as held:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(OSError):  # it has gone, or was never there
                path = fifo_path(start.record.bundle, INIT, name)
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
                held.callback(os.close, fd)
        _Taker(start).see_end()


class _Taker:
    """Looks again and again: the first shim that is seen may be that which starts the shim."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._places: set[str] = set()  # the bundles that were seen
        self._orphans: dict[int, float] = {}  # since when a shim has been seen without its bundle
        self._killed = False  # any of them?
        self._said = ""  # by the OCI runtime

    def see_end(self) -> None:
        began = time.monotonic()
        while True:
            shims = list(_shims(self._start))
            self._places.update(shim.bundle for shim in shims if shim.bundle)
            bundle = self._bundle()
            now = time.monotonic()
            if not shims and not bundle:
                if self._killed:
                    self._tidy()
                return
            if now > began + END_SECONDS + LAST_SECONDS:
                raise self._failure(shims, bundle)
            given_up = now > began + END_SECONDS
            for shim in shims:
                if given_up or (not shim.helps and self._is_orphan(shim, bundle, now)):
                    self._take(shim)
            _await(shims[0].pid if shims else 0)

    def _bundle(self) -> str:
        """containerd's bundle of that container, "" when it has gone: that of a shim that was seen, else what lies
        beside the daemon's socket.
        """
        if self._places:
            return next((place for place in sorted(self._places) if os.path.isdir(place)), "")
        start, id = self._start, self._start.record.id
        state_dir = taskshim.state_dir_beside(start.socket, start.namespace, id)
        return os.path.join(state_dir, taskshim.TASKS, start.namespace, id) if state_dir else ""

    def _is_orphan(self, shim: _Shim, bundle: str, now: float) -> bool:
        """Has it been without its bundle for so long that it will not end by itself?"""
        if os.path.isdir(shim.bundle) if shim.bundle else bundle:
            return False
        return now > self._orphans.setdefault(shim.pid, now) + GRACE_SECONDS

    def _take(self, shim: _Shim) -> None:
        """Ends what no daemon knows of: the container in that shim, and then the shim, which holds nothing else."""
        self._said = _delete(self._start) or self._said
        if _has_children(shim.pid):
            return  # the container's, about to end; or another container's, which is not ours to end
        log.info("process %d is ended: a shim of container %s that containerd left", shim.pid, self._start.record.id)
        _kill(shim)
        self._killed = True

    def _tidy(self) -> None:
        """Removes what a shim that was killed has left."""
        _remove_socket(self._start)
        # A runtime that was killed half-way knows nothing of its container. Only a cgroup of ours is its alone.
        cgroup = self._start.record.cgroup
        if os.path.basename(cgroup).startswith("ctrd-"):
            cgroups.remove(cgroup)

    def _failure(self, shims: list[_Shim], bundle: str) -> RuntimeFailedError:
        what = [f"process {shim.pid} ({os.path.basename(shim.words[0])})" for shim in shims]
        what += [f"the bundle {bundle!r}"] if bundle else []
        said = f" ({self._said})" if self._said else ""
        return RuntimeFailedError(
            f"could not take back the start of container {self._start.record.id!r}, whose client was killed: "
            f"containerd has no task, but {' and '.join(what)} stayed{said}: end that process, or start containerd "
            "anew, which removes such a bundle, and then remove the container again",
            output=self._said,
        )


def _delete(start: Start) -> str:
    """Has the OCI runtime delete the container, if it knows it. Returns what it said against that."""
    where = os.path.join(start.runtime.root, start.namespace)
    if not start.runtime.takes_options or not os.path.isdir(os.path.join(where, start.record.id)):
        return ""
    from libctrd.engine import runtime as runtimes  # the rare case; it takes milliseconds

    try:
        path = runtimes.locate(start.runtime.binary or "runc")  # as runc's shim does
        said = runtimes.output_of(path, "--root", where, "delete", "--force", start.record.id)
    except CtrdError as error:
        said = str(error)
    return _checks.one_line(said)


def _remove_socket(start: Start) -> None:
    """Removes the socket of a shim that was killed; it has its name from daemon, namespace and id."""
    name = hashlib.sha256(f"{start.socket}/{start.namespace}/{start.record.id}".encode()).hexdigest()
    path = os.path.join(_SOCKETS, name)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:  # it is not there, or not ours to see
        peer.setblocking(False)
        try:
            peer.connect(path)
        except ConnectionRefusedError:  # nobody listens
            os.unlink(path)


# ---- processes -------------------------------------------------------------------------------------------------------


def _shims(start: Start) -> Iterator[_Shim]:
    """The shims of that container, as far as they can be seen."""
    wanted = {"-address": start.socket, "-namespace": start.namespace, "-id": start.record.id}
    for pid, _, words in _in_proc() if _checks.LINUX else _of_ps():
        if "containerd-shim" in words[0] and wanted.items() <= dict(itertools.pairwise(words)).items():
            yield _Shim(pid, words, _bundle_of(pid))


def _bundle_of(pid: int) -> str:
    """Its working directory. What the kernel says of one that was renamed or removed is a path at which nothing is."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") if _checks.LINUX else ""
    except OSError:
        return ""  # it has ended, or is not for us to see


def _has_children(pid: int) -> bool:
    return any(parent == pid for _, parent, _ in (_in_proc() if _checks.LINUX else _of_ps()))


def _await(pid: int) -> None:
    """Returns when that process (0: none) has ended, or after `LOOK_SECONDS`: of a bundle's end nothing tells."""
    if not pid or not _checks.LINUX:
        time.sleep(LOOK_SECONDS)  # nor does anything, elsewhere, of the end of another's child
        return
    with contextlib.suppress(NotFoundError, DeadlineError):
        process = proc.pidfd_open(pid)
        try:
            proc.wait_pidfd(process, LOOK_SECONDS)
        finally:
            os.close(process)


def _kill(shim: _Shim) -> None:
    """Kills that very process. One that has ended is fine; one that may not be killed is what `see_end` then tells."""
    with contextlib.suppress(CtrdError):
        if not _checks.LINUX:
            proc.kill(shim.pid, "KILL")
            return
        process = proc.pidfd_open(shim.pid)
        try:
            if _words(shim.pid) == shim.words:  # else the pid is another's by now
                proc.pidfd_send_signal(process, "KILL")
                proc.wait_pidfd(process, LAST_SECONDS)
        finally:
            os.close(process)


def _in_proc() -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Every process that has not ended: its pid, its parent's, its command line, which is not empty."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = _words(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name, in parentheses, may hold anything; the state and the parent's pid follow it.
                state, parent, *_ = file.read().rpartition(b")")[2].split()
        except (OSError, ValueError):
            continue  # it has ended
        if words and state not in (b"Z", b"X"):
            yield pid, int(parent), words


def _words(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return tuple(os.fsdecode(file.read()).rstrip("\0").split("\0"))
    except OSError:
        return ()  # it has ended, or is not for us to see


def _of_ps() -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """The same by the ps of POSIX. None without that program."""
    try:
        done = subprocess.run(
            ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "args="],
            capture_output=True,
            check=False,
            env={**os.environ, "COLUMNS": "100000"},  # else it may cut the command lines after the 80th column
        )
    except OSError as error:
        log.warning("shims of containerd that a start has left cannot be waited for, for there is no ps: %s", error)
        return
    for line in done.stdout.splitlines():
        pid, parent, *words = os.fsdecode(line).split()
        if words:
            yield int(pid), int(parent), tuple(words)
