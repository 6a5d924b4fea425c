"""A start that was cut off: its client was killed while containerd still created the task.

containerd takes the create back then, but its shim first waits for somebody to open the fifos that it writes into, for
half a minute or for ever; meanwhile no task is there to be deleted, and the id stays taken.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import time
from collections.abc import Iterator

from libctrd import _checks, proc
from libctrd.errors import DeadlineError, NotFoundError
from libctrd.state import INIT
from libctrd.stdio import path as fifo_path

log = logging.getLogger("libctrd")

LOOK_SECONDS = 0.05
END_SECONDS = 15.0
"""How long a shim that has its readers may take to end. It takes some 0.2 on an idle host."""


def see_end(address: str, namespace: str, id: str, bundle: str) -> None:
    """Holds the fifos in *bundle* open for the shims of that container, until they have ended. Without one it returns
    at once.
    """
    held = []
    try:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(OSError):  # it has gone, or was never there
                path = fifo_path(bundle, INIT, name)
                held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
        end = time.monotonic() + END_SECONDS
        # Again and again: the first one that is seen may be that which starts the shim.
        while (pids := _shims(address.removeprefix("unix://"), namespace, id)) and time.monotonic() < end:
            for pid in pids:
                _await(pid, end)
    finally:
        for fd in held:
            os.close(fd)


def _await(pid: int, end: float) -> None:
    """Returns when that process has ended, or when it is *end* by the monotonic clock."""
    if not _checks.LINUX:
        time.sleep(LOOK_SECONDS)  # nothing tells the end of another's child: who calls looks again
        return
    with contextlib.suppress(NotFoundError, DeadlineError):
        process = proc.pidfd_open(pid)
        try:
            proc.wait_pidfd(process, max(0.0, end - time.monotonic()))
        finally:
            os.close(process)


def _shims(socket: str, namespace: str, id: str) -> list[int]:
    """The pids of the shims of that container, as far as they can be seen."""
    found = []
    wanted = {"-address": socket, "-namespace": namespace, "-id": id}
    for pid, words in _in_proc() if _checks.LINUX else _of_ps():
        if "containerd-shim" in words[0] and wanted.items() <= dict(itertools.pairwise(words)).items():
            found.append(pid)
    return found


def _in_proc() -> Iterator[tuple[int, list[str]]]:
    """Every process: its pid and its command line."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                yield int(pid), os.fsdecode(file.read()).split("\0")
        except OSError:
            continue  # it has ended, or is not for us to see


def _of_ps() -> Iterator[tuple[int, list[str]]]:
    """The same by the ps of POSIX. None without that program."""
    try:
        done = subprocess.run(["ps", "-A", "-o", "pid=", "-o", "args="], capture_output=True, check=False)
    except OSError as error:
        log.warning("shims of containerd that a start has left cannot be waited for, for there is no ps: %s", error)
        return
    for line in done.stdout.splitlines():
        pid, *words = os.fsdecode(line).split()
        if words:
            yield int(pid), words
