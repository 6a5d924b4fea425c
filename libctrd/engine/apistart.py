"""What a start over `types.API` is made of, beside the request itself: the streams' names and the runtime's path."""

from __future__ import annotations

import os
import shutil

from libctrd.engine.apiwire import ENGINE
from libctrd.engine.base import CreateRequest, unsupported
from libctrd.errors import NotFoundError


def streams(request: CreateRequest) -> tuple[str, str, str]:
    """The names of stdin, stdout and stderr. Raises `UnsupportedError` for what the daemon cannot do with output."""
    if request.auto_remove:
        raise unsupported(ENGINE, "remove a container by itself once it has ended", "leave --rm out")
    if request.unattended == "hold" or not (request.stdout or request.stderr):
        return request.stdin, request.stdout, request.stderr
    if request.attended:
        raise unsupported(
            ENGINE,
            f"{request.unattended} output once its reader has gone",
            "say unattended='hold', or start it with stdio=DETACHED",
        )
    if request.unattended == "log":
        raise unsupported(ENGINE, "log output", "say unattended='hold' or 'discard'")
    return request.stdin, "", ""


def runtime_path(name: str) -> str:
    """The path of an OCI runtime; none for none: the daemon's own choice. `NotFoundError`: it is not on this host."""
    if not name:
        return ""
    path = name if "/" in name else shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None or not os.access(path, os.X_OK) or os.path.isdir(path):
        raise NotFoundError(f"there is no OCI runtime {name!r}: install it, or name another (runtime=)")
    return os.path.abspath(path)
