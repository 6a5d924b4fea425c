"""A daemon of ours, of either kind, is started, and found again by whoever looks for it; a stranger is never taken for
it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from containerd_kit import PATH
from daemon_kit import KINDS, ContainerdPlace, Place, elsewhere, line_of, mode, one_kind, place_fixture

from libctrd import proc
from libctrd.engine import daemon as daemon_module
from libctrd.engine import private, privateserve
from libctrd.engine.daemon import Daemon, Kind
from libctrd.engine.taskshim import Ended
from libctrd.errors import (
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
)

__all__ = ["place_fixture"]


# ---- its start -------------------------------------------------------------------------------------------------------


# C23
def test_it_is_started_and_answers(place: Place) -> None:
    daemon = place.daemon()
    assert daemon.pid is None
    daemon.start()
    assert place.answers()
    assert Path(daemon.pid_file).read_text() == f"{daemon.pid}\n"
    files = [daemon.pid_file, daemon.log_file, *(f"{place.directory}/{name}" for name in place.files)]
    assert {mode(path) for path in files} == {0o600}
    assert os.getsid(daemon.pid or 0) == daemon.pid, "a session of its own"
    assert [process.pid for process in place.processes()] == [daemon.pid]
    assert os.path.dirname(place.state) == place.directory
    assert os.path.isdir(place.state)


# C23
def test_a_directory_that_is_missing_is_made_for_us_alone(place: Place) -> None:
    daemon = Daemon(place.kind(), f"{place.directory}/a/b")
    daemon.start()
    assert mode(daemon.directory) == 0o700
    daemon.stop()


# C23
def test_what_is_meant_for_our_service_manager_is_not_handed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "NOTIFY_SOCKET_MORE", "LISTEN_FDS"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HANDED_OVER", "yes")
    daemon = place.daemon()
    daemon.start()
    env = psutil.Process(daemon.pid).environ()
    assert not [name for name in env if name.startswith(("NOTIFY_SOCKET", "LISTEN_"))]
    assert env["HANDED_OVER"] == "yes"


# C23
def test_nothing_of_ours_is_open_in_it_and_our_umask_is_not_its(place: Place) -> None:
    before = os.umask(0o077)
    try:
        daemon = place.daemon()
        daemon.start()
    finally:
        os.umask(before)
    files = {os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")}
    assert f"{place.directory}/lock" not in files
    assert "Umask:\t0022" in Path(f"/proc/{daemon.pid}/status").read_text()


# C23
def test_its_oom_score_is_set_and_a_refusal_is_ignored(place: Place) -> None:
    daemon = place.daemon(oom_score=300)
    daemon.start()
    score = Path(f"/proc/{daemon.pid}/oom_score_adj")
    assert score.read_text() == "300\n"
    place.daemon(oom_score=400).start()
    assert score.read_text() == "400\n", "that of one that was found, too"
    place.daemon(oom_score=5000).start()  # no kernel allows that
    assert score.read_text() == "400\n"


# C23
@one_kind
def test_its_plugins_are_few_and_those_without_which_tasks_are_lost_are_there(place: ContainerdPlace) -> None:
    daemon = place.daemon()
    daemon.start()
    plugins = place.ctr("plugins", "ls", namespace="default")
    assert "io.containerd.runtime.v2 " in plugins
    assert "cri" not in plugins
    assert "nri" not in plugins
    assert not {"io.containerd.runtime.v1.linux", "io.containerd.sandbox.controller.v1.shim"} & set(private.DISABLED)


# C23
@pytest.mark.parametrize(
    ("kind", "longest"),
    [(private.Containerd(), "/containerd.sock.ttrpc"), (privateserve.Serve(), "/ctrd.sock")],
    ids=KINDS,
)
def test_a_directory_that_is_too_deep_for_a_socket_is_refused_before_anything_is_made(
    tmp_path: Path, kind: Kind, longest: str
) -> None:
    deep = tmp_path / ("d" * 105)
    with pytest.raises(InvalidArgumentError, match=r"too long by \d+ bytes"):
        Daemon(kind, str(deep))
    assert list(tmp_path.iterdir()) == []
    room = 107 - len(longest)
    Daemon(kind, "/" + "d" * (room - 1))
    with pytest.raises(InvalidArgumentError, match="too long by 1 bytes"):
        Daemon(kind, "/" + "d" * room)


# C23
def test_a_directory_that_others_may_enter_is_refused(place: Place) -> None:
    os.chmod(place.directory, 0o755)
    with pytest.raises(UnavailableError, match="open to other users"):
        place.daemon().start()
    assert os.listdir(place.directory) == []


# C23
@one_kind
def test_a_missing_program_names_its_package(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFoundError, match="apt-get install containerd"):
        place.daemon().start()


@pytest.fixture
def instead(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of the daemon's program: containerd, or the Python that runs `ctrd serve`."""

    def put(script: str) -> None:
        os.mkdir(f"{place.directory}/bin")
        path = Path(place.directory, "bin/containerd")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{PATH}")
        monkeypatch.setattr(sys, "executable", str(path))

    return put


# C23
def test_a_daemon_that_ends_at_once_is_an_error_with_its_last_words(
    place: Place, instead: Callable[[str], None]
) -> None:
    instead("echo no such plugin >&2; exit 1")
    with pytest.raises(RuntimeFailedError, match="no such plugin") as caught:
        place.daemon().start()
    assert "no such plugin" in caught.value.output


# C23
def test_a_daemon_that_never_answers_is_killed_and_an_error(
    place: Place, instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "START_SECONDS", 0.3)
    instead("kill -STOP $$")
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.3 s"):
        place.daemon().start()
    assert place.processes() == []


# C23
def test_who_keeps_account_of_ends_may_prevent_a_start(place: Place) -> None:
    def refuse(_: list[Ended]) -> None:
        raise OSError("the disk is full")

    daemon = place.daemon(before_start=refuse)
    with pytest.raises(OSError, match="full"):
        daemon.start()
    assert place.processes() == []


# ---- found again -----------------------------------------------------------------------------------------------------


# C23
def test_one_that_runs_is_found_here_and_in_another_process(place: Place) -> None:
    first, second = place.daemon(), place.daemon()
    first.start()
    second.start()
    second.start()
    assert first.pid == second.pid
    with elsewhere(place, "daemon.start(); print(daemon.pid)") as other:
        assert line_of(other) == str(first.pid)
    assert first.pid == place.processes()[0].pid, "the end of one that had found it is not its end"


# C23
@pytest.mark.parametrize("count", [2, 5])
def test_of_many_starters_at_once_one_starts_and_all_find_that(place: Place, count: int) -> None:
    starters = [elsewhere(place, "sys.stdin.readline(); daemon.start(); print(daemon.pid)") for _ in range(count)]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("now\n")
        starter.stdin.flush()
    pids = {line_of(starter) for starter in starters}
    for starter in starters:
        starter.communicate()
    (process,) = place.processes()
    assert pids == {str(process.pid)}


# C23
def test_threads_that_start_it_at_once_start_one(place: Place) -> None:
    daemons = [place.daemon() for _ in range(4)]
    threads = [threading.Thread(target=daemon.start) for daemon in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {daemon.pid for daemon in daemons} == {process.pid for process in place.processes()}
    assert len(place.processes()) == 1


# C23
@pytest.mark.parametrize("text", ["", "abc", "-1", "0", "99999999999999999999", "1.5", "\0\0", "12 34", "é"])
def test_a_damaged_pid_file_hides_no_daemon(place: Place, text: str) -> None:
    daemon = place.daemon()
    daemon.start()
    Path(daemon.pid_file).write_text(text)
    other = place.daemon()
    other.start()
    assert other.pid == daemon.pid, "it was found by its socket"
    assert Path(daemon.pid_file).read_text() == f"{daemon.pid}\n"
    assert mode(daemon.pid_file) == 0o600


# C23
@pytest.mark.parametrize("lost", ["", ".start"])
def test_a_lost_pid_file_hides_no_daemon(place: Place, lost: str) -> None:
    daemon = place.daemon()
    daemon.start()
    os.unlink(f"{daemon.pid_file}{lost}")
    other = place.daemon()
    other.start()
    assert other.pid == daemon.pid
    other.stop()
    assert place.processes() == []


# C23
def test_a_pid_file_without_a_daemon_is_not_in_the_way(place: Place) -> None:
    daemon = place.daemon()
    for text in ("abc", str(2**22 + 1)):
        Path(daemon.pid_file).write_text(text)
        Path(f"{daemon.pid_file}.start").write_text("what\never")
        daemon.start()
        assert Path(daemon.pid_file).read_text() == f"{daemon.pid}\n"
        daemon.stop()


# C23
def test_a_stranger_that_has_got_the_pid_is_not_believed_and_not_touched(place: Place) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        daemon = place.daemon()
        line = Path(f"/proc/{stranger.pid}/stat").read_text()
        for boot, started in ((proc.boot_id(), line), (proc.boot_id(), line.replace("S", "R")), ("another", line)):
            Path(daemon.pid_file).write_text(f"{stranger.pid}\n")
            Path(f"{daemon.pid_file}.start").write_text(f"{boot}\n{started}")
            daemon.start()
            assert daemon.pid not in (None, stranger.pid)
            daemon.stop()
            Path(daemon.pid_file).write_text(f"{stranger.pid}\n")
            Path(f"{daemon.pid_file}.start").write_text(f"{boot}\n{started}")
            daemon.stop()
            assert stranger.poll() is None
        stranger.kill()


# C23
def test_one_that_runs_our_command_and_started_at_another_time_is_not_the_one_of_the_pid_file(place: Place) -> None:
    # It has the very command line, and is no daemon: only the time of its start tells.
    alike = [sys.executable, "-c", "import time; time.sleep(1000)", *place.kind().command(place.directory)]
    with subprocess.Popen(alike) as stranger:
        daemon = place.daemon()
        Path(daemon.pid_file).write_text(f"{stranger.pid}\n")
        fields = Path(f"/proc/{stranger.pid}/stat").read_text().split()
        fields[21] = str(int(fields[21]) - 5)
        Path(f"{daemon.pid_file}.start").write_text(f"{proc.boot_id()}\n{' '.join(fields)}\n")
        daemon.start()
        assert daemon.pid != stranger.pid
        daemon.stop()
        assert stranger.poll() is None
        stranger.kill()


# C23
def test_what_has_our_socket_and_is_not_ours_is_an_error_and_is_never_stopped(place: Place) -> None:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('on', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, place.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert line_of(stranger) == "on"
        for act in (place.daemon().start, place.daemon().stop):
            with pytest.raises(UnavailableError, match=f"process {stranger.pid} listens.*left alone"):
                act()
        assert stranger.poll() is None
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(place.socket)
        assert place.processes() == []
        stranger.communicate("")
