"""The log of events of `ctrd serve`: nothing is lost, and nothing comes twice, whatever befell its file (C24, C25)."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples_kit import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libctrd.errors import NotFoundError, UnsupportedError
from libctrd.serve.eventlog import KEPT, Entry, EventLog

KEEP = 4
IDS = st.sampled_from(["a", "b"])
PIDS = st.sampled_from(["", "init", "p"])
TYPES = st.sampled_from(["start-container", "start-process", "exit", "pause", "oom"])
STATUSES = st.sampled_from([0, 1, 137, 255, (1 << 32) - 1])
MARKS = st.sampled_from(["", "2026-01-01", "\u20ac"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.log"


@pytest.fixture
def events(path: Path) -> Iterator[EventLog]:
    log = EventLog(str(path))
    yield log
    log.close()


def reopened(path: Path, keep: int = KEPT) -> EventLog:
    log = EventLog(str(path), keep=keep)
    log.close()  # what it has read it can tell
    return log


# ---- any order of everything -----------------------------------------------------------------------------------------


def fold(lines: list[bytes], keep: int) -> tuple[list[Entry], list[Entry]]:
    """What the lines of a log come to: the last events, and the promises that none has followed."""
    told: list[Entry] = []
    promises: dict[tuple[str, ...], Entry] = {}
    for line in lines:
        entry = Entry(**json.loads(line))
        key = (entry.type, entry.id, entry.pid, entry.mark)
        if entry.promised:
            promises[key] = entry
        else:
            promises.pop(key, None)
            told.append(entry)
    return told[-keep:], list(promises.values())


def by_time(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.at, entry.key))


class Log(RuleBasedStateMachine):
    """Against a model: the events of all time, in a list, and the promises that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.top = tempfile.mkdtemp(prefix="ctrd-log-")
        self.path = Path(self.top, "events.log")
        self.now = 1_000
        self.told: list[Entry] = []
        self.promises: dict[tuple[str, ...], Entry] = {}
        self.log = self.open()

    def open(self) -> EventLog:
        return EventLog(str(self.path), keep=KEEP, clock=lambda: self.now)

    @rule(by=st.integers(-500, 500))
    def clock_is_set(self, by: int) -> None:
        self.now = max(0, self.now + by)

    @rule(type=TYPES, id=IDS, pid=PIDS, status=STATUSES, mark=MARKS)
    def append(self, type: str, id: str, pid: str, status: int, mark: str) -> None:
        entry = self.log.append(type, id, pid, status, mark)
        assert (entry.type, entry.id, entry.pid, entry.status, entry.mark) == (type, id, pid, status, mark)
        assert not self.told or entry.at > self.told[-1].at, "later than all before"
        assert entry.at >= self.now
        self.promises.pop(entry.key, None)
        self.told.append(entry)

    @rule(id=IDS, pid=PIDS, status=STATUSES, mark=MARKS)
    def promise(self, id: str, pid: str, status: int, mark: str) -> None:
        entry = self.log.promise("exit", id, pid, status, mark)
        self.promises[entry.key] = entry

    @rule()
    def close_and_open(self) -> None:
        self.log.close()
        self.log.close()
        self.log = self.open()

    @rule()
    def be_killed_and_open(self) -> None:
        """What is written is there, without a close."""
        again = self.open()
        self.log.close()
        self.log = again

    @rule(cut=st.integers(1, 150))
    def be_torn(self, cut: int) -> None:
        """The last line is not whole, or not there."""
        self.log.close()
        text = self.path.read_bytes()
        last = text.rindex(b"\n", 0, -1) + 1 if text.count(b"\n") > 1 else len(text)
        os.truncate(self.path, max(last, len(text) - cut))
        self.take_up([line for line in self.path.read_bytes().split(b"\n")[1:] if is_whole(line)])

    @rule(
        which=st.integers(0, 20),
        garbage=st.sampled_from([b"", b"{", b"\xff", b'{"type":"exit"}', b"\0" * 9, b"[" * 9999]),
    )
    def be_damaged(self, which: int, garbage: bytes) -> None:
        """Some line is none any more; the first one, with the version, too."""
        self.log.close()
        lines = self.path.read_bytes().split(b"\n")[:-1]
        lines[which % len(lines)] = garbage
        self.path.write_bytes(b"".join(line + b"\n" for line in lines))
        self.take_up([line for line in lines[1:] if is_whole(line)])

    def take_up(self, lines: list[bytes]) -> None:
        self.told, promises = fold(lines, KEEP)
        self.promises = {entry.key: entry for entry in promises}
        self.log = self.open()

    @invariant()
    def tells_what_was_told(self) -> None:
        kept = self.told[-KEEP:]
        assert self.log.after(0) == kept
        for entry in kept:
            assert self.log.after(entry.at) == [later for later in kept if later.at > entry.at]
        assert self.log.after(0, "a") == [entry for entry in kept if entry.id == "a"]
        assert self.log.last("b") == next((entry for entry in reversed(kept) if entry.id == "b"), None)
        assert self.log.last("nobody") is None
        assert by_time(self.log.promises()) == by_time(list(self.promises.values()))

    @invariant()
    def knows_an_exit_since_the_last_start(self) -> None:
        kept = self.told[-KEEP:]
        for id in ("a", "b"):
            story = [entry for entry in kept if (entry.id, entry.pid, entry.mark) == (id, "p", "")]
            types = [entry.type for entry in story]
            since = story[len(types) - types[::-1].index("start-process") :] if "start-process" in types else story
            exits = [entry for entry in since if entry.type == "exit"]
            assert self.log.has("exit", id, "p", "") == (exits[-1] if exits else None)

    @invariant()
    def is_bounded_and_private(self) -> None:
        lines = self.path.read_bytes().count(b"\n")
        assert lines <= 1 + 2 * KEEP + len(self.promises)
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o600
        assert os.listdir(self.top) == ["events.log"]

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.top)


def is_whole(line: bytes) -> bool:
    try:
        return {"type", "id", "at"} <= set(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False


Log.TestCase.settings = settings(deadline=None, max_examples=examples(60), stateful_step_count=25)
TestLog = Log.TestCase


# ---- one by one ------------------------------------------------------------------------------------------------------


def test_some_hundreds_are_kept_and_the_file_has_an_end(events: EventLog, path: Path) -> None:
    biggest = 0
    for number in range(3 * KEPT):
        events.append("exit", f"c{number}", "init", number)
        biggest = max(biggest, path.stat().st_size)
    assert [entry.status for entry in events.after(0)] == list(range(2 * KEPT, 3 * KEPT))
    assert [entry.status for entry in reopened(path).after(0)] == list(range(2 * KEPT, 3 * KEPT))
    assert biggest < 2 * KEPT * 100


def test_a_promise_outlives_any_number_of_events(events: EventLog, path: Path) -> None:
    events.promise("exit", "c", "init", 7, "then")
    for _ in range(3 * KEPT):
        events.append("oom", "d")
    (promise,) = reopened(path).promises()
    assert (promise.id, promise.status, promise.promised) == ("c", 7, True)


def test_a_clock_that_goes_back_changes_no_order(path: Path) -> None:
    times = iter([5000, 4000, 4000, 10, 9000])
    log = EventLog(str(path), clock=lambda: next(times))
    at = [log.append("oom", "c").at for _ in range(5)]
    log.close()
    assert at == [5000, 5001, 5002, 5003, 9000]


@pytest.mark.parametrize("head", ['{"version":2}', '{"version":2,"more":[1]}', '{"version":99999999999999999999}'])
def test_a_later_version_is_refused_and_left_alone(path: Path, head: str) -> None:
    text = f'{head}\n{{"what":"nobody knows"}}\n'
    path.write_text(text)
    with pytest.raises(UnsupportedError, match="is of version"):
        EventLog(str(path))
    assert path.read_text() == text
    assert os.listdir(path.parent) == ["events.log"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"\xff","id":"c","at":5}',
        b'{"type":"exit","id":"c","at":' + b"9" * 40 + b"}",
        b'{"type":"exit","id":"c","at":-5}',
        b'{"type":"exit","id":"c","at":5,"status":-1}',
        b'{"type":"exit","id":"c","at":5,"status":4294967296}',
        b'{"type":"exit","id":"c","at":5.5}',
        b'{"type":"exit","id":7,"at":5}',
        b'{"type":"exit","id":"c","at":5,"x":' + b"[" * 100_000,
        b'{"type":"exit","id":"c","at":5,"promised":1}',
        b"\0\0\0\0",
        b"null",
    ],
)
def test_a_line_that_is_damaged_is_left_out_with_a_warning(
    path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing that the wire could not carry is taken from one."""
    good = b'{"type":"exit","id":"c","at":7,"pid":"init","status":3}'
    path.write_bytes(b'{"version":1}\n' + line + b"\n" + good + b"\n")
    with caplog.at_level(logging.WARNING, "libctrd"):
        assert reopened(path).after(0) == [Entry("exit", "c", 7, "init", 3)]
    assert "1 lines that cannot be read" in caplog.text
    caplog.clear()
    assert reopened(path).after(0) == [Entry("exit", "c", 7, "init", 3)]
    assert caplog.text == "", "it was put in order"


@settings(deadline=None, max_examples=examples(150))
@given(st.binary(max_size=300))
def test_any_bytes_are_a_log_or_of_a_later_version(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        path = Path(top, "events.log")
        path.write_bytes(content)
        log = reopened(path)
        assert log.after(0) == log.promises() == []


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n", b'{"version":1}'])
def test_a_file_with_nothing_in_it_is_an_empty_log(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    log = EventLog(str(path))
    log.append("oom", "c")
    log.close()
    assert [entry.type for entry in reopened(path).after(0)] == ["oom"]


def test_a_file_that_a_killed_server_was_about_to_put_in_place_is_in_nobodys_way(path: Path) -> None:
    EventLog(str(path)).close()
    path.with_name("events.log.new").write_bytes(b"half of a")
    log = EventLog(str(path))
    log.append("oom", "c")
    log.close()
    assert len(reopened(path).after(0)) == 1
    assert os.listdir(path.parent) == ["events.log"]


def test_a_disk_that_is_full_for_a_while_costs_no_event(
    events: EventLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a line gets there. The events count all the same, and when there is room again they are all in the file."""
    events.append("start-container", "c")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        events.append("oom", "c")
        events.promise("exit", "c", "init", 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert "is not in the event log" in caplog.text
    assert [entry.type for entry in events.after(0)] == ["start-container", "oom"]
    events.append("pause", "c")
    again = reopened(path)
    assert [entry.type for entry in again.after(0)] == ["start-container", "oom", "pause"]
    assert [entry.status for entry in again.promises()] == [9]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"missing/events\.log"):
        EventLog(str(tmp_path / "missing" / "events.log"))
