"""Further processes in a container: the order of their start, their streams, their ends. On a real containerd."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from client_kit import Recorder
from engine_kit import Place
from exec_kit import WAIT, Make, close, fifos, output, web
from field_kit import census, more_than, until

import libctrd
from libctrd import NULL, PIPE, Stdio, stdio
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine.base import ExecRequest
from libctrd.errors import (
    AlreadyExistsError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
)

UNREAD = 131_072

__all__ = ["web"]  # the fixture


# ---- the start (C21) -------------------------------------------------------------------------------------------------


def test_the_steps_of_a_start_come_in_their_order(
    client: Client, web: Container, monkeypatch: pytest.MonkeyPatch
) -> None:  # C21
    steps: list[str] = []

    def noted(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            steps.append(step)
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(libctrd.spec, "load", noted("spec", libctrd.spec.load))
    monkeypatch.setattr(stdio, "open_fifos", noted("fifos", stdio.open_fifos))
    monkeypatch.setattr(client._engine, "exec", noted("engine", client._engine.exec))

    def callback(pipe: stdio.IOPipe) -> None:
        steps.append("callback")
        assert web.process("x").pid > 0, "it is registered by then"
        assert (pipe.stdin is None, pipe.stdout is None, pipe.stderr is None) == (False, False, False)

    process = web.exec(["true"], callback, name="x")
    assert process.wait(WAIT).code == 0
    assert steps == ["spec", "fifos", "engine", "callback"]
    close(process)


def test_it_is_started_under_the_lock_of_its_container(client: Client, web: Container) -> None:  # C18, C21
    def callback(pipe: stdio.IOPipe) -> None:
        other = threading.Thread(target=web.signal, args=("CONT",))
        other.start()
        other.join(0.2)
        blocked.append(other.is_alive())
        threads.append(other)

    blocked: list[bool] = []
    threads: list[threading.Thread] = []
    process = web.exec(["true"], callback)
    threads[0].join(WAIT)
    assert blocked == [True]
    assert process.wait(WAIT).code == 0
    close(process)


def test_the_request_names_its_fifos_after_it(
    client: Client, web: Container, monkeypatch: pytest.MonkeyPatch
) -> None:  # C9, C21
    seen: list[ExecRequest] = []
    start = client._engine.exec
    monkeypatch.setattr(client._engine, "exec", lambda request: (seen.append(request), start(request))[1])
    process = web.exec(["cat"], name="reader")
    assert fifos(web) == ["reader-stderr", "reader-stdin", "reader-stdout"]
    assert [seen[0].stdin, seen[0].stdout, seen[0].stderr] == [
        os.path.join(web.bundle, f"reader-{name}") for name in ("stdin", "stdout", "stderr")
    ]
    assert seen[0].process == process.name == "reader"
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WAIT).code == 0
    assert fifos(web) == [], "its end cleans it"
    close(process)


def test_it_has_the_settings_of_the_container_but_for_those_of_its_caller(web: Container) -> None:  # C21
    def shows(script: str, **settings: Any) -> list[str]:
        process = web.exec(["sh", "-c", script], Stdio(NULL, PIPE, NULL), **settings)
        text = output(process).decode().split()
        assert process.wait(WAIT).code == 0
        return text

    script = "echo $FROM $MINE; pwd; id -u; id -g"
    assert shows(script) == ["container", "/", "0", "0"]
    assert shows(script, env=["MINE=1", "PATH=/bin"], cwd="/tmp", user=(1000, 50)) == ["1", "/tmp", "1000", "50"]
    effective = shows("grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status", capabilities=["CAP_KILL"])
    assert int(effective[1], 16) == 1 << 5
    assert effective[3] == "1"


@pytest.mark.parametrize(
    "settings", [{"cwd": "/no/such/place/at/all"}, {"args": ["/no/such/program"]}, {"args": ["/etc/passwd"]}], ids=repr
)
def test_a_start_that_fails_leaves_nothing(
    client: Client, web: Container, recorder: Recorder, settings: dict[str, Any]
) -> None:  # C21, moby 32465
    settings = dict(settings)
    args = settings.pop("args", ["pwd"])
    pipes: list[stdio.IOPipe] = []
    pids = web.pids()
    with pytest.raises(RuntimeFailedError) as caught:
        web.exec(args, pipes.append, name="x", **settings)
    assert "\n" not in str(caught.value)
    assert (args[0] if args[0].startswith("/") else "/no/such") in str(caught.value)
    assert pipes == [], "the callback comes after the engine"
    assert fifos(web) == []
    until(lambda: web.pids() == pids)  # what the runtime had put into the cgroup ends after the runtime itself
    with pytest.raises(NotFoundError, match="'x'"):
        web.process("x")
    assert client._lanes.drain(WAIT)
    assert recorder.of("web") == [], "nothing was started, and nothing has ended"
    again = web.exec(["true"], NULL, name="x")
    assert again.wait(WAIT).code == 0


def test_starts_that_fail_over_and_over_leave_threads_and_files_as_before(web: Container) -> None:  # C21
    def fail() -> None:
        with pytest.raises(RuntimeFailedError):
            web.exec(["/no/such/program"])

    fail()
    before = census()
    for _ in range(15):
        fail()
    until(lambda: more_than(before) == {})
    assert fifos(web) == []


def test_a_callback_that_fails_ends_the_process_it_was_for(web: Container, recorder: Recorder) -> None:  # C21
    pipes: list[stdio.IOPipe] = []

    def callback(pipe: stdio.IOPipe) -> None:
        pipes.append(pipe)
        raise ZeroDivisionError("mine")

    pids = web.pids()
    with pytest.raises(ZeroDivisionError, match="mine"):
        web.exec(["sleep", "1000"], callback, name="x")
    assert all(stream is not None and stream.closed for stream in (pipes[0].stdin, pipes[0].stdout, pipes[0].stderr))
    until(lambda: recorder.of("web") == ["exit-process"])
    assert recorder.told[0][1].exit_code == 137
    assert fifos(web) == []
    assert web.pids() == pids
    assert web.status == "running"


def test_a_container_that_does_not_run_has_no_further_processes(client: Client, spec: Make) -> None:  # C20
    container = client.create("other", spec("exit 3"))
    with pytest.raises(InvalidArgumentError, match="not started"):
        container.exec(["true"])
    container.start(NULL)
    container.wait(WAIT)
    with pytest.raises(NotFoundError, match="not running"):
        container.exec(["true"])


# ---- names -----------------------------------------------------------------------------------------------------------


def test_without_a_name_it_gets_a_fresh_one(web: Container) -> None:
    first, second = web.exec(["true"], NULL), web.exec(["true"], NULL)
    assert first.name != second.name
    assert (first.wait(WAIT).code, second.wait(WAIT).code) == (0, 0)


def test_a_name_that_is_in_use_is_refused_and_that_process_goes_on(
    client: Client, engine: Place, web: Container
) -> None:  # C21
    process = web.exec(["cat"], name="x")
    with pytest.raises(AlreadyExistsError, match="'x'"):
        web.exec(["true"], NULL, name="x")
    with engine.connect() as other, pytest.raises(AlreadyExistsError, match="'x'"):
        other.get("web").exec(["true"], NULL, name="x")
    assert process.stdin is not None
    process.stdin.write(b"still here")
    process.stdin.close()
    assert output(process) == b"still here"
    assert process.wait(WAIT).code == 0
    close(process)
    assert web.exec(["true"], NULL, name="x").wait(WAIT).code == 0, "it is free again"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 77, "init", 5], ids=repr)
def test_a_name_that_cannot_be_is_refused(engine: Place, web: Container, name: Any) -> None:  # C9
    with engine.connect() as other:
        for container in (web, other.get("web")):
            with pytest.raises((InvalidArgumentError, AlreadyExistsError)):
                container.exec(["true"], NULL, name=name)
    assert fifos(web) == []
    assert web.status == "running"


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_its_exit_code_is_the_true_one(web: Container, code: int) -> None:  # C28
    status = web.exec(["sh", "-c", f"exit {code}"], NULL).wait(WAIT)
    assert (status.code, status.known) == (code, True)


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 143), ("USR1", 138)])
def test_a_signal_reaches_it_alone(web: Container, name: str, code: int) -> None:  # C20
    process = web.exec(["sleep", "1000"], NULL, name="x")
    if name == "KILL":
        web.signal(name, process="x")
    else:
        process.signal(name)
    assert process.wait(WAIT).code == code
    assert web.status == "running"
    for late in (lambda: process.signal("KILL"), lambda: web.signal("KILL", process="x")):
        with pytest.raises(NotFoundError):
            late()


def test_its_exit_is_reported_once_and_as_its_own(client: Client, web: Container, recorder: Recorder) -> None:  # C10
    with client.events() as stream:
        process = web.exec(["sh", "-c", "exit 9"], NULL, name="x")
        assert process.wait(WAIT).code == 9
        id, info = stream.get(WAIT)
        assert (id, info.type, info.process, info.exit_code) == ("web", "exit-process", "x", 9)
        with pytest.raises(DeadlineError):
            stream.get(0.2)
    assert recorder.of("web") == ["exit-process"]
    assert not web._notified.is_set()


def test_another_client_hears_of_its_exit_too(engine: Place, web: Container) -> None:  # C10
    with engine.connect() as other:
        theirs = Recorder()
        other.subscribe(theirs)
        waiting = threading.Thread(target=other.get("web").wait, args=(WAIT,))
        waiting.start()
        until(lambda: engine.watches(other, "web"))
        if engine.kind == "containerd":
            other._engine._exits.subscribed()  # type: ignore[attr-defined]
        process = web.exec(["sh", "-c", "exit 9"], NULL, name="x")
        assert process.wait(WAIT).code == 9
        until(lambda: theirs.of("web") == ["exit-process"])
        assert (theirs.told[0][1].process, theirs.told[0][1].exit_code) == ("x", 9)
        web.signal("TERM")
        waiting.join(WAIT)
        assert theirs.of("web") == ["exit-process", "exit"]


def test_with_the_container_it_ends_and_is_told_before_it(client: Client, web: Container, recorder: Recorder) -> None:
    process = web.exec(["sleep", "1000"], NULL)
    web.signal("KILL")
    assert web.wait(WAIT).code == 137
    assert process.wait(WAIT).code == 137
    assert recorder.of("web") == ["exit-process", "exit"]


def test_many_at_once_get_their_own_output_and_their_own_code(web: Container) -> None:  # C18, C28
    def work(number: int) -> None:
        process = web.exec(["sh", "-c", f"echo out {number}; echo err {number} >&2; exit {number}"])
        assert process.stderr is not None
        assert output(process) == b"out %d\n" % number
        assert process.stderr.read() == b"err %d\n" % number
        assert process.wait(WAIT).code == number
        close(process)

    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures, failures
    assert fifos(web) == []


# ---- its output (C28) ------------------------------------------------------------------------------------------------


def test_wait_returns_after_the_sink_has_it_all(web: Container) -> None:  # C28
    reader, writer = os.pipe()
    process = web.exec(["sh", "-c", "yes | head -c 3000000; exit 4"], Stdio(NULL, writer, NULL))
    os.close(writer)
    with pytest.raises(DeadlineError):
        process.wait(0.3)  # nobody reads: it is held back
    got = 0
    while chunk := os.read(reader, 1 << 16):
        got += len(chunk)
    assert got == 3_000_000
    assert process.wait(WAIT).code == 4
    os.close(reader)


@pytest.mark.cannot("api029", "tell the end of a further process before its output has come to its end")
def test_output_that_a_child_keeps_open_is_waited_for_as_long_as_the_caller_says(web: Container) -> None:  # C28
    process = web.exec(["sh", "-c", "sleep 1000 & echo mine; exit 5"], drain_timeout=0.3)
    assert process.wait(WAIT).code == 5
    assert process.stdout is not None
    assert process.stdout.read(5) == b"mine\n"
    close(process)


@pytest.mark.timeout(90)
def test_what_is_unread_at_the_exit_is_all_there_twelve_seconds_later(
    client: Client, web: Container, spec: Make
) -> None:  # C28: the bar, in run and in exec
    script = f"yes 0123456 | head -c {UNREAD}; exit 6"
    container = client.create("other", spec(script))
    container.start()
    process = web.exec(["sh", "-c", script])
    late = time.monotonic() + 12
    waits = [container.wait, process.wait]
    assert threading.Event().wait(late - time.monotonic()) is False
    wanted = (b"0123456\n" * UNREAD)[:UNREAD]
    assert container.stdout is not None
    assert container.stdout.read() == wanted
    assert output(process) == wanted
    assert [wait(WAIT).code for wait in waits] == [6, 6]
    container.stdout.close()
    close(process)


# ---- in containers of others -----------------------------------------------------------------------------------------


def test_it_runs_in_a_container_that_another_client_has_started(engine: Place, web: Container) -> None:
    with engine.connect() as other:
        process = other.get("web").exec(["sh", "-c", "echo $FROM; exit 2"], Stdio(NULL, PIPE, NULL))
        assert output(process) == b"container\n"
        assert process.wait(WAIT).code == 2
    assert web.status == "running"


@pytest.mark.containerd("the containers of the local engine are libctrd's own")
def test_it_runs_in_a_container_that_ctr_has_made(client: Client, engine: Place, rootfs: str) -> None:
    engine.daemon.run(engine.namespace, "theirs", rootfs, "/bin/sleep", "1000")  # type: ignore[attr-defined]
    container = client.get("theirs")
    assert container.spec()["process"]["args"] == ["/bin/sleep", "1000"]
    process = container.exec(["/bin/sh", "-c", "/bin/cat; exit 2"])
    assert process.stdin is not None
    process.stdin.write(b"hello")
    process.stdin.close()
    assert output(process) == b"hello"
    assert process.wait(WAIT).code == 2
    close(process)
    assert not os.path.exists(container.bundle), "of theirs nothing stays with us"
    with pytest.raises(InvalidArgumentError, match="running"):
        container.clean()
    assert container.status == "running"
    container.clean(force=True)
    with pytest.raises(NotFoundError):
        client.get("theirs")
