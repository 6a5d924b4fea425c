"""Ids and process names: checked before they ever touch a path, a command line or a wire.

The rule is containerd's: letters and digits with single ``.``, ``_`` or ``-`` between, 76 characters at most.
"""

from __future__ import annotations

import os

from libctrd.errors import InvalidArgumentError

MAX_LENGTH = 76
_SEPARATORS = str.maketrans("._", "--")


def check(name: str, what: str = "container id") -> str:
    """Returns *name* when it may name a container or a process, raises `InvalidArgumentError` when not.

    *what* is the word that the error uses for it.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"a {what} is a str, not {type(name).__name__}")
    if len(name) > MAX_LENGTH:
        raise InvalidArgumentError(
            f"{what} {name[:24]!r}… has {len(name)} characters, {MAX_LENGTH} are allowed: choose a shorter one"
        )
    if not name.isascii() or not all(map(str.isalnum, name.translate(_SEPARATORS).split("-"))):
        raise InvalidArgumentError(
            f"{what} {name!r} is not valid: use ASCII letters and digits with single '.', '_' or '-' between them"
        )
    return name


def generate() -> str:
    """A fresh id that no other caller has: twelve hexadecimal digits, a letter first."""
    return "c" + os.urandom(6).hex()[1:]
