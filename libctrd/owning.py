"""Whose a container is: the client that reads its output and cleans it is one at a time (C22).

Two who read one fifo get a part of it each, and neither knows. So who reads holds a lock, and who comes second is
refused while the first lives. A lock is one byte of a file that all clients of this user share, at a place that is made
of the container's state directory, id and time, and of the process. So a container costs no descriptor.

On Linux it belongs to the open file: it goes with the client, however that ends, and two clients of one process are
two. (A child after fork keeps its parent's locks, as it keeps its descriptors.) Elsewhere it belongs to the process:
illumos knows the other kind for whole files only. It goes with the process, the clients of one process are told apart
here, and the file is never closed, for that would let go of the locks of them all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
import zlib
from typing import Final

from libctrd import _checks
from libctrd.directory import check_state_dir
from libctrd.engine.base import Record
from libctrd.errors import AlreadyExistsError, from_os_error

_PAUSES: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.1)
_shared: dict[str, int] = {}  # where locks belong to the process: the files, by path, that stay open
_held: dict[tuple[int, int], Owners] = {}  # and whose each lock is, by file and place
_lock = threading.Lock()  # guards both


def shared_file() -> str:
    """Where the file lies: by user, for only one who may open a container's fifos can be its reader.

    In ``/tmp`` it is in a directory of the user's own: who made a file there first could say that all are read already.
    """
    if os.geteuid() == 0:
        return os.path.join(_checks.RUN, "ctrd.readers")
    if place := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(place, f"ctrd-{os.geteuid()}.readers")
    return os.path.join(check_state_dir(f"/tmp/ctrd-{os.geteuid()}-readers"), "all")


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _open_once(path: str) -> int:
    """The open file at *path*, of all clients of this process; a new one when others find another there by now."""
    with _lock:
        fd = _shared.get(path)
        if fd is None or not _is_at(fd, path):
            fd = _shared[path] = _open(path)
        return fd


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


class Owners:
    """The locks of one client, whose containers lie in the directory *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        opened = _open if _checks.LINUX else _open_once
        try:
            self._fd = opened(shared_file())
        except OSError:  # a system without a /run to write to, say: then all clients of that directory meet here
            path = f"{root}.readers"
            try:
                self._fd = opened(path)
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
        if self._fd < 0:
            return
        name = os.fsencode("\0".join((self._root, record.id, record.created_at.isoformat(), process)))
        place = (zlib.crc32(name) & 0x7FFFFFFF) << 32 | zlib.adler32(name)
        try:
            if _checks.LINUX:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0))
            else:
                self._set_of_process(kind, place)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EACCES:  # or EAGAIN: POSIX leaves it open which of them it is
                raise BlockingIOError(*error.args) from error
            raise from_os_error(error, "lock the place that says who reads a container (fcntl)") from error

    def _set_of_process(self, kind: int, place: int) -> None:
        key = (self._fd, place)
        with _lock:
            if _held.get(key, self) is not self:
                if kind == fcntl.F_UNLCK:
                    return
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if kind == fcntl.F_UNLCK:
                if _held.pop(key, None) is not None:
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place)
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                _held[key] = self

    def close(self) -> None:
        """Lets go of them all. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if _checks.LINUX:
            os.close(fd)
            return
        with _lock:
            for key in [key for key, owner in _held.items() if owner is self]:
                del _held[key]
                fcntl.lockf(fd, fcntl.LOCK_UN, 1, key[1])


def _forget() -> None:
    """A child after fork has none of the locks that belong to its parent."""
    global _lock
    _lock = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
