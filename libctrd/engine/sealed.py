"""A copy of the OCI runtime in memory that nobody can write to any more: what containers are started with.

A container could overwrite the runtime that starts it, through ``/proc/PID/exe`` (CVE-2019-5736). So crun and runc
look at themselves when they begin: unless they run from a sealed memory file they make one, or mount their own file
read-only, and execute themselves from there once more. One sealed copy for all starts of this process is as safe, and
spares each of them that second beginning: a fifth of a start. A runtime that knows nothing of this does not notice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from typing import Final

from libctrd import _xattr
from libctrd._log import log

LARGEST: Final = 2 << 20
"""Bytes. crun has half a MiB. runc has ten, more than a client may cost: it copies itself."""

_SEALS: Final = 0xF  # F_SEAL_SEAL, _SHRINK, _GROW and _WRITE: the set that runtimes look for, fcntl(2)
_MFD_EXEC: Final = 0x10  # Linux 6.3, and asked for there: memfd_create(2)
_PLACED: Final = "/sys/fs/selinux/enforce"
"""Where a policy goes by the file that is executed, it is the file itself that must be."""


class Copy:
    """A sealed copy: its descriptor, closed with the last one who uses it."""

    def __init__(self, fd: int, of: tuple[str | int, ...]) -> None:
        self.fd = fd
        self.of = of

    def __del__(self) -> None:
        os.close(self.fd)


_lock = threading.Lock()  # held while a copy is made: whoever else wants it waits, instead of making another
_last: Copy | None = None  # only one is kept: who starts with several runtimes in turn is rare


def copy(path: str) -> Copy | None:
    """The copy of the program *path* as it is now. ``None`` when there is none to be had: then its file is to be used.

    None is made of a program that is large, is no ELF file (a script needs its path) or has rights of its own, by a
    user other than root, or where SELinux is in force.
    """
    if os.geteuid() != 0 or not hasattr(os, "memfd_create"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None  # the start will say so
    of = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if status.st_size > LARGEST or status.st_mode & (stat.S_ISUID | stat.S_ISGID) or os.path.exists(_PLACED):
        return None
    global _last
    with _lock:
        if _last is not None and _last.of == of:
            return _last
        made = _made(path, of)
        _last = made or _last
        return made


def _made(path: str, of: tuple[str | int, ...]) -> Copy | None:
    try:
        with open(path, "rb") as file:
            if _xattr.get(file.fileno(), "security.capability") is not None:
                return None
            content = file.read()
        if not content.startswith(b"\x7fELF"):
            return None
        made = Copy(_memory_file(os.path.basename(path)), of)
        with open(made.fd, "wb", buffering=0, closefd=False) as memory:
            memory.write(content)
        fcntl.fcntl(made.fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        log.debug("no copy of %s is made, its starts take longer: %s", path, error)
        return None
    return made


def _memory_file(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)
