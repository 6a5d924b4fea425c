"""``ctrd attach`` on pipes and on a real pseudo-terminal, and the keys that leave a container."""

from __future__ import annotations

import json
import signal
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd.cli import keys
from libctrd.errors import InvalidArgumentError

if TYPE_CHECKING:
    from cli_kit import Ctrd, Terminal

pytest_plugins = ["cli_kit"]

HOLD = ("--unattended", "hold")


def test_it_shows_what_was_held_and_what_comes_and_ends_with_its_code(each_ctrd: Ctrd) -> None:
    id = each_ctrd.detached("echo before; cat; echo after >&2; exit 9", "-i", *HOLD)
    done = each_ctrd("attach", "-i", id, input=b"typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"before\ntyped\n", b"after\n")
    assert each_ctrd("wait", id).returncode == 9, "it is not removed"
    assert each_ctrd("rm", id).returncode == 0


def test_without_i_its_input_stays_open(ctrd: Ctrd) -> None:
    id = ctrd.detached("echo ready; read x; echo got $x; exit 3", "-i", *HOLD)
    watching = ctrd.popen("attach", id)
    assert watching.stdout is not None
    assert watching.stdout.readline() == b"ready\n"
    assert "another client" in ctrd.failure(ctrd("attach", id))
    watching.send_signal(signal.SIGHUP)
    assert watching.wait(30) == 128 + signal.SIGHUP
    assert ctrd.ids() == [id], "a hang-up leaves it running"
    done = ctrd("attach", "-i", id, input=b"it\n")
    assert (done.returncode, done.stdout) == (3, b"got it\n")
    assert ctrd("rm", id).returncode == 0


def test_a_further_process_is_shown_and_found_by_its_name(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    try:
        assert ctrd("exec", "-d", "--name", "beside", id, "sleep", "1000").stdout == b"beside\n"
        (known,) = json.loads(ctrd("inspect", id).stdout)
        assert known["processes"][0]["name"] == "init"
        assert known["processes"][0]["pid"] == known["pid"]
        said = ctrd.failure(ctrd("attach", "--process", "beside", id))
        assert "no stream to attach to" in said
        script = "echo ready; read x; echo got $x; exit 6"
        running = ctrd.popen("exec", "-i", "--name", "held", id, "sh", "-c", script, stdin=subprocess.PIPE)
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        assert "another client" in ctrd.failure(ctrd("attach", "--process", "held", id))
        running.kill()
        running.wait()
        assert running.stdin is not None
        running.stdin.close()
        done = ctrd("attach", "-i", "--process", "held", id, input=b"it\n")
        assert (done.returncode, done.stdout) == (6, b"got it\n")
    finally:
        assert ctrd("rm", "-f", id).returncode == 0


def test_signals_go_on_to_it_or_leave_it(ctrd: Ctrd) -> None:
    id = ctrd.detached("trap 'echo term; exit 4' TERM; while :; do echo ready; sleep 0.02; done", *HOLD)
    leaving = ctrd.popen("attach", "--no-signals", id)
    assert leaving.stdout is not None
    assert leaving.stdout.readline() == b"ready\n"
    leaving.terminate()
    assert leaving.wait(30) == 128 + signal.SIGTERM
    passing = ctrd.popen("attach", id)
    assert passing.stdout is not None
    assert passing.stdout.readline() == b"ready\n"
    passing.terminate()
    assert passing.stdout.read().endswith(b"ready\nterm\n")
    assert passing.wait(30) == 4
    assert ctrd("rm", id).returncode == 0


@pytest.mark.parametrize("command", ["attach", "attach --process x", "attach --detach-keys ctrl-"])
def test_what_cannot_be_attached_to_is_told(ctrd: Ctrd, command: str) -> None:
    assert ctrd.failure(ctrd(*command.split(), "nobody"))
    id = ctrd.detached("sleep 1000", *HOLD)
    if command != "attach":
        assert ctrd.failure(ctrd(*command.split(), id))
    assert ctrd("rm", "-f", id).returncode == 0


@pytest.mark.containerd("the local engine can")
def test_output_that_was_let_go_from_the_start_cannot_be_had_later(ctrd: Ctrd) -> None:
    id = ctrd.detached("sleep 1000")
    assert "no stream to attach to" in ctrd.failure(ctrd("attach", id))
    assert ctrd("rm", "-f", id).returncode == 0


@pytest.mark.local("a shim of containerd was told at the start that its output is for nobody")
def test_what_is_discarded_else_is_shown_while_attached(ctrd: Ctrd) -> None:
    id = ctrd.detached("read x; seq 1 20000; exit 3", "-i")
    done = ctrd("attach", "-i", id, input=b"\n")
    assert done.returncode == 3
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 20001)).encode()
    assert ctrd("rm", id).returncode == 0


def attach(ctrd: Ctrd, terminal: Terminal, id: str, *options: str) -> subprocess.Popen[bytes]:
    return ctrd.popen("attach", *options, id, **terminal.own())


def is_raw(terminal: Terminal) -> bool:
    return not terminal.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_the_keys_leave_it_and_the_next_comes_to_it(each_ctrd: Ctrd, terminal: Terminal) -> None:
    script = "echo ready; while read x; do test $x = end && exit 5; echo got $x; done"
    id = each_ctrd.detached(script, "-i", "-t", *HOLD)
    before = terminal.modes()
    process = attach(each_ctrd, terminal, id)
    terminal.expect(b"ready\r\n")
    each_ctrd.until(lambda: is_raw(terminal), "raw mode")
    terminal.type(b"one\x10two\r")  # ctrl-p alone is passed on
    terminal.expect(b"got one\x10two\r\n")
    terminal.type(b"\x10\x11")
    assert process.wait(30) == 0
    assert terminal.modes() == before
    process = attach(each_ctrd, terminal, id, "--detach-keys", "x,y")
    each_ctrd.until(lambda: is_raw(terminal), "raw mode")
    terminal.resize(91, 17)
    terminal.type(b"three\r")
    terminal.expect(b"got three\r\n")
    terminal.type(b"xy")
    assert process.wait(30) == 0
    process = attach(each_ctrd, terminal, id, "--detach-keys", "")
    each_ctrd.until(lambda: is_raw(terminal), "raw mode")
    terminal.type(b"end\r")
    assert process.wait(30) == 5
    assert terminal.modes() == before
    assert each_ctrd("rm", id).returncode == 0


def test_its_terminal_gets_the_size_of_ours(ctrd: Ctrd, terminal: Terminal) -> None:
    id = ctrd.detached("trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done", "-i", "-t", *HOLD)
    terminal.resize(133, 41)
    process = attach(ctrd, terminal, id)
    terminal.expect(b"41 133\r\n")
    terminal.resize(20, 10)
    terminal.expect(b"10 20\r\n")
    assert ctrd("kill", id).returncode == 0
    assert process.wait(30) == 137
    assert ctrd("rm", id).returncode == 0


# ---- the keys --------------------------------------------------------------------------------------------------------


def test_keys_are_parsed() -> None:
    assert keys.parse("ctrl-p,ctrl-q") == b"\x10\x11"
    assert keys.parse("Ctrl-],d") == b"\x1dd"
    assert keys.parse("ctrl-@") == b"\0"
    assert keys.parse("") == b""
    for wrong in ("ctrl-", "ctrl-1", "pq", "a,,b", "é", "ctrl-ab", "\n"):
        with pytest.raises(InvalidArgumentError, match="detach keys"):
            keys.parse(wrong)


@given(st.binary(min_size=1, max_size=4), st.lists(st.binary(max_size=6)))
def test_however_it_is_typed_the_keys_are_found_and_nothing_is_lost(wanted: bytes, pieces: list[bytes]) -> None:
    found, passed = False, b""
    looking = keys.Keys(wanted)
    for piece in pieces:
        more, found = looking.typed(piece)
        passed += more
        if found:
            break
    typed = b"".join(pieces)
    assert found == (wanted in typed)
    if found:
        assert passed == typed[: typed.index(wanted)]
    else:
        held = typed[len(passed) :]
        assert passed + held == typed
        assert wanted.startswith(held)


@given(st.binary(min_size=2, max_size=3), st.binary(max_size=40))
def test_what_begins_like_the_keys_is_passed_on_with_what_follows(wanted: bytes, data: bytes) -> None:
    small = bytes(byte & 1 for byte in data)
    keys_of = bytes(byte & 1 for byte in wanted)
    passed, found = keys.Keys(keys_of).typed(small)
    assert found == (keys_of in small)
    assert small.startswith(passed)
