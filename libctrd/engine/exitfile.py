"""The exit of a container, kept in our directory where containerd itself may forget it (C26).

Newer ones drop every ended task when they start. So what a shim has told while containerd was away is written down, and
what all shims tell before a containerd of ours is started again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import msgspec

from libctrd import ids
from libctrd.engine.taskshim import Ended
from libctrd.state import ExitStatus

log = logging.getLogger("libctrd")

NAME = "exit.json"

_decoder = msgspec.json.Decoder(ExitStatus)


def read(bundle: str) -> ExitStatus | None:
    """What was written of the container in the directory *bundle*; ``None`` when nothing was, or it is damaged."""
    path = os.path.join(bundle, NAME)
    try:
        with open(path, "rb") as file:
            return _decoder.decode(file.read())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the exit record %s cannot be read: %s", path, error)
        return None


def is_there(bundle: str) -> bool:
    """Was it written down?"""
    return os.path.lexists(os.path.join(bundle, NAME))


def write(bundle: str, status: ExitStatus) -> None:
    """Writes it down: complete, under a name of its own first. In a directory that is gone nobody asks for it."""
    path = os.path.join(bundle, NAME)
    own = f"{path}.{ids.generate()}"  # several clients may write down what each was told
    try:
        with open(own, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(status))
        os.rename(own, path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the exit record %s cannot be written: %s", path, error)


def write_all(base: str, ended: Iterable[Ended]) -> None:
    """Writes down what *ended* tells of first processes. *base* holds a directory per namespace, and in it bundles."""
    for process in ended:
        if not process.exec_id:
            write(os.path.join(base, process.namespace, process.id), process.status)
