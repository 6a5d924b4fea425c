"""The log of output that nobody reads: all of it is there, whatever it is, and it can be read while it is written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fifo_kit import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import libctrd
from libctrd import logs
from libctrd.client import Client
from libctrd.engine.base import Log
from libctrd.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.logs import LogEntry

WAIT = 30.0
Make = Callable[..., dict[str, Any]]
local = pytest.mark.local("its shim writes the log")


def logged(client: Client, spec: dict[str, Any], log: Path, id: str = "web", **settings: Any) -> libctrd.Container:
    """A container that was started without a client for its output."""
    container = client.create(id, spec)
    container.start(libctrd.DETACHED, unattended="log", log=str(log), **settings)
    return container


def ended(client: Client, spec: dict[str, Any], log: Path, **settings: Any) -> list[LogEntry]:
    """Its log once it has ended; it is cleaned."""
    container = logged(client, spec, log, **settings)
    container.wait(WAIT)
    found = list(container.logs())
    container.clean()
    return found


# ---- what is in it -------------------------------------------------------------------------------------------------


@local
def test_any_bytes_come_back_from_a_log_of_json(any_client: Client, rootfs: str, tmp_path: Path) -> None:  # C28
    """Whatever is no text too, and lines of any length: by a reader of JSON that knows nothing of us as well."""
    pieces = st.one_of(st.binary(max_size=50), st.sampled_from([b"\n", b"\xc3", b"\xa4", b"\xe2\x82\xac", b"x" * 5000]))

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(st.lists(pieces, max_size=8).map(b"".join))
    def check(data: bytes) -> None:
        (tmp_path / "data").write_bytes(data)
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        mount = {"destination": "/tmp", "source": str(tmp_path), "options": ["bind", "ro"]}
        spec = libctrd.spec.default(["/bin/cat", "/tmp/data"], rootfs, mounts=[mount])
        found = ended(any_client, spec, log, log_format="json")
        assert b"".join(entry.data for entry in found) == data
        assert all(b"\n" not in entry.data[:-1] for entry in found)
        lines = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert "".join(line["log"] for line in lines).encode("utf-8", "surrogateescape") == data
        assert {line["stream"] for line in lines} <= {"stdout"}

    check()


@local
def test_a_log_of_json_knows_the_streams_and_the_times(any_client: Client, spec: Make, tmp_path: Path) -> None:
    before = datetime.now(timezone.utc)
    found = ended(any_client, spec("echo one; echo two >&2; printf last; exit 3"), tmp_path / "log", log_format="json")
    assert [entry.data for entry in found if entry.stream == "stdout"] == [b"one\n", b"last"]
    assert [entry.data for entry in found if entry.stream == "stderr"] == [b"two\n"]
    times = [entry.time for entry in found if entry.time is not None]
    assert len(times) == 3
    assert before <= min(times) <= max(times) <= datetime.now(timezone.utc)


@local
def test_the_time_in_it_is_that_of_the_calendar(any_client: Client, spec: Make, tmp_path: Path) -> None:
    """The shim counts days itself: what it writes is the moment of the record of the exit, but for a moment."""
    container = logged(any_client, spec("echo now"), tmp_path / "log", log_format="json")
    status = container.wait(WAIT)
    (entry,) = container.logs()
    assert entry.time is not None
    assert status.exited_at is not None
    assert abs(status.exited_at - entry.time) < timedelta(seconds=5)
    container.clean()


@local
def test_all_of_it_is_there_once_its_end_was_told(any_client: Client, spec: Make, tmp_path: Path) -> None:  # C28
    for number in range(10):
        log = tmp_path / f"log{number}"
        container = logged(any_client, spec("seq 20000"), log)
        container.wait(WAIT)
        assert log.read_bytes().count(b"\n") == 20_000
        container.clean()


def test_a_raw_log_is_read_too(any_client: Client, spec: Make, tmp_path: Path, engine: Any) -> None:
    if engine.kind == "api":
        pytest.skip("the API of containerd 0.2 has no logs")
    container = logged(any_client, spec("echo one; echo two >&2; echo last"), tmp_path / "log")
    container.wait(WAIT)
    until(lambda: (tmp_path / "log").read_bytes().count(b"\n") == 3)
    found = list(container.logs())
    assert sorted(entry.data for entry in found) == [b"last\n", b"one\n", b"two\n"]
    assert {(entry.stream, entry.time) for entry in found} == {("stdout", None)}
    assert list(container.logs(tail=1)) == found[-1:]
    assert list(container.logs(tail=0)) == []
    with pytest.raises(InvalidArgumentError, match="is raw and has no times"):
        container.logs(since=datetime.now(timezone.utc))
    container.clean()


# ---- when it is full -----------------------------------------------------------------------------------------------


@local
@pytest.mark.parametrize("form", ["raw", "json"])
def test_a_full_log_begins_anew_and_the_last_of_it_is_kept(
    form: str, any_client: Client, spec: Make, tmp_path: Path
) -> None:
    """What is read is a whole end of what was written, in order; no file is larger than the limit and one block."""
    log = tmp_path / "log"
    script = "i=0; while test $i -lt 40; do seq $((i * 100 + 1)) $((i * 100 + 100)); i=$((i + 1)); done"
    found = ended(any_client, spec(script), log, log_format=form, log_size=8000, log_files=2)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1", "log.2"}
    assert all(0 < path.stat().st_size <= 8000 + 4096 for path in tmp_path.iterdir())
    numbers = [int(entry.data) for entry in found[1:]]  # the first may be a part of a line
    assert len(numbers) > 50
    assert numbers == list(range(4001 - len(numbers), 4001))


@local
@pytest.mark.parametrize("form", ["raw", "json"])
def test_who_follows_gets_every_line_though_files_are_renamed(
    form: str, any_client: Client, spec: Make, tmp_path: Path
) -> None:  # C28
    script = "i=0; while test $i -lt 300; do seq $((i * 10 + 1)) $((i * 10 + 10)); usleep 1000; i=$((i + 1)); done"
    container = logged(any_client, spec(script), tmp_path / "log", log_format=form, log_size=300, log_files=900)
    found = [int(entry.data) for entry in container.logs(follow=True)]
    assert found == list(range(1, 3001))
    assert container.wait(0).code == 0
    assert [int(entry.data) for entry in container.logs(follow=True, tail=2)] == [2999, 3000]
    container.clean()


@local
def test_a_log_that_cannot_be_renamed_goes_on(any_client: Client, spec: Make, tmp_path: Path) -> None:
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "full").touch()
    script = "i=0; while test $i -lt 20; do seq 100; usleep 1000; i=$((i + 1)); done"
    container = logged(any_client, spec(script), tmp_path / "log", log_size=1000)
    assert container.wait(WAIT).code == 0
    assert (tmp_path / "log").read_bytes().count(b"\n") == 2000
    container.clean()


# ---- following -----------------------------------------------------------------------------------------------------


@local
def test_who_follows_gets_lines_as_they_come_and_ends_with_the_container(
    any_client: Client, spec: Make, tmp_path: Path
) -> None:
    container = logged(any_client, spec("echo begun; sleep 1000"), tmp_path / "log", log_format="json")
    entries = container.logs(follow=True)
    assert next(entries).data == b"begun\n"
    killer = threading.Timer(0.3, container.signal, ("KILL",))
    killer.start()
    assert list(entries) == []
    killer.join()
    assert container.wait(WAIT).code == 137
    container.clean()


@local
def test_what_is_older_is_left_out(any_client: Client, spec: Make, tmp_path: Path) -> None:
    container = logged(any_client, spec("echo old; usleep 300000; echo new"), tmp_path / "log", log_format="json")
    old, new = container.logs(follow=True)
    assert old.time is not None
    assert new.time is not None
    between = old.time + (new.time - old.time) / 2
    assert [entry.data for entry in container.logs(since=between)] == [b"new\n"]
    assert [entry.data for entry in container.logs(since=between.astimezone().replace(tzinfo=None))] == [b"new\n"]
    container.clean()


# ---- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"log_format": "xml"}, "log_format='xml' is not known"),
        ({"log_size": -1}, "log_size=-1 is no number of 0 or more"),
        ({"log_size": "10m"}, "log_size='10m' is no number"),
        ({"log_files": 0}, "log_files=0 is no number of 1 or more"),
        ({"log_files": 5000}, "more than 1000 old files"),
        ({"log": "/" + "x" * 5000}, "is too long"),
    ],
)
def test_a_log_that_cannot_be_is_refused_before_anything_starts(
    given: dict[str, Any], why: str, any_client: Client, spec: Make, tmp_path: Path
) -> None:
    container = any_client.create("web", spec("true"))
    with pytest.raises(InvalidArgumentError, match=why):
        container.start(libctrd.DETACHED, **{"unattended": "log", "log": str(tmp_path / "log"), **given})
    assert container.status == "created"
    with pytest.raises(NotFoundError, match="has no log: start it with"):
        container.logs()
    container.clean()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.containerd("its shim writes the log")
def test_containerd_logs_as_it_comes_and_no_other_way(any_client: Client, spec: Make, tmp_path: Path) -> None:
    for wanted in ({"log_format": "json"}, {"log_size": 1000}):
        with pytest.raises(UnsupportedError, match="can only append output to a log as it comes"):
            logged(any_client, spec("true"), tmp_path / "log", **wanted)
    assert list(tmp_path.iterdir()) == []


@local
def test_a_log_that_somebody_removed_or_damaged_is_told(any_client: Client, spec: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    container = logged(any_client, spec("echo one"), log, log_format="json")
    container.wait(WAIT)
    log.write_bytes(b'{"stream":"stdout","time":"cut o\n' + log.read_bytes())
    assert [entry.data for entry in container.logs()] == [b'{"stream":"stdout","time":"cut o\n', b"one\n"]
    log.unlink()
    with pytest.raises(NotFoundError, match="is not there: it was removed or renamed"):
        container.logs()
    with pytest.raises(InvalidArgumentError, match="tail=-1 is no number of lines"):
        container.logs(tail=-1)
    container.clean()


@given(st.binary(max_size=300), st.integers(1, 5), st.booleans())
def test_the_files_of_a_log_are_one(data: bytes, kept: int, follow: bool) -> None:
    """However it was cut into files, lines are whole; what has no end comes last."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        log = Log(os.path.join(directory, "log"), limit=1, kept=kept)
        cuts = [data[len(data) * n // (kept + 1) : len(data) * (n + 1) // (kept + 1)] for n in range(kept + 1)]
        for number, part in enumerate(reversed(cuts)):
            Path(log.path + (f".{number}" if number else "")).write_bytes(part)
        files = logs._Files(log)
        found = list(files.lines(last=not follow))
        if follow:
            assert b"".join(found) == data[: data.rfind(b"\n") + 1]
            found += files.lines(last=True)
        files.close()
        assert found == data.splitlines(keepends=True) if b"\r" not in data else b"".join(found) == data
        assert b"".join(found) == data


@pytest.mark.parametrize("text", ["", "10", "10x", "-5m", "yesterday", "1e400s"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no time: say how long ago"):
        logs.moment(text)


def test_a_time_is_how_long_ago_or_a_moment() -> None:
    now = datetime.now(timezone.utc)
    assert abs(now - timedelta(minutes=90) - logs.moment("1.5h")) < timedelta(seconds=10)
    assert logs.moment("2026-11-30T12:00:00Z") == datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
    assert logs.moment("2026-11-30T12:00:00+02:00") == datetime(2026, 11, 30, 10, tzinfo=timezone.utc)
