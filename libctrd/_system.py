"""What the code has to know of the system it runs on, and of the build it runs with (C27)."""

from __future__ import annotations

import os
import sys
from typing import Final

from libctrd._proc import lib
from libctrd.errors import UnsupportedError

PORTABLE: Final = bool(lib.CTRD_PORTABLE)
"""Is what is compiled the build by POSIX alone? Elsewhere than on Linux it always is."""
LINUX: Final = sys.platform.startswith("linux") and not PORTABLE
"""May Linux's own calls and files be used? Else what POSIX has must do."""
ILLUMOS: Final = sys.platform.startswith("sunos")
"""Solaris and illumos."""
RUN: Final = "/var/run" if ILLUMOS else "/run"
"""Where root's programs keep what goes with the next boot."""


def name() -> str:
    """The name and release of the system, for an error that says what it cannot do."""
    about = os.uname()
    build = "the portable build of libctrd, on " if PORTABLE and sys.platform.startswith("linux") else ""
    return f"{build}{about.sysname} {about.release}"


def needs_linux(what: str) -> None:
    """Raises `UnsupportedError` with both names where *what* cannot be done."""
    if not LINUX:
        raise UnsupportedError(f"{what} needs Linux; this is {name()}")
