"""Whose a container is: one byte of a file that all clients share, locked by one of them (C22)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from libctrd import owning
from libctrd.engine.base import Record
from libctrd.errors import AlreadyExistsError, InvalidArgumentError
from libctrd.owning import Owners


def record(id: str, hour: int = 1) -> Record:
    return Record(id, "/bundle", datetime(2026, 1, 1, hour, tzinfo=timezone.utc), "crun")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = str(tmp_path / "readers")
    monkeypatch.setattr(owning, "shared_file", lambda: path)
    return path


@pytest.fixture
def one(place: str) -> Iterator[Owners]:
    made = Owners("/state")
    yield made
    made.close()


@pytest.fixture
def other(place: str) -> Iterator[Owners]:
    made = Owners("/state")
    yield made
    made.close()


def test_of_two_the_first_has_it_until_it_gives_it_back(one: Owners, other: Owners) -> None:  # C22
    one.take(record("web"), "init")
    one.take(record("web"), "init")
    with pytest.raises(AlreadyExistsError, match="'init' of container 'web' is read by another client"):
        other.take(record("web"), "init")
    one.give_back(record("web"), "init")
    other.take(record("web"), "init")
    one.give_back(record("web"), "init")  # it has not
    with pytest.raises(AlreadyExistsError):
        one.take(record("web"), "init")


def test_what_differs_is_not_in_the_way(one: Owners, other: Owners, place: str) -> None:
    one.take(record("web"), "init")
    other.take(record("web"), "shell")
    other.take(record("web2"), "init")
    other.take(record("web", hour=2), "init")  # the next of that id
    elsewhere = Owners("/elsewhere")
    elsewhere.take(record("web"), "init")
    elsewhere.close()


def test_it_goes_with_who_has_it_however_that_ends(one: Owners, place: str) -> None:  # C22
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from libctrd import owning; from test_owning import record\n"
        "owning.shared_file = lambda: sys.argv[1]\n"
        "owners = owning.Owners('/state'); owners.take(record('web'), 'init')\n"
        "print('has it', flush=True); signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, place, os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    with pytest.raises(AlreadyExistsError):
        one.take(record("web"), "init")
    process.kill()
    process.wait()
    process.stdout.close()
    one.take(record("web"), "init")


def test_what_a_killed_one_has_left_to_a_child_is_waited_for_a_moment(place: str, other: Owners) -> None:  # C22
    """A child that is not yet another program holds its parent's descriptors, and so its locks."""
    one = Owners("/state")
    one.take(record("web"), "init")
    hold = ["sh", "-c", "echo; read line"]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[one._fd]) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        one.close()
        assert not other.try_to_take(record("web"), "init")
        with pytest.raises(AlreadyExistsError):
            other.take(record("web"), "init")
        threading.Timer(0.05, child.stdin.close).start()
        other.take(record("web"), "init")


def test_a_closed_one_has_nothing_and_takes_nothing(one: Owners, other: Owners) -> None:
    one.take(record("web"), "init")
    one.close()
    one.close()
    one.take(record("web"), "init")
    other.take(record("web"), "init")


def test_the_file_is_this_users_alone(one: Owners, place: str) -> None:
    assert os.stat(place).st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_is_another_or_a_clear_error(place: str, tmp_path: Path) -> None:
    os.mkdir(place)
    state = str(tmp_path / "state")
    one, other = Owners(state), Owners(state)  # beside the state directory then
    one.take(record("web"), "init")
    with pytest.raises(AlreadyExistsError):
        other.take(record("web"), "init")
    one.close()
    other.close()
    os.unlink(f"{state}.readers")
    os.symlink(tmp_path / "target", f"{state}.readers")
    with pytest.raises(InvalidArgumentError, match=r"state\.readers"):
        Owners(state)
