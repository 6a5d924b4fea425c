"""Processes: signals, pidfds, waiting, the guard against pid reuse, and `spawn` with exact descriptors.

A thin typed layer over calls of the kernel, with errors of the family. It is no `subprocess`: there are no
pipes, no threads, and no object that owns a child; whoever spawns reaps, once. It knows nothing of
containers. What only Linux can do raises `UnsupportedError` elsewhere, naming the function and the system
(C27).
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING, NamedTuple

from libctrd._checks import INT_MAX, advice, bytes_of, check, fd_of, needs_linux, pid_of
from libctrd._proc import ffi, lib
from libctrd._signals import signal_name, signal_number
from libctrd._spawn import spawn
from libctrd.errors import DeadlineError, NotFoundError, UnavailableError, from_errno, from_os_error

if TYPE_CHECKING:
    import signal

__all__ = [
    "Exit",
    "ProcessRef",
    "boot_id",
    "child_subreaper",
    "is_same",
    "kill",
    "parent_death_signal",
    "pidfd_open",
    "pidfd_send_signal",
    "reap",
    "set_child_subreaper",
    "set_parent_death_signal",
    "signal_name",
    "signal_number",
    "spawn",
    "start_time",
    "unmount",
    "wait_pidfd",
]


def kill(pid: int, sig: int | str | signal.Signals) -> None:
    """Sends *sig* to the process that *pid* is now; `ProcessRef.send` is the one that is sure which that is.

    Raises `NotFoundError` when there is no such process, `UnavailableError` when this user may not, and
    `InvalidArgumentError` for a *pid* below 1: this never means a process group. Source: kill(2).
    """
    number = signal_number(sig)
    try:
        os.kill(pid_of(pid), number)
    except OSError as error:
        raise from_os_error(
            error, f"send {signal_name(number)} to process {pid} (kill)", advice(error.errno)
        ) from error


def pidfd_open(pid: int) -> int:
    """A descriptor for the process *pid*, close-on-exec; the caller closes it. Linux 5.3.

    It stays with that process when the pid is used again. Raises `NotFoundError` when there is no such
    process. Source: pidfd_open(2).
    """
    needs_linux("pidfd_open")
    fd = lib.ctrd_pidfd_open(pid_of(pid))
    if fd < 0:
        hint = "that is the id of a thread" if fd == -errno.EINVAL else ""
        raise from_errno(-fd, f"open a descriptor for process {pid} (pidfd_open)", hint or advice(-fd, "5.3"))
    return fd


def pidfd_send_signal(pidfd: int, sig: int | str | signal.Signals) -> None:
    """Sends *sig* to the process of *pidfd*. Linux 5.1.

    Raises `NotFoundError` when it has ended and was reaped. Source: pidfd_send_signal(2).
    """
    needs_linux("pidfd_send_signal")
    number = signal_number(sig)
    check(
        lib.ctrd_pidfd_send_signal(fd_of(pidfd), number),
        f"send {signal_name(number)} to the process of descriptor {pidfd} (pidfd_send_signal)",
        "5.1",
    )


class Exit(NamedTuple):
    """How a child ended."""

    pid: int
    exit_code: int | None
    """What it handed to exit(), 0 to 255; ``None`` when a signal ended it."""
    signal: int | None
    """The signal that ended it; ``None`` when it exited by itself."""
    core_dumped: bool

    @property
    def code(self) -> int:
        """One number, as shells say it: the exit code, or 128 plus the signal."""
        return 128 + self.signal if self.signal is not None else self.exit_code or 0


def wait_pidfd(pidfd: int, timeout: float | None = None) -> Exit | None:
    """Waits until the process of *pidfd* has ended, at most *timeout* seconds (``None``: for ever; 0: a
    look).

    A child of ours is reaped, and its `Exit` returned. ``None`` means: it has ended, and nobody can say how,
    because it is no child of ours or was reaped already. So of several threads that wait for one child, one
    gets the `Exit`. Raises `DeadlineError` when it still runs at the end of *timeout*, `ClosedError` when
    *pidfd* is no pidfd.

    The GIL is free meanwhile; signal handlers run, and an exception of theirs (Ctrl-C) ends the wait and
    reaps nothing. Linux 5.4. Source: waitid(2), pidfd_open(2).
    """
    needs_linux("wait_pidfd")
    deadline = None if timeout is None else time.monotonic() + timeout
    # The look comes first: it tells a pidfd from other descriptors, on which poll might wait for ever.
    known = _reap_pidfd(fd_of(pidfd))[1]
    while known is None:
        if not _ended(pidfd, deadline):
            raise DeadlineError(f"the process of descriptor {pidfd} still ran after {timeout} seconds")
        ours, known = _reap_pidfd(pidfd)
        if not ours:
            return None
        if known is None:
            # Dead, our child, and not ours to reap yet: a debugger that traces it is told first, and nothing
            # announces that it has let go.
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineError(f"the process of descriptor {pidfd} was held by its tracer after {timeout} seconds")
            time.sleep(0.002)
    return known


def _ended(pidfd: int, deadline: float | None) -> bool:
    """Waits for the end of a process; False when *deadline* came first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        # poll counts in whole milliseconds and rounds up; after a signal whose handler raised nothing it goes
        # on by itself with what is left.
        if poll.poll(None if left is None else min(left, INT_MAX)):
            return True
        if left is not None and left < INT_MAX:
            return False


def _reap_pidfd(pidfd: int) -> tuple[bool, Exit | None]:
    """Without waiting: whether it was a child of ours to reap, and how it ended if it just was reaped."""
    pid, code, status = ffi.new("int *"), ffi.new("int *"), ffi.new("int *")
    error = lib.ctrd_pidfd_reap(pidfd, pid, code, status)
    if error == errno.ECHILD:
        return False, None
    if error == errno.EINVAL:
        error = errno.ENOSYS  # a kernel that has pidfds and does not wait on them (5.3)
    check(error, f"wait for the process of descriptor {pidfd} (waitid)", "5.4")
    if not pid[0]:
        return True, None
    if code[0] == os.CLD_EXITED:
        return True, Exit(pid[0], status[0], None, False)
    return True, Exit(pid[0], None, status[0], code[0] == os.CLD_DUMPED)


def reap(pid: int, block: bool = True) -> Exit | None:
    """Reaps our child *pid*: waits until it has ended, or with ``block=False`` only looks.

    Returns how it ended. ``None``: nothing to reap, because it still runs (only with ``block=False``), is no
    child of ours, or was reaped already, by us or by the system where SIGCHLD is ignored; none of these is an
    error. The GIL is free meanwhile, and an exception of a signal handler (Ctrl-C) ends the wait.
    Source: waitpid(2).
    """
    try:
        got, status = os.waitpid(pid_of(pid), 0 if block else os.WNOHANG)
    except ChildProcessError:
        return None
    if got == 0:
        return None
    if os.WIFEXITED(status):
        return Exit(got, os.WEXITSTATUS(status), None, False)
    return Exit(got, None, os.WTERMSIG(status), os.WCOREDUMP(status))


def set_child_subreaper(on: bool) -> None:
    """Makes this process the parent of its descendants' orphans, or stops that. Linux.

    Source: PR_SET_CHILD_SUBREAPER(2const).
    """
    needs_linux("set_child_subreaper")
    check(lib.ctrd_set_subreaper(1 if on else 0), "set this process as subreaper (prctl)")


def child_subreaper() -> bool:
    """Whether this process is a subreaper. Linux."""
    needs_linux("child_subreaper")
    on = ffi.new("int *")
    check(lib.ctrd_get_subreaper(on), "ask whether this process is a subreaper (prctl)")
    return bool(on[0])


def set_parent_death_signal(sig: int | str | signal.Signals | None) -> None:
    """The signal that this process gets when the *thread* that made it ends; ``None``: none. Linux.

    A parent that has ended before is not noticed: compare ``os.getppid()`` afterwards. Children do not
    inherit it. Source: PR_SET_PDEATHSIG(2const).
    """
    needs_linux("set_parent_death_signal")
    check(
        lib.ctrd_set_pdeathsig(0 if sig is None else signal_number(sig)),
        "set the parent-death signal (prctl)",
    )


def parent_death_signal() -> int | None:
    """The number of the signal that `set_parent_death_signal` set, ``None`` when there is none. Linux."""
    needs_linux("parent_death_signal")
    sig = ffi.new("int *")
    check(lib.ctrd_get_pdeathsig(sig), "ask for the parent-death signal (prctl)")
    return sig[0] or None


def boot_id() -> str:
    """The UUID of this boot of the kernel. Pids and start times of another boot mean nothing. Linux."""
    needs_linux("boot_id")
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise from_os_error(error, f"read {path!r}", "check that /proc is mounted") from error


def start_time(pid: int) -> int:
    """When the process *pid* started, in clock ticks since boot. Linux.

    There are ``os.sysconf("SC_CLK_TCK")`` ticks in a second, 100 as a rule. With the pid it names a process
    for as long as the system is up; it is there for zombies too. Raises `NotFoundError` when there is no such
    process, and `UnavailableError` when there is one that ``/proc`` does not show (not mounted, or
    ``hidepid``). Source: proc(5), field 22 of /proc/PID/stat.
    """
    needs_linux("start_time")
    return _parse_stat(_read_stat(pid_of(pid)))[1]


def is_same(pid: int, start_time: int) -> bool:
    """Whether *pid* is still the process, running or zombie, that started at the tick *start_time*. Linux.

    False when it is gone or its pid belongs to another. Raises `UnavailableError` when ``/proc`` does not
    tell.
    """
    needs_linux("is_same")
    try:
        return _parse_stat(_read_stat(pid_of(pid)))[1] == start_time
    except NotFoundError:
        return False


class ProcessRef(NamedTuple):
    """A process that is not mistaken for a later one with its pid: the pid and the tick it started at. Linux.

    Kept where another boot may read it, it needs `boot_id` beside it. The one confusion left is a pid that
    comes around again within the tick that its first owner started in.
    """

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """The process that is *pid* now. Raises like `start_time`."""
        return cls(pid, start_time(pid))

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not. Raises `UnavailableError` if ``/proc`` does not tell."""
        needs_linux("ProcessRef.alive")
        try:
            state, started, threads = _parse_stat(_read_stat(pid_of(self.pid)))
        except NotFoundError:
            return False
        # A first thread that has ended looks like a zombie while others of the process run on.
        return started == self.start_time and (state not in "ZX" or threads > 1)

    def open_pidfd(self) -> int:
        """A pidfd of this very process, close-on-exec; the caller closes it.

        Raises `NotFoundError` when the process is gone. Linux 5.3.
        """
        # The order is the guard: the descriptor stays with whatever has the pid now, so if that one has our
        # start time it is the one, whoever gets the pid later. Asked first, the answer could be old when the
        # pid is opened.
        try:
            pidfd = pidfd_open(self.pid)
        except NotFoundError as error:
            raise self._gone() from error
        try:
            if is_same(self.pid, self.start_time):
                return pidfd
        except BaseException:
            os.close(pidfd)
            raise
        os.close(pidfd)
        raise self._gone()

    def send(self, sig: int | str | signal.Signals) -> None:
        """Sends *sig* to this process and never to another.

        Raises `NotFoundError` when it is gone. Linux 5.3.
        """
        number = signal_number(sig)
        pidfd = self.open_pidfd()
        try:
            pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)

    def _gone(self) -> NotFoundError:
        return NotFoundError(f"process {self.pid}, started at tick {self.start_time}, is gone")


def _read_stat(pid: int) -> bytes:
    path = f"/proc/{pid}/stat"
    cause: OSError | None = None
    for _ in range(2):  # one that is there and not shown is hidden, or new since: the second look tells which
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise from_os_error(error, f"read {path!r}") from error
            if not _exists(pid):
                raise from_os_error(error, f"read {path!r}", f"there is no process {pid}") from error
            cause = error
    raise UnavailableError(
        f"could not read {path!r}: process {pid} is there and /proc does not show it "
        "(check that /proc is mounted for this pid namespace, and its option hidepid)"
    ) from cause


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parse_stat(line: bytes) -> tuple[str, int, int]:
    """State, start time and number of threads from the line of /proc/PID/stat.

    The second field is a name the process chose: any bytes, spaces and parentheses too. No later field has
    one, so the last parenthesis ends it.
    """
    fields = line[line.rfind(b")") + 1 :].split()
    try:
        return fields[0].decode("ascii"), int(fields[19]), int(fields[17])
    except (IndexError, ValueError) as error:
        raise UnavailableError(f"this is no line of /proc/PID/stat: {line[:80]!r}") from error


def unmount(path: str, *, shown_as: str | None = None) -> None:
    """Takes off the topmost mount at *path*, lazily: who uses it still may, nobody new. Linux.

    *shown_as* is the path that an error names, when *path* is a way round through a descriptor. Raises
    `UnavailableError` when this user may not. Source: umount2(2), MNT_DETACH and UMOUNT_NOFOLLOW.
    """
    needs_linux("unmount")
    check(lib.ctrd_unmount(bytes_of(path, "the path")), f"unmount {(shown_as or path)!r} (umount2)")
