"""The mark in a container's directory that it was started: of several clients who start one, one is first.

Only this file knows of a start before containerd does, and after it has forgotten the task (C26).
"""

from __future__ import annotations

import contextlib
import os

from libctrd.engine.base import started_already
from libctrd.errors import from_os_error

NAME = "started"


def leave(bundle: str, id: str) -> None:
    """Leaves the mark in the directory *bundle* of container *id*. `AlreadyExistsError` when it is there."""
    try:
        os.makedirs(bundle, 0o700, exist_ok=True)
        os.close(os.open(os.path.join(bundle, NAME), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise started_already(id) from None
    except OSError as error:
        raise from_os_error(error, f"leave word in {bundle!r} that container {id!r} is started") from error


def is_left(bundle: str) -> bool:
    """Is it there?"""
    return os.path.lexists(os.path.join(bundle, NAME))


def remove(bundle: str) -> None:
    """Takes it back. One that is not there is success."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(bundle, NAME))
