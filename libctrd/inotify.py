"""Changes in directories, told by the kernel: a thin layer over inotify, with errors of the family. Linux only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from libctrd._checks import advice, bytes_of, needs_linux
from libctrd._proc import lib
from libctrd.errors import from_errno

MOVED_TO: Final = 0x80
CREATE: Final = 0x100
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
DIRECTORY: Final = 0x40000000
_ONLY_DIRECTORIES: Final = 0x01000000
_NO_LINKS: Final = 0x02000000

_HEAD: Final = struct.Struct("iIII")
_BUFFER: Final = 1 << 16


class Change(NamedTuple):
    """*what* (a mask of the constants above) happened to *name* in the directory of the number *watch*."""

    watch: int
    what: int
    name: str


class Inotify:
    """Watches directories. `fileno` is for a reactor; `close` it. One thread at a time."""

    def __init__(self) -> None:
        needs_linux("inotify")
        self._fd = lib.ctrd_inotify_init()
        if self._fd < 0:
            raise from_errno(
                -self._fd,
                "watch directories (inotify_init1)",
                "this user has too many: end a program that watches files, or raise fs.inotify.max_user_instances"
                if -self._fd == 24
                else advice(-self._fd),
            )

    def fileno(self) -> int:
        """What becomes readable when there is something to hear."""
        return self._fd

    def add(self, path: str, what: int) -> int:
        """Watches the directory *path* for *what*; returns the number of the watch: the same for the same directory.

        Raises `NotFoundError` when there is no such directory, `UnavailableError` when there are too many watches.
        """
        mask = what | _ONLY_DIRECTORIES | _NO_LINKS
        watch: int = lib.ctrd_inotify_add(self._fd, bytes_of(path, "the path"), mask)
        if watch < 0:
            raise from_errno(-watch, f"watch the directory {path!r} (inotify_add_watch)")
        return watch

    def remove(self, watch: int) -> None:
        """Watches it no more. One that is not watched any more is fine: its directory has gone."""
        lib.ctrd_inotify_remove(self._fd, watch)

    def read(self) -> Iterator[Change]:
        """What has happened since the last time. Never waits."""
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        yield from parse(data)

    def close(self) -> None:
        """Idempotent. A reactor must have been told to forget the descriptor before."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def parse(data: bytes) -> Iterator[Change]:
    """The records of what the kernel gave: a head, and a name that is filled up with NULs. Source: inotify(7)."""
    at = 0
    while at < len(data):
        watch, what, _, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Change(watch, what, os.fsdecode(data[at : at + size].rstrip(b"\0")))
        at += size
