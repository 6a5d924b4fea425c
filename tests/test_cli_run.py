"""``ctrd run`` in the foreground: its streams, its exit codes, its options."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import libctrd

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


def test_prints_both_streams_and_exits_with_the_containers_code(each_ctrd: Ctrd) -> None:  # C28
    done = each_ctrd.run("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)
    assert os.listdir(each_ctrd.state_dir) == []


def test_the_last_line_is_there_however_fast_the_container_is(ctrd: Ctrd) -> None:  # C28, moby 27289
    for number in range(8):
        assert ctrd.run("echo", str(number)).stdout == f"{number}\n".encode()


def test_without_i_the_container_has_no_input(ctrd: Ctrd) -> None:
    assert ctrd.run("sh", "-c", "cat; echo end", input=b"never read").stdout == b"end\n"


def test_input_that_has_ended_before_the_container_exists_ends_it(each_ctrd: Ctrd) -> None:  # C7, nerdctl 5042
    assert each_ctrd.run("-i", "cat", input=b"x\n").stdout == b"x\n"
    done = each_ctrd.run("-i", "cat", stdin=subprocess.DEVNULL)
    assert (done.stdout, done.returncode) == (b"", 0)


def test_an_input_that_never_ends_does_not_delay_the_end(ctrd: Ctrd) -> None:
    reader, writer = os.pipe()  # nobody writes to it, and it stays open
    try:
        done = ctrd.run("-i", "sh", "-c", "exit 5", stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 5


def test_an_input_that_comes_bit_by_bit_arrives_bit_by_bit(ctrd: Ctrd) -> None:
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "-i", "cat", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for line in (b"one\n", b"two\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline() == line
    process.stdin.close()
    assert process.wait(30) == 0


def test_64_mib_pass_through_both_ways_unchanged(ctrd: Ctrd, tmp_path: Path) -> None:  # C28
    data = os.urandom(1 << 20) * 64
    (tmp_path / "data").write_bytes(data)
    with open(tmp_path / "data", "rb") as source:
        done = ctrd.run("-i", "cat", stdin=source)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_a_reader_that_is_slow_gets_every_byte_and_holds_the_container_back(ctrd: Ctrd) -> None:  # C28, moby 45689
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "sh", "-c", "seq 1000000; exit 4")
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    first = process.stdout.read(2)
    ctrd.until(lambda: ctrd.ids(), "the container in ps")  # it cannot end: we have read two bytes of 6.9 MB
    assert process.poll() is None
    expected = "".join(f"{n}\n" for n in range(1, 1000001)).encode()
    assert first + process.stdout.read() == expected
    assert process.wait(30) == 4


def test_a_reader_that_goes_away_ends_neither_the_container_nor_ctrd(each_ctrd: Ctrd, tmp_path: Path) -> None:
    mount = f"type=bind,source={tmp_path},target=/mnt"
    program = " ".join([*each_ctrd.program, "run", "--rootfs", each_ctrd.rootfs, "--mount", mount])
    script = f"{program} sh -c 'seq 300000 && echo all >/mnt/written; exit 6' | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60)
    assert done.stdout == b"1\n6\n"
    assert done.stderr == b""
    assert (tmp_path / "written").read_text() == "all\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_are_as_good_as_dev_null(ctrd: Ctrd, closed: str) -> None:
    program = " ".join([*ctrd.program, "run", "--rootfs", ctrd.rootfs, "-i"])
    script = f"exec {program} sh -c 'cat; echo out; echo err >&2; exit 3' {closed}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 3
    assert done.stdout == (b"" if ">&-" in closed.split() else b"out\n")
    assert done.stderr == (b"" if "2>&-" in closed else b"err\n")


def test_output_to_a_full_disk_is_told(ctrd: Ctrd) -> None:
    with open("/dev/full", "wb") as full:
        done = ctrd.run("sh", "-c", "echo lost; exit 0", stdout=full)
    assert done.returncode == 125
    assert done.stderr.startswith(b"ctrd: ")
    assert b"No space left" in done.stderr


def test_options_after_the_first_argument_belong_to_the_container(ctrd: Ctrd) -> None:
    assert ctrd.run("echo", "--rm", "-i", "--", "-d").stdout == b"--rm -i -- -d\n"
    assert ctrd.run("--", "echo", "--id", "x").stdout == b"--id x\n"


def test_the_options_say_what_the_container_gets(each_ctrd: Ctrd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared\n")
    tmp_path.chmod(0o755)
    done = each_ctrd.run(
        *("--env", "A=1", "-e", "B=two words", "--cwd", "/tmp", "--user", "1000:1001", "--read-only", "--rm"),
        *("--memory", "64m", "--cpus", "0.5", "--pids-limit", "33", "--id", "chosen"),
        *("--mount", f"type=bind,source={tmp_path},target=/mnt,ro", "--mount", "type=tmpfs,target=/run"),
        *("sh", "-c", "echo $A $B; pwd; id -u; id -g; cat /mnt/file; touch /x 2>/dev/null || echo read-only"),
    )
    assert done.stderr == b""
    assert done.stdout.decode().splitlines() == ["1 two words", "/tmp", "1000", "1001", "shared", "read-only"]


def test_the_limits_reach_the_cgroup(ctrd: Ctrd) -> None:
    spec = json.loads(ctrd("spec", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "33").stdout)
    resources = spec["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 50000, "period": 100000}
    assert resources["pids"] == {"limit": 33}


def test_a_name_is_free_again_when_run_returns(each_ctrd: Ctrd) -> None:  # podman 2631
    for number in range(4):
        done = each_ctrd.run("--rm", "--id", "same", "sh", "-c", f"exit {number}")
        assert (done.returncode, done.stderr) == (number, b"")


def test_a_killed_ctrd_leaves_the_container_running_with_its_output_held(each_ctrd: Ctrd) -> None:  # containerd 11805
    options = ("--rootfs", each_ctrd.rootfs, "--id", "left", "-i")
    process = each_ctrd.popen("run", *options, "sh", "-c", "echo on; read x; exit 9", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.kill()
    process.wait()
    shown = json.loads(each_ctrd("--format", "json", "ps").stdout)
    assert [(one["id"], one["status"]) for one in shown] == [("left", "running")]
    waiting = each_ctrd.popen("wait", "left")
    assert each_ctrd("kill", "left").returncode == 0
    assert waiting.wait(30) == 137
    assert each_ctrd("rm", "left").stdout == b"left\n"


def test_a_bundle_runs_what_its_config_says_from_its_own_directory(each_ctrd: Ctrd, tmp_path: Path) -> None:
    bundle = bundle_of(each_ctrd, tmp_path, ["sh", "-c", "echo from the bundle; exit 3"])
    done = each_ctrd("run", "--bundle", str(bundle))
    assert (done.stdout, done.returncode) == (b"from the bundle\n", 3)
    done = each_ctrd("run", "--bundle", "bundle", cwd=tmp_path)
    assert (done.stdout, done.returncode) == (b"from the bundle\n", 3)


def test_options_go_over_a_bundles_config(ctrd: Ctrd, tmp_path: Path) -> None:
    bundle = bundle_of(ctrd, tmp_path, ["false"])
    done = ctrd(
        *("run", "--bundle", str(bundle), "-e", "OLD=new", "-e", "MORE=1", "-w", "/tmp", "-u", "7:8", "--read-only"),
        *("--memory", "32m", "--mount", "type=tmpfs,target=/mnt"),
        *("sh", "-c", "echo $OLD $KEPT $MORE; pwd; id -u; id -g; touch /x || echo read-only; mount | grep -c ' /mnt '"),
    )
    lines = done.stdout.decode().splitlines()
    assert lines == ["new kept 1", "/tmp", "7", "8", "read-only", "1"]
    resources = json.loads(ctrd("spec", "--bundle", str(bundle), "--memory", "32m").stdout)["linux"]["resources"]
    assert resources["memory"] == {"limit": 32 << 20, "swap": 64 << 20}


def bundle_of(ctrd: Ctrd, where: Path, args: list[str]) -> Path:
    """A bundle whose root file system is named relative to it."""
    bundle = where / "bundle"
    bundle.mkdir()
    spec = libctrd.spec.default(args, ctrd.rootfs, env=["OLD=old", "KEPT=kept"])
    spec["root"]["path"] = os.path.relpath(ctrd.rootfs, bundle)
    spec["linux"]["resources"]["memory"] = {"limit": 64 << 20, "swap": 64 << 20}
    (bundle / "config.json").write_text(json.dumps(spec))
    return bundle


def test_a_failed_start_is_told_in_one_line_and_leaves_nothing(each_ctrd: Ctrd) -> None:
    text = each_ctrd.failure(each_ctrd.run("--id", "x", "no-such-program"))
    assert "no-such-program" in text
    assert os.listdir(each_ctrd.state_dir) == []


def test_debug_shows_where_an_error_comes_from(ctrd: Ctrd) -> None:
    done = ctrd("--debug", "rm", "nobody")
    assert done.returncode == 125
    assert b"Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"ctrd: there is no container 'nobody'")


@pytest.mark.local("its shims are children")
def test_the_process_that_ran_a_container_leaves_no_child(ctrd: Ctrd) -> None:
    code = (
        "import os, sys; from libctrd.cli import main\n"
        f"code = main(['--state-dir', {ctrd.state_dir!r}, 'run', '--rootfs', {ctrd.rootfs!r}, 'true'])\n"
        "try:\n    os.waitpid(-1, 0)\nexcept ChildProcessError:\n    sys.exit(code + 40)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 40
