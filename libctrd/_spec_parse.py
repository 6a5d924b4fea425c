"""Short texts of people, turned into pieces of a spec: sizes, users, mounts and the environment.

What it is not: it reads no user database and no file; a name is never looked up, and nothing here touches the
host apart from asking for the working directory when a mount's source is relative.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from libctrd.errors import InvalidArgumentError

User: TypeAlias = str | int | Sequence[Any]
Mount: TypeAlias = dict[str, Any]

ID_MAX: Final = 2**32 - 2  # the last number is "no one" to the kernel (chown(2), setresuid(2): -1)
SIZE_MAX: Final = 2**63 - 1

# Compiled when first used: most containers need neither, and to compile one takes as long as to import a module.
_SIZE: Final = r"([0-9]{1,19})(?:\.([0-9]{1,19}))?\s*(?:([kmgtp])i?)?b?\Z"
_ID: Final = r"[0-9]{1,10}\Z"
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}
_PROPAGATION: Final = ("rprivate", "private", "rshared", "shared", "rslave", "slave")
_MOUNT_KEYS: Final = {
    "type": "type",
    "source": "source",
    "src": "source",
    "target": "target",
    "destination": "target",
    "dst": "target",
    "readonly": "readonly",
    "ro": "readonly",
    "options": "options",
    "bind-propagation": "bind-propagation",
    "bind-nonrecursive": "bind-nonrecursive",
    "tmpfs-size": "tmpfs-size",
    "tmpfs-mode": "tmpfs-mode",
}
_FLAGS: Final = ("readonly", "bind-nonrecursive")


def parse_size(text: str | int) -> int:
    """The number of bytes that *text* stands for: ``"1024"``, ``"64m"``, ``"1.5g"``, ``"2GiB"``, or an int of
    bytes.

    Units are powers of 1024 (k, m, g, t, p) in either case, and a fraction of a byte is dropped. The result
    is at least 0 and fits a signed 64-bit number, else, or when *text* is something else,
    `InvalidArgumentError`.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        found = re.match(_SIZE, text.strip(), re.IGNORECASE) if isinstance(text, str) else None
        if found is None:
            raise InvalidArgumentError(f"size {text!r} is not valid: use bytes or a unit, like 1024, 64m or 1.5g")
        whole, fraction, unit = found.group(1), found.group(2) or "", (found.group(3) or "").lower()
        size = int(whole + fraction) * 1024 ** " kmgtp".index(unit or " ") // 10 ** len(fraction)
    if not 0 <= size <= SIZE_MAX:
        raise InvalidArgumentError(f"size {text!r} is not valid: it must lie between 0 and {SIZE_MAX} bytes")
    return size


def parse_user(user: User) -> dict[str, Any]:
    """The ``process.user`` object for *user*: ``"UID"``, ``"UID:GID"``, a uid, or ``(uid, gid[, additional
    gids])``.

    All are ids inside of the container. A gid that is not given is 0, as with the OCI runtimes' own
    ``--user``. Names are refused with `InvalidArgumentError`: only the container's ``/etc/passwd`` could tell
    what they mean.
    """
    if isinstance(user, str):
        uid, colon, gid = user.partition(":")
        if not re.match(_ID, uid) or (colon and not re.match(_ID, gid)):
            raise InvalidArgumentError(
                f"user {user!r} is not valid: use numbers, UID or UID:GID (names are not looked up)"
            )
        return {"uid": _id(int(uid), user), "gid": _id(int(gid or 0), user)}
    if isinstance(user, int):
        return {"uid": _id(user, user), "gid": 0}
    if not isinstance(user, Sequence) or isinstance(user, (bytes, bytearray)) or not 2 <= len(user) <= 3:
        raise InvalidArgumentError(
            f"user {user!r} is not valid: use 'UID[:GID]', a uid or (uid, gid[, additional gids])"
        )
    parsed: dict[str, Any] = {"uid": _id(user[0], user), "gid": _id(user[1], user)}
    if len(user) == 3:
        more = user[2]
        if not isinstance(more, Iterable) or isinstance(more, (str, bytes, bytearray)):
            raise InvalidArgumentError(f"user {user!r} is not valid: its third part is a list of additional gids")
        parsed["additionalGids"] = [_id(gid, user) for gid in more]
    return parsed


def _id(number: object, user: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= ID_MAX:
        raise InvalidArgumentError(f"user {user!r} is not valid: {number!r} is no id between 0 and {ID_MAX}")
    return int(number)


def parse_env(env: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """The variables of *env*, a mapping or ``NAME=value`` texts (the last of a name counts), in their order.

    `InvalidArgumentError` for anything else, for an empty name and for a name with ``=`` in it.
    """
    if isinstance(env, Mapping):
        pairs = list(env.items())
    elif isinstance(env, Iterable) and not isinstance(env, (str, bytes, bytearray)):
        pairs = []
        for entry in env:
            if not isinstance(entry, str) or "=" not in entry:
                raise InvalidArgumentError(f"environment entry {entry!r} is not valid: use NAME=value")
            name, _, value = entry.partition("=")
            pairs.append((name, value))
    else:
        raise InvalidArgumentError(f"an environment is a mapping or a list of NAME=value, not {env!r}")
    variables: dict[str, str] = {}
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidArgumentError(f"environment variable {name!r} is not valid: its name and value are str")
        if not name or "=" in name:
            raise InvalidArgumentError(
                f"environment variable {name!r} is not valid: a name is not empty and has no '='"
            )
        variables[name] = value
    return variables


def parse_mount(text: str) -> Mount:
    """The OCI mount object for *text*, in the syntax that people know from ``docker run --mount``.

    ``type=bind,source=/a,target=/b,ro``: keys are ``type`` (``bind`` when not given, ``tmpfs``, or the name
    of a file system), ``source``/``src`` (a relative one is taken from the working directory now),
    ``target``/``dst``/ ``destination``, ``readonly``/``ro`` (alone, or ``=true``/``=false``), ``options=a:b``
    (mount options as they are), ``bind-propagation``, ``bind-nonrecursive``, ``tmpfs-size`` (see
    `parse_size`) and ``tmpfs-mode`` (octal). A part with a comma in it is quoted: ``"source=/a,b"``.
    `InvalidArgumentError` for anything else.
    """
    given = _mount_parts(text)

    def refuse(reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"mount {text!r} is not valid: {reason}")

    kind = given.get("type", "bind")
    target = given.get("target", "")
    if not target.startswith("/"):
        raise refuse("it needs a target, an absolute path in the container (target=/path)")
    if kind in ("", "volume"):
        raise refuse("its type is bind, tmpfs or a file system's name; there are no named volumes")
    for key in given:
        if key.partition("-")[0] in ("bind", "tmpfs") and key.partition("-")[0] != kind:
            raise refuse(f"{key} is for type={key.partition('-')[0]} only")
    options: list[str] = []
    if kind == "bind":
        if not given.get("source"):
            raise refuse("a bind mount needs a source, a path on the host (source=/path)")
        source = os.path.abspath(given["source"])
        propagation = given.get("bind-propagation", "rprivate")
        if propagation not in _PROPAGATION:
            raise refuse(f"bind-propagation is one of {', '.join(_PROPAGATION)}")
        options += ["bind" if _truth(given.get("bind-nonrecursive", "0"), refuse) else "rbind", propagation]
    elif kind == "tmpfs":
        if "source" in given:
            raise refuse("a tmpfs has no source")
        source = "tmpfs"
        options += ["nosuid", "nodev", "noexec"]
        if "tmpfs-size" in given:
            options.append(f"size={parse_size(given['tmpfs-size'])}")
        if "tmpfs-mode" in given:
            if not re.match(r"[0-7]{1,5}\Z", given["tmpfs-mode"]):
                raise refuse("tmpfs-mode is an octal number like 1777")
            options.append(f"mode={given['tmpfs-mode']}")
    else:
        source = given.get("source", kind)
    if _truth(given.get("readonly", "0"), refuse):
        options.append("ro")
    options += [option for option in given.get("options", "").split(":") if option]
    return {"destination": target, "type": kind, "source": source, "options": options}


def _truth(text: str, refuse: Any) -> bool:
    if text.lower() not in _TRUTH:
        raise refuse(f"{text!r} is not true or false")
    return _TRUTH[text.lower()]


def _mount_parts(text: str) -> dict[str, str]:
    """Splits *text* into its parts, by their one name each."""
    import csv  # only the command line comes here

    if not isinstance(text, str) or "\0" in text or "\n" in text or "\r" in text:
        raise InvalidArgumentError(f"mount {text!r} is not valid: use one line like type=bind,source=/a,target=/b,ro")
    try:
        parts = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise InvalidArgumentError(f"mount {text!r} is not valid: {error}") from error
    given: dict[str, str] = {}
    for part in parts:
        word, equals, value = part.partition("=")
        key = _MOUNT_KEYS.get(word.strip())
        if key is None:
            raise InvalidArgumentError(f"mount {text!r} is not valid: {word!r} is none of {', '.join(_MOUNT_KEYS)}")
        if key in given:
            raise InvalidArgumentError(f"mount {text!r} is not valid: {key} is given twice")
        if not equals and key not in _FLAGS:
            raise InvalidArgumentError(f"mount {text!r} is not valid: {key} needs a value ({key}=…)")
        given[key] = value if equals else "true"
    return given
