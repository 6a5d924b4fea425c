"""From an image's config to the spec of a container: its arguments, environment, directory and user.

The names of users and groups are those of the image's own ``/etc/passwd`` and ``/etc/group``, which are read from the
directories that a snapshot's mounts tell of: nothing is mounted and no symbolic link is followed. Source: OCI image
specification, config.md and conversion.md.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from libctrd import _xattr, spec
from libctrd.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.images.documents import Settings

STOP_SIGNAL_NOTE: Final = "org.opencontainers.image.stopSignal"
_MOST: Final = 1 << 20  # bytes of a passwd or group file
_ID_MAX: Final = 2**32 - 2


class Accounts(msgspec.Struct, frozen=True):
    """The users and groups of an image: the two files as text, ``None`` where it has none."""

    passwd: str | None = None
    group: str | None = None


Ask: TypeAlias = Callable[[], Accounts]


def to_spec(settings: Settings, args: Sequence[str] | None, accounts: Ask, image: str, **more: Any) -> dict[str, Any]:
    """The spec of a container of the image, whose root file system is a snapshot's: ``root.path`` is ``rootfs``.

    *args* take the place of the image's ``Cmd`` and come after its ``Entrypoint``. *more* is what
    `libctrd.spec.default` takes, and counts before the image's word; ``env`` is added to the image's, and ``user``
    may be a name. Raises `InvalidArgumentError` when neither the image nor *args* says what to run, or something of
    it cannot be, and `NotFoundError` for a user or group that the image does not have.
    """
    words = [*(settings.entrypoint or ()), *((settings.cmd or ()) if args is None else args)]
    if not words:
        raise InvalidArgumentError(f"image {image} does not say what to run: give the program and its arguments")
    env: dict[str, str] = {}
    for entry in settings.env or ():
        name, equals, value = entry.partition("=")
        if equals and name:  # Docker writes a variable without a value where it was unset at the build
            env[name] = value
    env |= _variables(more.pop("env", None))
    more.setdefault("cwd", settings.working_dir or "/")
    user = more.pop("user", None)
    if user is None:
        user = settings.user or ""
    if isinstance(user, str):
        uid, gid, gids = resolve(user, accounts, image)
        rootless = more.get("rootless")
        # Without root on the host there is one group and no way to set others.
        user = (uid, gid, [] if rootless or (rootless is None and os.geteuid() != 0) else gids)
    made = spec.default(words, "rootfs", env=env, user=user, **more)
    made["root"]["path"] = "rootfs"
    if settings.stop_signal:
        made.setdefault("annotations", {})[STOP_SIGNAL_NOTE] = settings.stop_signal
    return made


def _variables(env: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    from libctrd._spec_parse import parse_env

    return {} if env is None else parse_env(env)


def resolve(user: str, accounts: Ask, image: str) -> tuple[int, int, list[int]]:
    """The uid, gid and additional gids for *user*: "", ``NAME``, ``UID``, each with ``:GROUP`` or ``:GID`` or without.

    As Docker does it: without a group it is the user's own of passwd (0 for a uid that is not in there). The group
    itself is the first of the additional ones, since a process could otherwise drop it and get past a file's "not for
    this group"; with it come those that list the user, as long as no group was given. Raises `NotFoundError` for a name
    that is not there, `UnsupportedError` when the image's files cannot be read from here and a name needs them.
    """
    name, colon, group = user.partition(":")
    if colon and not group:
        raise InvalidArgumentError(f"user {user!r} of image {image} is not valid: use NAME, UID, NAME:GROUP or UID:GID")
    needed = not _number(name or "0") or bool(group and not _number(group))
    try:
        known = accounts()
    except (OSError, UnsupportedError) as error:
        if needed and (name, group) != ("root", ""):
            raise UnsupportedError(
                f"could not look up user {user!r} in image {image}: its files cannot be read from here ({error}): give "
                f"numbers, UID:GID"
            ) from error
        known = Accounts()
        name = "0" if name == "root" else name
    uid, gid, login = _find_user(name or "0", known, image)
    if group:
        gid = _find_group(group, known, image)
        return uid, gid, [gid]
    more = [number for _, number, members in _groups(known) if login and login in members and number != gid]
    return uid, gid, [gid, *more]


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_MAX


def _users(known: Accounts) -> Iterable[tuple[str, int, int]]:
    for line in (known.passwd or "").splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and _number(fields[2]) and _number(fields[3]):
            yield fields[0], int(fields[2]), int(fields[3])


def _groups(known: Accounts) -> Iterable[tuple[str, int, list[str]]]:
    for line in (known.group or "").splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and _number(fields[2]):
            yield fields[0], int(fields[2]), [m.strip() for m in fields[3].split(",")] if len(fields) > 3 else []


def _find_user(name: str, known: Accounts, image: str) -> tuple[int, int, str]:
    for login, uid, gid in _users(known):
        if login == name or (_number(name) and int(name) == uid):
            return uid, gid, login
    if _number(name):
        return int(name), 0, "root" if int(name) == 0 else ""
    raise NotFoundError(f"user {name!r} is not in /etc/passwd of image {image}")


def _find_group(name: str, known: Accounts, image: str) -> int:
    for group, gid, _ in _groups(known):
        if group == name or (_number(name) and int(name) == gid):
            return gid
    if _number(name):
        return int(name)
    raise NotFoundError(f"group {name!r} is not in /etc/group of image {image}")


# ---- the image's own files -------------------------------------------------------------------------------------------


def accounts_in(mounts: Sequence[Any]) -> Accounts:
    """The users and groups of the root file system that *mounts*, a snapshot's, would make.

    Raises `UnsupportedError` when it is made of more than directories (a block device, say), or these cannot be seen
    from here, as when the daemon is in a mount namespace of its own.
    """
    tops = _directories(mounts)
    return Accounts(_first(tops, "passwd"), _first(tops, "group"))


def _directories(mounts: Sequence[Any]) -> list[str]:
    """The directories that lie on each other, the uppermost first."""
    if len(mounts) == 1 and mounts[0].type in ("bind", "rbind"):
        tops = [mounts[0].source]
    elif len(mounts) == 1 and mounts[0].type == "overlay":
        values = dict(option.partition("=")[::2] for option in mounts[0].options)
        tops = ([values["upperdir"]] if "upperdir" in values else []) + values.get("lowerdir", "").split(":")
    else:
        raise UnsupportedError(f"a root file system of {[mount.type for mount in mounts]} is not made of directories")
    for top in tops:
        if not os.path.isdir(top):
            raise UnsupportedError(f"there is no directory {top!r} here")
    return tops


def _first(tops: Sequence[str], name: str) -> str | None:
    """The uppermost ``/etc/NAME`` of an overlay of *tops*; one that a higher layer has removed is not there."""
    for top in tops:
        found = _in(top, name)
        if found is not None:
            return found or None
    return None


def _in(top: str, name: str) -> str | None:
    """``etc/NAME`` below *top*: its text, "" for "removed", ``None`` to look further down.

    Each step is opened by itself and follows no link, so that an image cannot have us read a file of the host.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    directory = os.open(top, flags | os.O_DIRECTORY)
    try:
        try:
            status = os.stat("etc", dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(status.st_mode):  # a whiteout, or something that is no directory: nothing shines through
            return ""
        etc = os.open("etc", flags | os.O_DIRECTORY, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        opaque = _is_opaque(etc)
        try:
            fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=etc)
        except FileNotFoundError:
            return "" if opaque else None
        except OSError as error:  # a link, or a whiteout's device without a driver
            status = os.stat(name, dir_fd=etc, follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode):
                return ""
            raise UnsupportedError(f"/etc/{name} is no regular file") from error
    finally:
        os.close(etc)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_MOST).decode("utf-8", "surrogateescape")


def _is_opaque(directory: int) -> bool:
    """Whether an overlay directory hides those below it (Documentation/filesystems/overlayfs.rst)."""
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if _xattr.get(directory, name) == b"y":
                return True
        except OSError:  # not ours to read
            continue
    return False
