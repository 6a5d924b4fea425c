"""What events do: reports and their order, waits that end, stdin and its close. On the real engine."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from client_kit import Recorder

import libctrd
from libctrd import protos
from libctrd.client import Client
from libctrd.engine.containerd import ContainerdEngine
from libctrd.errors import (
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from libctrd.state import Event, ExitStatus, StateInfo

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


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


@pytest.mark.containerd
def test_an_oom_kill_of_which_containerd_tells_more_than_once_is_reported_once(
    client: Client, spec: Make, recorder: Recorder
) -> None:  # C10
    engine, seen = client._engine, list[Event]()
    assert isinstance(engine, ContainerdEngine)
    handle = engine._sink

    def see(event: Event) -> None:
        seen.append(event)
        handle(event)

    engine.subscribe(see)
    publish = "containerd.services.events.v1.Events/Publish"
    oom = protos.message("containerd.events.TaskOOM")(container_id="web").SerializeToString()
    again = protos.package("containerd.services.events.v1").PublishRequest(
        topic="/tasks/oom", event=protos.any("containerd.events.TaskOOM", oom)
    )
    other = client.create("other", spec("sleep 1000"))
    other.start()
    container = client.create("web", spec("sleep 1000"))
    container.start()
    for _ in range(2):
        engine._channel.call(publish, again, doing="publish it")
    container.pause()  # the stream keeps the order
    assert recorder.of("web") == ["start-container", "oom", "pause"]
    container.clean(force=True)

    container = client.create("web", spec("dd if=/dev/zero of=/dev/null bs=200M count=1", memory="16m"))
    container.start()
    assert container.wait(WAIT).oom_killed
    engine._channel.call(publish, again, doing="publish it once more, after the exit")
    other.pause()
    assert [event.type for event in seen if event.id == "web"] == ["oom", "pause", "exit", "oom", "exit"]
    other.clean(force=True)


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
    from libctrd.changes import Waiter

    first, second = Waiter(), Waiter()
    container._changes._waiting["pause"].extend([first, second])
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
