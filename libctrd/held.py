"""The rare case of a directory on whose path others may change names: it is reached without following a link.

The state directory is this user's own, and so is all on the way to it (`directory.check_state_dir`). Not so the
directory of a container whose root is another user of the host (C19): that user owns it, and the one that it lies in,
and may put a link to anywhere in the place of either. What is done in it is done by way of a descriptor of it, then
(`directory.held`).
"""

from __future__ import annotations

import errno
import os
import stat

from libctrd.errors import UnavailableError, from_os_error

_PASS = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)
)  # to go through: no right to read
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)


def open_directory(path: str) -> int:
    """A descriptor of the directory at the absolute *path*, of which no component may be a symbolic link: openat(2).

    Raises `NotFoundError` when there is none, `UnavailableError` when there is a link in the path, or no directory.
    """
    parts = [part for part in path.split("/") if part]
    fd = os.open("/", _PASS if parts else _OPEN)
    try:
        for number, part in enumerate(parts, 1):
            below = os.open(part, (_OPEN if number == len(parts) else _PASS) | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
            if not stat.S_ISDIR(os.fstat(fd).st_mode):  # where there is no O_DIRECTORY
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnavailableError(
                f"could not open the directory {path!r}: {part!r} in it is a symbolic link or no directory, which "
                "somebody may have put there to have another one changed: look who can write where it lies"
            ) from error
        raise from_os_error(error, f"open the directory {path!r}") from error
    return fd


def belongs_to_nobody_here(uid: int) -> bool:
    """In a user namespace all ids that have no place in it are seen as one, the host's root too: user_namespaces(7)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as ids:
            if sum(int(line.split()[2]) for line in ids) == 2**32 - 1:
                return False
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as number:
            return uid == int(number.read())
    except FileNotFoundError:
        return False  # no such namespaces here
