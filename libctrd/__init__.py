"""libctrd: run containers from Python. Every byte of output and every exit status, always.

The public names, and nothing else; each is loaded when it is first used, so that ``import libctrd`` is quick.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # what type checkers take for true; to import typing would cost more than all else here
if TYPE_CHECKING:
    from typing import Any

    from libctrd import errors as errors
    from libctrd import ids as ids
    from libctrd import proc as proc
    from libctrd import spec as spec
    from libctrd.client import Client as Client
    from libctrd.container import Container as Container
    from libctrd.engine import connect as connect
    from libctrd.errors import AlreadyExistsError as AlreadyExistsError
    from libctrd.errors import CancelledError as CancelledError
    from libctrd.errors import ClosedError as ClosedError
    from libctrd.errors import CtrdError as CtrdError
    from libctrd.errors import DeadlineError as DeadlineError
    from libctrd.errors import ExitError as ExitError
    from libctrd.errors import InvalidArgumentError as InvalidArgumentError
    from libctrd.errors import NotFoundError as NotFoundError
    from libctrd.errors import RuntimeFailedError as RuntimeFailedError
    from libctrd.errors import UnavailableError as UnavailableError
    from libctrd.errors import UnsupportedError as UnsupportedError
    from libctrd.events import EventStream as EventStream
    from libctrd.events import Listener as Listener
    from libctrd.fifo import Cancellation as Cancellation
    from libctrd.fifo import Fifo as Fifo
    from libctrd.fifo import open_fifo as open_fifo
    from libctrd.once import Completed as Completed
    from libctrd.once import run as run
    from libctrd.process import Process as Process
    from libctrd.state import ContainerInfo as ContainerInfo
    from libctrd.state import ExitStatus as ExitStatus
    from libctrd.state import StateInfo as StateInfo
    from libctrd.stdio import DETACHED as DETACHED
    from libctrd.stdio import INHERIT as INHERIT
    from libctrd.stdio import NULL as NULL
    from libctrd.stdio import PIPE as PIPE
    from libctrd.stdio import IOPipe as IOPipe
    from libctrd.stdio import Stdio as Stdio
    from libctrd.stdio import open_fifos as open_fifos
    from libctrd.unread import discard_fifos as discard_fifos

__version__ = "0.1.0"

_MODULES = ("errors", "ids", "proc", "spec")
_HOMES = {
    "client": ("Client",),
    "container": ("Container",),
    "engine": ("connect",),
    "errors": (
        *("AlreadyExistsError", "CancelledError", "ClosedError", "CtrdError", "DeadlineError", "ExitError"),
        *(
            "InvalidArgumentError",
            "NotFoundError",
            "RuntimeFailedError",
            "UnavailableError",
            "UnsupportedError",
        ),
    ),
    "events": ("EventStream", "Listener"),
    "fifo": ("Cancellation", "Fifo", "open_fifo"),
    "process": ("Process",),
    "once": ("Completed", "run"),
    "state": ("ContainerInfo", "ExitStatus", "StateInfo"),
    "stdio": ("DETACHED", "INHERIT", "NULL", "PIPE", "IOPipe", "Stdio", "open_fifos"),
    "unread": ("discard_fifos",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"libctrd.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'libctrd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"libctrd.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
