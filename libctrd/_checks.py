"""How the process helpers check what they are given and word what the system answers.

Private to `libctrd.proc` and the modules behind it. Everything here raises an error of the family or nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from libctrd._proc import lib
from libctrd.errors import InvalidArgumentError, UnsupportedError, from_errno, from_os_error

INT_MAX = 2**31 - 1

PORTABLE: Final = bool(lib.CTRD_PORTABLE)
"""Is what is compiled the build by POSIX alone? Elsewhere than on Linux it always is."""
LINUX: Final = sys.platform.startswith("linux") and not PORTABLE
"""May Linux's own calls and files be used? Else what POSIX has must do."""
ILLUMOS: Final = sys.platform.startswith("sunos")
"""Solaris and illumos."""
RUN: Final = "/var/run" if ILLUMOS else "/run"
"""Where root's programs keep what goes with the next boot."""


def system() -> str:
    """The name and release of the system, for an error that says what it cannot do."""
    about = os.uname()
    build = "the portable build of libctrd, on " if PORTABLE and sys.platform.startswith("linux") else ""
    return f"{build}{about.sysname} {about.release}"


def needs_linux(what: str) -> None:
    """Raises `UnsupportedError` with both names where *what* cannot be done."""
    if not LINUX:
        raise UnsupportedError(f"{what} needs Linux; this is {system()}")


def pid_of(value: int) -> int:
    """*value* when it can be the id of one process; 0 and below would mean process groups, or everybody."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= INT_MAX:
        raise InvalidArgumentError(f"{short(value)} is no process id: use an int from 1 on")
    return value


def fd_of(value: int) -> int:
    """*value* when it can be a descriptor."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < INT_MAX:
        raise InvalidArgumentError(f"{short(value)} is no descriptor: use an int from 0 on")
    return value


def seconds_of(value: float | None, what: str) -> float | None:
    """*value* when it can be a time limit: a number of seconds from 0 on, or ``None`` for no limit."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < INT_MAX):
        return value
    raise InvalidArgumentError(f"{what} is {short(value)}: give seconds from 0 on, or None for no limit")


def descriptors_left(count: int, tried: str) -> None:
    """That *count* more descriptors can be opened. Raises `UnavailableError` with what was *tried* otherwise."""
    held: list[int] = []
    try:
        for _ in range(count):
            held.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise from_os_error(error, tried) from error
    finally:
        for fd in held:
            os.close(fd)


def terminal_size(width: int, height: int) -> None:
    """That *width* and *height* are a size, in characters, that a terminal can have."""
    if not all(type(size) is int and 0 < size < 65536 for size in (width, height)):
        raise InvalidArgumentError(
            f"a terminal of {short(width)} x {short(height)} characters cannot be: give whole numbers, 1 to 65535"
        )


def bytes_of(value: str | os.PathLike[str], what: str) -> bytes:
    """*value* as a C string can hold it; *what* is the word for it in the error."""
    try:
        text = os.fsencode(value)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidArgumentError(f"{what} is {short(value)}: use a str or a path") from error
    if b"\0" in text:
        raise InvalidArgumentError(f"{what} is {short(value)}: it may not have a NUL in it")
    return text


def short(value: object) -> str:
    """*value* for an error, 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def one_line(text: str) -> str:
    """What another program has said, for an error: its beginning and its end, in one line that no terminal obeys."""
    words = "; ".join(filter(None, map(str.strip, text.splitlines())))
    words = "".join(char if char.isprintable() else "?" for char in words)
    return words if len(words) <= 600 else f"{words[:300]} … {words[-297:]}"


def advice(error: int | None, since: str = "") -> str:
    """What to add for an errno of a call on a process that Linux has since *since*; empty: the usual."""
    if error == errno.ESRCH:
        return "it has ended"
    return f"needs Linux {since}; this is {system()}" if error == errno.ENOSYS and since else ""


def check(error: int, tried: str, since: str = "") -> None:
    """Raises the error of the family for an errno that is not 0."""
    if error:
        raise from_errno(error, tried, advice(error, since))
