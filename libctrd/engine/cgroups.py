"""The cgroups of containers, v1 and v2: where they are, and which process is in one. The runtimes make them.

The two exceptions remove: an empty cgroup of an ended container, and the freeze that keeps a killed process alive.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import zlib

from libctrd import proc
from libctrd._log import log
from libctrd.errors import DeadlineError, NotFoundError

TOP = "/sys/fs/cgroup"
UNIFIED = "/sys/fs/cgroup/unified"
"""Where v2 is beside v1, on hosts that have both."""
KILL_SECONDS = 5.0
LOOK_SECONDS = 0.005


def mark(root: str) -> str:
    """What tells this state directory's cgroups from those of any other: eight hexadecimal digits."""
    return f"{zlib.crc32(os.fsencode(os.path.abspath(root))):08x}"


def is_alone(path: str, id: str) -> bool:
    """Is *path* such as an engine of ours gives to the container *id* alone? Others may be shared."""
    return re.fullmatch(rf"/ctrd-[0-9a-f]{{8}}-{re.escape(id)}", path) is not None


def unified() -> bool:
    return os.path.exists(os.path.join(TOP, "cgroup.controllers"))


def directories(path: str) -> list[str]:
    """Where the cgroup *path* is: its directories in every hierarchy that has one."""
    tops = [TOP] if unified() else [os.path.join(TOP, name) for name in os.listdir(TOP)]
    found = [os.path.join(top, path.lstrip("/")) for top in tops if not os.path.islink(top)]
    return [directory for directory in found if os.path.isdir(directory)]


def memory(path: str) -> str:
    """Where the memory controller of the cgroup *path* will be."""
    return os.path.join(TOP if unified() else os.path.join(TOP, "memory"), path.lstrip("/"))


def oom_kills(path: str) -> int:
    """How often the kernel has killed for want of memory in the cgroup *path*; 0 when that cannot be seen."""
    name = "memory.events" if unified() else "memory.oom_control"
    if not path:
        return 0
    try:
        with open(os.path.join(memory(path), name), encoding="utf-8") as file:
            words = dict(line.split() for line in file)
    except (OSError, ValueError):
        return 0  # it has gone, or is not for us to see
    return int(words.get("oom_kill", 0))


def remove(path: str) -> bool:
    """Removes the cgroup *path* in every hierarchy. False when it is not empty, or may not be removed."""
    try:
        for directory in directories(path):
            os.rmdir(directory)
    except OSError:
        return False  # EBUSY: something of it is still there
    return True


def clear(path: str) -> None:
    """Kills whatever is left in the cgroup *path* and removes it: for one that is a single container's alone.

    A runtime that was killed half-way knows nothing of its container, and so cannot be asked to delete it. What has
    ended is in its cgroup until somebody has reaped it, and nothing says when: so it is tried again, for a while.
    """
    end, pause = time.monotonic() + KILL_SECONDS, threading.Event()
    while True:
        for top in directories(path):
            for directory, _, _ in os.walk(top, topdown=False):
                _kill_all(directory)
                if directory != top:
                    with contextlib.suppress(OSError):  # then neither can what it is in, and that is told
                        os.rmdir(directory)
        if remove(path):
            return
        if time.monotonic() > end:
            log.warning("the cgroup %s is not empty and was left behind", path)
            return
        pause.wait(LOOK_SECONDS)


def _kill_all(directory: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs"), encoding="utf-8") as file:
        for pid in [int(line) for line in file]:
            _kill(pid)


def _kill(pid: int) -> None:
    """Kills a process and waits until it has ended. One that has ended already is fine."""
    with contextlib.suppress(NotFoundError, DeadlineError):
        pidfd = proc.pidfd_open(pid)
        try:
            proc.pidfd_send_signal(pidfd, signal.SIGKILL)
            thaw(pid)
            proc.wait_pidfd(pidfd, KILL_SECONDS)
        finally:
            os.close(pidfd)


def holds(path: str, pid: int) -> bool:
    """Is *pid* in the cgroup *path*? A stranger that has got the pid of an ended process is not; "" holds every one."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2)[2] for line in file]
    except OSError:
        return False
    return not path or any(group == path or group.startswith(path + "/") for group in groups)


def runs(pid: int, path: str) -> bool:
    """Does the process *pid* of the cgroup *path* still run? One that has ended and that nobody has reaped does not."""
    try:
        return proc.ProcessRef.of(pid).alive() and holds(path, pid)
    except NotFoundError:
        return False


def _freezer(pid: int) -> tuple[str, str, str] | None:
    """The file that says whether that process is frozen, and what it says if it is and if it is not. ``None``: none."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        paths = dict(line.strip().split(":", 2)[1:] for line in file)
    path = paths.get("freezer", "/")
    if path != "/":
        return f"{TOP}/freezer{path}/freezer.state", "FROZEN", "THAWED"
    path = paths.get("", "/")
    return (f"{TOP}{path}/cgroup.freeze", "1", "0") if unified() and path != "/" else None


def frozen(pid: int) -> bool:
    """Is the process *pid* in a cgroup that is frozen?"""
    try:
        freezer = _freezer(pid)
        if freezer is None:
            return False
        path, frozen, _ = freezer
        with open(path, encoding="ascii") as state:
            return state.read().strip() == frozen
    except OSError:
        return False  # it has ended


def thaw(pid: int) -> None:
    """Lets a frozen process go on: to take the SIGKILL that it was sent (v2 kills frozen ones as well), or for good."""
    try:
        freezer = _freezer(pid)
        if freezer is not None:
            path, _, thawed = freezer
            with open(path, "w", encoding="ascii") as state:
                state.write(thawed)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    except OSError as error:
        log.warning("process %d may be frozen and could not be thawed to be killed: %s", pid, error)
