"""What the tests of bad input and of the field share: a census before and after, processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_kit import leftovers

from libctrd.errors import CtrdError

WAIT = 60.0  # seconds; nothing that works takes so long
Make = Callable[..., dict[str, Any]]


def until(what: Callable[[], Any], seconds: float = WAIT) -> None:
    """Polls for what nothing announces, with a deadline."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def census() -> dict[str, list[str]]:
    """What this process holds: descriptors and what they lead to, threads, and children, zombies too."""
    fds = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of listdir itself
            fds.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    children = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            children += file.read().split()
    threads = sorted(thread.name for thread in threading.enumerate())
    return {"fds": sorted(fds), "children": sorted(children), "threads": threads}


def more_than(before: dict[str, list[str]]) -> dict[str, list[str]]:
    """What this process holds that it did not hold *before*; what ends by itself meanwhile does not matter."""
    now = census()
    return {what: more for what in now if (more := sorted(set(now[what]) - set(before[what])))}


@contextlib.contextmanager
def refused(kind: type[CtrdError], *words: str, state: str | None = None) -> Iterator[None]:
    """The block raises an error of *kind* in one line with all *words* in it, and leaves nothing, nowhere.

    *state* is the state directory, in which no container may be by then: no file, process, mount or cgroup.
    """
    before = census()
    # Caught by hand: what pytest keeps of an exception would keep alive what the frames of its traceback hold.
    problem: BaseException | None = None
    try:
        yield
    except CtrdError as error:
        problem = error.with_traceback(None)
        problem.__context__ = None
    assert problem is not None, f"nothing was raised, where {kind.__name__} should be"
    assert isinstance(problem, kind), repr(problem)
    text = str(problem)
    assert text, repr(problem)
    assert "\n" not in text, f"more than one line: {text!r}"
    assert len(text) < 1000, f"too long to be read: {text!r}"
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    del problem
    end = time.monotonic() + 5  # what an engine writes down in the background is open for a moment; a leak stays
    while (more := more_than(before)) and time.monotonic() < end:
        time.sleep(0.01)
    assert more == {}
    if state is not None:
        assert nothing_in(state)


def nothing_in(state: str) -> bool:
    """No file, process, mount or cgroup of containers of that state directory is there now."""
    left = {what: found for what, found in leftovers(state).items() if found}
    assert not left
    return True


def python(script: str, *arguments: str, **how: Any) -> subprocess.Popen[str]:
    """A Python of its own that runs *script*; what it prints can be read from ``stdout``."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        **{"stdout": subprocess.PIPE, "text": True, **how},
    )


def said(process: subprocess.Popen[str]) -> str:
    """The next line that *process* says."""
    assert process.stdout is not None
    return process.stdout.readline().removesuffix("\n")


def killed(process: subprocess.Popen[str]) -> None:
    """Ends a client the hard way: it gets no chance to tidy up."""
    process.send_signal(signal.SIGKILL)
    assert process.wait(WAIT) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()


def output_of(script: str, *arguments: str, **how: Any) -> str:
    """All that a Python of its own printed, which ended well."""
    process = python(script, *arguments, stderr=subprocess.PIPE, **how)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    return out


@contextlib.contextmanager
def small_disk(where: Path, options: str) -> Iterator[str]:
    """A tmpfs with those mount *options*; a full disk to be had in no time."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True)
    try:
        yield str(where)
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(where: str, name: str = "filler") -> None:
    """Uses all the bytes that are left on the disk of *where*."""
    with open(os.path.join(where, name), "wb", buffering=0) as file:
        block = 1 << 16
        while block:
            try:
                file.write(b"x" * block)
            except OSError:
                block //= 2


def side_by_side(count: int, work: Callable[[int], None]) -> None:
    """Runs *work* for 0, 1, … in *count* threads at once; the first failure is raised here."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("this test needs root: run it as root")
