"""The process settings of a further process in a container: the container's own, with what its caller says over them.

Which of them count is the contract's row C21; where it names the container's, the caller's count when they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from libctrd._spec_parse import User, parse_env, parse_user
from libctrd.errors import InvalidArgumentError


def further(
    spec: Mapping[str, Any],
    args: Sequence[str],
    *,
    terminal: bool = False,
    env: Mapping[str, str] | Iterable[str] | None = None,
    cwd: str | None = None,
    user: User | None = None,
    capabilities: Sequence[str] | None = None,
    rlimits: Sequence[Mapping[str, Any]] | None = None,
    apparmor: str | None = None,
    selinux: str | None = None,
    no_new_privileges: bool | None = None,
) -> dict[str, Any]:
    """The OCI ``process`` of a further process in the container of *spec* (C21).

    *args* and *terminal* are always the caller's. *env* replaces the container's when it is not empty; *cwd*, *user*
    (uid, gid and additional gids together) and *capabilities* (names, for the bounding, effective, inheritable and
    permitted set) replace it when given, and so do *rlimits* (OCI objects), *apparmor*, *selinux* and
    *no_new_privileges*. Raises `InvalidArgumentError` when something cannot be.
    """
    from libctrd._spec_check import validate

    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise InvalidArgumentError(f"args is a list of the program and its arguments, like [{args!r}]")
    own = spec.get("process")
    process = dict(own) if isinstance(own, Mapping) else {"cwd": "/", "user": {"uid": 0, "gid": 0}}
    process.pop("consoleSize", None)  # of another terminal
    process.update(args=list(args), terminal=terminal)
    variables = parse_env(env) if env is not None else {}
    if variables:
        process["env"] = [f"{name}={value}" for name, value in variables.items()]
    if cwd is not None:
        process["cwd"] = cwd
    if user is not None:
        process["user"] = parse_user(user)
    if capabilities is not None:
        names = list(capabilities)
        process["capabilities"] = {kind: list(names) for kind in ("bounding", "effective", "inheritable", "permitted")}
    given = {
        "rlimits": [dict(limit) for limit in rlimits] if rlimits is not None else None,
        "apparmorProfile": apparmor,
        "selinuxLabel": selinux,
        "noNewPrivileges": no_new_privileges,
    }
    process.update({name: value for name, value in given.items() if value is not None})
    validate({**spec, "process": process})
    return process
