"""Extended attributes of open files: by Python, or where it is built without them (for musl, often) by ourselves."""

from __future__ import annotations

import errno
import os
from typing import Final

from libctrd._proc import ffi, lib

_LONGEST: Final = 255  # bytes; what is asked for here has at most 24


def get(fd: int, name: str) -> bytes | None:
    """The value of the attribute *name* of what *fd* has open; ``None`` when it has none of that name.

    Raises `OSError` when it cannot be told: no permission, no such call on this system, a value of more than 255 bytes
    where Python cannot ask. Source: fgetxattr(2).
    """
    try:
        if hasattr(os, "getxattr"):
            return os.getxattr(fd, name)
        value = ffi.new("char[]", _LONGEST)
        length = lib.ctrd_getxattr(fd, os.fsencode(name), value, _LONGEST)
        if length < 0:
            raise OSError(-length, os.strerror(-length))
        return bytes(ffi.buffer(value, length))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):  # not set; a file system that has none
            return None
        raise
