"""Processes: signals by name, pidfds, waiting, the guard against pid reuse, and `spawn` with an exact set of descriptors.

A thin typed layer over the kernel's calls, with errors of the family. It is no `subprocess`: there are no pipes, no
threads and no object that owns a child; whoever calls `spawn` reaps, once. It knows nothing of containers. What only
Linux can do raises `UnsupportedError` elsewhere, with the name of the function and of the system.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from libctrd._proc import ffi, lib
from libctrd.errors import (
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    from_errno,
    from_os_error,
)

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
    "wait_pidfd",
]

_LINUX = os.uname().sysname == "Linux"
_CLOSEFROM = bool(lib.ctrd_has_closefrom())  # what the C library has; tests turn it off to take the other way
_INT_MAX = 2**31 - 1


# ---- signals ----------------------------------------------------------------------------------------------------------


def signal_number(sig: int | str | signal.Signals) -> int:
    """The number of a signal, from 1 to ``SIGRTMAX``.

    *sig* is a number, or a name in any case, with or without ``SIG``: ``15``, ``"15"``, ``"TERM"``, ``"SIGTERM"``,
    ``"term"``, ``"RTMIN+3"``, ``"RTMAX-1"``. Real-time signals count from where this system's C library starts them.
    Raises `InvalidArgumentError` for anything else; 0, the probe of kill(2), is no signal here. Source: signal(7).
    """
    import signal

    number: int | None = None
    if isinstance(sig, int) and not isinstance(sig, bool):
        number = int(sig)
    elif isinstance(sig, str) and sig.isascii():
        if sig.isdigit():
            number = int(sig) if len(sig) <= 4 else None  # int() of very many digits raises
        else:
            number = _named(sig.upper().removeprefix("SIG"), signal.Signals.__members__)
    if number is None or not 1 <= number <= signal.SIGRTMAX:
        raise InvalidArgumentError(
            f"{_short(sig)} is no signal: use a number from 1 to {int(signal.SIGRTMAX)}, a name like 'TERM' or 'SIGTERM', "
            f"or 'RTMIN+N' or 'RTMAX-N' with N from 0 to {signal.SIGRTMAX - signal.SIGRTMIN}"
        )
    return number


def signal_name(number: int) -> str:
    """The name of a signal, that `signal_number` takes back: ``"SIGTERM"``, ``"SIGRTMIN+3"``, ``"SIGRTMAX-1"``.

    A number in range that has no name (what the C library keeps to itself) is its own: ``"32"``. Raises
    `InvalidArgumentError` for a number out of range.
    """
    import signal

    number = signal_number(number)
    try:
        return signal.Signals(number).name
    except ValueError:
        pass
    low, high = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    if low < number < high:
        return f"SIGRTMIN+{number - low}" if number - low <= high - number else f"SIGRTMAX-{high - number}"
    return str(number)


def _named(name: str, members: Mapping[str, int]) -> int | None:
    for base, sign in (("RTMIN", "+"), ("RTMAX", "-")):
        head, found, offset = name.partition(sign)
        if head == base and found and offset.isdigit() and len(offset) <= 4:
            number = members["SIG" + base] + int(sign + offset)
            return number if members["SIGRTMIN"] <= number <= members["SIGRTMAX"] else None
    return members.get("SIG" + name)


def kill(pid: int, sig: int | str | signal.Signals) -> None:
    """Sends *sig* to the process *pid*, whichever process that is now; `ProcessRef.send` is the one that is sure.

    Raises `NotFoundError` when there is no such process, `UnavailableError` when this user may not, and
    `InvalidArgumentError` for a *pid* below 1: this never means a process group. Source: kill(2).
    """
    number = signal_number(sig)
    try:
        os.kill(_pid(pid), number)
    except OSError as error:
        raise from_os_error(
            error, f"send {signal_name(number)} to process {pid} (kill)", _hint(error.errno)
        ) from error


# ---- pidfds -----------------------------------------------------------------------------------------------------------


def pidfd_open(pid: int) -> int:
    """A descriptor for the process *pid*, close-on-exec; the caller closes it. Linux 5.3.

    It stays with that process when the pid is used again. Raises `NotFoundError` when there is no such process.
    Source: pidfd_open(2).
    """
    _needs_linux("pidfd_open")
    fd = lib.ctrd_pidfd_open(_pid(pid))
    if fd < 0:
        hint = "that is the id of a thread" if fd == -errno.EINVAL else ""
        raise from_errno(-fd, f"open a descriptor for process {pid} (pidfd_open)", hint or _hint(-fd, "5.3"))
    return fd


def pidfd_send_signal(pidfd: int, sig: int | str | signal.Signals) -> None:
    """Sends *sig* to the process of *pidfd*. Raises `NotFoundError` when it has ended and was reaped. Linux 5.1.

    Source: pidfd_send_signal(2).
    """
    _needs_linux("pidfd_send_signal")
    number = signal_number(sig)
    _check(
        lib.ctrd_pidfd_send_signal(_fd(pidfd), number),
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
    """Waits until the process of *pidfd* has ended, at most *timeout* seconds (``None``: for ever; 0: only looks).

    A child of ours is reaped, and its `Exit` returned. ``None`` means: it has ended, and nobody can say how, because
    it is no child of ours or was reaped already. So of several threads that wait for one child, one gets the `Exit`.
    Raises `DeadlineError` when it still runs at the end of *timeout*, `ClosedError` when *pidfd* is no pidfd.

    The GIL is free meanwhile; signal handlers run, and an exception of theirs (Ctrl-C) ends the wait and reaps
    nothing. Linux 5.4. Source: waitid(2), pidfd_open(2).
    """
    _needs_linux("wait_pidfd")
    deadline = None if timeout is None else time.monotonic() + timeout
    # The look comes first: it tells a pidfd from other descriptors, on which poll might wait for ever.
    known = _reap_pidfd(_fd(pidfd))[1]
    while known is None:
        if not _ended(pidfd, deadline):
            raise DeadlineError(f"the process of descriptor {pidfd} still ran after {timeout} seconds")
        ours, known = _reap_pidfd(pidfd)
        if not ours:
            return None
        if known is None:
            # Dead, our child, and not ours to reap yet: a debugger that traces it is told first, and nothing announces
            # that it has let go.
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineError(
                    f"the process of descriptor {pidfd} was held by its tracer after {timeout} seconds"
                )
            time.sleep(0.002)
    return known


def _ended(pidfd: int, deadline: float | None) -> bool:
    """Waits for the end of a process; False when *deadline* came first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        # poll counts in whole milliseconds and rounds up; after a signal whose handler raised nothing it goes on by
        # itself with what is left.
        if poll.poll(None if left is None else min(left, _INT_MAX)):
            return True
        if left is not None and left < _INT_MAX:
            return False


def _reap_pidfd(pidfd: int) -> tuple[bool, Exit | None]:
    """Without waiting: is the process a child of ours that is not reaped, and if it just was, how it ended."""
    pid, code, status = ffi.new("int *"), ffi.new("int *"), ffi.new("int *")
    error = lib.ctrd_pidfd_reap(pidfd, pid, code, status)
    if error == errno.ECHILD:
        return False, None
    if error == errno.EINVAL:
        error = errno.ENOSYS  # a kernel that has pidfds and does not wait on them (5.3)
    _check(error, f"wait for the process of descriptor {pidfd} (waitid)", "5.4")
    if not pid[0]:
        return True, None
    if code[0] == os.CLD_EXITED:
        return True, Exit(pid[0], status[0], None, False)
    return True, Exit(pid[0], None, status[0], code[0] == os.CLD_DUMPED)


def reap(pid: int, block: bool = True) -> Exit | None:
    """Reaps our child *pid*: waits until it has ended, or with ``block=False`` only looks.

    Returns how it ended. ``None``: nothing to reap, because it still runs (only with ``block=False``), is no child of
    ours, or was reaped already; none of these is an error. The GIL is free meanwhile, and an exception of a signal
    handler (Ctrl-C) ends the wait. Source: waitpid(2).
    """
    try:
        got, status = os.waitpid(_pid(pid), 0 if block else os.WNOHANG)
    except ChildProcessError:
        return None
    if got == 0:
        return None
    if os.WIFEXITED(status):
        return Exit(got, os.WEXITSTATUS(status), None, False)
    return Exit(got, None, os.WTERMSIG(status), os.WCOREDUMP(status))


# ---- settings of this process -----------------------------------------------------------------------------------------


def set_child_subreaper(on: bool) -> None:
    """Makes this process the parent of its descendants' orphans, or stops that. Linux. Source: PR_SET_CHILD_SUBREAPER."""
    _needs_linux("set_child_subreaper")
    _check(lib.ctrd_set_subreaper(1 if on else 0), "set this process as subreaper (prctl)")


def child_subreaper() -> bool:
    """Whether this process is a subreaper. Linux."""
    _needs_linux("child_subreaper")
    on = ffi.new("int *")
    _check(lib.ctrd_get_subreaper(on), "ask whether this process is a subreaper (prctl)")
    return bool(on[0])


def set_parent_death_signal(sig: int | str | signal.Signals | None) -> None:
    """The signal that this process gets when the *thread* that made it ends; ``None``: none. Linux.

    A parent that has ended before is not noticed: compare ``os.getppid()`` afterwards. Children do not inherit it.
    Source: PR_SET_PDEATHSIG.
    """
    _needs_linux("set_parent_death_signal")
    _check(
        lib.ctrd_set_pdeathsig(0 if sig is None else signal_number(sig)),
        "set the parent-death signal (prctl)",
    )


def parent_death_signal() -> int | None:
    """The number of the signal that `set_parent_death_signal` set, ``None`` when there is none. Linux."""
    _needs_linux("parent_death_signal")
    sig = ffi.new("int *")
    _check(lib.ctrd_get_pdeathsig(sig), "ask for the parent-death signal (prctl)")
    return sig[0] or None


# ---- which process is it ----------------------------------------------------------------------------------------------


def boot_id() -> str:
    """The UUID of this boot of the kernel. Pids and start times of another boot mean nothing. Linux."""
    _needs_linux("boot_id")
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise from_os_error(error, f"read {path!r}", "check that /proc is mounted") from error


def start_time(pid: int) -> int:
    """When the process *pid* started, in clock ticks since boot (``os.sysconf("SC_CLK_TCK")`` a second). Linux.

    With the pid it names a process for as long as the system is up; it is there for zombies too. Raises
    `NotFoundError` when there is no such process, and `UnavailableError` when there is one that ``/proc`` does not
    show (not mounted, or ``hidepid``). Source: proc(5), field 22 of /proc/PID/stat.
    """
    _needs_linux("start_time")
    return _parse_stat(_read_stat(_pid(pid)))[1]


def is_same(pid: int, start_time: int) -> bool:
    """Whether *pid* is still the process, running or zombie, that started at *start_time* (see `start_time`). Linux.

    False when it is gone or its pid belongs to another. Raises `UnavailableError` when ``/proc`` does not tell.
    """
    _needs_linux("is_same")
    try:
        return _parse_stat(_read_stat(_pid(pid)))[1] == start_time
    except NotFoundError:
        return False


class ProcessRef(NamedTuple):
    """A process that cannot be mistaken for a later one with its pid: the pid and when it started. Linux.

    Kept beyond this boot it needs `boot_id` beside it.
    """

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """The process that is *pid* now. Raises like `start_time`."""
        return cls(pid, start_time(pid))

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not. Raises `UnavailableError` when ``/proc`` does not tell."""
        _needs_linux("ProcessRef.alive")
        try:
            state, started, threads = _parse_stat(_read_stat(_pid(self.pid)))
        except NotFoundError:
            return False
        # A first thread that has ended looks like a zombie while others of the process run on.
        return started == self.start_time and (state not in "ZX" or threads > 1)

    def open_pidfd(self) -> int:
        """A pidfd of this very process, close-on-exec; the caller closes it. Raises `NotFoundError` when it is gone."""
        # The order is the guard: the descriptor stays with whatever has the pid now, so if that one has our start time
        # it is the one, whoever gets the pid later. Asked first, the answer could be old when the pid is opened.
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
        """Sends *sig* to this process and never to another. Raises `NotFoundError` when it is gone. Linux 5.3."""
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
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            raise from_os_error(error, f"read {path!r}") from error
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            raise from_os_error(error, f"read {path!r}", f"there is no process {pid}") from error
        except PermissionError:
            pass
        raise UnavailableError(
            f"could not read {path!r}: process {pid} is there and /proc does not show it "
            "(check that /proc is mounted for this pid namespace, and its hidepid option)"
        ) from error


def _parse_stat(line: bytes) -> tuple[str, int, int]:
    """State, start time and number of threads from the line of /proc/PID/stat.

    The second field is a name the process chose: any bytes, spaces and parentheses too. No later field has one, so the
    last parenthesis ends it.
    """
    fields = line[line.rfind(b")") + 1 :].split()
    try:
        return fields[0].decode("ascii"), int(fields[19]), int(fields[17])
    except (IndexError, ValueError) as error:
        raise UnavailableError(f"this is no line of /proc/PID/stat: {line[:80]!r}") from error


# ---- spawn ------------------------------------------------------------------------------------------------------------


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    executable: str | os.PathLike[str] | None = None,
    fds: Mapping[int, int] = MappingProxyType({}),
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> int:
    """Starts a program with exactly the descriptors of *fds*; returns its pid, for the caller to reap.

    *argv*: its arguments, the first is its name. *executable*: the file to run when it is not ``argv[0]``; without a
    slash it is looked for in the ``PATH`` of this process. *fds*: the child's descriptor to ours; maps that cross
    (``{3: 4, 4: 3}``) work, 0, 1 and 2 are ``/dev/null`` when they are missing, and nothing else is open in the
    child. Ours stay open here, as they are. *env*: its whole environment, ``None`` for ``os.environ``.
    *new_session*: it leads a session of its own, with no terminal. It starts with no signal blocked and all at their
    defaults. The GIL is free meanwhile, and memory is not copied.

    Raises `NotFoundError` when there is no such file, `UnavailableError` when it may not be run or cannot be,
    `InvalidArgumentError` for arguments no program can get, `ClosedError` for a descriptor that is not open.
    Where the C library has no posix_spawn_file_actions_addclosefrom_np (glibc before 2.34, musl) the descriptors to
    close are listed first: one that another thread opens without close-on-exec in that moment is inherited.
    Source: posix_spawn(3).
    """
    if isinstance(argv, str | bytes) or not argv:
        raise InvalidArgumentError(
            f"argv is {_short(argv)}: give a sequence of at least the name of the program"
        )
    args = [_text(arg, "an argument") for arg in argv]
    path = args[0] if executable is None else _text(executable, "the executable")
    variables = os.environ if env is None else env
    env_block = [_variable(name, value) for name, value in variables.items()]
    plan = {0: -1, 1: -1, 2: -1}  # -1: /dev/null
    for child, ours in fds.items():
        plan[_fd(child)] = _fd(ours)
    children = sorted(plan)
    keep = [ffi.new("char[]", item) for item in (*args, *env_block)]  # the arrays below only point at these
    pid, stage, which = ffi.new("int *"), ffi.new("int *"), ffi.new("int *")
    error = lib.ctrd_spawn(
        path,
        ffi.new("char *[]", [*keep[: len(args)], ffi.NULL]),
        ffi.new("char *[]", [*keep[len(args) :], ffi.NULL]),
        children,
        [plan[child] for child in children],
        len(children),
        new_session,
        _CLOSEFROM,
        pid,
        stage,
        which,
    )
    if error:
        _spawn_failed(error, os.fsdecode(path), stage[0], which[0], children[-1])
    return int(pid[0])


def _spawn_failed(error: int, path: str, stage: int, fd: int, highest: int) -> NoReturn:
    """Raises what `spawn` raises when step *stage* of it failed."""
    start = f"start {path!r}: "
    if stage == lib.STAGE_NULL:
        raise from_errno(error, start + "open '/dev/null' (open)")
    if stage in (lib.STAGE_DUP, lib.STAGE_PREPARE) and error == errno.EINVAL:
        raise from_errno(error, start + f"give it descriptor {highest} (fcntl)", "that is over RLIMIT_NOFILE")
    if stage == lib.STAGE_DUP:
        raise from_errno(error, start + f"hand on descriptor {fd} (fcntl)")
    if stage == lib.STAGE_LIST:
        raise from_errno(error, start + "close all other descriptors, listed in '/proc/self/fd'")
    if stage == lib.STAGE_SESSION:
        raise from_errno(
            errno.ENOSYS, start + "a session of its own (posix_spawn)", f"not with this {_system()}"
        )
    hint = ""
    if error == errno.ENOENT and os.path.exists(path):
        hint = "it is there; what is missing is its interpreter, named in its #! line or its ELF header"
    elif error == errno.ENOEXEC:
        hint = "it is no program for this machine, nor a script that begins with #!"
    elif error == errno.E2BIG:
        hint = "its arguments and environment are over the system's limit, see getconf ARG_MAX"
    failure = from_errno(error, f"start {path!r} (posix_spawn)", hint)
    if error in (errno.ENOEXEC, errno.E2BIG):
        wrong = InvalidArgumentError(str(failure))
        wrong.errno = error
        raise wrong from failure.__cause__
    raise failure


# ---- checks -----------------------------------------------------------------------------------------------------------


def _pid(pid: int) -> int:
    if not isinstance(pid, int) or isinstance(pid, bool) or not 1 <= pid <= _INT_MAX:
        raise InvalidArgumentError(f"{_short(pid)} is no process id: use an int from 1 on")
    return pid


def _fd(fd: int) -> int:
    if not isinstance(fd, int) or isinstance(fd, bool) or not 0 <= fd < _INT_MAX:
        raise InvalidArgumentError(f"{_short(fd)} is no descriptor: use an int from 0 on")
    return fd


def _text(value: str | os.PathLike[str], what: str) -> bytes:
    try:
        text = os.fsencode(value)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidArgumentError(f"{what} is {_short(value)}: use a str or a path") from error
    if b"\0" in text:
        raise InvalidArgumentError(f"{what} is {_short(value)}: it may not have a NUL in it")
    return text


def _variable(name: str, value: str) -> bytes:
    key = _text(name, "the name of a variable")
    if not key or b"=" in key:
        raise InvalidArgumentError(
            f"the name of a variable is {_short(name)}: it may not be empty or have a '=' in it"
        )
    return key + b"=" + _text(value, f"the variable {name}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _system() -> str:
    name = os.uname()
    return f"{name.sysname} {name.release}"


def _needs_linux(function: str) -> None:
    if not _LINUX:
        raise UnsupportedError(f"{function} needs Linux; this system is {_system()}")


def _hint(error: int | None, since: str = "") -> str:
    if error == errno.ESRCH:
        return "it has ended"
    return f"needs Linux {since}; this system is {_system()}" if error == errno.ENOSYS and since else ""


def _check(error: int, tried: str, since: str = "") -> None:
    """Raises the error of the family for a number that is not 0."""
    if error:
        raise from_errno(error, tried, _hint(error, since))
