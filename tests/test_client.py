"""The client: ids and locks, events and their reports, closing stdin, cleaning. On the real engine."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import libctrd
from libctrd.client import Client
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from libctrd.state import Event, ExitStatus, StateInfo

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, StateInfo]] = []

    def state_changed(self, id: str, info: StateInfo) -> None:
        self.told.append((id, info))

    def of(self, id: str) -> list[str]:
        return [info.type for who, info in self.told if who == id]


@pytest.fixture
def recorder(client: Client) -> Recorder:
    recorder = Recorder()
    client.subscribe(recorder)
    return recorder


# ---- connecting ------------------------------------------------------------------------------------------------------


def test_the_address_comes_from_the_caller_or_the_environment(state_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "unix:///run/nobody.sock")
    with pytest.raises(UnsupportedError, match=r"nobody\.sock"):
        libctrd.connect()
    monkeypatch.setenv("CTRD_ADDRESS", f"local:{state_dir}")
    assert libctrd.connect().address == f"local:{state_dir}"
    with pytest.raises(InvalidArgumentError, match="no scheme"):
        libctrd.connect("somewhere")
    with pytest.raises(InvalidArgumentError, match="absolute"):
        libctrd.connect("local:relative")


def test_a_closed_client_says_so(client: Client, spec: Make) -> None:
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.create("web", spec("true"))
    with pytest.raises(ClosedError):
        client.containers()


def test_containers_run_on_when_their_client_is_closed(client: Client, spec: Make) -> None:
    container = client.create("web", spec("read x; exit 6"))
    container.start()
    client.close()
    with libctrd.connect(client.address) as other:
        (again,) = other.containers()
        assert again.status == "running"
        again.signal("KILL")
        assert again.wait(WAIT).code == 137
        again.clean()


# ---- ids (C18, C19) --------------------------------------------------------------------------------------------------


def test_an_active_id_is_refused_and_not_touched(client: Client, spec: Make) -> None:  # C19
    container = client.create("web", spec("cat"))
    container.start()
    before = {name: os.stat(os.path.join(container.bundle, name)).st_ino for name in os.listdir(container.bundle)}
    for other in (client, libctrd.connect(client.address)):
        with pytest.raises(AlreadyExistsError, match="web"):
            other.create("web", spec("true"))
    assert {n: os.stat(os.path.join(container.bundle, n)).st_ino for n in os.listdir(container.bundle)} == before
    assert container.stdin is not None
    container.stdin.write(b"still here")
    container.stdin.close()
    assert container.stdout is not None
    assert container.stdout.read() == b"still here"
    assert container.wait(WAIT).code == 0


def test_an_ended_container_that_keeps_its_record_is_not_overwritten(client: Client, spec: Make) -> None:  # C19, C28
    container = client.create("web", spec("exit 9"))
    container.start(libctrd.DETACHED)
    assert container.wait(WAIT).code == 9
    with pytest.raises(AlreadyExistsError, match="exit record"):
        client.create("web", spec("true"))
    assert client.get("web").wait(WAIT).code == 9
    client.get("web").clean()


def test_leftovers_of_an_id_that_is_not_active_are_cleaned_first(
    client: Client, spec: Make, state_dir: str
) -> None:  # C19
    os.makedirs(os.path.join(state_dir, "web/junk"))
    with open(os.path.join(state_dir, "web/config.json"), "w", encoding="utf-8") as file:
        file.write("old")
    container = client.create("web", spec("exit 2"))
    assert not os.path.exists(os.path.join(state_dir, "web/junk"))
    container.start()
    assert container.wait(WAIT).code == 2


def test_a_create_that_fails_cleans_the_directory_and_forgets_the_id(
    client: Client, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # C19
    def fail(record: object) -> None:
        raise UnavailableError("no")

    with monkeypatch.context() as patched:
        patched.setattr(client._engine, "reserve", fail)
        with pytest.raises(UnavailableError):
            client.create("web", spec("true"))
    assert os.listdir(state_dir) == []
    client.create("web", spec("true")).clean()


def test_the_directory_of_mapped_root_lies_in_siblings_that_it_owns(
    client: Client, spec: Make, state_dir: str
) -> None:  # C5, C19
    wanted = spec("true")
    wanted["linux"]["namespaces"].append({"type": "user"})
    wanted["linux"]["uidMappings"] = [
        {"containerID": 5, "hostID": 7, "size": 1},
        {"containerID": 0, "hostID": 123456, "size": 5},
    ]
    wanted["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 654321, "size": 65536}]
    container = client.create("web", wanted)
    assert container.bundle.endswith("/state.123456.654321/web")
    for path in (container.bundle, os.path.dirname(container.bundle)):
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (123456, 654321, 0o700)
    assert client.get("web").bundle == container.bundle
    with libctrd.connect(client.address) as other:
        assert other.get("web").bundle == container.bundle
    container.clean()
    assert not os.path.exists(container.bundle)
    assert os.listdir(state_dir) == []


def test_operations_on_different_containers_run_side_by_side(client: Client, spec: Make) -> None:  # C18
    blocked, gate = threading.Event(), threading.Event()

    def callback(pipe: object) -> None:
        blocked.set()
        assert gate.wait(WAIT)

    slow = client.create("slow", spec("true"))
    thread = threading.Thread(target=slow.start, args=(callback,))
    thread.start()
    assert blocked.wait(WAIT)
    quick = client.create("quick", spec("exit 3"))
    quick.start()
    assert quick.wait(WAIT).code == 3

    def signal() -> None:
        with contextlib.suppress(NotFoundError):
            slow.signal("TERM")

    waiting = threading.Thread(target=signal)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "operations on one container are serialised"
    gate.set()
    thread.join(WAIT)
    waiting.join(WAIT)
    assert not waiting.is_alive()
    slow.wait(WAIT)
    assert client._locks == {}, "a lock lives as long as somebody uses it"


@pytest.mark.parametrize("operation", ["signal", "pause", "resume"])
def test_what_needs_a_running_process_is_refused_without_one(client: Client, spec: Make, operation: str) -> None:  # C20
    arguments = ("TERM",) if operation == "signal" else ()
    container = client.create("web", spec("true"))
    with pytest.raises(InvalidArgumentError, match="not started"):
        getattr(container, operation)(*arguments)
    container.start()
    container.wait(WAIT)
    with pytest.raises(NotFoundError, match="not running"):
        getattr(container, operation)(*arguments)
    with pytest.raises(NotFoundError, match="no container"):
        client.get("nobody")


# ---- events (C10, C11) -----------------------------------------------------------------------------------------------


def test_an_exit_is_reported_with_its_code_and_the_id_is_free_by_then(client: Client, spec: Make) -> None:  # C10
    found: list[object] = []

    class Listener:
        def state_changed(self, id: str, info: StateInfo) -> None:
            if info.type == "exit" and id == "web":
                found.append((info.exit_code, info.process, os.path.exists(os.path.join(client._root, id))))
                again = client.create("web", spec("true"))
                found.append(again.status)
                again.clean()

    client.subscribe(Listener())
    container = client.create("web", spec("exit 42"))
    container.start()
    assert container.wait(WAIT).code == 42
    assert found == [(42, "init", False), "created"]


def test_a_listener_may_wait_for_the_container_it_is_told_of(client: Client, spec: Make) -> None:
    codes: list[int] = []

    class Listener:
        def state_changed(self, id: str, info: StateInfo) -> None:
            if info.type == "exit":
                codes.append(container.wait(WAIT).code)

    client.subscribe(Listener())
    container = client.create("web", spec("exit 5"))
    container.start()
    assert container.wait(WAIT).code == 5
    assert codes == [5]


def test_an_oom_kill_is_reported_and_every_later_exit_carries_it(
    client: Client, spec: Make, recorder: Recorder
) -> None:  # C10
    container = client.create("web", spec("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 0", memory="16m"))
    container.start()
    status = container.wait(WAIT)
    assert status == ExitStatus(0, True, status.exited_at)
    assert recorder.of("web") == ["start-container", "oom", "exit"]
    assert [info.oom_killed for _, info in recorder.told] == [False, True, True]
    assert container.oom_killed


def test_pause_and_resume_return_once_their_event_was_reported(
    client: Client, spec: Make, recorder: Recorder
) -> None:  # C11, C20
    container = client.create("web", spec("sleep 1000"))
    container.start()
    container.pause()
    assert recorder.of("web") == ["start-container", "pause"]
    assert container.status == "paused"
    container.resume()
    assert recorder.of("web") == ["start-container", "pause", "resume"]
    assert container.status == "running"
    container.signal("KILL")
    assert container.wait(WAIT).code == 137


def test_the_oldest_waiter_is_woken_first_though_the_listener_fails(
    client: Client, spec: Make, caplog: pytest.LogCaptureFixture
) -> None:  # C11
    class Failing:
        def state_changed(self, id: str, info: StateInfo) -> None:
            if info.type != "start-container":
                raise RuntimeError("on purpose")

    client.subscribe(Failing())
    container = client.create("web", spec("sleep 1000"))
    container.start()
    from libctrd.container import Waiter

    first, second = Waiter(), Waiter()
    container._waiting["pause"].extend([first, second])
    client._on_event(Event("web", "pause"))
    assert first.woken.wait(WAIT)
    assert not second.woken.is_set()
    assert not first.ended
    assert "on purpose" in caplog.text
    container.signal("KILL")
    assert container.wait(WAIT).code == 137, "the exit notifier fires though the listener failed"
    assert second.woken.is_set()
    assert second.ended, "an exit ends every wait for a pause or a resume"


def test_an_exit_ends_a_wait_for_a_pause_with_an_error(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C11
    container = client.create("web", spec("sleep 1000"))
    container.start()
    sent = threading.Event()
    monkeypatch.setattr(client._engine, "pause", lambda id: sent.set())  # the engine that answers and never reports
    outcome: list[BaseException] = []

    def pause() -> None:
        try:
            container.pause()
        except NotFoundError as error:
            outcome.append(error)

    thread = threading.Thread(target=pause)
    thread.start()
    assert sent.wait(WAIT)
    container.signal("KILL")
    thread.join(WAIT)
    assert not thread.is_alive()
    assert "ended" in str(outcome[0])
    container.wait(WAIT)


def test_only_an_exit_of_init_ends_the_container(client: Client, spec: Make, recorder: Recorder) -> None:  # C10, C11
    container = client.create("web", spec("cat"))
    container.start()
    client._on_event(Event("web", "exit", "sidecar", ExitStatus(3)))
    client._on_event(Event("web", "start-process", "sidecar"))  # any other type: a debug line
    assert client._lanes.drain(WAIT)
    assert recorder.of("web") == ["start-container", "exit-process"]
    assert recorder.told[-1][1].process == "sidecar"
    assert recorder.told[-1][1].exit_code == 3
    assert not container._notified.is_set()
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 0


def test_an_event_of_an_unknown_container_is_a_debug_line(
    client: Client, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:  # C10
    with caplog.at_level(logging.DEBUG, "libctrd"):
        client._on_event(Event("nobody", "exit", status=ExitStatus(1)))
        assert client._lanes.drain(WAIT)
    assert recorder.told == []
    assert "nobody" in caplog.text


def test_a_failure_to_clean_is_logged_and_the_exit_reported_all_the_same(
    client: Client, spec: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # C10
    container = client.create("web", spec("read x; exit 8"))
    container.start()
    assert container.stdin is not None

    def fail(id: str, force: bool = False) -> None:
        raise UnavailableError("cannot be deleted just now")

    with monkeypatch.context() as patched:
        patched.setattr(client._engine, "delete", fail)
        container.stdin.close()
        status = container.wait(WAIT)
    assert "cannot be deleted just now" in caplog.text
    assert recorder.of("web")[-1] == "exit"
    container.clean()
    assert status.code == 8


def test_streams_of_events_see_what_listeners_see(client: Client, spec: Make) -> None:
    with client.events() as stream:
        container = client.create("web", spec("exit 3"))
        pid = container.start()
        id, info = stream.get(WAIT)
        assert (id, info.type, info.pid) == ("web", "start-container", pid)
        id, info = stream.get(WAIT)
        assert (id, info.type, info.exit_code) == ("web", "exit", 3)
        with pytest.raises(DeadlineError):
            stream.get(0)
    assert list(stream) == []
    assert client._streams == []


def test_who_unsubscribed_is_told_nothing_more(client: Client, spec: Make) -> None:
    recorder = Recorder()
    unsubscribe = client.subscribe(recorder)
    unsubscribe()
    unsubscribe()
    container = client.create("web", spec("true"))
    container.start()
    container.wait(WAIT)
    assert recorder.told == []
    with pytest.raises(InvalidArgumentError, match="state_changed"):
        client.subscribe(object())  # type: ignore[arg-type]


# ---- closing stdin (C7) ----------------------------------------------------------------------------------------------


@pytest.fixture
def closes(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests to close stdin that reach the engine."""
    seen: list[tuple[str, str]] = []
    close = client._engine.close_stdin

    def record(id: str, process: str) -> None:
        seen.append((id, process))
        close(id, process)

    monkeypatch.setattr(client._engine, "close_stdin", record)
    return seen


def test_stdin_that_is_closed_before_the_start_ends_the_input(
    client: Client, spec: Make, closes: list[tuple[str, str]]
) -> None:  # C7
    container = client.create("web", spec("cat; exit 3"))

    def callback(pipe: libctrd.IOPipe) -> None:
        assert pipe.stdin is not None
        pipe.stdin.close()
        assert closes == [], "told only once it has started"

    container.start(callback)
    assert container.wait(WAIT).code == 3
    assert closes == [("web", "init")]


def test_the_first_close_counts_and_later_ones_do_nothing(
    client: Client, spec: Make, closes: list[tuple[str, str]]
) -> None:  # C7
    container = client.create("web", spec("cat >/dev/null; read x; exit 4"))
    container.start()
    stdin = container.stdin
    assert stdin is not None
    barrier = threading.Barrier(8)

    def close() -> None:
        barrier.wait(WAIT)
        stdin.close()

    threads = [threading.Thread(target=close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stdin.closed
    assert container.wait(WAIT).code == 4
    assert closes == [("web", "init")]


def test_a_start_that_fails_is_never_told_of_a_closed_stdin(
    client: Client, spec: Make, closes: list[tuple[str, str]]
) -> None:  # C7
    container = client.create("web", spec(args=["/none"]))

    def callback(pipe: libctrd.IOPipe) -> None:
        assert pipe.stdin is not None
        pipe.stdin.close()

    with pytest.raises(libctrd.RuntimeFailedError):
        container.start(callback)
    assert client._lanes.drain(WAIT)
    assert closes == []


@pytest.mark.parametrize(("error", "warned"), [(NotFoundError("gone"), False), (UnavailableError("refused"), True)])
def test_a_refusal_because_it_is_gone_is_success_and_any_other_a_warning(
    client: Client,
    spec: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    warned: bool,
) -> None:  # C7
    container = client.create("web", spec("read x; exit 1"))
    container.start()

    def refuse(id: str, process: str) -> None:
        raise error

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "libctrd"):
        patched.setattr(client._engine, "close_stdin", refuse)
        assert container.stdin is not None
        container.stdin.close()
        assert client._lanes.drain(WAIT)
    assert bool(caplog.records) is warned
    container.signal("KILL")
    container.wait(WAIT)


# ---- cleaning (C2, C3) -----------------------------------------------------------------------------------------------


def test_clean_by_hand_after_the_exit_is_a_no_op(client: Client, spec: Make) -> None:  # C2
    container = client.create("web", spec("true"))
    container.start()
    container.wait(WAIT)
    container.clean()
    container.clean()


def test_a_running_container_is_not_cleaned_but_by_force(client: Client, spec: Make, recorder: Recorder) -> None:
    container = client.create("web", spec("sleep 1000"))
    container.start()
    with pytest.raises(InvalidArgumentError, match="running"):
        container.clean()
    assert container.status == "running"
    container.clean(force=True)
    assert recorder.of("web") == ["start-container", "exit"]


def test_a_paused_container_is_cleaned_by_force_too(client: Client, spec: Make) -> None:
    container = client.create("web", spec("sleep 1000"))
    container.start()
    container.pause()
    container.clean(force=True)
    assert container.wait(WAIT).code == 137


def test_the_directory_stays_when_the_environment_says_so(
    client: Client, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # C2
    container = client.create("web", spec("exit 3"))
    with monkeypatch.context() as patched:
        patched.setenv("LIBCONTAINERD_NOCLEAN", "1")
        container.start()
        container.wait(WAIT)
        container.clean()
        assert os.path.exists(os.path.join(state_dir, "web", "config.json"))
    client.get("web").clean()
    assert os.listdir(state_dir) == []


def test_clean_process_removes_the_fifos_of_a_known_process_alone(
    client: Client, spec: Make, caplog: pytest.LogCaptureFixture
) -> None:  # C3
    container = client.create("web", spec("cat"))
    container.start()
    fifos = [os.path.join(container.bundle, f"init-{name}") for name in ("stdin", "stdout", "stderr")]
    container.clean_process("nobody")
    assert all(os.path.exists(fifo) for fifo in fifos), "an unknown name touches no file"
    os.unlink(fifos[2])
    os.unlink(fifos[0])
    os.mkdir(fifos[0])  # one that is missing is fine; one that cannot be removed is a warning, and the rest still go
    stdin = container.stdin
    with caplog.at_level(logging.WARNING, "libctrd"):
        container.clean_process("init")
    assert "init-stdin" in caplog.text
    assert "init-stderr" not in caplog.text
    assert not os.path.exists(fifos[1])
    assert "init" not in container._processes
    os.rmdir(fifos[0])
    assert stdin is not None
    stdin.close()
    container.wait(WAIT)


def test_the_exit_code_outlives_the_client_that_was_killed(client: Client, spec: Make, state_dir: str) -> None:  # C28
    script = (
        "import sys, os, libctrd\n"
        "container = libctrd.connect(sys.argv[1]).get('web')\n"
        "container.start()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    client.create("web", spec("read x; exit 21"))
    killed = subprocess.run([sys.executable, "-c", script, client.address], env=os.environ | {"PYTHONPATH": _top()})
    assert killed.returncode == -9
    with libctrd.connect(client.address) as other:
        container = other.get("web")
        assert container.status == "running", "nobody fed it an end of file, and nobody killed it"
        other._engine.close_stdin("web", "init")
        assert container.wait(WAIT).code == 21
        container.clean()


def _top() -> str:
    return os.path.dirname(os.path.dirname(libctrd.__file__))
