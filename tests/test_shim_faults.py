"""The shim when the system refuses something, and when it is asked for what cannot be: it says so, and goes on."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_kit import fails, faulty
from field_kit import refused, until

import libctrd
from libctrd import NULL, PIPE, proc
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
}


@pytest.mark.parametrize("what", CHILD)
def test_a_runtime_that_cannot_be_called_is_told_with_the_reason(
    any_client: Client, spec: Make, state_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    call, number, children = CHILD[what]
    container = any_client.create("web", spec("true"))
    path = runtimes.find(None).path if call == "execve" else ""  # and not the shim's own
    program = faulty(tmp_path / "shim", shim.PROGRAM, call, number, path=path, children=children)
    monkeypatch.setattr(shim, "PROGRAM", program)
    monkeypatch.setattr("libctrd.engine.sealed.copy", lambda path: None)
    with refused(RuntimeFailedError, os.strerror(number), state=state_dir):
        container.start(PIPE)


def started_alone(directory: Path, program: str, words: list[str], starter: bool = True) -> tuple[socket.socket, int]:
    """That program as a shim is started, without a client of ours: the other end of its socket, and its exit code."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    state = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fds = {3: its.fileno(), 4: state} if starter else {}
        pid = proc.spawn([program, *words], fds=fds, env=dict(os.environ))
    finally:
        its.close()
        os.close(state)
    ended = proc.reap(pid)
    assert ended is not None
    return ours, ended.code


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


# ---- requests --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(RuntimeFailedError, match="left no pid file"):
        container.exec(["true"], NULL)
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


# ---- the keeper ------------------------------------------------------------------------------------------------------


def keeper(directory: Path, program: str = "") -> tuple[socket.socket, int]:
    """A keeper of what is unread, as `libctrd.unread` starts it: the connection to it, and the code of its starter."""
    return started_alone(directory, program or shim.PROGRAM, ["--state", str(directory), "--keep"])


def give(peer: socket.socket, *fds: int) -> str:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([b"keep"], control)
    return peer.recv(shim.PACKET).decode()


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("fchdir", errno.ESTALE, "fchdir the state directory"),
        ("inotify_init1", errno.EMFILE, "inotify_init see fs.inotify"),
        ("bind", errno.ENOSPC, "bind keep.sock"),
        ("clone,clone3,fork", errno.EAGAIN, "fork the keeper"),
    ],
)
def test_a_keeper_that_cannot_begin_says_why(tmp_path: Path, call: str, number: int, words: str) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    peer, code = keeper(directory, faulty(tmp_path / "shim", shim.PROGRAM, call, number))
    with peer:
        assert code == 1
        assert peer.recv(shim.PACKET).decode().startswith(f"broken {number} {words}")


def test_a_keeper_keeps_only_what_it_can(tmp_path: Path) -> None:
    """Reading ends of fifos and nothing else; what it cannot watch it refuses; of one fifo it keeps one end."""
    peer, code = keeper(tmp_path)
    assert code == 0
    pid = next(
        process.pid for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in (process.info["cmdline"] or [])
    )
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    null = os.open("/dev/null", os.O_RDONLY)
    with peer:
        assert give(peer, null) == give(peer, writer) == f"error {errno.EINVAL}"
        with fails("inotify_add_watch", errno.ENOSPC, pid=pid):
            assert give(peer, reader) == f"error {errno.ENOSPC}"
        os.write(writer, b"unread")
        assert give(peer, reader, reader) == "ok"
        other = shim.connect(str(tmp_path), "keep.sock")
        assert give(other, reader) == "ok"
        other.close()
    for fd in (reader, writer, null):
        os.close(fd)
    with open(path, "rb") as again:
        assert again.read() == b"unread"
    until(lambda: not psutil.pid_exists(pid))
