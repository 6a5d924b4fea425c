"""What ctrd says to bad input, each time in one line with exit code 125 and nothing left behind; and its own words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import libctrd
from libctrd.cli.group import COMMANDS

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


def nothing_left(ctrd: Ctrd) -> bool:
    return not os.path.isdir(ctrd.state_dir) or os.listdir(ctrd.state_dir) == []


@pytest.mark.parametrize("id", ["a/b", "..", ".", "", "a\nb", "a" * 77, "-a", "a b", "é", "a..b"])
def test_an_id_that_cannot_be(ctrd: Ctrd, id: str) -> None:
    assert "id" in ctrd.failure(ctrd.run("--id", id, "true"))
    assert "id" in ctrd.failure(ctrd("rm", "-f", "--", id))
    assert nothing_left(ctrd)


@pytest.mark.parametrize("command", ["start", "start -a", "wait", "kill", "inspect", "rm"])
def test_a_container_that_is_not_there(ctrd: Ctrd, command: str) -> None:
    for id, said in (("nobody", "there is no container 'nobody'"), ("../x", "container id '../x' is not valid")):
        done = ctrd(*command.split(), id)
        assert (done.returncode, done.stderr.count(b"\n")) == (125, 1)
        assert said in done.stderr.decode()
    assert nothing_left(ctrd)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "config.json"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("\ud800", "not JSON"),
        ("{}", "process"),
        ({"process": {"args": []}}, "process.args"),
        ({"process": {"args": ["sh", 7]}}, "process.args[1]"),
        ({"root": {"path": "nowhere"}}, "nowhere"),
        ({"root": {"path": "config.json"}}, "not a directory"),
        ({"root": None}, "root"),
    ],
)
def test_a_bundle_that_cannot_be_run(ctrd: Ctrd, tmp_path: Path, config: Any, said: str) -> None:
    if isinstance(config, dict):
        spec = libctrd.spec.default(["true"], ctrd.rootfs)
        for key, value in config.items():
            spec[key] = {**spec[key], **value} if value is not None else None
        config = json.dumps(spec)
    if config is not None:
        (tmp_path / "config.json").write_text(config, errors="surrogatepass")
    for command in (["run"], ["run", "-d"], ["create"]):
        assert said in ctrd.failure(ctrd(*command, "--bundle", str(tmp_path)))
    assert nothing_left(ctrd)


def test_a_spec_that_is_a_fifo_is_no_wait(ctrd: Ctrd, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "not a regular file" in ctrd.failure(ctrd("run", "--bundle", str(tmp_path)))


@pytest.mark.parametrize("rootfs", ["/nowhere", "/etc/passwd", "", "/etc/passwd/x"])
def test_a_root_file_system_that_is_none(ctrd: Ctrd, rootfs: str) -> None:
    ctrd.failure(ctrd("run", "--rootfs", rootfs, "true"))
    assert nothing_left(ctrd)


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "much"],
        ["--memory", "0"],
        ["--memory", "9" * 30],
        ["--cpus", "x"],
        ["--cpus", "0"],
        ["--cpus", "nan"],
        ["--pids-limit", "0"],
        ["--pids-limit", "1.5"],
        ["--user", "root"],
        ["--user", "-1"],
        ["--env", "NOVALUE"],
        ["--env", "=x"],
        ["--cwd", "relative"],
        ["--mount", "nonsense"],
        ["--mount", "type=bind,target=/x"],
        ["--mount", "type=bind,source=/nowhere-at-all,target=/x"],
        ["--unattended", "shout"],
        ["--unattended", "hold", "--log", "x"],
        ["--log", "/nowhere/log"],
        ["-d", "--rm", "--unattended", "hold"],
        ["--bundle", "/"],
        ["--no-such-option"],
        ["--id"],
    ],
)
def test_an_option_that_cannot_be(ctrd: Ctrd, options: list[str]) -> None:
    ctrd.failure(ctrd.run(*options, "true"))
    assert nothing_left(ctrd)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option"],
        ["--format", "xml", "ps"],
        ["run"],
        ["run", "--rootfs", "/"],
        ["run", "true"],
        ["create"],
        ["start"],
        ["start", "-a", "one", "two"],
        ["wait"],
        ["kill"],
        ["kill", "-s", "NOSUCH", "x"],
        ["kill", "-s", "0", "x"],
        ["inspect"],
        ["rm"],
        ["ps", "extra"],
        ["spec", "--validate", "/nowhere"],
        ["spec", "--validate", "x", "--memory", "1g"],
        ["--state-dir", "/x", "--address", "local:/x", "ps"],
        ["--runtime", "no-such-runtime", "create", "--rootfs", "/", "true"],
    ],
)
def test_a_command_line_that_cannot_be(ctrd: Ctrd, arguments: list[str]) -> None:
    ctrd.failure(ctrd(*arguments))
    assert nothing_left(ctrd)


@pytest.mark.parametrize(
    "address",
    [
        "nowhere",
        "local:relative",
        "unix:///run/x.sock",
        "http://x",
        "local:/proc/x",
        "local:/etc/passwd",
        "local:/dev/null/x",
    ],
)
def test_an_address_that_is_no_engine(ctrd: Ctrd, address: str) -> None:
    ctrd.program = [sys.executable, "-m", "libctrd.cli", "--address", address]
    ctrd.failure(ctrd("ps"))
    environment = {**ctrd.environment, "CTRD_ADDRESS": address}
    ctrd.program = [sys.executable, "-m", "libctrd.cli"]
    ctrd.failure(ctrd("ps", env=environment))


def test_the_address_comes_from_the_environment_too(ctrd: Ctrd) -> None:
    assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", "x", "true").returncode == 0
    ctrd.program = [sys.executable, "-m", "libctrd.cli"]
    environment = {**ctrd.environment, "CTRD_ADDRESS": ctrd.engine.address}
    assert ctrd("rm", "x", env=environment).stdout == b"x\n"


@pytest.mark.local("the directory of the others is not the caller's to choose")
def test_a_relative_state_directory_is_taken_from_here(ctrd: Ctrd) -> None:
    where = Path(ctrd.state_dir)
    ctrd.program = [sys.executable, "-m", "libctrd.cli", "--state-dir", where.name]
    assert ctrd.run("--id", "x", "-d", "true", cwd=where.parent).returncode == 0
    assert os.listdir(where) == ["x"]
    assert ctrd("rm", "-f", "x", cwd=where.parent).returncode == 0


@pytest.mark.local("the directory of the others is not the caller's to choose")
def test_a_state_directory_that_is_a_symlink_to_elsewhere(ctrd: Ctrd, tmp_path: Path) -> None:
    os.symlink(tmp_path, ctrd.state_dir)
    assert "symbolic link" in ctrd.failure(ctrd.run("true"))
    assert list(tmp_path.iterdir()) == []
    os.unlink(ctrd.state_dir)


@pytest.mark.local("the directory of the others is not the caller's to choose")
def test_a_state_directory_we_may_not_write(ctrd: Ctrd) -> None:
    """Of another user, for a root without the capabilities that make modes a matter of taste."""
    os.mkdir(ctrd.state_dir, 0o700)
    os.chown(ctrd.state_dir, 65534, 65534)
    no_override = "-dac_override,-dac_read_search"
    program = ["setpriv", f"--bounding-set={no_override}", f"--inh-caps={no_override}", *ctrd.program]
    for command in (["ps"], ["run", "--rootfs", ctrd.rootfs, "true"]):
        done = subprocess.run([*program, *command], capture_output=True, timeout=30)
        assert ctrd.state_dir in ctrd.failure(done)
    assert nothing_left(ctrd)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("#!/bin/sh\necho garbage; exit 0\n", 0o755),
        ("#!/bin/sh\necho garbage >&2; exit 1\n", 0o755),
        ("\0\1", 0o755),
        ("", 0o644),
    ],
)
def test_a_runtime_that_is_none(ctrd: Ctrd, tmp_path: Path, text: str, mode: int) -> None:
    runtime = tmp_path / "runtime"
    runtime.write_text(text)
    runtime.chmod(mode)
    ctrd.program += ["--runtime", str(runtime)]
    ctrd.failure(ctrd.run("--id", "x", "true"))
    assert nothing_left(ctrd)


@pytest.mark.local("the other engines keep nearly all elsewhere")
def test_a_full_disk(ctrd: Ctrd) -> None:
    os.mkdir(ctrd.state_dir)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", ctrd.state_dir], check=True)
    try:
        for command in (["run"], ["run", "-d"], ["create"]):
            ctrd.failure(ctrd(*command, "--rootfs", ctrd.rootfs, "true"))
            assert nothing_left(ctrd)
    finally:
        subprocess.run(["umount", ctrd.state_dir], check=True)


def test_no_descriptors_left(ctrd: Ctrd) -> None:
    """From just enough for the interpreter to what a run needs: each time a line, or it works."""
    worked = 0
    program = ctrd.program
    for limit in (*range(5, 31), 60, 100):
        ctrd.program = ["sh", "-c", 'ulimit -n $0; exec "$@"', str(limit), *program]
        done = ctrd.run("true")
        if done.returncode == 0:
            worked += 1
        else:
            ctrd.failure(done)
        assert nothing_left(ctrd)
    assert worked > 0


def test_a_failure_shows_no_control_characters(ctrd: Ctrd) -> None:
    text = ctrd.failure(ctrd.run("\x1b[31mred\r\n"))
    assert text.rstrip("\n").isprintable()


def test_arguments_that_are_no_text_are_refused_or_arrive(ctrd: Ctrd) -> None:
    done = subprocess.run(
        [*map(os.fsencode, [*ctrd.program, "run", "--rootfs", ctrd.rootfs, "echo"]), b"\xff\xfe"],
        capture_output=True,
        timeout=30,
    )
    ctrd.failure(done)
    assert nothing_left(ctrd)


def test_help_names_every_command_and_each_has_its_own(ctrd: Ctrd) -> None:
    text = ctrd("--help").stdout.decode()
    for name, summary in COMMANDS.items():
        assert f"  {name} " in text
        assert summary in text
        done = ctrd(name, "-h")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(f"Usage: ctrd {name} ".encode())


def test_version_and_info(ctrd: Ctrd) -> None:
    assert ctrd("version").stdout == ctrd("--version").stdout == f"ctrd {libctrd.__version__}\n".encode()
    assert json.loads(ctrd("--format", "json", "version").stdout) == {"version": libctrd.__version__}
    info = json.loads(ctrd("info", "--format", "json").stdout)
    assert info["address"] == ctrd.engine.address
    assert os.path.basename(info["runtime"]) in ("crun", "runc", "io.containerd.runc.v2")
    table = ctrd("info").stdout.decode()
    assert info["runtime"] in table
    assert info["runtime_version"] in table


def test_the_printed_spec_is_one_that_runs(ctrd: Ctrd, tmp_path: Path) -> None:
    done = ctrd("spec", "-e", "A=5", "sh", "-c", "exit $A")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["root"] == {"path": "rootfs", "readonly": False}
    (tmp_path / "config.json").write_bytes(done.stdout)
    (tmp_path / "rootfs").symlink_to(ctrd.rootfs)
    for file in (tmp_path, tmp_path / "config.json"):
        done = ctrd("spec", "--validate", str(file))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert ctrd("run", "--bundle", str(tmp_path)).returncode == 5
    assert json.loads(ctrd("spec").stdout)["process"]["args"] == ["sh"]


def test_every_fault_of_a_spec_is_told_with_its_place(ctrd: Ctrd, tmp_path: Path) -> None:
    spec = libctrd.spec.default(["sh"], "/")
    spec["process"]["args"] = ["sh", 7]
    spec["process"]["cwd"] = "relative"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(spec))
    done = ctrd("spec", "--validate", str(file))
    assert done.returncode == 125
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"ctrd: {file}: process.args[1]: ")
    assert lines[1].startswith(f"ctrd: {file}: process.cwd: ")
