"""What the tests of the process helpers share: children stopped for a look, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from libctrd import _spawn, proc

GONE = 2**22 + 1  # above the largest pid_max there is, so nobody's


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    """Polls for what nothing announces, with a deadline."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def open_fds() -> set[int]:
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each test leaves no child, zombie or running, and no descriptor."""
    gc.collect()
    before, children = open_fds(), psutil.Process().children()
    yield
    gc.collect()
    # Fewer is none of its business: what an earlier test has left to a thread of a library may be closed any time.
    until(lambda: open_fds() <= before)
    assert psutil.Process().children() == children


@pytest.fixture(params=["closefrom", "listed"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of closing what the child shall not have."""
    if request.param == "listed":
        monkeypatch.setattr(_spawn, "_closefrom", False)
    elif not _spawn._closefrom:
        pytest.skip("this C library has no posix_spawn_file_actions_addclosefrom_np")


class Stopped:
    """A child that stopped itself as its first deed, so that /proc shows it as `spawn` made it."""

    def __init__(self, **how: object) -> None:
        self.pid = proc.spawn(["sh", "-c", "kill -STOP $$"], **how)  # type: ignore[arg-type]

    def __enter__(self) -> Stopped:
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert proc.reap(self.pid) == proc.Exit(self.pid, None, signal.SIGKILL, False)

    def fds(self) -> dict[int, tuple[int, int]]:
        """Each open descriptor, and the device and inode behind it."""
        folder = f"/proc/{self.pid}/fd"
        return {int(fd): inode(os.stat(f"{folder}/{fd}")) for fd in os.listdir(folder)}

    def status(self, field: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field + ":"))


def inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def output_of(argv: list[str], **how: object) -> bytes:
    """What a child wrote to its descriptor 1."""
    reader, writer = os.pipe()
    try:
        pid = proc.spawn(argv, fds={1: writer}, **how)  # type: ignore[arg-type]
        os.close(writer)
        with open(reader, "rb", closefd=False) as file:
            text = file.read()
    finally:
        os.close(reader)
    assert proc.reap(pid) == proc.Exit(pid, 0, None, False)
    return text


def run_python(script: str, *prefix: str) -> str:
    """The output of *script* in a Python of its own, for what would change this one."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
