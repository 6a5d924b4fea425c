"""Events of every container, whoever starts it: `Client.watch_all`, and the kernel's words that it is made from."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_kit import WAIT
from engine_kit import Place
from fifo_kit import until
from hypothesis import given
from hypothesis import strategies as st

from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import NotFoundError
from libctrd.events import EventStream
from libctrd.inotify import CREATE, DIRECTORY, MOVED_TO, Change, Inotify, parse

Make = Callable[..., dict[str, Any]]


def take(stream: EventStream, count: int) -> list[tuple[str, str, int | None]]:
    found = [stream.get(WAIT) for _ in range(count)]
    return [(id, info.type, info.exit_code) for id, info in found]


def test_it_is_told_of_what_other_clients_start(client: Client, engine: Place, spec: Make) -> None:  # C10, C11
    with engine.connect() as other, client.events() as stream:
        client.watch_all()
        started = other.create("web", spec("read x; exit 5"))
        pid = started.start(Stdio(PIPE, NULL, NULL))
        id, info = stream.get(WAIT)
        assert (id, info.type, info.pid) == ("web", "start-container", pid)
        assert started.stdin is not None
        started.stdin.close()
        assert take(stream, 1) == [("web", "exit", 5)]
        until(lambda: not other.containers(), "its end, for its own client too")
        container = other.create("web", spec("sleep 1000"))
        container.start(NULL)
        container.pause(WAIT)
        container.resume(WAIT)
        container.signal("KILL")
        assert take(stream, 4) == [
            ("web", "start-container", None),
            ("web", "pause", None),
            ("web", "resume", None),
            ("web", "exit", 137),
        ]
        container.wait(WAIT)
        with pytest.raises(NotFoundError):
            client.get("web")


def test_the_pid_of_what_has_ended_already_is_never_that_of_its_successor(
    client: Client, engine: Place, spec: Make
) -> None:  # C10
    with engine.connect() as other, client.events() as stream:
        client.watch_all()
        pids = []
        for code in range(12):
            container = other.create("web", spec(f"exit {code}"))
            pids.append(container.start(NULL))
            assert container.wait(WAIT).code == code
        told = [stream.get(WAIT)[1] for _ in range(24)]
        assert [(info.type, info.exit_code) for info in told] == [
            one for code in range(12) for one in (("start-container", None), ("exit", code))
        ]
        for pid, info in zip(pids, told[::2], strict=True):
            assert info.pid in (pid, 0), "where an event does not tell it, it may be too late to ask"


def test_what_runs_already_is_watched_and_what_has_ended_is_no_news(
    client: Client, engine: Place, spec: Make
) -> None:  # C10
    with engine.connect() as other:
        over = other.create("over", spec("exit 1"))
        over.start(DETACHED)
        over.wait(WAIT)
        runs = other.create("runs", spec("read x; exit 2"))
        runs.start(PIPE)
        waits = other.create("waits", spec("exit 3"))
        with client.events() as stream:
            client.watch_all()
            assert runs.stdin is not None
            runs.stdin.close()
            assert take(stream, 1) == [("runs", "exit", 2)]
            waits.start(NULL)
            assert take(stream, 2) == [("waits", "start-container", None), ("waits", "exit", 3)]
            runs.wait(WAIT)
            waits.wait(WAIT)
        over.clean()
        for stream_of_runs in (runs.stdout, runs.stderr):
            assert stream_of_runs is not None
            stream_of_runs.close()


def test_ones_own_are_told_once(client: Client, spec: Make) -> None:  # C10
    with client.events() as stream:
        client.watch_all()
        client.watch_all()
        for code in range(5):
            container = client.create("web", spec(f"exit {code}"))
            container.start(NULL if code % 2 else DETACHED)
            assert container.wait(WAIT).code == code
            container.clean()
            assert take(stream, 2) == [("web", "start-container", None), ("web", "exit", code)]


def test_none_of_many_is_missed_and_each_is_in_order(any_client: Client, engine: Place, spec: Make) -> None:  # C11
    count = 30
    with engine.connect() as other, any_client.events() as stream:
        any_client.watch_all()
        for number in range(count):
            container = other.create(f"web{number}", spec(f"exit {number}"))
            container.start(NULL)
        told = take(stream, 2 * count)
        for number in range(count):
            of_it = [one[1:] for one in told if one[0] == f"web{number}"]
            assert of_it == [("start-container", None), ("exit", number)]
        until(lambda: not other.containers(), "the end of all")


def test_a_client_that_hears_of_all_can_take_over_one(client: Client, engine: Place, spec: Make) -> None:  # C22
    with client.events() as stream:
        client.watch_all()
        with engine.connect() as other:
            other.create("web", spec("read x; exit 6")).start(DETACHED)
            assert take(stream, 1) == [("web", "start-container", None)]
        container = client.restore("web")
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == 6
        assert take(stream, 2) == [("web", "restore", None), ("web", "exit", 6)]
        for output in (container.stdout, container.stderr):
            assert output is not None
            output.close()


# ---- inotify ---------------------------------------------------------------------------------------------------------


@pytest.mark.linux("inotify")
def test_changes_in_directories_are_told_in_order(tmp_path: Path) -> None:
    watches = Inotify()
    top = watches.add(str(tmp_path), CREATE | MOVED_TO)
    assert watches.add(str(tmp_path), CREATE | MOVED_TO) == top
    assert list(watches.read()) == []
    (tmp_path / "one").mkdir()
    (tmp_path / "two").touch()
    os.rename(tmp_path / "two", tmp_path / "three")
    told = list(watches.read())
    assert told == [
        Change(top, CREATE | DIRECTORY, "one"),
        Change(top, CREATE, "two"),
        Change(top, MOVED_TO, "three"),
    ]
    with pytest.raises(NotFoundError, match="missing"):
        watches.add(str(tmp_path / "missing"), CREATE)
    with pytest.raises(NotFoundError, match="three"):
        watches.add(str(tmp_path / "three"), CREATE)
    watches.remove(top)
    watches.close()
    watches.close()


NAMES = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 2**32 - 1), NAMES)))
def test_what_the_kernel_tells_is_parsed(changes: list[tuple[int, int, str]]) -> None:
    data = b""
    for watch, what, name in changes:
        raw = os.fsencode(name) + b"\0" if name else b""
        raw += b"\0" * (-len(raw) % 16)
        data += struct.pack("iIII", watch, what, 0, len(raw)) + raw
    assert list(parse(data)) == [Change(*change) for change in changes]
