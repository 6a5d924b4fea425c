"""How a daemon is made a process, and how one process is ended and waited for: with its pid file, log and lock.

It leads a session of its own. It is reaped by the reactor whenever it ends, if it is still our child then, so that
whoever started it may forget it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import threading
from typing import Final

from libctrd import proc, reactor
from libctrd.engine.pidfile import RECORD
from libctrd.errors import DeadlineError, NotFoundError, UnsupportedError, from_os_error

LARGEST_LOG: Final = 1 << 20
"""Bytes; a log that has more when a daemon starts is moved away."""

_WHERE: Final = ":/usr/local/sbin:/usr/sbin:/sbin"
# They would have it report to our service manager, or take over sockets that are meant for us.
_NOT_HANDED_ON: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
# Descriptor 3 is the lock, which the daemon must not inherit. What it makes has to have the modes that it asks for,
# whatever our own umask is.
_BECOME: Final = f"""{RECORD}umask 022
exec "$@" 3>&-
"""
# Asks for SIGKILL at the end of the thread that has made it, unless that has ended already (PR_SET_PDEATHSIG is 1).
_DIE_WITH: Final = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def program(name: str, package: str) -> str:
    """The path of a program. `NotFoundError`, with Debian's *package*, when it is not installed."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _WHERE)
    if path is None:
        raise NotFoundError(f"there is no program {name!r}: install it (apt-get install {package}) or set PATH")
    return path


def launch(
    command: list[str], *, pid_file: str, log_file: str, lock: int, live_on: bool
) -> tuple[proc.ProcessRef, int]:
    """Starts *command*, which writes its pid file before it is itself; the reactor will reap it.

    Returns what it is, and a pidfd of it for the caller to close.

    Until the pid file is written it holds the descriptor *lock* too. Unless it is to *live_on* the kernel kills it when
    this process ends.
    """
    argv = ["/bin/sh", "-c", _BECOME, pid_file, *command]
    env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_HANDED_ON)}
    env["PATH"] = env.get("PATH", os.defpath) + _WHERE
    try:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(log_file).st_size > LARGEST_LOG:
                os.replace(log_file, f"{log_file}.old")
        output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, f"open the log {log_file!r}") from error
    try:
        fds = {1: output, 2: output, 3: lock}
        pid = proc.spawn(argv, fds=fds, env=env, new_session=True) if live_on else _spawn_mortal(argv, fds, env)
    finally:
        os.close(output)
    ref, pidfd = proc.ProcessRef.of(pid), proc.pidfd_open(pid)  # before anybody may reap it
    _reap_later(os.dup(pidfd))
    return ref, pidfd


def _spawn_mortal(argv: list[str], fds: dict[int, int], env: dict[str, str]) -> int:
    """Like `proc.spawn`, of a process that the kernel kills when this one ends.

    That is bound to the thread that makes it, so the reactor's does: it lives as long as this process.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        raise UnsupportedError(
            "a program with a Python built in cannot start a daemon that ends with it: let it live on"
        )
    argv = [sys.executable, "-I", "-S", "-c", _DIE_WITH, str(os.getpid()), *argv]
    done = threading.Event()
    outcome: list[int | BaseException] = []

    def spawn() -> None:
        try:
            outcome.append(proc.spawn(argv, fds=fds, env=env, new_session=True))
        except BaseException as error:  # noqa: BLE001 - for the thread that waits for it
            outcome.append(error)
        done.set()

    reactor.shared().later(0, spawn)
    done.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _reap_later(pidfd: int) -> None:
    """Has the reactor reap the child of *pidfd*, and close that, whenever it ends."""

    def reap(_: int) -> None:
        reactor.shared().unwatch(pidfd)
        with contextlib.suppress(DeadlineError):  # a debugger holds it: it is reaped when this process ends
            proc.wait_pidfd(pidfd, 0)
        os.close(pidfd)

    reactor.shared().watch(pidfd, reap)


def end(ref: proc.ProcessRef, signal: int, seconds: float) -> bool:
    """Sends *signal* to that process alone; whether it has ended within *seconds*."""
    try:
        pidfd = ref.open_pidfd()
    except NotFoundError:
        return True
    try:
        with contextlib.suppress(NotFoundError):
            proc.pidfd_send_signal(pidfd, signal)
        return readable(pidfd, seconds)
    finally:
        os.close(pidfd)


def has_ended(pid: int, seconds: float) -> bool:
    """Whether that process, of any user, is gone or on its way out: then its end is waited for, up to *seconds*."""
    try:
        pidfd = proc.pidfd_open(pid)
    except NotFoundError:
        return True
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return not file.read(1) and readable(pidfd, seconds)
    except OSError:
        return readable(pidfd, seconds)
    finally:
        os.close(pidfd)


def readable(fd: int, seconds: float) -> bool:
    """Whether *fd*, a pidfd at the end of its process for one, becomes readable within *seconds*."""
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(seconds * 1000))
