"""Containers that outlive the command that made them: ``run -d``, ``create``, ``start``, ``wait``, ``ps``, ``kill``,
``inspect`` and ``rm``, each in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


def listed(ctrd: Ctrd, *options: str) -> list[dict]:
    return json.loads(ctrd("ps", "--format", "json", *options).stdout)


def test_a_detached_container_is_handled_by_other_processes(each_ctrd: Ctrd) -> None:
    id = each_ctrd.detached("read x; sleep 1000")  # there is no input: read ends at once
    assert [(one["id"], one["status"]) for one in listed(each_ctrd)] == [(id, "running")]
    waiting = each_ctrd.popen("wait", id)
    done = each_ctrd("kill", id)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert waiting.communicate(timeout=30) == (b"137\n", b"")
    assert waiting.returncode == 137
    done = each_ctrd("wait", id)  # its exit record stays until it is removed
    assert (done.stdout, done.returncode) == (b"137\n", 137)
    assert [one["exit"]["code"] for one in listed(each_ctrd)] == [137]
    done = each_ctrd("rm", id)
    assert (done.stdout, done.returncode) == (f"{id}\n".encode(), 0)
    assert listed(each_ctrd) == []


def test_a_detached_container_that_ends_at_once_keeps_its_exit_code(each_ctrd: Ctrd) -> None:  # runc 2183
    for number in range(4):
        id = each_ctrd.detached(f"exit {number}")
        assert each_ctrd("wait", id).returncode == number
        assert each_ctrd("rm", id).returncode == 0


def test_a_detached_container_writes_as_much_as_it_likes_with_nobody_reading(each_ctrd: Ctrd) -> None:
    id = each_ctrd.detached("seq 100000; seq 100000 >&2; exit 3")
    assert each_ctrd("wait", id).returncode == 3
    assert each_ctrd("rm", id).returncode == 0


@pytest.mark.cannot("api", "log output", raises=AssertionError)
def test_unattended_output_goes_to_a_log(each_ctrd: Ctrd, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    id = each_ctrd.run("-d", "--log", "log", "sh", "-c", "echo out; echo err >&2", cwd=tmp_path).stdout.decode().strip()
    assert each_ctrd("wait", id).returncode == 0
    each_ctrd.until(lambda: log.read_text().count("\n") == 3, "both lines")
    assert sorted(log.read_text().splitlines()) == ["before", "err", "out"]
    assert each_ctrd("rm", id).returncode == 0


@pytest.mark.cannot("containerd", "remove a container that has ended by itself", raises=AssertionError)
@pytest.mark.cannot("api", "remove a container that has ended by itself", raises=AssertionError)
def test_detached_and_removed_it_goes_by_itself(each_ctrd: Ctrd) -> None:
    done = each_ctrd.run("-d", "--rm", "--id", "brief", "sh", "-c", "seq 100000; exit 3")
    assert (done.returncode, done.stdout) == (0, b"brief\n")
    each_ctrd.until(lambda: not os.listdir(each_ctrd.state_dir), "the end of it")
    assert each_ctrd.run("-d", "--rm", "--id", "brief", "true").returncode == 0
    each_ctrd.until(lambda: not os.listdir(each_ctrd.state_dir), "the end of it")


@pytest.mark.cannot("containerd", "remove a container that has ended by itself", raises=AssertionError)
@pytest.mark.cannot("api", "remove a container that has ended by itself", raises=AssertionError)
def test_a_wait_that_began_gets_the_code_of_a_container_that_removes_itself(each_ctrd: Ctrd) -> None:  # podman 527
    id = (
        each_ctrd.run("-d", "--rm", "sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.02; done")
        .stdout.decode()
        .strip()
    )
    waiting = each_ctrd.popen("wait", id)
    each_ctrd.until(lambda: _has_socket(waiting.pid) or waiting.poll() is not None, "the wait's connection")
    assert each_ctrd("kill", "-s", "TERM", id).returncode == 0
    assert waiting.communicate(timeout=30) == (b"6\n", b"")
    each_ctrd.until(lambda: not os.listdir(each_ctrd.state_dir), "the end of it")


def _has_socket(pid: int) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def test_created_then_started_then_waited_for(each_ctrd: Ctrd) -> None:  # C5
    done = each_ctrd(
        "create", "--rootfs", each_ctrd.rootfs, "--id", "two-steps", "-e", "CODE=4", "sh", "-c", "exit $CODE"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"two-steps\n", b"")
    assert [one["status"] for one in listed(each_ctrd)] == ["created"]
    assert each_ctrd("start", "two-steps").stdout == b"two-steps\n"
    assert each_ctrd("wait", "two-steps").returncode == 4
    for options in ([], ["-a"]):
        assert "started already" in each_ctrd.failure(each_ctrd("start", *options, "two-steps"))
    assert each_ctrd("rm", "two-steps").returncode == 0


def test_a_created_container_can_be_attended(each_ctrd: Ctrd) -> None:
    def create(script: str) -> str:
        done = each_ctrd("create", "--rootfs", each_ctrd.rootfs, "sh", "-c", script)
        return done.stdout.decode().strip()

    done = each_ctrd("start", "-a", create("echo out; echo err >&2; exit 3"))
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    done = each_ctrd("start", "-a", "-i", create("cat"), input=b"typed\n")
    assert (done.returncode, done.stdout) == (0, b"typed\n")
    assert listed(each_ctrd) == []


def test_a_created_container_that_cannot_start_stays_to_be_looked_at(each_ctrd: Ctrd) -> None:
    id = each_ctrd("create", "--rootfs", each_ctrd.rootfs, "no-such-program").stdout.decode().strip()
    for options in ([], ["-a"]):
        assert "no-such-program" in each_ctrd.failure(each_ctrd("start", *options, id))
        assert [one["status"] for one in listed(each_ctrd)] == ["created"]
    assert each_ctrd("rm", id).stdout == f"{id}\n".encode()


def test_a_start_that_is_refused_does_no_harm_to_what_runs(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    for options in ([], ["-a"]):
        assert "started already" in ctrd.failure(ctrd("start", *options, id))
    assert [one["status"] for one in listed(ctrd)] == ["running"]
    assert ctrd("rm", "-f", id).returncode == 0


def test_several_at_once_and_one_that_fails_keeps_none_from_the_rest(ctrd: Ctrd) -> None:
    for id in ("a", "b"):
        assert (
            ctrd("create", "--rootfs", ctrd.rootfs, "--id", id, "sh", "-c", f"test {id} = a || exit 2").returncode == 0
        )
    done = ctrd("start", "a", "nobody", "b")
    assert (done.returncode, done.stdout) == (125, b"a\nb\n")
    assert done.stderr.startswith(b"ctrd: there is no container 'nobody'")
    done = ctrd("wait", "a", "b")
    assert (done.returncode, done.stdout) == (2, b"0\n2\n")
    done = ctrd("wait", "b", "a")
    assert (done.returncode, done.stdout) == (0, b"2\n0\n")
    done = ctrd("rm", "a", "nobody", "b")
    assert (done.returncode, done.stdout) == (125, b"a\nb\n")


def test_a_running_container_is_removed_by_force_only(each_ctrd: Ctrd) -> None:
    id = each_ctrd.detached("sleep 1000")
    assert "running" in each_ctrd.failure(each_ctrd("rm", id))
    assert each_ctrd("rm", "-f", id).stdout == f"{id}\n".encode()
    assert listed(each_ctrd) == []
    done = each_ctrd("rm", "-f", id)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("sig", ["USR1", "SIGUSR1", "usr1", "10"])
def test_kill_knows_signals_by_name_and_number(ctrd: Ctrd, sig: str) -> None:
    id = ctrd.detached("trap 'exit 5' USR1; while :; do sleep 0.02; done")
    waiting = ctrd.popen("wait", id)
    # Until it has set its trap, the kernel drops the signal for the first process of a pid namespace.
    ctrd.until(lambda: ctrd("kill", "--signal", sig, id) and waiting.poll() is not None, "its end")
    assert waiting.returncode == 5
    assert ctrd("rm", id).returncode == 0


def test_a_name_in_use_is_refused_and_what_has_it_is_left_alone(ctrd: Ctrd) -> None:  # C19
    assert ctrd.run("-d", "--id", "taken", "sleep", "1000").returncode == 0
    for again in (ctrd.run("--id", "taken", "true"), ctrd.run("-d", "--id", "taken", "true")):
        assert "'taken' is running" in ctrd.failure(again)
    assert [one["status"] for one in listed(ctrd)] == ["running"]
    assert ctrd("rm", "-f", "taken").returncode == 0


def test_ps_shows_a_table_json_or_ids(ctrd: Ctrd) -> None:
    ended = ctrd.detached("exit 3")
    assert ctrd("wait", ended).returncode == 3
    running = ctrd.detached("sleep 1000")
    lines = ctrd("ps").stdout.decode().splitlines()
    assert lines[0].split() == ["ID", "STATUS", "PID", "CREATED", "RUNTIME"]
    assert sorted(line.split()[0] for line in lines[1:]) == sorted([ended, running])
    assert [line.split()[1:3] for line in lines if ended in line] == [["stopped", "(3)"]]
    assert sorted(ctrd.ids()) == sorted([ended, running])
    assert ctrd("ps", "-q", "--running").stdout == f"{running}\n".encode()
    assert [one["id"] for one in listed(ctrd, "-r")] == [running]
    assert ctrd("--format", "json", "ps").stdout == ctrd("ps", "--format", "json", "-a").stdout
    assert ctrd("rm", "-f", ended, running).returncode == 0


def test_a_table_fits_the_terminal_and_is_whole_elsewhere(ctrd: Ctrd) -> None:
    id = "a" * 76
    assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", id, "true").returncode == 0
    assert id in ctrd("ps").stdout.decode()
    script = f"unset COLUMNS; stty cols 60; {shlex.join(ctrd.program)} ps"
    command = ["script", "-qec", script, "/dev/null"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    lines = done.stdout.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 60 for line in lines)
    assert "…" in lines[1]
    assert ctrd("rm", id).returncode == 0


def test_inspect_shows_all_that_is_known_with_the_spec(ctrd: Ctrd) -> None:
    assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", "x", "-t", "true").returncode == 0
    (known,) = json.loads(ctrd("inspect", "x").stdout)
    assert (known["id"], known["status"], known["terminal"], known["exit"]) == ("x", "created", True, None)
    assert known["spec"]["process"]["args"] == ["true"]
    os.unlink(os.path.join(known["bundle"], "config.json"))
    done = ctrd("inspect", "x", "y")
    assert done.returncode == 125
    assert [one["spec"] for one in json.loads(done.stdout)] == [None]
    assert done.stderr.count(b"ctrd: ") == 2
    assert ctrd("rm", "x").returncode == 0


def test_what_is_printed_for_a_reader_that_has_gone_is_done_all_the_same(ctrd: Ctrd) -> None:
    for id in ("a", "b"):
        assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", id, "true").returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = ctrd("rm", "a", "b", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert listed(ctrd) == []


def test_an_id_that_cannot_be_told_is_no_container(ctrd: Ctrd) -> None:
    with open("/dev/full", "wb") as full:
        for command in (["run", "-d"], ["create"]):
            done = ctrd(*command, "--rootfs", ctrd.rootfs, "sleep", "1000", stdout=full)
            assert done.returncode == 125
            assert b"standard output" in done.stderr
            assert os.listdir(ctrd.state_dir) == []
