"""Checkpoints as `types.API` names them: a directory for each, in one directory of the caller's or of the bundle."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
import os
from datetime import datetime, timezone
from typing import Any

import msgspec

from libctrd import ids
from libctrd.directory import subdirectories
from libctrd.errors import from_os_error
from libctrd.serve.wire import API

_DESCRIPTION = "config.json"
"""As that daemon calls it: its clients read it from there."""


class _Description(msgspec.Struct):
    """What a checkpoint was asked for with."""

    name: str
    created: str = ""
    tcp: bool = True
    unix_sockets: bool = msgspec.field(name="unixSockets", default=True)
    shell: bool = False
    exit: bool = False
    empty_ns: list[str] | None = msgspec.field(name="emptyNS", default=None)


_decoder = msgspec.json.Decoder(_Description)


def parent(bundle: str, given: str) -> str:
    """Where they are: in *given*, else in ``checkpoints`` of the bundle."""
    return os.path.abspath(given) if given else os.path.join(bundle, "checkpoints")


def path(bundle: str, given: str, name: str) -> str:
    """Where one is. Raises `InvalidArgumentError` for a name that would lead elsewhere."""
    return os.path.join(parent(bundle, given), ids.check(name, "checkpoint name"))


def make_parent(path: str) -> None:
    """Makes the directory that *path* will be in."""
    above = os.path.dirname(path)
    try:
        os.makedirs(above, 0o755, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"make the directory {above!r} for checkpoints") from error


def describe(path: str, wanted: Any) -> None:
    """Writes down what a checkpoint was asked for with."""
    now = datetime.now(timezone.utc).isoformat()
    described = _Description(
        wanted.name, now, wanted.tcp, wanted.unixSockets, wanted.shell, wanted.exit, list(wanted.emptyNS)
    )
    name = os.path.join(path, _DESCRIPTION)
    try:
        with open(name, "wb") as file:
            file.write(msgspec.json.encode(described))
    except OSError as error:
        raise from_os_error(error, f"write {name!r}") from error


def found(directory: str) -> list[Any]:
    """Those in *directory*. Raises `NotFoundError` when that is not there."""
    return [_one(path) for path in subdirectories(directory)]


def _one(path: str) -> Any:
    """One that another program has made is told with what is always so."""
    name = os.path.basename(path)
    try:
        with open(os.path.join(path, _DESCRIPTION), "rb") as file:
            known = _decoder.decode(file.read())
    except (OSError, msgspec.MsgspecError):
        known = _Description(name)
    return API.Checkpoint(name=name, tcp=known.tcp, shell=known.shell, unixSockets=known.unix_sockets)
