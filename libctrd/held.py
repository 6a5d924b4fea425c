"""Directories on whose path others may change names: reached without following a link, and held while they are used.

The state directory is this user's own, and so is all on the way to it (`check_above`). Not so the directory of a
container whose root is another user of the host (C19): that user owns it, and the one that it lies in, and may put a
link to anywhere in the place of either. What is done in it is done by way of a descriptor of it, then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

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


@contextlib.contextmanager
def held(path: str, root: str) -> Iterator[str]:
    """A path to the directory *path* that stays the one to it, whatever becomes of its names meanwhile.

    One that lies in *root*, a state directory, is that already: nobody else can change a name there. Raises what
    `open_directory` does.
    """
    if os.path.dirname(path) == root:
        yield path
        return
    fd = open_directory(path)
    try:
        yield f"/proc/self/fd/{fd}"  # only Linux maps the ids of containers, so only there is such a directory
    finally:
        os.close(fd)


def check_above(path: str) -> None:
    """Who can change a name on the way to a state directory can put his own in its place.

    So every directory above *path*, which has no link in it, has to belong to root or to this user, and to be writable
    for nobody else, or sticky, like ``/tmp``. Raises `UnavailableError`.
    """
    above = path
    while above != "/":
        above = os.path.dirname(above)
        status = os.stat(above)
        if status.st_uid not in (0, os.geteuid()) and not _belongs_to_nobody_here(status.st_uid):
            raise UnavailableError(
                f"{above!r}, above the state directory {path!r}, belongs to user {status.st_uid}, who could put "
                f"another in its place: use one whose path is root's or user {os.geteuid()}'s own"
            )
        if others_may_write(status) and not status.st_mode & stat.S_ISVTX:
            raise UnavailableError(
                f"others may write in {above!r} (mode {stat.S_IMODE(status.st_mode):04o}), and so put another "
                f"directory in the place of the state directory {path!r}: chmod go-w, or use another"
            )


def others_may_write(status: os.stat_result) -> bool:
    """This user's own group is no other: where the umask is 002 each user has one that nobody else is in."""
    mode = status.st_mode
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid != os.getegid()))


def _belongs_to_nobody_here(uid: int) -> bool:
    """In a user namespace all ids that have no place in it are seen as one, the host's root too: user_namespaces(7)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as ids:
            if sum(int(line.split()[2]) for line in ids) == 2**32 - 1:
                return False
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as number:
            return uid == int(number.read())
    except FileNotFoundError:
        return False  # no such namespaces here
