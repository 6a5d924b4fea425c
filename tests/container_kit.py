"""What the tests with whole containers share: programs whose every byte and exit is known, looks at what there is."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from typing import Any, NamedTuple

import psutil
from engine_kit import leftovers
from fifo_kit import open_files, until
from hypothesis import strategies as st

import libctrd

WAIT = 60.0  # seconds; nothing that works takes so long


class Program(NamedTuple):
    """A shell script that writes *out* and *err* and then does one thing more.

    ``exit``: it ends. ``cat``: it copies its stdin to stdout until that ends. ``trap``: it ends on SIGTERM, and ignores
    it never: the trap is set before the first byte is written.
    """

    out: bytes
    err: bytes
    code: int
    then: str

    @property
    def script(self) -> str:
        last = {
            "exit": f"exit {self.code}",
            "cat": f"cat; exit {self.code}",
            "trap": "sleep 1000 & wait",
        }
        first = f"trap 'exit {self.code}' TERM; " if self.then == "trap" else ""
        return f"{first}printf '{_octal(self.out)}'; printf '{_octal(self.err)}' >&2; {last[self.then]}"


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def programs(*then: str) -> st.SearchStrategy[Program]:
    """Programs that end in one of these ways, with any bytes and any exit code."""
    return st.builds(
        Program, st.binary(min_size=1, max_size=300), st.binary(max_size=60), codes(), st.sampled_from(then)
    )


def codes() -> st.SearchStrategy[int]:
    """Exit codes; the small, the large and those that look like signals are all there."""
    return st.integers(0, 255)


def spec_of(script: str, rootfs: str, **settings: Any) -> dict[str, Any]:
    return libctrd.spec.default(["/bin/sh", "-c", script], rootfs, **settings)


def shims(state: str, id: str | None = None) -> list[int]:
    """The pids of the shims of the containers of *state*, or of one of them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = words_of(int(pid))
        program = next((word for word in words[:2] if word.endswith("ctrd-shim")), "")  # the second, for an emulator
        if program and "--state" in words:
            where = words[words.index("--state") + 1]
            if os.path.dirname(where) == state and id in (None, os.path.basename(where)):
                found.append(int(pid))
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process; one that has ended has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def kill_shim(state: str, id: str) -> None:
    """Kills the shim of a container; returns when it is no more than a zombie.

    While it starts something, a child of it looks the same until it has executed that: the one that is nobody's child.
    """
    found = shims(state, id)
    (pid,) = (pid for pid in found if psutil.Process(pid).ppid() not in found)
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in shims(state, id), "the end of a shim")


def nothing_left(state: str) -> None:
    """Fails when there still is anything of any container of *state*; processes that end have a moment for it."""
    until(lambda: not any(leftovers(state).values()), f"nothing left: {leftovers(state)}")


def zombies() -> list[psutil.Process]:
    """Children of this process that ended and were not reaped."""
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def descriptors() -> list[str]:
    """What this process has open, without what libctrd keeps once for all; what is garbage is collected first."""
    gc.collect()
    return open_files()


def as_before(before: list[str]) -> None:
    """Fails when more descriptors are open than *before*, or a child has ended and is not reaped."""
    gc.collect()
    more: Counter[str] = Counter()

    def none() -> bool:
        more.clear()
        more.update(Counter(open_files()) - Counter(before))
        return not more

    try:
        until(none)
    except AssertionError:
        raise AssertionError(f"still open: {dict(more)}") from None
    until(lambda: not zombies(), "no zombie")
