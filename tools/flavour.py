"""Which build this is, decided once for all that is compiled (setup.py, tools/build_proc.py).

Two things are open. *Portable*: by POSIX alone, elsewhere than on Linux always, on Linux when ``LIBCTRD_PORTABLE=1``.
*Limited*: against the limited API of CPython 3.11, so that one binary serves 3.11 and all later ones (abi3); wherever
Cython and Python can do that, unless ``LIBCTRD_LIMITED_API=0``.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

import Cython

ROOT = Path(__file__).resolve().parent.parent


def _switch(name: str) -> bool | None:
    """What the environment says: yes, no or nothing."""
    said = os.environ.get(name, "")
    if said not in ("", "0", "1"):
        sys.exit(f"{name}={said} is neither 0 nor 1: set it to one of them, or leave it out")
    return {"": None, "0": False, "1": True}[said]


def _can_be_limited() -> bool:
    """The buffer protocol came into the limited API with 3.11; Cython is up to it since 3.1. A Python without a GIL has
    no limited API before 3.15."""
    cython = tuple(map(int, re.findall(r"\d+", Cython.__version__)[:2]))
    gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
    return sys.implementation.name == "cpython" and gil and sys.version_info >= (3, 11) and cython >= (3, 1)


LINUX = sys.platform.startswith("linux")
PORTABLE = not LINUX or _switch("LIBCTRD_PORTABLE") is True
LIMITED = _can_be_limited() and _switch("LIBCTRD_LIMITED_API") is not False
if not LIMITED and _switch("LIBCTRD_LIMITED_API"):
    sys.exit(
        "LIBCTRD_LIMITED_API=1 takes CPython 3.11 and Cython 3.1 or newer: leave it out to build for this Python alone"
    )

NAME = f"{'portable' if PORTABLE else 'linux'}-{'abi3' if LIMITED else 'native'}"
BUILD = f"build/{NAME}"
"""The directory of this flavour alone: setuptools would take what it finds of another for its own."""

CFLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]
_MACROS: list[tuple[str, str | None]] = [("CTRD_PORTABLE", str(int(PORTABLE)))]
_LIBRARIES = ["pthread"]
if LINUX:
    _LIBRARIES.append("dl")  # glibc before 2.34 keeps dlsym there
if sys.platform.startswith("sunos"):
    # Before Python.h, for the first system header that is included decides what all of them show. `_XOPEN_SOURCE` is
    # set by Python.h itself, as Python was built. See pyx/illumos.md.
    _MACROS += [("__EXTENSIONS__", "1"), ("_POSIX_PTHREAD_SEMANTICS", "1")]
    _LIBRARIES += ["socket", "nsl"]


def common() -> dict[str, Any]:
    """What every module is compiled with: arguments of an ``Extension``."""
    headers = [*(ROOT / "pyx").glob("*.h"), ROOT / "pyx" / "proc.c"]
    return {
        "define_macros": _MACROS,
        "include_dirs": [str(ROOT / "pyx")],
        "extra_compile_args": CFLAGS,
        "libraries": _LIBRARIES,
        "depends": sorted(map(str, headers)),
    }
