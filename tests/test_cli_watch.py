"""``ctrd events``, ``stats``, ``pause``, ``resume``, ``update`` and ``checkpoint``: of containers that run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from libctrd.cli.events import is_wanted, parse_filters
from libctrd.cli.stats import size
from libctrd.state import StateInfo

if TYPE_CHECKING:
    from cli_kit import Ctrd, Terminal

pytest_plugins = ["cli_kit"]


def begun(ctrd: Ctrd, *options: str) -> subprocess.Popen[bytes]:
    """``ctrd events``, which has said its headline: from now on it tells."""
    events = ctrd.popen("events", *options)
    assert events.stdout is not None
    assert events.stdout.readline().split() == [b"TIME", b"TYPE", b"ID", b"DETAILS"]
    return events


def ended(events: subprocess.Popen[bytes]) -> list[list[str]]:
    events.send_signal(signal.SIGINT)
    out, err = events.communicate(timeout=30)
    assert (events.returncode, err) == (130, b"")
    return [line.split()[1:] for line in out.decode().splitlines()]


def test_events_of_all_containers_are_told(each_ctrd: Ctrd) -> None:
    events = begun(each_ctrd)
    assert each_ctrd.run("--id", "one", "sh", "-c", "exit 3").returncode == 3
    id = each_ctrd.detached("sleep 1000")
    assert each_ctrd("pause", id).stdout == f"{id}\n".encode()
    assert each_ctrd("resume", id).stdout == f"{id}\n".encode()
    assert each_ctrd("kill", id).returncode == 0
    assert each_ctrd("wait", id).returncode == 137
    assert each_ctrd("rm", id).returncode == 0
    told = ended(events)
    assert [[line[0], line[1], *line[2:]] for line in told if line[1] == "one" and line[0] == "exit"] == [
        ["exit", "one", "code=3"]
    ]
    assert [line[0] for line in told if line[1] == id] == ["start-container", "pause", "resume", "exit"]
    if (
        each_ctrd.engine.kind != "api"
    ):  # whose events carry no pid, and one that has ended by now cannot be asked for it
        assert next(line[2] for line in told if line[0] == "start-container").startswith("pid=")


def test_events_are_filtered_and_come_as_json(ctrd: Ctrd) -> None:
    headline = begun(ctrd)
    events = ctrd.popen("events", "--format", "json", "--filter", "id=two", "--filter", "type=exit")
    assert events.stdout is not None
    for number in range(1, 200):  # nobody says when it has begun to listen
        for id in ("one", "two"):
            assert ctrd.run("--id", id, "sh", "-c", f"exit {number}").returncode == number
        if select.select([events.stdout], [], [], 0.1)[0]:
            break
    told = json.loads(events.stdout.readline())
    assert (told["id"], told["type"], told["process"]) == ("two", "exit", "init")
    assert 1 <= told["exit_code"] <= number
    ended(headline)
    events.kill()


def test_events_end_when_their_reader_goes(ctrd: Ctrd) -> None:
    events = begun(ctrd)
    assert events.stdout is not None
    events.stdout.close()
    assert events.wait(30) == 0


@pytest.mark.parametrize("wrong", ["id", "=x", "name=x", "type=birth"])
def test_a_filter_that_is_none_is_told(ctrd: Ctrd, wrong: str) -> None:
    assert "--filter" in ctrd.failure(ctrd("events", "--filter", wrong))


def test_filters_of_one_kind_widen_and_of_several_narrow() -> None:
    wanted = parse_filters(("id=a", "id=b", "type=exit"))
    assert is_wanted(wanted, "a", StateInfo("exit"))
    assert is_wanted(wanted, "b", StateInfo("exit"))
    assert not is_wanted(wanted, "c", StateInfo("exit"))
    assert not is_wanted(wanted, "a", StateInfo("pause"))
    assert is_wanted({}, "a", StateInfo("pause"))


@pytest.mark.parametrize("command", ["pause", "resume", "update --memory 64m", "attach", "stats", "checkpoint"])
def test_a_container_that_is_not_there_or_does_not_run(ctrd: Ctrd, command: str) -> None:
    more = ["dir"] if command == "checkpoint" else []
    assert "nobody" in ctrd.failure(ctrd(*command.split(), "nobody", *more))
    assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", "still", "true").returncode == 0
    said = ctrd.failure(ctrd(*command.split(), "still", *more))
    assert "not started" in said or "not running" in said
    assert ctrd("rm", "still").returncode == 0


@pytest.mark.containerd("some runtimes of the local engine take it for success")
def test_what_is_not_paused_cannot_be_resumed(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    assert ctrd.failure(ctrd("resume", id))
    assert ctrd("rm", "-f", id).returncode == 0


# ---- what it uses ----------------------------------------------------------------------------------------------------


def test_statistics_are_shown_once_as_a_table_or_as_json(ctrd: Ctrd) -> None:
    id = ctrd.detached("while :; do :; done", "--memory", "64m", "--pids-limit", "20")
    try:
        done = ctrd("stats", "--no-stream", "--format", "json", id)
        assert (done.returncode, done.stderr) == (0, b"")
        found = json.loads(done.stdout)
        assert (found["id"], found["memory"]["limit"], found["pids"]["limit"]) == (id, 64 << 20, 20)
        done = ctrd("stats", "--no-stream")
        (head, row) = done.stdout.decode().splitlines()
        assert head.split() == ["ID", "CPU", "%", "MEMORY", "LIMIT", "MEM", "%", "READ", "WRITTEN", "PIDS"]
        assert (row.split()[0], row.split()[3], row.split()[-1]) == (id, "64.0M", "1/20")
        assert float(row.split()[1]) > 5, "it is busy"
    finally:
        assert ctrd("rm", "-f", id).returncode == 0


def test_statistics_come_again_and_again_until_the_container_ends(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    stats = ctrd.popen("stats", "--interval", "0.1", "--format", "json", id)
    try:
        assert stats.stdout is not None
        lines: list[Any] = [json.loads(stats.stdout.readline()) for _ in range(3)]
        assert lines[0]["at"] < lines[1]["at"] < lines[2]["at"]
    finally:
        assert ctrd("rm", "-f", id).returncode == 0
    assert stats.wait(30) == 0


def test_statistics_are_a_live_table_on_a_terminal(ctrd: Ctrd, terminal: Terminal) -> None:
    id = ctrd.detached("sleep 1000")
    stats = ctrd.popen("stats", "--interval", "0.1", **terminal.own())
    try:
        for _ in range(3):  # again and again, on the same lines
            terminal.expect(b"MEMORY")
            terminal.expect(id[:8].encode())
        terminal.type(b"\x03")
        assert stats.wait(30) == 130
    finally:
        assert ctrd("rm", "-f", id).returncode == 0


def test_sizes_are_short() -> None:
    assert [size(n) for n in (0, 999, 1024, 1536, 150 * 1024, 64 << 20, 3 << 40)] == [
        *("0B", "999B", "1.0K", "1.5K", "150K", "64.0M", "3.0T")
    ]


def test_limits_are_changed(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000", "--memory", "64m")
    try:
        done = ctrd("update", "--memory", "48m", "--cpus", "0.5", "--pids-limit", "30", id)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{id}\n".encode(), b"")
        found = json.loads(ctrd("stats", "--no-stream", "--format", "json", id).stdout)
        assert (found["memory"]["limit"], found["pids"]["limit"]) == (48 << 20, 30)
    finally:
        assert ctrd("rm", "-f", id).returncode == 0


@pytest.mark.parametrize(
    "options", ["", "--memory much", "--memory 0", "--cpus 0", "--pids-limit 0", "--blkio-weight 5", "--blkio-weight x"]
)
def test_limits_that_cannot_be(ctrd: Ctrd, options: str) -> None:
    id = ctrd.detached("sleep 1000")
    assert ctrd.failure(ctrd("update", *options.split(), id))
    assert ctrd("rm", "-f", id).returncode == 0


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_where_no_checkpoint_can_be_made_the_container_runs_on(ctrd: Ctrd, tmp_path: Any) -> None:
    id = ctrd.detached("sleep 1000")
    done = ctrd("checkpoint", "--leave-running", id, str(tmp_path / "point"))
    try:
        if done.returncode == 0:
            assert json.loads((tmp_path / "point" / "ctrd.json").read_text())["id"] == id
        else:
            assert ctrd.failure(done)
            assert not os.path.exists(tmp_path / "point" / "ctrd.json")
        assert [one["status"] for one in json.loads(ctrd("ps", "--format", "json").stdout)] == ["running"]
    finally:
        assert ctrd("rm", "-f", id).returncode == 0


def test_what_is_no_checkpoint_cannot_be_gone_on_from(ctrd: Ctrd, tmp_path: Any) -> None:
    assert "ctrd.json" in ctrd.failure(ctrd("restore", str(tmp_path)))
    for text in ("{", "{}", '{"id": "x", "spec": {}}', "[]"):
        (tmp_path / "ctrd.json").write_text(text)
        assert ctrd.failure(ctrd("restore", str(tmp_path)))
    assert ctrd.ids() == []
