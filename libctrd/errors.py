"""The errors of libctrd: one small family.

Each says in one sentence what was tried, on what, why it failed and, where that is known, what to do. Errors of the
operating system are causes (``__cause__``), never the surface. This module imports nothing of libctrd.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any, Final


class CtrdError(Exception):
    """The base of every error that libctrd raises on purpose.

    ``errno`` is the operating system's number behind it, or ``None`` where there is none.
    """

    errno: int | None = None


class NotFoundError(CtrdError, LookupError):
    """A container, process, file or runtime that is not there."""


class AlreadyExistsError(CtrdError):
    """An id or a path that is in use."""


class InvalidArgumentError(CtrdError, ValueError):
    """An argument, a spec or a file that cannot be what it should be. ``faults`` lists each fault found, if several."""

    def __init__(self, message: str = "", *, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class UnsupportedError(CtrdError):
    """Something that this engine or this system cannot do; the message names both (C27)."""


class UnavailableError(CtrdError):
    """Something that exists but cannot be used now: permission, a full disk, no descriptors left, a peer that went."""


class RuntimeFailedError(CtrdError):
    """The OCI runtime failed. ``output`` is what it said, ``exit_code`` its own exit code (``None``: not known)."""

    def __init__(self, message: str = "", *, output: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.output = output
        self.exit_code = exit_code


class ExitError(CtrdError):
    """A container ended with an exit code that is not 0, and the caller had asked to be told so (``check=True``)."""

    def __init__(self, message: str = "", *, exit_code: int, stdout: Any = None, stderr: Any = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class DeadlineError(CtrdError, TimeoutError):
    """A time limit of the caller's passed first."""


class ClosedError(CtrdError, ValueError):
    """An operation on a fifo or client that is closed (C15)."""


class CancelledError(CtrdError):
    """A wait that its caller cancelled (C15)."""


_FAMILY: Final[dict[int, type[CtrdError]]] = {
    _errno.ENOENT: NotFoundError,
    _errno.ENOTDIR: NotFoundError,
    _errno.ESRCH: NotFoundError,
    _errno.EEXIST: AlreadyExistsError,
    _errno.EINVAL: InvalidArgumentError,
    _errno.ENAMETOOLONG: InvalidArgumentError,
    _errno.ELOOP: InvalidArgumentError,
    _errno.EISDIR: InvalidArgumentError,
    _errno.E2BIG: InvalidArgumentError,
    _errno.ENOEXEC: InvalidArgumentError,
    _errno.EBADF: ClosedError,
    _errno.ENOSYS: UnsupportedError,
    _errno.EOPNOTSUPP: UnsupportedError,
    _errno.ETIMEDOUT: DeadlineError,
    _errno.ECANCELED: CancelledError,
}

_HINTS: Final[dict[int, str]] = {
    _errno.ENOENT: "check that it exists",
    _errno.EACCES: "check its owner and mode and those of the directories above it",
    _errno.EPERM: "check that this user may do so",
    _errno.EMFILE: "close descriptors or raise RLIMIT_NOFILE (ulimit -n)",
    _errno.ENFILE: "the whole system is out of descriptors; raise fs.file-max",
    _errno.ENOSPC: "free space or inodes on that file system",
    _errno.EDQUOT: "free some of this user's quota there",
    _errno.EROFS: "that file system is read-only; choose another place",
    _errno.ELOOP: "a symbolic link stands there, and it is not followed",
    _errno.EPIPE: "its reader has gone",
    _errno.ENAMETOOLONG: "choose a shorter name",
}


def from_errno(number: int, tried: str, hint: str = "") -> CtrdError:
    """The error of the family for errno *number*.

    *tried* completes the sentence "could not …", with the path and the system call in it. *hint* says what to do and
    replaces the usual advice for that number. The matching ``OSError`` is the cause. Never raises; raise what it gives.
    """
    hint = hint or _HINTS.get(number, "")
    error = _FAMILY.get(number, UnavailableError)(
        f"could not {tried}: {os.strerror(number)}" + (f" ({hint})" if hint else "")
    )
    error.errno = number
    error.__cause__ = OSError(number, os.strerror(number))
    return error


def from_os_error(cause: OSError, tried: str, hint: str = "") -> CtrdError:
    """Like `from_errno`, for an ``OSError`` that was caught: it becomes the cause, with its traceback."""
    error = from_errno(cause.errno or 0, tried, hint)
    error.__cause__ = cause
    return error
