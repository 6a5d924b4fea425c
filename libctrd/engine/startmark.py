"""The mark in a container's directory that it was started: of several clients who start one, one is first.

Only this file knows of a start before containerd does, and after it has forgotten the task (C26). The two are told
apart by its lock: it is held while the start is under way, and the kernel lets go of it when the starter is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from libctrd import ids
from libctrd.engine.base import started_already
from libctrd.errors import from_os_error

NAME = "started"


def leave(bundle: str, id: str) -> int:
    """Leaves the mark in the directory *bundle* of container *id*; returns a descriptor to be closed when the start is
    over, for it holds the lock. `AlreadyExistsError` when it is there.
    """
    name = os.path.join(bundle, NAME)
    own = f"{name}.{ids.generate()}"  # it gets its name only when it is locked: nobody finds it in between
    try:
        os.makedirs(bundle, 0o700, exist_ok=True)
        lock = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.link(own, name)
        except BaseException:
            os.close(lock)
            raise
        finally:
            os.unlink(own)
    except FileExistsError:
        raise started_already(id) from None
    except OSError as error:
        raise from_os_error(error, f"leave word in {bundle!r} that container {id!r} is started") from error
    return lock


def is_left(bundle: str) -> bool:
    """Is it there, from a start that is over?"""
    try:
        mark = os.open(os.path.join(bundle, NAME), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(mark)
    return True


def is_there(bundle: str) -> bool:
    """Is it there, from whatever start?"""
    return os.path.lexists(os.path.join(bundle, NAME))


def remove(bundle: str) -> None:
    """Takes it back. One that is not there is success."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(bundle, NAME))
