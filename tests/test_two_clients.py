"""One container, several hands: what one client does while another waits, starts, cleans, or has the same id anew."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from container_kit import WAIT, kill_shim, shims
from engine_kit import Place
from fifo_kit import Background, until

from libctrd import DETACHED, NULL, PIPE, handling
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import InvalidArgumentError, NotFoundError, RuntimeFailedError
from libctrd.state import Event, StateInfo

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def other(engine: Place) -> Iterator[Client]:
    with engine.connect() as client:
        yield client


def test_cleaning_what_has_gone_leaves_the_next_of_its_id_alone(
    client: Client, other: Client, spec: Make
) -> None:  # C2
    old = client.create("web", spec("exit 3"))
    seen_elsewhere = other.get("web")
    old.start(NULL)
    assert old.wait(WAIT).code == 3
    new = client.create("web", spec("read x; exit 4"))
    old.clean(force=True)
    new.start(PIPE)
    for gone in (old, seen_elsewhere):
        gone.clean(force=True)
    assert new.status == "running"
    assert new.stdin is not None
    new.stdin.close()
    assert new.wait(WAIT).code == 4
    close_output(new)


def close_output(container: Container) -> None:
    for stream in (container.stdout, container.stderr):
        assert stream is not None
        stream.close()


def test_every_object_of_one_container_learns_of_its_end(
    client: Client, other: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C28
    container = client.create("web", spec("read x; exit 5"))
    container.start(PIPE)
    watched: list[Container] = []
    watch = other._watch

    def watch_it(container: Container) -> Container:
        told = watch(container)
        watched.append(told)
        return told

    monkeypatch.setattr(other, "_watch", watch_it)
    waits = [Background(other.get("web").wait, WAIT)]
    first = other.get("web")
    second = Container(other, first._record)
    waits += [Background(first.wait, WAIT), Background(second.wait, WAIT)]
    until(lambda: len(watched) == 3, "all to wait: who comes too late is refused")
    assert set(watched) == {watched[0]}, "one object is told, whoever waits for it"
    assert container.stdin is not None
    container.stdin.close()
    assert [wait.result().code for wait in waits] == [5, 5, 5]
    container.wait(WAIT)
    close_output(container)


def test_who_created_it_learns_of_the_end_of_what_another_started(client: Client, other: Client, spec: Make) -> None:
    created = client.create("web", spec("read x; exit 6"))
    started = other.get("web")
    started.start(PIPE)
    waiting = Background(created.wait, WAIT)
    until(lambda: created._told_of, "a watch")
    assert started.stdin is not None
    started.stdin.close()
    assert waiting.result().code == 6
    assert started.wait(WAIT).code == 6
    close_output(started)
    client.create("web", spec("true")).clean()


def test_an_id_is_free_once_another_has_removed_what_was_never_started(
    client: Client, other: Client, spec: Make
) -> None:  # C19
    client.create("web", spec("true"))
    other.get("web").clean()
    with pytest.raises(NotFoundError):
        client.get("web")
    client.create("web", spec("true")).clean()


def test_a_clean_that_comes_before_the_event_of_the_exit_swallows_no_exit(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C10
    told: list[str] = []

    class Recorder:
        def state_changed(self, id: str, info: StateInfo) -> None:
            told.append(info.type)

    client.subscribe(Recorder())
    container = client.create("web", spec("exit 7"))
    gate, came = threading.Event(), threading.Event()
    handle = handling.handle

    def late(client: Client, of: Any, event: Event) -> None:
        came.set()
        assert gate.wait(WAIT)
        handle(client, of, event)

    monkeypatch.setattr(handling, "handle", late)
    container.start(NULL)
    assert came.wait(WAIT)
    cleaning = Background(container.clean)
    gate.set()
    cleaning.result()
    assert container.wait(WAIT).code == 7
    assert told == ["start-container", "exit"]


@pytest.mark.local("it is about the shim")
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_container_without_its_shim_can_be_signalled_and_cleaned_by_force(
    client: Client, other: Client, spec: Make, state_dir: str, paused: bool
) -> None:  # C2, C20
    container = client.create("web", spec("trap 'exit 8' TERM; echo ready; sleep 1000 & wait"))
    container.start(PIPE)
    assert container.stdout is not None
    assert container.stdout.read(6) == b"ready\n"
    if paused:
        container.pause(WAIT)
    kill_shim(state_dir, "web")
    if paused:
        other.get("web").clean(force=True)
    else:
        with pytest.raises(InvalidArgumentError, match="by force"):
            other.get("web").clean()
        other.get("web").signal("TERM")
    status = container.wait(WAIT)
    assert (status.code, status.known) == (255, False)
    container.clean()
    assert container.stdout.read() == b"", "its end has come"
    close_output(container)
    with pytest.raises(NotFoundError):
        container.signal("KILL")


@pytest.mark.cannot("api029", "keep a pause away from what ends: runc may refuse to delete that then", run=False)
def test_a_container_is_cleaned_by_force_though_another_freezes_it_meanwhile(
    client: Client, other: Client, spec: Make
) -> None:  # C2
    """What cgroup v1 has frozen takes no SIGKILL: a pause after it, or one under way, may not make it wait for ever."""

    def freeze(container: Container) -> None:
        with contextlib.suppress(NotFoundError, RuntimeFailedError):  # it has ended, or was about to
            container.pause(WAIT)

    for _ in range(10):
        container = client.create("web", spec("sleep 1000"))
        container.start(NULL)
        freezing = Background(freeze, other.get("web"))
        container.clean(force=True)
        freezing.result()
        assert container.wait(WAIT).code == 137


def test_a_wait_that_comes_too_late_is_refused_and_never_hangs(
    client: Client, other: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C28
    container = client.create("web", spec("read x; exit 9"))
    container.start(PIPE)
    late = other.get("web")
    engine: Any = other._engine
    watch = engine.watch

    def watch_late(id: str) -> None:
        container.clean(force=True)
        watch(id)

    monkeypatch.setattr(engine, "watch", watch_late)
    with pytest.raises(NotFoundError, match=r"removed|there is no container"):
        late.wait(WAIT)
    close_output(container)


@pytest.mark.local("it is about the shim")
def test_a_wait_ends_when_the_shim_and_the_directory_are_taken_away(
    client: Client, other: Client, spec: Make, state_dir: str
) -> None:  # C28
    container = client.create("web", spec("read x; exit 9"))
    pid = container.start(PIPE)
    waiting = Background(other.get("web").wait, WAIT)
    until(lambda: "web" in other._engine._watches, "a watch")  # type: ignore[attr-defined]
    (shim,) = shims(state_dir, "web")
    os.rename(os.path.join(state_dir, "web"), state_dir + ".away")
    os.kill(shim, signal.SIGKILL)
    assert waiting.result().code == 255
    assert container.wait(WAIT).code == 255
    os.rename(state_dir + ".away", os.path.join(state_dir, "web"))
    client.get("web").clean(force=True)
    assert not os.path.exists(f"/proc/{pid}/root/bin"), "it has ended"
    close_output(container)


def test_many_watchers_all_get_the_code_though_it_is_cleaned_at_once(client: Client, engine: Place, spec: Make) -> None:
    """C28, podman 527: a wait that began before the cleaning always gets its answer."""
    for n in range(5):
        container = client.create("web", spec(f"read x; exit {n}"))
        container.start(PIPE)
        clients = [engine.connect() for _ in range(20)]
        seen = [each.get("web") for each in clients]
        waits = [Background(each.wait, WAIT) for each in seen]
        until(lambda clients=clients: all(engine.watches(c, "web") for c in clients), "every watch")
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == n
        assert {wait.result().code for wait in waits} == {n}
        close_output(container)
        for each in clients:
            each.close()


def test_a_start_that_is_under_way_is_never_seen_as_ended(
    client: Client, other: Client, spec: Make
) -> None:  # C19, C28
    """A shim's socket has its name only once it listens: who finds it early would take the shim for dead."""
    stop = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not stop.is_set():
            try:
                seen.add(other.get("web").status)
            except NotFoundError:
                continue

    looking = [Background(look) for _ in range(2)]
    for _ in range(40):
        container = client.create("web", spec("read x"))
        container.start(DETACHED)
        container.clean(force=True)
        assert container.wait(WAIT).code == 137
    stop.set()
    for each in looking:
        each.result()
    assert seen <= {"created", "running", "stopped"}
