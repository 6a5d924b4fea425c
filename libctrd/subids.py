"""The subordinate ids of this user, and the programs that give them to a user namespace (newuidmap(1), subuid(5))."""

from __future__ import annotations

import contextlib
import os
from typing import Final, NamedTuple

from libctrd.errors import UnsupportedError

_PROGRAMS: Final = ("newuidmap", "newgidmap")
_FILES: Final = ("/etc/subuid", "/etc/subgid")
_WHERE: Final = "/usr/local/bin:/usr/bin:/bin"  # besides PATH


class Range(NamedTuple):
    """So many ids of the host, from *start* on."""

    start: int
    size: int


def ranges(file: str, uid: int) -> list[Range]:
    """Those that *file*, such as ``/etc/subuid``, gives the user *uid*, in its order; none without that file."""
    import pwd  # only without root

    names = {str(uid)}  # a user without a name may stand there by its number
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    found = []
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, *numbers = line.strip().split(":")
                if name in names and len(numbers) == 2 and all(n.isascii() and n.isdigit() for n in numbers):
                    found.append(Range(int(numbers[0]), int(numbers[1])))
    except OSError:
        return []
    return [given for given in found if given.size]


def missing() -> str:
    """What prevents this user from mapping more than itself; "" when nothing does."""
    places = os.environ.get("PATH", "").split(":") + _WHERE.split(":")
    for program in _PROGRAMS:
        if not any(place and os.access(os.path.join(place, program), os.X_OK) for place in places):
            return f"there is no {program}: install it (Debian: uidmap)"
    for file in _FILES:
        if not ranges(file, os.geteuid()):
            return (
                f"{file} gives no ids to user {os.geteuid()}: add a line for it (usermod --add-subuids, --add-subgids)"
            )
    return ""


def require() -> None:
    """Raises `UnsupportedError` that names what is missing."""
    if what := missing():
        raise UnsupportedError(f"more than one id cannot be mapped: {what}, or map only yourself")


def mappings(many: bool) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """``uidMappings`` and ``gidMappings`` of a spec: this user is root inside; with *many* its further ids follow."""
    return _mapped(os.geteuid(), _FILES[0], many), _mapped(os.getegid(), _FILES[1], many)


def _mapped(own: int, file: str, many: bool) -> list[dict[str, int]]:
    found = [{"containerID": 0, "hostID": own, "size": 1}]
    inside = 1
    for given in ranges(file, os.geteuid()) if many else ():
        found.append({"containerID": inside, "hostID": given.start, "size": given.size})
        inside += given.size
    return found


def identity() -> tuple[str, str]:
    """All that this user may map, as each id itself: the arguments of newuidmap and newgidmap behind the pid."""
    many = not missing()
    words = []
    for own, file in ((os.geteuid(), _FILES[0]), (os.getegid(), _FILES[1])):
        mine = [Range(own, 1), *(ranges(file, os.geteuid()) if many else ())]
        words.append(" ".join(f"{start} {start} {size}" for start, size in mine))
    return words[0], words[1]
