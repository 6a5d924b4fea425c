"""Specs: the plain OCI runtime-spec dicts (version 1.x) that say what a container is.

Here they are made (`default`), read (`load`), checked (`validate`, `check_rootfs`), asked (`host_root`,
`own_namespace`) and written (`encode`). A spec stays the caller's own dict all the way: fields that libctrd
does not know go through untouched, and nothing here keeps or changes what it was given. What it is not: an
engine; no spec is read back here once a container was started from it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from libctrd._spec_default import absolute_source, default, real_path
from libctrd._spec_exec import further
from libctrd._spec_json import encode, kind
from libctrd._spec_parse import parse_mount, parse_size, parse_user
from libctrd.errors import InvalidArgumentError, from_os_error

__all__ = [
    "CONFIG",
    "Spec",
    "check_resources",
    "check_rootfs",
    "default",
    "encode",
    "further",
    "host_root",
    "load",
    "own_namespace",
    "parse_mount",
    "parse_size",
    "parse_user",
    "resolve",
    "validate",
]

if TYPE_CHECKING:
    from libctrd._spec_check import validate

Spec: TypeAlias = dict[str, Any]
CONFIG: Final = "config.json"  # the spec's name in a bundle (OCI bundle.md)


def __getattr__(name: str) -> Any:
    # The schema, and msgspec with it, costs more to import than all else here: who only hands specs on does
    # not pay for it.
    if name == "validate":
        from libctrd._spec_check import validate

        globals()[name] = validate
        return validate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(path: str | os.PathLike[str]) -> Spec:
    """The spec in *path*, a bundle's directory or a ``config.json`` itself, as it stands there (C4).

    Relative paths in it stay relative; `resolve` makes them absolute. Nothing is checked but that it is one
    JSON object; `validate` checks the rest. Raises `NotFoundError` when there is none, `InvalidArgumentError`
    when it is not a regular file or not JSON (with the line and column), `UnavailableError` when it cannot be
    read.
    """
    import msgspec

    name = os.fspath(path)
    if not isinstance(name, str) or "\0" in name:
        raise InvalidArgumentError(f"the path of a spec is a str without NUL, not {name!r}")
    if os.path.isdir(name):
        name = os.path.join(name, CONFIG)
    try:
        # Nonblocking, so that a fifo at that place is an error and not a wait.
        with open(name, "rb", opener=_open_nonblocking) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgumentError(f"spec {name!r} is not a regular file")
            text = file.read()
    except OSError as error:
        hint = "give a bundle's directory with a config.json, or a spec's own path" if not os.path.exists(name) else ""
        raise from_os_error(error, f"read spec {name!r} (open)", hint) from error
    try:
        spec = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"spec {name!r} is not JSON: {_place(text, error)}") from error
    except RecursionError as error:
        raise InvalidArgumentError(f"spec {name!r} is nested too deeply to be a spec") from error
    if not isinstance(spec, dict):
        raise InvalidArgumentError(f"spec {name!r} is not a JSON object: it holds {kind(spec)}")
    return spec


def _open_nonblocking(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _place(text: bytes, error: Exception) -> str:
    """What *error* says, with the line and column instead of a byte's number."""
    try:  # versions of msgspec differ in what they say of that, and in where
        text.decode()
    except UnicodeDecodeError as whole:
        line = text.count(b"\n", 0, whole.start) + 1
        return f"line {line}: not UTF-8 ({whole.reason})"
    message = str(error).removeprefix("JSON is malformed: ")
    found = re.search(r" \(byte (\d+)\)\Z", message)
    at = int(found.group(1)) if found else len(text)
    line = text.count(b"\n", 0, at) + 1
    column = len(text[text.rfind(b"\n", 0, at) + 1 : at].decode(errors="replace")) + 1
    return f"line {line}, column {column}: {message[: found.start()] if found else message}"


def resolve(spec: Spec, bundle: str | os.PathLike[str]) -> Spec:
    """*spec* with ``root.path`` and the relative sources of bind mounts made absolute, below *bundle*.

    Symbolic links in ``root.path`` are followed: runc refuses it with one, and crun does not.
    What has to change is copied and the caller's dict stays as it is; the rest is shared with it (all of it,
    when nothing has to change). Source: OCI runtime specification, config.md: both are relative to the
    bundle.
    """
    base = os.path.abspath(os.fspath(bundle))
    changed: Spec = {}
    root, mounts = spec.get("root"), spec.get("mounts")
    if isinstance(root, dict):
        path = root.get("path")
        if isinstance(path, str) and path and (real := real_path(os.path.join(base, path))) != path:
            changed["root"] = {**root, "path": real}
    if isinstance(mounts, (list, tuple)):
        resolved = [absolute_source(mount, base) if isinstance(mount, dict) else mount for mount in mounts]
        if any(new is not old for new, old in zip(resolved, mounts, strict=True)):
            changed["mounts"] = resolved
    return {**spec, **changed} if changed else spec


def check_rootfs(spec: Spec) -> None:
    """That ``root.path`` is a directory, which `validate` does not look for: a relative one is taken from
    here.

    Raises `NotFoundError` when there is nothing, `InvalidArgumentError` when it is not a directory or not
    given, `UnavailableError` when it may not be looked at.
    """
    root = spec.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgumentError(f"root.path {path!r} of the spec is not a path", faults=("root.path: not a path",))
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise from_os_error(error, f"use root.path {path!r} of the spec as the root file system (stat)") from error
    if not stat.S_ISDIR(mode):
        raise InvalidArgumentError(
            f"root.path {path!r} of the spec is not a directory: give the directory of a root file system",
            faults=("root.path: not a directory",),
        )


def check_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """*resources* as a dict, once it is sure that it could stand as ``linux.resources`` in a spec.

    Raises `InvalidArgumentError` when it could not, or says nothing.
    """
    if not isinstance(resources, Mapping) or not resources:
        raise InvalidArgumentError(f"resources {resources!r} is no mapping of limits, like {{'pids': {{'limit': 10}}}}")
    changed = dict(resources)
    probe = default(["-"], "/", rootless=False)
    __getattr__("validate")({**probe, "linux": {**probe["linux"], "resources": changed}})
    return changed


def host_root(spec: Spec) -> tuple[int, int]:
    """The uid and gid that root of the container has on the host (C19).

    Each is where the first mapping that holds the container's id 0 leads to, and 0 when there is none, or no
    user namespace for the mappings to be of. *spec* should be valid; what is malformed in it counts as not
    there.
    """
    linux = spec.get("linux")
    if not isinstance(linux, dict) or _namespace(linux, "user") is None:
        return 0, 0
    return _host_id(linux.get("uidMappings")), _host_id(linux.get("gidMappings"))


def _host_id(mappings: Any) -> int:
    for mapping in mappings if isinstance(mappings, (list, tuple)) else ():
        if not isinstance(mapping, dict):
            continue
        inside, outside, size = (mapping.get(key) for key in ("containerID", "hostID", "size"))
        if inside == 0 and isinstance(outside, int) and isinstance(size, int) and size > 0:
            return outside
    return 0


def own_namespace(spec: Spec, name: str) -> bool:
    """Whether the container gets a fresh namespace of type *name* (``"pid"``, ``"network"``, …): listed,
    without a path."""
    linux = spec.get("linux")
    listed = _namespace(linux, name) if isinstance(linux, dict) else None
    return listed is not None and not listed.get("path")


def _namespace(linux: dict[str, Any], name: str) -> dict[str, Any] | None:
    namespaces = linux.get("namespaces")
    for namespace in namespaces if isinstance(namespaces, (list, tuple)) else ():
        if isinstance(namespace, dict) and namespace.get("type") == name:
            return namespace
    return None
