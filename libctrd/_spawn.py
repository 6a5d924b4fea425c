"""`spawn`: a program started with exactly the descriptors it is given. Public as `libctrd.proc.spawn`.

It checks the arguments, lays them out for C, and words what went wrong there; the order in which descriptors
are duplicated and closed is in pyx/proc.c. It keeps no list of children and reaps none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from libctrd import _checks
from libctrd._checks import bytes_of, fd_of, short
from libctrd._proc import ffi, lib
from libctrd.errors import CtrdError, InvalidArgumentError, from_errno

_closefrom = bool(lib.ctrd_has_closefrom())  # what the C library has; the tests turn it off to take the other way
_DEV_NULL = -1  # in place of a descriptor of ours


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    executable: str | os.PathLike[str] | None = None,
    fds: Mapping[int, int] = MappingProxyType({}),
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> int:
    """Starts a program with exactly the descriptors of *fds*; returns its pid, for the caller to reap.

    *argv*: its arguments, the first is its name. *executable*: the file to run when that is not ``argv[0]``;
    a name without a slash is looked for in the ``PATH`` of this process. *fds*: the child's descriptor to
    ours. Maps that cross (``{3: 4, 4: 3}``) work; 0, 1 and 2 are ``/dev/null`` when they are missing; nothing
    else is open in the child. Ours stay open here, as they are. *env*: its whole environment, ``None`` for
    ``os.environ``. *new_session*: it leads a session of its own, without a terminal. It starts with no signal
    blocked and all at their defaults. The GIL is free meanwhile, and no memory is copied. While it runs, this
    process holds a few duplicates above the child's highest descriptor.

    Raises `NotFoundError` when there is no such file, `UnavailableError` when it may not be run or cannot be
    now, `InvalidArgumentError` for arguments that no program can get and for a file that is no program,
    `ClosedError` for a descriptor that is not open; then there is no child. Where the C library has no
    posix_spawn_file_actions_addclosefrom_np (glibc before 2.34, musl) the descriptors to close are listed
    first: one that another thread opens without close-on-exec in just that moment is inherited. Source:
    posix_spawn(3).
    """
    if isinstance(argv, str | bytes) or not argv:
        raise InvalidArgumentError(f"argv is {short(argv)}: give a sequence of at least the name of the program")
    args = [bytes_of(arg, "an argument") for arg in argv]
    path = args[0] if executable is None else bytes_of(executable, "the executable")
    if env is None:
        block = [name + b"=" + value for name, value in os.environb.items()]
    else:
        block = [_variable(name, value) for name, value in env.items()]
    plan = dict.fromkeys((0, 1, 2), _DEV_NULL)
    for child, ours in fds.items():
        plan[fd_of(child)] = fd_of(ours)
    children = sorted(plan)
    keep = [ffi.new("char[]", item) for item in (*args, *block)]  # the arrays below point at these, no more
    pid, stage, which = ffi.new("int *"), ffi.new("int *"), ffi.new("int *")
    error = lib.ctrd_spawn(
        path,
        ffi.new("char *[]", [*keep[: len(args)], ffi.NULL]),
        ffi.new("char *[]", [*keep[len(args) :], ffi.NULL]),
        children,
        [plan[child] for child in children],
        len(children),
        new_session,
        _closefrom,
        pid,
        stage,
        which,
    )
    if error:
        raise _failure(error, os.fsdecode(path), stage[0], which[0], children[-1])
    return int(pid[0])


def _failure(error: int, path: str, stage: int, fd: int, highest: int) -> CtrdError:
    """The error for step *stage* of `spawn`; *fd* is the descriptor of ours that it was at."""
    start = f"start {path!r}: "
    if stage == lib.STAGE_NULL:
        return from_errno(error, start + "open '/dev/null' (open)")
    if stage == lib.STAGE_DUP:
        if error == errno.EINVAL:
            hint = "that is over RLIMIT_NOFILE, or too near it"
            return from_errno(error, start + f"give it descriptor {highest} (fcntl)", hint)
        what = f"descriptor {fd}" if fd >= 0 else "'/dev/null'"
        return from_errno(error, start + f"hand {what} on (fcntl)")
    if stage == lib.STAGE_LIST:
        hint = ""
        if error == errno.EBADF:  # glibc takes no number from the limit on, though one may be open since before
            error, hint = (
                errno.EMFILE,
                "one that it would inherit is over RLIMIT_NOFILE: raise that, or close it",
            )
        return from_errno(error, start + "close all other descriptors, as listed in '/proc/self/fd'", hint)
    if stage == lib.STAGE_SESSION:
        return from_errno(errno.ENOSYS, start + "in a session of its own (posix_spawn)", f"not on {_checks.system()}")
    hint = ""
    if error == errno.ENOENT and "/" in path and os.path.exists(path):
        hint = "it is there; its interpreter is not, the one named in its #! line or its ELF header"
    elif error == errno.ENOEXEC:
        hint = "it is no program for this machine, nor a script that begins with #!"
    elif error == errno.E2BIG:
        hint = "its arguments and environment are over the system's limit, see getconf ARG_MAX"
    return from_errno(error, f"start {path!r} (posix_spawn)", hint)


def _variable(name: str, value: str) -> bytes:
    key = bytes_of(name, "the name of a variable")
    if not key or b"=" in key:
        raise InvalidArgumentError(f"the name of a variable is {short(name)}: it may not be empty or have a '=' in it")
    return key + b"=" + bytes_of(value, f"the variable {name}")
