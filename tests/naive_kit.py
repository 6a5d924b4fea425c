"""The naive way of some things: a plugin of pytest that puts one in the place of ours, to see that a test fails then.

``pytest -p naive_kit`` with CTRD_TEST_NAIVE=NAME in the environment; `NAIVE` has the names, and the test of each. What
is compiled (the relay, fifos, the shim) cannot be replaced like this; their tests say what the naive way would do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest


class Naive(NamedTuple):
    """What is put in, and the test that has to fail then."""

    put_in: Callable[[], None]
    test: str


def _end_is_end() -> None:
    """The end of a process is that of its output."""
    from libctrd.stdio import Streams

    Streams.when_ended = lambda self, drain_timeout, call: call()  # type: ignore[method-assign]


def _every_close_is_told() -> None:
    """Whoever closes stdin tells the engine, whether or not another one has."""
    from libctrd.stdio import Stdin

    Stdin._first = lambda self: True  # type: ignore[method-assign]


def _closed_is_told_at_once() -> None:
    """Of a close of stdin the engine is told at once, though the container does not run yet."""
    from libctrd.process import Process

    def began(self: Process) -> None:
        self.streams.begin()
        self._started = True

    Process.began = began  # type: ignore[method-assign]


def _fifos_stay() -> None:
    """What a failed start has made is left for whoever cleans."""
    from libctrd.process import Process

    Process.clean = lambda self: None  # type: ignore[method-assign]


def _cleaned_later() -> None:
    """The directory is removed in the background, so that the end is told sooner."""
    from libctrd.client import Client

    remove = Client._remove

    def later(self: Client, container: Any, force: bool = False) -> None:
        self._forget(container)
        threading.Timer(0.05, remove, (self, container, force)).start()

    Client._remove = later  # type: ignore[method-assign]


def _ids_are_enough() -> None:
    """A container is its id: whatever has it now is meant."""
    from libctrd.client import Client

    Client._is_anothers = lambda self, container: False  # type: ignore[method-assign]


def _pids_are_enough() -> None:
    """A process runs when there is one of that number."""
    from libctrd.engine import cgroups

    cgroups.runs = lambda pid, path: os.path.exists(f"/proc/{pid}")  # type: ignore[assignment]


def _an_exit_ends_no_wait() -> None:
    """Whoever pauses waits for the event of it."""
    from libctrd.changes import Changes

    Changes.end = lambda self: None  # type: ignore[method-assign]


def _events_of_whoever() -> None:
    """Of an end nobody remembers that it was told."""
    from libctrd import handling

    ended = handling.ended

    def again(client: Any, container: Any, status: Any) -> None:
        ended(client, container, status)
        container._exit = None

    handling.ended = again


def _a_path_is_a_place() -> None:
    """A directory is opened by its path each time, whatever that leads to now."""
    from libctrd import directory

    @contextlib.contextmanager
    def held(path: str, root: str) -> Iterator[str]:
        yield path

    directory._open_unfollowed = lambda path: os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    directory.held = held
    from libctrd import client

    client.held = held  # type: ignore[attr-defined]


def _mounts_are_entered() -> None:
    """What is listed as a directory is opened as one."""
    from libctrd import directory

    directory._open_below = lambda parent, name, path, inode: os.open(name, os.O_RDONLY, dir_fd=parent)


def _trees_are_low() -> None:
    """One call for each level of a tree."""
    from libctrd import directory

    directory._DEEPEST = 1 << 30


NAIVE = {
    naive.put_in.__name__.strip("_").replace("_", " "): naive
    for naive in (
        Naive(_end_is_end, "test_races.py::test_an_end_before_the_output_is_delivered"),
        Naive(_every_close_is_told, "test_field.py::test_two_sides_close_stdin_at_the_same_time"),
        Naive(_closed_is_told_at_once, "test_races.py::test_stdin_closed_while_it_is_being_started"),
        Naive(_fifos_stay, "test_exec.py::test_a_start_that_fails_leaves_nothing"),
        Naive(_cleaned_later, "test_field_wait.py::test_a_name_can_be_reused_at_once"),
        Naive(_ids_are_enough, "test_races.py::test_many_who_clean_the_same_at_once"),
        Naive(_pids_are_enough, "test_races.py::test_a_pid_that_is_a_strangers_by_now"),
        Naive(_an_exit_ends_no_wait, "test_client_events.py::test_an_exit_ends_a_wait_for_a_pause_with_an_error"),
        Naive(_events_of_whoever, "test_races.py::test_a_clean_while_events_arrive"),
        Naive(_a_path_is_a_place, "test_hostile_swaps.py::test_swaps_beside_a_create"),
        Naive(_mounts_are_entered, "test_directory.py::test_a_mount_is_taken_off_and_never_descended_into"),
        Naive(_trees_are_low, "test_directory.py::test_a_tree_deeper_than_calls_can_be_nested_or_a_path_be_long_goes"),
    )
}


def pytest_configure(config: pytest.Config) -> None:
    NAIVE[os.environ["CTRD_TEST_NAIVE"]].put_in()
