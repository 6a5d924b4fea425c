"""The shim when the system refuses something, and when it is asked for what cannot be: it says so, and goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_kit import fails, faulty, started_alone
from field_kit import refused, until
from fifo_kit import Background

import libctrd
from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import runtime as runtimes
from libctrd.engine import shim
from libctrd.errors import CtrdError, RuntimeFailedError

pytestmark = pytest.mark.local("the shim")
WAIT = 60.0
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def web(any_client: Client, spec: Make) -> Iterator[Container]:
    container = any_client.create("web", spec("trap 'exit 0' TERM; sleep 1000 & wait"))
    container.start(NULL)
    yield container
    container.clean(force=True)


def shim_pid(container: Container) -> int:
    return container._client._engine._shims[container.id].pid  # type: ignore[attr-defined, no-any-return]


def answer(container: Container, *words: str | bytes) -> str:
    """What its shim answers to a request; several words are the fields of an ``exec``."""
    with shim.connection(container.bundle) as peer:
        fields = [word.encode() if isinstance(word, str) else word for word in words]
        peer.sendall(fields[0] if len(fields) == 1 else b"\0".join(fields) + b"\0")
        return peer.recv(shim.PACKET).decode()


def exec_files(container: Container) -> list[str]:
    return [name for name in os.listdir(container.bundle) if name.startswith(("exec-", "tty-", "sock.tmp"))]


# ---- a start ---------------------------------------------------------------------------------------------------------

SET_UP = {
    "signalfd": ("signalfd4", errno.EMFILE, "1", "", "signalfd of SIGCHLD"),
    "subreaper": ("prctl", errno.EPERM, "1", "", "prctl of PR_SET_CHILD_SUBREAPER"),
    "null": ("open,openat", errno.EMFILE, "1", "/dev/null", "open of /dev/null"),
    "directory": ("fchdir", errno.ESTALE, "1", "", "fchdir of "),
    "record": ("write", errno.ENOSPC, "1", "", "write of exit.tmp"),
    "record cut": ("openat", errno.EROFS, "1", "STATE", "write of exit.tmp"),
    "fifo": ("open,openat", errno.EMFILE, "1", "FIFO", "open of "),
    "socket": ("socket", errno.EMFILE, "1", "", "bind of shim.sock"),
    "name": ("bind", errno.ENOSPC, "1", "", "bind of shim.sock"),
    "queue": ("listen", errno.ENOBUFS, "1", "", "bind of shim.sock"),
    "terminal": ("bind", errno.ENOSPC, "2", "", "bind of tty.sock"),
}


@pytest.mark.parametrize("what", SET_UP)
def test_a_shim_that_cannot_be_set_up_says_what_failed_and_leaves_nothing(
    any_client: Client, spec: Make, state_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    call, number, when, path, words = SET_UP[what]
    container = any_client.create("web", spec("true", terminal=what == "terminal"))
    path = {"STATE": container.bundle, "FIFO": f"{container.bundle}/init-stdout"}.get(path, path)
    program = faulty(tmp_path / "shim", shim.PROGRAM, call, number, when=when, path=path)
    monkeypatch.setattr(shim, "PROGRAM", program)
    with refused(CtrdError, words, os.strerror(number), state=state_dir):
        container.start(PIPE)


CHILD = {
    "no process": ("vfork", errno.EAGAIN, False),
    "no stdio": ("dup2", errno.EMFILE, True),
    "no program": ("execve", errno.ENOMEM, True),
    "no namespace": ("mount", errno.EPERM, True),
}


@pytest.mark.parametrize("what", CHILD)
def test_a_runtime_that_cannot_be_called_is_told_with_the_reason(
    any_client: Client, spec: Make, state_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    call, number, children = CHILD[what]
    if call == "mount" and not runtimes.find(None).hide_unified:
        pytest.skip("the runtime of this host needs no mount namespace that hides cgroup v2")
    container = any_client.create("web", spec("true"))
    path = runtimes.find(None).path if call == "execve" else ""  # and not the shim's own
    program = faulty(tmp_path / "shim", shim.PROGRAM, call, number, path=path, children=children)
    monkeypatch.setattr(shim, "PROGRAM", program)
    monkeypatch.setattr("libctrd.engine.sealed.copy", lambda path: None)
    with refused(RuntimeFailedError, os.strerror(number), state=state_dir):
        container.start(PIPE)


@pytest.mark.parametrize(
    "words",
    [["--bad", "x", "web", "--", "crun"], ["web"], ["--state", "/nowhere", "web", "--", "crun"]],
    ids=["no such option", "no runtime", "no directories"],
)
def test_a_command_line_that_is_none_is_refused(words: list[str], tmp_path: Path) -> None:
    peer, code = started_alone(tmp_path, shim.PROGRAM, words)
    with peer:
        assert code == 1
        assert peer.recv(shim.PACKET).startswith(b"broken 22 option ")
    peer, code = started_alone(tmp_path, shim.PROGRAM, words, starter=False)
    with peer:
        assert code == 2, "nobody is there to be told"


@pytest.mark.parametrize("place", ["a symlink", "a file", "nothing"])
def test_a_fifo_that_is_none_is_refused(
    any_client: Client, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whoever can write in the directory might have put something else there."""
    container = any_client.create("web", spec("true"))
    create = any_client._engine.create

    def swap(request: Any) -> int:
        os.unlink(request.stdout)
        if place == "a symlink":
            os.symlink("/etc/passwd", request.stdout)
        elif place == "a file":
            Path(request.stdout).touch()
        return create(request)

    monkeypatch.setattr(any_client._engine, "create", swap)
    with refused(CtrdError, "open of ", "init-stdout", state=state_dir):
        container.start(PIPE)


def test_a_further_process_that_cannot_be_is_refused_by_the_shim_itself(web: Container) -> None:
    """Our client asks for none of these; another one might."""
    fields = ("exec", "name", "token", "-", "", "", "")
    for wrong, reply in (
        (fields[:4], f"error {errno.EINVAL}"),
        (("exec", "n" * 80, *fields[2:]), f"error {errno.EINVAL}"),
        (("exec", "", *fields[2:]), f"error {errno.EINVAL}"),
        (("exec", "name", "t" * 24, *fields[3:]), f"error {errno.EINVAL}"),
        (("exec", "name", "a/../b", *fields[3:]), f"error {errno.EINVAL}"),
        (("exec", "init", *fields[2:]), f"error {errno.EEXIST}"),
        ((*fields[:5], "/nowhere/at/all", ""), f"error {errno.ENOENT} open /nowhere/at/all"),
        ((*fields[:5], "/etc/passwd", ""), f"error {errno.EINVAL} open /etc/passwd"),
    ):
        assert answer(web, *wrong) == reply, wrong
    for request, reply in (
        ("call ../../etc/passwd", f"error {errno.EINVAL}"),
        ("kill 9 nobody", f"error {errno.ESRCH}"),
        ("kill 999", f"error {errno.EINVAL}"),
        ("resize 80 24 nobody", f"error {errno.ESRCH}"),
        ("close-stdin nobody", f"error {errno.ESRCH}"),
        ("fds nobody", f"error {errno.ESRCH}"),
        ("forget nobody", "ok"),
        ("cancel nobody", "ok"),
    ):
        assert answer(web, request) == reply, request
    assert web.exec(["true"], NULL).wait(WAIT).code == 0
    assert exec_files(web) == []


def test_what_still_runs_is_not_forgotten(web: Container) -> None:
    process = web.exec(["sleep", "1000"], NULL, name="x")
    assert answer(web, "forget x") == f"error {errno.EBUSY}"
    process.signal("KILL")
    assert process.wait(WAIT).code == 137


@pytest.mark.parametrize(
    ("call", "number", "terminal", "words"),
    [
        ("write", errno.ENOSPC, False, "write of exec-"),
        ("bind", errno.ENOSPC, True, "bind of tty-"),
        ("socket", errno.EMFILE, True, "bind of tty-"),
        ("vfork", errno.EAGAIN, False, "temporarily unavailable"),
    ],
)
def test_a_further_process_for_which_there_is_no_room(
    web: Container, call: str, number: int, terminal: bool, words: str
) -> None:
    """It is refused with the reason, nothing of it is left, and the next one starts, with the usual mask for files."""
    with fails(call, number, pid=shim_pid(web)), pytest.raises(CtrdError, match=words):
        web.exec(["true"], PIPE, terminal=terminal)
    assert exec_files(web) == []
    process = web.exec(["sh", "-c", "umask"], PIPE)
    assert process.stdout is not None
    assert process.stdout.read() == b"0022\n"
    assert process.wait(WAIT).code == 0


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a runtime that is the usual one, but for what the script does when the words of a call match."""

    def make(script: str) -> str:
        real = runtimes.find(None)
        path = tmp_path / "runtime"
        path.write_text(f'#!/bin/sh\ncase "$*" in {script} esac\nexec {real.path} "$@"\n')
        path.chmod(0o755)
        found = runtimes.Runtime(str(path), True, real.hide_unified, real.version)
        monkeypatch.setattr(runtimes, "_try", lambda _: found)
        return str(path)

    return make


def test_a_runtime_that_says_it_has_started_a_process_and_has_not(
    any_client: Client, spec: Make, through: Callable[[str], str]
) -> None:
    container = any_client.create("web", spec("sleep 1000"), runtime=through('*" exec "*) exit 0;;'))
    container.start(NULL)
    for terminal in (False, True):
        with pytest.raises(RuntimeFailedError, match="left no pid file"):
            container.exec(["true"], PIPE, terminal=terminal)
    assert exec_files(container) == []
    container.clean(force=True)


@pytest.mark.parametrize("how", ["cancel", "cancel-now"])
def test_a_process_that_nobody_wants_while_it_is_started_is_ended_once_it_has_been(
    any_client: Client, spec: Make, through: Callable[[str], str], tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    real = runtimes.find(None).path
    hold = f'{real} "$@"; code=$?; read open < {gate}; exit $code'
    container = any_client.create("web", spec("sleep 1000"), runtime=through(f'*" exec "*) {hold};;'))
    container.start(NULL)
    document = Path(container.bundle, "exec-token.json")
    document.write_text('{"args":["sleep","1000"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}')
    with shim.connection(container.bundle) as peer:
        peer.sendall(b"exec\0x\0token\0-\0\0\0\0")
        until(lambda: len(container.pids()) == 2)
        assert answer(container, f"{how} token") == "ok"
        if how == "cancel":
            gate.write_text("go on\n")
            assert peer.recv(shim.PACKET).startswith(b"started ")
        else:
            assert peer.recv(shim.PACKET).startswith(b"failed 137 ")
    if how == "cancel":  # at once, there is nobody who could know the process that was made
        until(lambda: len(container.pids()) == 1)
    until(lambda: exec_files(container) == [])
    container.clean(force=True)


def test_one_that_ran_and_one_that_has_ended_are_not_wanted_any_more(web: Container) -> None:
    for ended in (False, True):
        Path(web.bundle, "exec-token.json").write_text(
            '{"args":["sleep","%s"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}' % (0 if ended else 1000)
        )
        assert answer(web, "exec", "x", "token", "-", "", "", "").startswith("started ")
        if ended:
            until(lambda: Path(web.bundle, "exec-token.exit").exists())
        assert answer(web, "cancel token") == "ok"
        until(lambda: answer(web, "processes") == "processes\n")
    assert exec_files(web) == []


def test_who_starts_a_process_and_goes_leaves_it_running(web: Container) -> None:
    document = '{"args":["sleep","1000"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}'
    Path(web.bundle, "exec-token.json").write_text(document)
    os.kill(shim_pid(web), signal.SIGSTOP)
    with shim.connection(web.bundle) as peer:
        peer.sendall(b"exec\0x\0token\0-\0\0\0\0")
    os.kill(shim_pid(web), signal.SIGCONT)
    until(lambda: answer(web, "processes").startswith("processes\nx "))
    assert answer(web, "kill 9 x") == "ok"
    until(lambda: answer(web, "processes").split()[2:3] == ["0"])
    assert answer(web, "forget x") == "ok"


def test_what_the_system_refuses_the_shim_is_the_requests_loss_alone(web: Container) -> None:
    """Who cannot be answered is dropped; a process that cannot be killed, or looked for, is an error."""
    pid = shim_pid(web)
    with fails("sendmsg", errno.EPIPE, pid=pid), shim.connection(web.bundle) as peer:
        peer.sendall(b"fds")
        assert peer.recv(shim.PACKET) == b""
    with fails("kill", errno.EPERM, pid=pid):
        assert answer(web, "kill 0") == f"error {errno.EPERM}"
    closed = contextlib.suppress(ConnectionResetError, BrokenPipeError)
    with fails("getsockopt", errno.ENOBUFS, pid=pid), shim.connection(web.bundle) as peer, closed:  # who is it?
        peer.sendall(b"processes")
        assert peer.recv(shim.PACKET) == b""
    with fails("accept4", errno.EMFILE, pid=pid):
        assert answer(web, "processes") == "processes\n"
    assert web.status == "running"


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_container_is_undone_whatever_its_state(any_client: Client, spec: Make, paused: bool) -> None:
    """As a client does whose start has gone wrong after all: killed, thawed where it is frozen, deleted, gone."""
    container = any_client.create("web", spec("sleep 1000"))
    container.start(NULL)
    if paused:
        container.pause()
    init = psutil.Process(container.pid)
    starter = any_client._engine._shims["web"]  # type: ignore[attr-defined]
    with shim.connection(container.bundle) as peer:
        peer.sendall(b"undo")
        said = [peer.recv(shim.PACKET)]
        while said[-1]:
            said.append(peer.recv(shim.PACKET))
    assert b"ok" in said or said[0].startswith(b"exit 137 "), "or our own client was quicker to clean it"
    assert not init.is_running()
    assert container.wait(WAIT).code == 137
    assert starter.gone.wait(WAIT)
    container.clean()


def test_only_so_many_may_watch_and_requests_are_still_heard(web: Container) -> None:
    with contextlib.ExitStack() as stack:

        def ask(text: bytes) -> bytes:
            peer = shim.connect(web.bundle)
            stack.callback(peer.close)
            peer.sendall(text)
            return peer.recv(shim.PACKET)

        answers = [ask(b"watch") for _ in range(500)]
        watching = answers.count(f"state running {web.pid}".encode())
        assert answers[watching:] == [f"error {errno.EAGAIN}".encode()] * (500 - watching)
        assert 490 < watching < 500
        assert [ask(b"processes") for _ in range(8)] == [b"processes\n"] * 8
    assert web.status == "running"


def test_more_than_its_backlog_holds_come_at_once_and_all_are_heard(web: Container) -> None:
    """The shim is held up meanwhile."""
    pid = shim_pid(web)
    os.kill(pid, signal.SIGSTOP)
    asked = [Background(answer, web, "processes") for _ in range(200)]
    until(lambda: len(psutil.Process().threads()) > 200)
    os.kill(pid, signal.SIGCONT)
    assert {one.result(WAIT) for one in asked} == {"processes\n"}


def test_a_terminal_that_takes_no_size_is_an_error(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("sleep 1000", terminal=True))
    container.start(PIPE)
    with fails("ioctl", errno.EIO, pid=shim_pid(container)):
        assert answer(container, "resize 80 24") == f"error {errno.EIO}"
    with pytest.raises(RuntimeFailedError):
        container.exec(["/no/such/program"], PIPE, terminal=True)
    assert exec_files(container) == []
    container.clean(force=True)


def test_who_comes_after_an_oom_is_told_of_it(any_client: Client, spec: Make) -> None:
    hungry = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    container = any_client.create("web", spec(f"read x; {hungry}; sleep 1000", memory="16m"))
    container.start(libctrd.Stdio(PIPE, NULL, NULL))
    assert container.stdin is not None
    container.stdin.write(b"\n")
    with shim.connection(container.bundle) as peer:
        peer.sendall(b"watch")
        while peer.recv(shim.PACKET) != b"oom":
            pass
    with shim.connection(container.bundle) as peer:
        peer.sendall(b"watch")
        assert peer.recv(shim.PACKET).startswith(b"state running ")
        assert peer.recv(shim.PACKET) == b"oom"
    container.clean(force=True)


def test_a_runtime_whose_log_cannot_be_written_is_told_by_its_code(
    any_client: Client, spec: Make, through: Callable[[str], str]
) -> None:
    container = any_client.create("web", spec("sleep 1000"), runtime=through('*" exec "*) exit 0;;'))
    container.start(NULL)
    for call, path in (("writev", ""), ("openat", container.bundle)):
        with fails(call, errno.ENOSPC, when="1" if not path else "1+", path=path, pid=shim_pid(container)):
            if path:  # no file can be opened there, that of the exit neither
                assert answer(container, "exec", "x", "t", "-", "", "", "").startswith(f"error {errno.ENOSPC} write ")
            else:
                Path(container.bundle, "exec-t.json").write_text("{}")
                assert answer(container, "exec", "x", "t", "-", "", "", "") == "failed 255 "
    assert exec_files(container) == []
    container.clean(force=True)


def test_a_shim_that_cannot_wait_ends(any_client: Client, spec: Make) -> None:
    """It must not turn round and round for ever. What it leaves can be cleaned, as when it was killed."""
    container = any_client.create("web", spec("sleep 1000"))
    container.start(NULL)
    gone = any_client._engine._shims["web"].gone  # type: ignore[attr-defined]
    with fails("poll", errno.ENOMEM, when="1+", pid=shim_pid(container)):
        os.kill(shim_pid(container), signal.SIGCHLD)  # so that it comes round
        assert gone.wait(WAIT)
    container.clean(force=True)


def test_an_oom_of_which_no_event_can_come_is_known_at_the_exit(
    any_client: Client, spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = faulty(tmp_path / "shim", shim.PROGRAM, "write", errno.EINVAL, when="2")  # the first makes the record
    monkeypatch.setattr(shim, "PROGRAM", program)
    hungry = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    container = any_client.create("web", spec(f"{hungry}; exit 3", memory="16m"))
    container.start(NULL)
    status = container.wait(WAIT)
    assert (status.code, status.oom_killed) == (3, True)


def test_a_terminal_that_is_not_accepted_at_first_is_at_the_next_turn(web: Container) -> None:
    with fails("accept4", errno.EMFILE, when="2", pid=shim_pid(web)):  # the first is of who asks for it
        process = web.exec(["sh", "-c", "echo told; exit 4"], PIPE, terminal=True)
    assert process.stdout is not None
    assert process.stdout.read() == b"told\r\n"
    assert process.wait(WAIT).code == 4


def test_a_container_that_removes_itself_takes_what_nobody_has_collected_along(
    any_client: Client, spec: Make, state_dir: str
) -> None:
    container = any_client.create("web", spec("read x; exit 0"))
    container.start(
        libctrd.Stdio(libctrd.DETACHED, libctrd.DETACHED, libctrd.DETACHED), unattended="discard", auto_remove=True
    )
    document = '{"args":["true"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}'
    Path(container.bundle, "exec-token.json").write_text(document)
    assert answer(container, "exec", "x", "token", "-", "", "", "").startswith("started ")
    until(lambda: Path(container.bundle, "exec-token.exit").exists())
    assert answer(container, "close-stdin") == "ok"
    until(lambda: os.listdir(state_dir) == [])
    container.clean()


# ---- output ----------------------------------------------------------------------------------------------------------


# C28
def test_what_is_unread_at_the_end_is_in_the_log_before_the_container_is_gone(
    any_client: Client, spec: Make, tmp_path: Path
) -> None:
    """The shim is held up until its container has ended and it is asked to end: its last turn is the only one."""
    log = tmp_path / "log"
    container = any_client.create("web", spec("read x; seq 1 5000; exit 6"))
    container.start(libctrd.Stdio(PIPE, libctrd.DETACHED, libctrd.DETACHED), unattended="log", log=str(log))
    pid = shim_pid(container)
    init = psutil.Process(container.pid)
    os.kill(pid, signal.SIGSTOP)
    assert container.stdin is not None
    container.stdin.write(b"go\n")
    until(lambda: init.status() == psutil.STATUS_ZOMBIE)
    with shim.connection(container.bundle) as peer:
        peer.sendall(b"end")
        os.kill(pid, signal.SIGCONT)
        assert peer.recv(shim.PACKET)  # "ok", or the exit, when our own client was quicker
    container.clean()
    assert log.read_text().split() == [str(number) for number in range(1, 5001)]


def test_a_log_that_cannot_be_written_holds_nothing_up(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("seq 1 50000; exit 6"))
    container.start(libctrd.DETACHED, unattended="log", log="/dev/full")
    assert container.wait(WAIT).code == 6
    container.clean()


@pytest.mark.parametrize("line", [b"", b"in a line", b"a line\n"])
def test_an_end_of_the_input_is_a_key_where_the_terminal_has_one(any_client: Client, spec: Make, line: bytes) -> None:
    """Once at the beginning of a line, twice within one: else the program reads on for ever."""
    container = any_client.create("web", spec("stty -echo; echo ready; cat; echo over", terminal=True))
    container.start(PIPE)
    assert container.stdin is not None
    assert container.stdout is not None
    assert container.stdout.read(7) == b"ready\r\n"
    if line:
        container.stdin.write(line)
    container.stdin.close()
    assert container.stdout.read() == line.replace(b"\n", b"\r\n") + b"over\r\n"
    assert container.wait(WAIT).code == 0


def test_an_end_of_the_input_is_no_key_where_the_terminal_has_none(any_client: Client, spec: Make) -> None:
    """In raw mode: the program reads on, and its terminal is not hung up."""
    container = any_client.create("web", spec("stty raw -echo; echo ready; read x; cat", terminal=True))
    container.start(PIPE)
    assert container.stdin is not None
    assert container.stdout is not None
    assert container.stdout.read(5) == b"ready"
    container.stdin.close()
    assert container.status == "running"
    container.signal("KILL")
    assert container.wait(WAIT).code == 137
