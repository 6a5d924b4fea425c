"""Checkpoints as `types.API` names them: a directory for each, in one directory of the caller's or of the bundle."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
import os
import stat
from datetime import datetime, timezone
from typing import Any

import msgspec

from libctrd import ids
from libctrd.directory import subdirectories
from libctrd.errors import InvalidArgumentError, from_os_error
from libctrd.serve.wire import API

_DESCRIPTION = "config.json"
"""As that daemon calls it: its clients read it from there."""
_MOST = 1 << 20
"""Bytes of it that are read."""


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
    """Where they are: in *given*, else in ``checkpoints`` of the bundle. Raises `InvalidArgumentError` for a directory
    that would be taken from where the server runs, or that no path can name.
    """
    if not given:
        return os.path.join(bundle, "checkpoints")
    if "\0" in given:
        raise InvalidArgumentError(f"the directory {given!r} for checkpoints has a NUL in it")
    if not os.path.isabs(given):
        raise InvalidArgumentError(f"the directory {given!r} for checkpoints is not absolute: name it from / on")
    return os.path.normpath(given)


def path(bundle: str, given: str, name: str) -> str:
    """Where one is. Raises `InvalidArgumentError` for a name that would lead elsewhere, and as `parent` does."""
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
        known = _decoder.decode(_read(os.path.join(path, _DESCRIPTION)))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        known = _Description(name)
    return API.Checkpoint(name=name, tcp=known.tcp, shell=known.shell, unixSockets=known.unix_sockets)


def _read(path: str) -> bytes:
    """The beginning of a file; nothing of what is none, such as a fifo, which would be waited for. Anybody may have put
    it there.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(_MOST) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
