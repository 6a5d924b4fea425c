"""The local engine without root: what it can, and what is refused before anything is made.

The runtimes make a user namespace then; without privilege only this user is mapped into it, and with newuidmap(1) its
subordinate ids too (subuid(5)). There is no cgroup, for that would have to be delegated to this user: no limits, no
pause, no statistics. crun would start a container with limits and ignore them.
"""

from __future__ import annotations

from typing import Any, Final

from libctrd import subids
from libctrd.engine.base import Record, unsupported
from libctrd.errors import InvalidArgumentError

_LIMITS: Final = ("memory", "cpu", "pids", "blockIO", "hugepageLimits", "network", "rdma", "unified")
_HINT: Final = (
    "without root a container has no cgroup: run as root, or name one that was delegated to you (linux.cgroupsPath)"
)


def check(spec: dict[str, Any]) -> None:
    """Raises `UnsupportedError` for what cannot be had without root, and `InvalidArgumentError` for a spec without a
    user namespace, in which nothing could be started.
    """
    linux = spec.get("linux") or {}
    if not any(namespace.get("type") == "user" for namespace in linux.get("namespaces") or ()):
        raise InvalidArgumentError(
            "without root a container needs a user namespace: name one in linux.namespaces with its mappings, as "
            "spec.default() does for this user"
        )
    mappings = [*(linux.get("uidMappings") or ()), *(linux.get("gidMappings") or ())]
    if any(mapping.get("size") != 1 for mapping in mappings) or len(mappings) > 2:
        subids.require()
    if linux.get("cgroupsPath") is None:
        resources = linux.get("resources") or {}
        for limit in _LIMITS:
            if resources.get(limit):
                raise unsupported("local", f"limit {limit} (linux.resources.{limit})", _HINT)


def require_cgroup(record: Record, what: str) -> None:
    """Raises `UnsupportedError` when that container has none, so that it cannot be *what*, "paused" for one."""
    if not record.cgroup:
        raise unsupported("local", f"have container {record.id!r} {what}", _HINT)


def maps_of_shim() -> list[str]:
    """The shim's options for a user namespace of its own in which all ids that this user may map are."""
    if subids.missing():
        return []
    uids, gids = subids.identity()
    return ["--uid-map", uids, "--gid-map", gids]
