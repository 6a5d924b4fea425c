"""The start of a container: what it writes, in which order it goes, and what is left when a step of it fails."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest
from engine_kit import Place, need_runtime

import libctrd
from libctrd import stdio
from libctrd.client import Client
from libctrd.engine.base import CreateRequest
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnsupportedError,
)
from libctrd.state import StateInfo

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


class Recorder:
    """A listener that keeps what it is told, and can be made to fail."""

    def __init__(self) -> None:
        self.told: list[tuple[str, StateInfo]] = []
        self.fail_on: str | None = None

    def state_changed(self, id: str, info: StateInfo) -> None:
        self.told.append((id, info))
        if info.type == self.fail_on:
            raise RuntimeError("the listener does not want it")

    @property
    def types(self) -> list[str]:
        return [info.type for _, info in self.told]


@pytest.fixture
def requests(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[CreateRequest]:
    """The create requests that reach the engine."""
    seen: list[CreateRequest] = []
    create = client._engine.create

    def record(request: CreateRequest) -> int:
        seen.append(request)
        return create(request)

    monkeypatch.setattr(client._engine, "create", record)
    return seen


# ---- what it writes --------------------------------------------------------------------------------------------------


def test_create_makes_a_private_directory_with_the_spec_in_it(client: Client, spec: Make) -> None:  # C5
    wanted = spec("true", env=["A=1"])
    container = client.create("web", wanted)
    assert stat.S_IMODE(os.stat(container.bundle).st_mode) == 0o700
    with open(os.path.join(container.bundle, "config.json"), "rb") as file:
        written = json.load(file)
    assert {**written["process"], **wanted["process"]} == written["process"]  # an engine may add to it
    assert container.spec() == written  # C4
    assert container.status == "created"
    container.clean()


def test_unknown_fields_go_through_untouched(client: Client, spec: Make) -> None:  # C5
    wanted = spec("true") | {"com.example.future": {"deep": [1, "two", None]}}
    container = client.create("web", wanted)
    assert container.spec()["com.example.future"] == {"deep": [1, "two", None]}
    container.clean()


def test_the_callers_spec_is_not_changed(client: Client, spec: Make) -> None:
    wanted = spec("true")
    before = json.dumps(wanted)
    client.create("web", wanted).clean()
    assert json.dumps(wanted) == before


def test_a_start_works_from_the_spec_in_memory(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C5: encoded once, decoded never
    encoded: list[object] = []
    encode = libctrd.spec.encode
    monkeypatch.setattr(libctrd.spec, "encode", lambda wanted, **how: encoded.append(wanted) or encode(wanted, **how))
    monkeypatch.setattr(libctrd.spec, "load", lambda path: pytest.fail("config.json was read"))
    container = client.create("web", spec("exit 4"))
    container.start()
    assert container.wait(WAIT).code == 4
    assert len(encoded) == 1


def test_a_missing_or_malformed_config_is_a_clear_error(client: Client, spec: Make) -> None:  # C4
    container = client.create("web", spec("true"))
    path = os.path.join(container.bundle, "config.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"ociVersion": ')
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        container.spec()
    os.unlink(path)
    with pytest.raises(NotFoundError, match=r"config\.json"):
        container.spec()
    container.clean()


def test_the_first_process_is_init_and_its_fifos_bear_its_name(client: Client, spec: Make) -> None:  # C9
    container = client.create("web", spec("cat"))
    container.start()
    found = {name for name in os.listdir(container.bundle) if name.startswith("init-")}
    assert found == {"init-stdin", "init-stdout", "init-stderr"}
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 0


# ---- the request -----------------------------------------------------------------------------------------------------


def test_the_request_names_all_that_the_engine_needs(
    client: Client, engine: Place, spec: Make, requests: list[CreateRequest]
) -> None:  # C8
    container = client.create("web", spec("true"), runtime_args=[engine.argument])
    container.start()
    container.wait(WAIT)
    (request,) = requests
    assert request.record.id == "web"
    assert request.record.bundle == container.bundle
    assert [request.stdin, request.stdout, request.stderr] == [
        os.path.join(container.bundle, f"init-{name}") for name in ("stdin", "stdout", "stderr")
    ]
    assert request.record.runtime_args == (engine.argument,)
    assert request.record.runtime == client.info().runtime
    assert request.no_pivot_root is False


def test_with_a_terminal_stderr_is_named_all_the_same(
    client: Client, spec: Make, requests: list[CreateRequest]
) -> None:  # C8, C13
    container = client.create("web", spec("true", terminal=True))
    container.start()
    assert not os.path.exists(os.path.join(container.bundle, "init-stderr"))
    assert container.stderr is not None
    assert container.stderr.read() == b""
    container.wait(WAIT)
    assert requests[0].stderr == os.path.join(container.bundle, "init-stderr")


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("1", True), ("anything", True)])
def test_a_ramdisk_asks_for_no_pivot_root(
    client: Client,
    spec: Make,
    requests: list[CreateRequest],
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
    wanted: bool,
) -> None:  # C8
    if value is None:
        monkeypatch.delenv("DOCKER_RAMDISK", raising=False)
    else:
        monkeypatch.setenv("DOCKER_RAMDISK", value)
    container = client.create("web", spec("exit 5"))
    container.start()
    assert container.wait(WAIT).code == 5, "and the runtime takes it"
    assert requests[0].no_pivot_root is wanted


@pytest.mark.cannot("api029", "put the arguments of a runtime before its own")
def test_a_runtime_and_its_arguments_are_one_containers_alone(
    client: Client, engine: Place, spec: Make, requests: list[CreateRequest], tmp_path: Any
) -> None:  # C1
    usual = client.info().runtime
    real = usual if os.path.isabs(usual) else need_runtime(engine.runtime_name)
    wrapper = tmp_path / "my-runtime"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    mine = client.create("mine", spec("exit 1"), runtime=str(wrapper), runtime_args=[engine.argument])
    other = client.create("other", spec("exit 2"))
    mine.start()
    other.start()
    assert (mine.wait(WAIT).code, other.wait(WAIT).code) == (1, 2)
    assert [r.record.runtime for r in requests] == [str(wrapper), usual]
    assert [r.record.runtime_args for r in requests] == [(engine.argument,), ()]
    calls = (tmp_path / "calls").read_text().splitlines()
    calls = [c for c in calls if " ctrd-try-" not in c and c != "--version"]  # finding out whether it works here
    assert calls
    assert all(call.startswith(engine.argument_as_passed) for call in calls)
    assert {word for call in calls for word in call.split()} >= {"mine"}
    assert not any("other" in call.split() for call in calls)


@pytest.mark.cannot("api029", "tell what a runtime says of arguments that it does not take")
def test_an_argument_that_the_runtime_refuses_is_an_error(client: Client, spec: Make, state_dir: str) -> None:  # C1
    # Where the engine knows what its runtime takes it says so earlier.
    with pytest.raises((RuntimeFailedError, UnsupportedError), match="no-such-option"):
        client.create("web", spec("true"), runtime_args=["--no-such-option-anywhere"]).start()
    assert os.listdir(state_dir) == []


# ---- the order -------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_start_come_in_their_order(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C6
    steps: list[str] = []

    def noted(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            steps.append(step)
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(stdio, "open_fifos", noted("open the fifos", stdio.open_fifos))
    monkeypatch.setattr(
        stdio, "Stdin", type("Stdin", (stdio.Stdin,), {"__init__": noted("wrap stdin", stdio.Stdin.__init__)})
    )
    monkeypatch.setattr(client, "_register", noted("register", client._register))
    monkeypatch.setattr(client._engine, "create", noted("engine", client._engine.create))

    class Listener:
        def state_changed(self, id: str, info: StateInfo) -> None:
            steps.append(info.type)
            if info.type == "start-container":
                assert info.pid == container.pid > 0

    client.subscribe(Listener())
    container = client.create("web", spec("true"))
    steps.clear()  # the id is taken at its creation already (C19)

    def callback(pipe: stdio.IOPipe) -> None:
        steps.append("callback")
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        assert pipe.stderr is not None

    container.start(callback)
    container.wait(WAIT)
    assert steps == ["open the fifos", "wrap stdin", "register", "callback", "engine", "start-container", "exit"]


def test_no_event_is_handled_before_the_start_was_reported(client: Client, spec: Make) -> None:  # C6
    entered, gate = threading.Event(), threading.Event()
    order: list[str] = []

    class Slow:
        def state_changed(self, id: str, info: StateInfo) -> None:
            if info.type == "start-container":
                entered.set()
                assert gate.wait(WAIT)
            order.append(info.type)

    client.subscribe(Slow())
    container = client.create("web", spec("true"))
    thread = threading.Thread(target=container.start)
    thread.start()
    assert entered.wait(WAIT)
    # It has long ended when the report of its start returns: its exit record says so.
    with libctrd.connect(client.address) as other:
        assert other.get("web").wait(WAIT).code == 0
    assert order == []
    gate.set()
    thread.join(WAIT)
    container.wait(WAIT)
    assert order == ["start-container", "exit"]


def test_a_callback_that_fails_leaves_nothing(client: Client, spec: Make, state_dir: str) -> None:  # C6
    pipes: list[stdio.IOPipe] = []

    def callback(pipe: stdio.IOPipe) -> None:
        pipes.append(pipe)
        raise ZeroDivisionError("mine")

    recorder = Recorder()
    client.subscribe(recorder)
    container = client.create("web", spec("true"))
    with pytest.raises(ZeroDivisionError, match="mine"):
        container.start(callback)
    assert all(stream is not None and stream.closed for stream in (pipes[0].stdin, pipes[0].stdout, pipes[0].stderr))
    assert os.listdir(state_dir) == []
    assert recorder.told == []
    client.create("web", spec("true")).clean()  # the id is free


def test_an_engine_that_fails_leaves_nothing(
    client: Client, engine: Place, spec: Make, state_dir: str
) -> None:  # C6, C19
    container = client.create("web", spec(args=["/no/such/program"]))
    pipes: list[stdio.IOPipe] = []
    with pytest.raises(RuntimeFailedError) as caught:
        container.start(pipes.append)
    assert "/no/such/program" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code or engine.kind != "local", "a daemon does not tell it"
    assert pipes[0].stdout is not None
    assert pipes[0].stdout.closed
    assert os.listdir(state_dir) == []


@pytest.mark.parametrize(("script", "codes"), [("sleep 1000", (137,)), ("exit 3", (3, 137))])
def test_a_listener_that_refuses_the_start_ends_the_container(
    client: Client, spec: Make, state_dir: str, script: str, codes: tuple[int, ...]
) -> None:  # C6
    recorder = Recorder()
    recorder.fail_on = "start-container"
    client.subscribe(recorder)
    container = client.create("web", spec(script))
    with pytest.raises(RuntimeError, match="does not want it"):
        container.start()
    assert os.listdir(state_dir) == [], "ended and cleaned before the exception came"
    assert container.stdout is None or container.stdout.closed
    assert container.wait(WAIT).code in codes
    assert recorder.types == ["start-container", "exit"], "who heard of the start hears of the end"


def test_a_container_starts_once(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat"))
    container.start()
    with pytest.raises(AlreadyExistsError, match="started already"):
        container.start()
    with pytest.raises(AlreadyExistsError, match="started already"):
        libctrd.connect(client.address).get("web").start()
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 0
    with pytest.raises(CtrdError):
        container.start()


def test_a_container_can_be_started_by_another_client(client: Client, spec: Make) -> None:
    client.create("web", spec("echo hello; exit 3"))
    with libctrd.connect(client.address) as other:
        container = other.get("web")
        container.start()
        assert container.stdout is not None
        assert container.stdout.read() == b"hello\n"
        assert container.wait(WAIT).code == 3
        assert other.containers() == []


def test_a_start_that_another_clients_callback_refuses_can_be_made_again(client: Client, spec: Make) -> None:  # C6
    client.create("web", spec("exit 3"))

    def refuse(_: stdio.IOPipe) -> None:
        raise AlreadyExistsError("not by me")

    with libctrd.connect(client.address) as other:
        again = other.get("web")
        with pytest.raises(AlreadyExistsError, match="not by me"):
            again.start(refuse)
        assert not [name for name in os.listdir(again.bundle) if name.startswith("init-")], "no fifo is left"
        assert other.get("web").status == "created"
        again = other.get("web")
        again.start(libctrd.NULL)
        assert again.wait(WAIT).code == 3
