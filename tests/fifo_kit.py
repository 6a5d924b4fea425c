"""What the tests of the fifos share: comparing before and after, threads that hand back what they did."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libctrd import fifo as fifo_module
from libctrd.fifo import PORTABLE, Fifo, open_fifo

READ = os.O_RDONLY | os.O_NONBLOCK
WRITE = os.O_WRONLY | os.O_NONBLOCK
LONG = 10.0 * float(os.environ.get("CTRD_TEST_SLOW", "1"))  # seconds; nothing that works takes so long


def open_files() -> list[str]:
    """What this process has open, less what the module keeps for its next wait."""
    found, kept = [], fifo_module._kept()
    for number in os.listdir("/proc/self/fd"):
        if int(number) in kept:
            continue
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # the descriptor of listdir itself
    return sorted(name for name in found if "eventfd" not in name and "inotify" not in name)


def waiting() -> int:
    """How many threads wait in a fifo now."""
    return fifo_module._counts()[1]


def until(condition: Callable[[], object], what: str = "") -> None:
    """For what nothing announces: looks again until *condition* is true; fails after a long time."""
    pause = threading.Event()
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"this never came: {what or condition}"
        pause.wait(0.001)


class Background:
    """A thread under way; `result` gives what its function returned or raises what it raised."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._outcome: list[Any] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._outcome.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error

    def result(self, seconds: float = LONG) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the thread never came back"
        if self._error is not None:
            raise self._error
        return self._outcome[0]


def both(path: Path) -> tuple[Fifo, Fifo]:
    """A read end and a write end of one fifo, connected."""
    reader = open_fifo(path, READ | os.O_CREAT)
    return reader, open_fifo(path, WRITE)


@pytest.fixture(name="steady")
def steady_fixture() -> Iterator[None]:
    """Threads and descriptors after a test are what they were before it."""
    threads, files = len(os.listdir("/proc/self/task")), open_files()
    yield
    until(lambda: len(os.listdir("/proc/self/task")) == threads, "as many threads as before")
    assert open_files() == files
    assert fifo_module._counts()[:2] == (0, 0)


@pytest.fixture(name="way", params=["as built", "no inotify"])
def way_fixture(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the ways in which a peer is waited for: "linux" or "portable", as it was built, and "no inotify"."""
    if request.param == "as built":
        yield "portable" if PORTABLE else "linux"
        return
    if PORTABLE:
        pytest.skip("the portable build has no inotify to go without")
    fifo_module._switch(inotify=False)
    yield request.param
    fifo_module._switch(inotify=True)


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path) -> Path:
    return tmp_path / "fifo"
