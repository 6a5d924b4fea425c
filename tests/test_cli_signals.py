"""Signals to a ``ctrd run``: before there is a container, while there is one, and when it has ended already."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]

ALL = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "PWR")


def trapping(*names: str) -> str:
    """A script that tells each of the signals *names*, and ends with 9 when it is TERM."""
    traps = " ".join(f"trap 'echo {name}' {name};" for name in names if name != "TERM")
    return f"{traps} trap 'echo TERM; exit 9' TERM; echo ready; while :; do sleep 0.02; done"


def test_signals_go_on_to_the_container_each_as_it_came(each_ctrd: Ctrd) -> None:
    process = each_ctrd.popen("run", "--rootfs", each_ctrd.rootfs, "sh", "-c", trapping(*ALL))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for name in (*(name for name in ALL if name != "TERM"), "TERM"):
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.readline().decode().strip() == name
    assert process.wait(30) == 9


def test_a_signal_that_was_ignored_at_our_start_stays_ignored(ctrd: Ctrd) -> None:  # nohup
    process = ctrd.popen(
        *("run", "--rootfs", ctrd.rootfs, "sh", "-c", trapping("HUP", "TERM")),
        through=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"TERM\n"
    assert process.wait(30) == 9


@pytest.mark.local("no other engine tries a runtime before it uses it")
@pytest.mark.parametrize("command", ["run", "run -d", "create"])
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_while_a_runtime_is_tried_ends_ctrd(ctrd: Ctrd, tmp_path: Path, command: str, name: str) -> None:
    interrupt(ctrd, hanging_runtime(tmp_path, "*"), command, name)


@pytest.mark.local("containerd waits for a runtime as long as it likes: what has begun there cannot be taken back")
@pytest.mark.parametrize("command", ["run", "run -d"])
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_while_the_runtime_still_starts_undoes_the_start(
    ctrd: Ctrd, tmp_path: Path, command: str, name: str
) -> None:
    interrupt(ctrd, hanging_runtime(tmp_path, "*/state/x/*' run '*"), command, name)


def interrupt(ctrd: Ctrd, runtime: tuple[Path, Path], command: str, name: str) -> None:
    """Sends the signal when *runtime* hangs: ctrd says no word and leaves nothing."""
    program, arrived = runtime
    ctrd.program += ["--runtime", str(program)]
    process = ctrd.popen(*command.split(), "--rootfs", ctrd.rootfs, "--id", "x", "true")
    with open(arrived, "rb") as told:
        assert told.read() == b"here\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + getattr(signal, f"SIG{name}"), b"", b"")
    assert os.listdir(ctrd.state_dir) == []


def hanging_runtime(where: Path, when: str) -> tuple[Path, Path]:
    """A runtime that tells through a fifo that it is called, and hangs then, when its arguments match *when*."""
    arrived = where / "arrived"
    os.mkfifo(arrived)
    runtime = where / "runtime"
    runtime.write_text(
        "#!/bin/bash\n"
        f'[[ "$*" == *" delete "* || "$*" != {when} ]] && exec runc "$@"\n'
        f"echo here >{arrived}\nexec sleep 1000\n"
    )
    runtime.chmod(0o755)
    return runtime, arrived


def test_a_signal_that_comes_very_early_leaves_nothing(ctrd: Ctrd) -> None:
    for number in range(8):
        process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "--id", "x", "sh", "-c", trapping("TERM"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02 * number)
        process.terminate()
        said = process.communicate(timeout=30)
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM, 9), said
        assert not os.path.isdir(ctrd.state_dir) or os.listdir(ctrd.state_dir) == []


def test_who_waits_only_for_a_reader_can_be_ended(ctrd: Ctrd) -> None:
    """The container has ended, its output is stuck in our pipe, and a signal has no container to go to."""
    reader, writer = os.pipe()
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "--id", "x", "sh", "-c", "seq 20000; exit 3", stdout=writer)
    os.close(writer)
    first = os.read(reader, 1)
    ctrd.until(lambda: b"stopped" in ctrd("ps").stdout, "the end of the container")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    os.close(reader)
    assert first == b"1"
    assert os.listdir(ctrd.state_dir) == []


def test_a_signal_at_the_very_end_does_not_cost_the_exit_code(ctrd: Ctrd) -> None:
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "sh", "-c", trapping("TERM"))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.stdout.readline() == b"TERM\n"
    while process.poll() is None:
        process.terminate()
    assert process.returncode == 9


def test_ctrl_c_ends_a_wait_without_a_word(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    process = ctrd.popen("wait", id)
    ctrd.until(lambda: "shim.sock" in _sockets(process.pid) or process.poll() is not None, "the wait's connection")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130
    assert ctrd("rm", "-f", id).returncode == 0


def _sockets(pid: int) -> str:
    """Something that tells when *pid* has begun to wait: it holds a socket by then."""
    fds = f"/proc/{pid}/fd"
    try:
        links = [os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)]
    except OSError:
        return ""
    return "shim.sock" if any(link.startswith("socket:") for link in links) else ""


def test_ctrl_c_while_a_command_is_being_loaded_is_no_traceback(ctrd: Ctrd) -> None:
    code = "import signal, libctrd.cli as cli, libctrd.cli.group as group\n"
    code += "def ctrl_c(*_): raise KeyboardInterrupt\ngroup.invoke = ctrl_c\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
