"""What this user's processes find out about the host once, in small files that go with the boot.

Losing one costs time and nothing else. They lie in ``/run``, or, without root, in ``XDG_RUNTIME_DIR``; without that
nothing is remembered.
"""

from __future__ import annotations

import os

from libctrd._log import log


def read(name: str) -> bytes:
    """What was written under that *name* last; empty when nothing was, or by another user."""
    try:
        with open(_path(name), "rb") as file:
            return file.read() if os.fstat(file.fileno()).st_uid == os.geteuid() else b""
    except OSError:
        return b""


def write(name: str, content: bytes) -> None:
    """Others find all of it, or what was there before."""
    path = _path(name)
    if not path:
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
        os.rename(temporary, path)
    except OSError as error:
        log.debug("what was found out about this host could not be kept in %s: %s", path, error)


def _path(name: str) -> str:
    directory = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(directory, f"ctrd.{name}") if directory else ""
