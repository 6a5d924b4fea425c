"""``ctrd run -t`` on a real pseudo-terminal: raw mode and back, the window's size, job control."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Ctrd, Terminal

pytest_plugins = ["cli_kit"]


def is_raw(terminal: Terminal) -> bool:
    local = terminal.modes()[3]
    return not local & (termios.ICANON | termios.ECHO | termios.ISIG)


def start(ctrd: Ctrd, terminal: Terminal, script: str, *options: str) -> subprocess.Popen[bytes]:
    return ctrd.popen("run", "--rootfs", ctrd.rootfs, "-i", "-t", *options, "sh", "-c", script, **terminal.own())


def test_the_container_has_a_terminal_of_the_size_of_ours_from_its_first_moment(
    each_ctrd: Ctrd, terminal: Terminal
) -> None:  # C13
    terminal.resize(133, 41)
    process = start(each_ctrd, terminal, "stty size; tty; test -t 0 && test -t 1 && test -t 2; echo $?")
    terminal.expect(b"41 133\r\n/dev/")
    terminal.expect(b"\r\n0\r\n")
    assert process.wait(30) == 0


def test_the_size_follows_our_window(each_ctrd: Ctrd, terminal: Terminal) -> None:
    process = start(each_ctrd, terminal, "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done")
    terminal.expect(b"ready\r\n")
    terminal.resize(100, 50)  # the kernel sends SIGWINCH to the foreground
    terminal.expect(b"50 100\r\n")
    terminal.resize(20, 10)
    terminal.expect(b"10 20\r\n")
    assert each_ctrd("kill", *each_ctrd.ids()).returncode == 0
    assert process.wait(30) == 137


def test_keys_reach_the_container_and_the_terminal_is_restored(each_ctrd: Ctrd, terminal: Terminal) -> None:
    before = terminal.modes()
    process = start(
        each_ctrd,
        terminal,
        "trap 'echo interrupted; exit 8' INT; echo ready; read x; echo got $x; while :; do sleep 0.02; done",
    )
    terminal.expect(b"ready\r\n")
    each_ctrd.until(lambda: is_raw(terminal), "raw mode")
    terminal.type(b"hello\r")
    assert terminal.expect(b"got hello\r\n").count(b"hello") == 2  # one echo, by the container's terminal
    terminal.type(b"\x03")  # Ctrl-C is a byte, and a signal only there
    terminal.expect(b"interrupted\r\n")
    assert process.wait(30) == 8
    assert terminal.modes() == before


def test_the_terminal_is_restored_when_the_start_fails(ctrd: Ctrd, terminal: Terminal) -> None:
    before = terminal.modes()
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "-i", "-t", "no-such-program", **terminal.own())
    assert process.wait(30) == 125
    assert terminal.modes() == before
    assert terminal.expect(b"\r\n").startswith(b"ctrd: ")


def test_the_terminal_is_restored_when_a_signal_ends_the_container(ctrd: Ctrd, terminal: Terminal) -> None:
    before = terminal.modes()
    process = start(ctrd, terminal, "trap 'exit 4' TERM; echo ready; while :; do sleep 0.02; done")
    terminal.expect(b"ready\r\n")
    ctrd.until(lambda: is_raw(terminal), "raw mode")
    process.terminate()
    assert process.wait(30) == 4
    assert terminal.modes() == before


def test_a_stop_gives_the_terminal_back_and_going_on_takes_it_again(ctrd: Ctrd, terminal: Terminal) -> None:
    """With bash for the job control, as a stop is no more than ignored where there is none."""
    before = terminal.modes()
    script = "trap 'stty size' WINCH; trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"
    run = shlex.join([*ctrd.program, "run", "--rootfs", ctrd.rootfs, "-i", "-t", "sh", "-c", script])
    shell = f"{run}; echo stopped $?; read line; fg; echo ended $?"
    own = terminal.own()
    process = subprocess.Popen([*own.pop("through"), "bash", "-m", "-c", shell], **own)
    ctrd.started.append(process)
    terminal.expect(b"ready\r\n")
    ctrd.until(lambda: is_raw(terminal), "raw mode")
    os.kill(os.tcgetpgrp(terminal.user), signal.SIGTSTP)
    terminal.expect(b"stopped 148\r\n")
    assert terminal.modes() == before
    terminal.resize(70, 20)
    terminal.type(b"\n")
    ctrd.until(lambda: is_raw(terminal), "raw mode again")
    terminal.expect(b"20 70\r\n")
    os.kill(os.tcgetpgrp(terminal.user), signal.SIGTERM)
    terminal.expect(b"ended 7\r\n")
    assert process.wait(30) == 0
    assert terminal.modes() == before


def test_a_stop_that_nobody_could_undo_is_none(ctrd: Ctrd, terminal: Terminal) -> None:
    process = start(ctrd, terminal, "echo ready; read x; echo got $x")
    terminal.expect(b"ready\r\n")
    ctrd.until(lambda: is_raw(terminal), "raw mode")
    process.send_signal(signal.SIGTSTP)
    terminal.type(b"on\r")
    terminal.expect(b"got on\r")  # and whatever a line ends with: for a moment the terminal was as it had been
    assert process.wait(30) == 0


def test_without_i_our_terminal_stays_as_it_is(ctrd: Ctrd, terminal: Terminal) -> None:
    before = terminal.modes()
    script = "trap 'echo INT; exit 6' INT; echo ready; while :; do sleep 0.02; done"
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "-t", "sh", "-c", script, **terminal.own())
    terminal.expect(b"ready\r")
    assert terminal.modes() == before
    terminal.type(b"\x03")  # so Ctrl-C is a signal to us, and goes on as one
    terminal.expect(b"INT")
    assert process.wait(30) == 6


def test_a_terminal_for_the_container_needs_none_of_ours(each_ctrd: Ctrd) -> None:
    done = each_ctrd.run("-t", "sh", "-c", "test -t 0 && test -t 1 && echo terminal; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"terminal\r\n", b"", 3)
    # Its end is told apart below: a shim of containerd hangs the terminal up then, and what was not read yet is lost.
    arguments = ["run", "--rootfs", each_ctrd.rootfs, "-i", "-t", "sh", "-c", "read x; echo got $x"]
    process = each_ctrd.popen(*arguments, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read() == b"hello\r\ngot hello\r\n"
    assert process.wait() == 0


@pytest.mark.parametrize(("given", "shown"), [(b"x\n", b"x\r\nx\r\n"), (b"x", b"xx"), (b"", b"")])
def test_the_end_of_our_input_reaches_a_program_through_its_terminal(
    each_ctrd: Ctrd, given: bytes, shown: bytes
) -> None:  # C7
    done = each_ctrd.run("-i", "-t", "cat", input=given)
    assert (done.stdout, done.returncode) == (shown, 0)


def test_a_terminal_that_hangs_up_costs_neither_the_container_nor_its_exit_code(ctrd: Ctrd) -> None:
    user, program = os.openpty()
    own = {"stdin": program, "stdout": program, "stderr": program, "start_new_session": True}
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "-t", "sh", "-c", "echo ready; seq 100000; exit 5", **own)
    os.close(program)
    assert os.read(user, 5) == b"ready"
    os.close(user)
    assert process.wait(30) == 5


def test_the_output_may_go_elsewhere_than_the_terminal(ctrd: Ctrd, terminal: Terminal) -> None:
    own = {**terminal.own(), "stdout": subprocess.PIPE}
    terminal.resize(99, 33)
    process = ctrd.popen("run", "--rootfs", ctrd.rootfs, "-i", "-t", "sh", "-c", "stty size", **own)
    assert process.stdout is not None
    assert process.stdout.read() == b"33 99\r\n"
    assert process.wait(30) == 0
