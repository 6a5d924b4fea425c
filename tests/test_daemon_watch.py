"""A daemon of ours, of either kind, is watched, restarted and stopped; and its containers live on."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading

import psutil
import pytest
from containerd_kit import until
from daemon_kit import ContainerdPlace, Place, elsewhere, line_of, one_kind, place_fixture, restarted

from libctrd.engine import daemon as daemon_module
from libctrd.engine import taskshim
from libctrd.engine.daemon import Daemon
from libctrd.engine.taskshim import Ended
from libctrd.errors import UnavailableError

__all__ = ["place_fixture"]


# ---- whose end is its end --------------------------------------------------------------------------------------------


# C23
@pytest.mark.parametrize("live_on", [True, False])
def test_a_starter_that_is_killed_takes_it_along_unless_it_is_to_live_on(place: Place, live_on: bool) -> None:
    starter = elsewhere(place, "daemon.start(); print(daemon.pid, flush=True); sys.stdin.read()", live_on=live_on)
    pid = int(line_of(starter))
    assert [process.pid for process in place.processes()] == [pid]
    starter.kill()
    starter.communicate()
    daemon = place.daemon()
    if live_on:
        daemon.start()
        assert daemon.pid == pid
    else:
        until(lambda: place.processes() == [], "the end of the daemon")
        daemon.start()
        assert daemon.pid != pid


# C23
def test_the_end_of_the_thread_that_has_started_it_is_not_its_end(place: Place) -> None:
    script = (
        "thread = threading.Thread(target=daemon.start); thread.start(); thread.join()\n"
        "daemon.close()\nprint(daemon.pid, flush=True); sys.stdin.read()"
    )
    with elsewhere(place, script, live_on=False) as starter:
        pid = int(line_of(starter))
        assert place.answers()
        assert [process.pid for process in place.processes()] == [pid]
        starter.communicate("")
    until(lambda: place.processes() == [], "the end of the daemon")


# C23
def test_starters_that_are_killed_at_any_moment_leave_one_daemon_at_most(place: Place) -> None:
    for delay in (0, 5, 10, 20, 40, 80):
        starter = elsewhere(place, "print(1, flush=True); daemon.start(); sys.stdin.read()")
        line_of(starter)
        select.select([], [], [], delay / 1000)  # not for a state: any moment is a good one
        starter.kill()
        starter.communicate()
        daemon = place.daemon()
        daemon.start()
        assert [process.pid for process in place.processes()] == [daemon.pid]
        daemon.stop()
        assert place.processes() == []


# ---- watched ---------------------------------------------------------------------------------------------------------


# C23
@pytest.mark.parametrize("found", [False, True], ids=["started", "found"])
def test_one_that_is_killed_is_started_again_and_its_containers_live_on(place: Place, rootfs: str, found: bool) -> None:
    if found:
        elsewhere(place, "daemon.start()").communicate()
    daemon = place.daemon()
    daemon.start()
    task = place.start_container("one", rootfs, "/bin/sleep", "1000")
    for _ in range(2):
        pid = daemon.pid
        os.kill(pid or 0, signal.SIGKILL)
        restarted(place, daemon, pid)
        assert place.has_container("one", task)
        assert psutil.Process(task).is_running()


# C23
def test_one_that_hangs_is_killed_and_started_again_after_three_failures(
    place: Place, rootfs: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon_module, "ANSWER_SECONDS", 0.3)
    ends: list[Ended] = []
    daemon = place.daemon(before_start=ends.extend)
    daemon.start()
    task = place.start_container("one", rootfs, "/bin/sh", "-c", "sleep 1000 & wait; exit 9")
    other = place.start_container("two", rootfs, "/bin/sleep", "1000")
    pid = daemon.pid
    os.kill(pid or 0, signal.SIGSTOP)
    os.kill(task, signal.SIGKILL)
    restarted(place, daemon, pid)
    assert not psutil.pid_exists(pid or 0) or psutil.Process(pid).status() == "zombie"
    assert "is not well (3)" in caplog.text
    assert "is not well (4)" not in caplog.text
    assert place.end_of("one", ends) == 137
    assert psutil.Process(other).is_running()


class Moody:
    """A kind of daemon that is well or not as the test says: any program that listens will do."""

    name, package = "moody", "python3"

    def __init__(self) -> None:
        self.moods: list[bool] = []
        self.asked = 0
        self.idle = threading.Event()

    def command(self, directory: str) -> list[str]:
        listen = (
            "import socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); s.accept(); sys.stdin.read()"
        )
        script = f"{listen}\nimport signal; signal.pause()"
        return [sys.executable, "-c", script, f"{directory}/moody.sock"]

    def sockets(self, directory: str) -> list[str]:
        return [f"{directory}/moody.sock"]

    def prepare(self, directory: str) -> None:
        """It needs nothing."""

    def probe(self, directory: str) -> Moody:
        return self

    def ended(self, directory: str) -> list[Ended]:
        return []

    def ends(self, directory: str) -> Moody:
        return self

    def heard(self) -> list[Ended]:
        return []

    def ask(self, seconds: float) -> None:
        assert seconds <= 3
        self.asked += 1
        if not self.moods:
            self.idle.set()
        elif not self.moods.pop(0):
            raise UnavailableError("it is in a mood")

    def close(self) -> None:
        """Nothing to close."""


# C23
@one_kind
@pytest.mark.parametrize(
    ("moods", "ends"),
    [
        ([False, False, True, False, False], False),
        ([False, False, False], True),
        ([True, False, True, False, False, False], True),
    ],
)
def test_only_three_failures_in_a_row_are_its_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, moods: list[bool], ends: bool
) -> None:
    kind = Moody()
    daemon = Daemon(kind, place.directory)
    daemon.start()
    pid = daemon.pid
    monkeypatch.setattr(daemon_module, "CHECK_SECONDS", 0.02)
    kind.idle.clear()
    kind.moods = moods
    assert kind.idle.wait(10)
    until(lambda: not ends or daemon.pid != pid, "another one")
    assert (daemon.pid == pid) is not ends
    daemon.stop()


# C23
def test_it_is_asked_every_half_second_and_has_three_seconds() -> None:
    assert (daemon_module.CHECK_SECONDS, daemon_module.ANSWER_SECONDS, daemon_module.FAILURES) == (0.5, 3, 3)
    assert daemon_module.STOP_SECONDS == 15


# C23
def test_one_that_hangs_when_it_is_found_is_killed_and_started_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "ANSWER_SECONDS", 0.2)
    first = place.daemon()
    first.start()
    pid = first.pid
    first.close()
    os.kill(pid or 0, signal.SIGSTOP)
    second = place.daemon()
    second.start()
    assert second.pid != pid
    assert place.answers()


# C23
def test_several_watchers_restart_it_once(place: Place) -> None:
    daemons = [place.daemon() for _ in range(3)]
    for daemon in daemons:
        daemon.start()
    pid = daemons[0].pid
    with elsewhere(place, "daemon.start(); print(daemon.pid, flush=True); sys.stdin.read()") as other:
        assert line_of(other) == str(pid)
        os.kill(pid or 0, signal.SIGKILL)
        for daemon in daemons:
            restarted(place, daemon, pid)
        assert len({daemon.pid for daemon in daemons}) == 1
        assert [process.pid for process in place.processes()] == [daemons[0].pid]
        other.communicate("")


# C23
@one_kind
def test_the_shims_are_asked_before_it_is_started(place: ContainerdPlace, rootfs: str) -> None:
    daemon = place.daemon()
    daemon.start()
    task = place.start_container("one", rootfs, "/bin/sh", "-c", "sleep 1000 & wait")
    daemon.stop()
    assert psutil.Process(task).is_running(), "its end is not that of its containers"
    os.kill(task, signal.SIGTERM)
    os.kill(task, signal.SIGKILL)
    until(lambda: taskshim.ended(place.state), "the end of the container")
    told: list[tuple[list[Ended], bool]] = []
    again = place.daemon(before_start=lambda ended: told.append((ended, bool(place.processes()))))
    again.start()
    ((ends, running),) = told
    assert not running
    assert place.end_of("one", ends) == 137


# C23, C26
@one_kind
def test_an_end_in_the_moment_of_its_start_is_told_too(place: ContainerdPlace, rootfs: str) -> None:
    daemon = place.daemon()
    daemon.start()
    tasks = [place.start_container(f"c{number}", rootfs, "/bin/sleep", "1000") for number in range(3)]
    daemon.stop()
    told: list[list[Ended]] = []

    def after_the_look(ended: list[Ended]) -> None:
        told.append(ended)
        if len(told) == 1:
            for task in tasks:
                os.kill(task, signal.SIGKILL)

    again = place.daemon(before_start=after_the_look)
    again.start()
    none, ends = told
    assert none == []
    assert sorted((end.namespace, end.id, end.status.code, end.status.known) for end in ends) == [
        (place.namespace, f"c{number}", 137, True) for number in range(3)
    ]


# ---- stopped ---------------------------------------------------------------------------------------------------------


# C23
def test_stopped_it_leaves_no_pid_file_and_no_socket(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    daemon = place.daemon()
    daemon.stop()  # nothing there yet: fine
    daemon.start()
    pid = daemon.pid
    daemon.stop()
    assert daemon.pid is None
    assert place.processes() == []
    gone = [daemon.pid_file, f"{daemon.pid_file}.start", *place.kind().sockets(place.directory)]
    assert not [path for path in gone if os.path.lexists(path)]
    daemon.stop()
    assert "killed" not in caplog.text
    daemon.start()
    assert daemon.pid not in (None, pid)


# C23
def test_one_that_does_not_heed_sigterm_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "STOP_SECONDS", 0.2)
    daemon = place.daemon()
    daemon.start()
    os.kill(daemon.pid or 0, signal.SIGSTOP)
    daemon.stop()
    assert place.processes() == []


# C23
def test_one_that_dies_in_this_moment_is_no_stranger(place: Place) -> None:
    """Of a process that was killed the command is gone before its socket is."""
    for _ in range(10):
        daemon = place.daemon()
        daemon.start()
        daemon.close()
        process = psutil.Process(daemon.pid)
        process.kill()
        with contextlib.suppress(psutil.Error):
            while process.cmdline():
                pass  # what comes then is over in a moment
        other = place.daemon()
        other.start()
        assert other.pid != process.pid
        other.close()


# C23
def test_one_that_somebody_has_stopped_is_not_started_again_by_its_watchers(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watching, stopping = place.daemon(), place.daemon()
    watching.start()
    stopping.start()
    stopping.stop()
    until(lambda: watching.pid is None, "the watcher to hear of it")
    assert "stopped by somebody else" in caplog.text
    assert place.processes() == []
    watching.start()
    assert place.answers()


# C23
def test_closed_it_runs_on_unwatched(place: Place) -> None:
    daemon = place.daemon()
    daemon.start()
    daemon.close()
    daemon.close()
    assert place.answers()
    (process,) = place.processes()
    process.kill()
    until(lambda: not process.is_running(), "its end, and that it is reaped though nobody watches it")
    assert place.processes() == []


# C23
def test_it_costs_one_thread_and_leaves_none(place: Place) -> None:
    first = place.daemon()
    first.start()  # what the reactor and gRPC make once is there now
    first.close()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    daemon = place.daemon()
    daemon.start()
    assert threading.active_count() <= threads + 1
    daemon.close()
    assert threading.active_count() <= threads
    until(lambda: len(os.listdir("/proc/self/fd")) <= files, "no descriptor left")


# C23
def test_a_forked_child_watches_nothing_and_stops_nothing(place: Place) -> None:
    daemon = place.daemon()
    daemon.start()
    pid = os.fork()
    if pid == 0:
        daemon.close()
        os._exit(0 if daemon.pid is not None and threading.active_count() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert place.answers()
    assert [process.pid for process in place.processes()] == [daemon.pid]
