"""Whose a container is: the client that reads its output and cleans it is one at a time (C22).

Two who read one fifo get a part of it each, and neither knows. So who reads holds a lock, and who comes second is
refused while the first lives. A lock is one byte of a file that all clients of this user share, at a place that is made
of the container's state directory, id and time, and of the process. It belongs to the open file: so it goes with the
client, however that ends, two clients of one process are two, and a container costs no descriptor. (A child after fork
keeps its parent's locks, as it keeps its descriptors.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from typing import Final

from libctrd.engine.base import Record
from libctrd.errors import AlreadyExistsError, from_os_error

_PAUSES: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.1)
_SET: Final = getattr(fcntl, "F_OFD_SETLK", None)


def shared_file() -> str:
    """Where the file lies: by user, for only one who may open a container's fifos can be its reader."""
    if os.geteuid() == 0:
        return "/run/ctrd.readers"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"ctrd-{os.geteuid()}.readers")


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class Owners:
    """The locks of one client, whose containers lie in the directory *root*. On a system without them, none."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fd = -1
        if _SET is not None:
            try:
                self._fd = _open(shared_file())
            except OSError:  # a system without a /run to write to, say: then all clients of that directory meet here
                path = f"{root}.readers"
                try:
                    self._fd = _open(path)
                except OSError as error:
                    raise from_os_error(error, f"open {path!r}, which says who reads which container") from error

    def take(self, record: Record, process: str) -> None:
        """From now on this client is the reader of that process. Taking it again is fine.

        Raises `AlreadyExistsError` while another client is. That takes a moment: one that was killed while it started
        something has left its lock to a child, which lets go of it when it becomes another program, and nothing says
        when that is.
        """
        for pause in _PAUSES:
            if self.try_to_take(record, process):
                return
            time.sleep(pause)
        if not self.try_to_take(record, process):
            raise AlreadyExistsError(
                f"the output of process {process!r} of container {record.id!r} is read by another client, which lives: "
                "end that one first"
            )

    def try_to_take(self, record: Record, process: str) -> bool:
        """Like `take`, at once: is this client the reader now? Not when another one is."""
        try:
            self._set(fcntl.F_WRLCK, record, process)
        except BlockingIOError:
            return False
        return True

    def give_back(self, record: Record, process: str) -> None:
        """It is not any more. One that it never was is fine."""
        self._set(fcntl.F_UNLCK, record, process)

    def _set(self, kind: int, record: Record, process: str) -> None:
        if self._fd < 0 or _SET is None:
            return
        name = os.fsencode("\0".join((self._root, record.id, record.created_at.isoformat(), process)))
        place = (zlib.crc32(name) & 0x7FFFFFFF) << 32 | zlib.adler32(name)
        lock = struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0)
        try:
            fcntl.fcntl(self._fd, _SET, lock)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EACCES:  # or EAGAIN: POSIX leaves it open which of them it is
                raise BlockingIOError(*error.args) from error
            raise from_os_error(error, "lock the place that says who reads a container (fcntl)") from error

    def close(self) -> None:
        """Lets go of them all. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
