"""Further processes on the local engine: the shim that starts them, what it keeps of them, and what befalls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_kit import Recorder
from container_kit import shims
from engine_kit import Place
from exec_kit import fifos, output, web
from field_kit import until
from fifo_kit import Background

import libctrd
from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, RuntimeFailedError
from libctrd.state import INIT

pytestmark = pytest.mark.local("the shim and what it keeps of further processes")
__all__ = ["web"]  # the fixture

WAIT = 60.0
Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def no_trace(web: Container) -> Iterator[None]:
    """No file of a process may be left in the state directory while the container still runs."""
    yield
    if os.path.isdir(web.bundle):
        assert [name for name in os.listdir(web.bundle) if name.startswith(("exec-", "call-", "update-", "tty-"))] == []


def names(container: Container) -> list[str]:
    return [process.name for process in container._client._engine.processes(container.id)]


def test_the_engine_lists_what_runs_and_what_nobody_has_collected(engine: Place, web: Container) -> None:
    assert names(web) == [INIT]
    one = web.exec(["sleep", "1000"], NULL, name="one")
    listed = {process.name: process for process in web._client._engine.processes("web")}
    assert (listed["one"].pid, listed["one"].exit, listed["one"].terminal) == (one.pid, None, False)
    assert listed[INIT].pid == web.pid
    one.signal("KILL")
    assert one.wait(WAIT).code == 137
    assert names(web) == [INIT]


# C28
def test_the_exit_of_one_whose_client_was_killed_is_kept_until_it_is_collected(engine: Place, web: Container) -> None:
    script = (
        "import libctrd, os, sys\n"
        "client = libctrd.connect(sys.argv[1])\n"
        "client.get('web').exec(['sh', '-c', 'exit 7'], libctrd.NULL, name='orphan')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    # The client must not come to collect it: a listener's thread is quick.
    hold = "import libctrd.handling as h\nh._process_exited = lambda *_: None\n"
    done = subprocess.run([sys.executable, "-c", hold + script, engine.address], timeout=WAIT, check=False)
    assert done.returncode == -9
    engine_of = web._client._engine

    def ended() -> bool:
        return any(process.name == "orphan" and process.exit is not None for process in engine_of.processes("web"))

    until(ended)
    orphan = engine_of.processes("web")[1]
    assert orphan.exit is not None
    assert (orphan.exit.code, orphan.exit.known) == (7, True)
    (record,) = (name for name in os.listdir(web.bundle) if name.endswith(".exit"))
    assert json.loads(Path(web.bundle, record).read_text())["code"] == 7
    with engine.connect() as other:  # who comes later is told, before anything else of that container
        recorder = Recorder()
        other.subscribe(recorder)
        other._watch(other.get("web"))
        until(lambda: recorder.of("web") == ["exit-process"])
        assert (recorder.told[0][1].process, recorder.told[0][1].exit_code) == ("orphan", 7)
    engine_of.delete_process("web", "orphan")
    assert names(web) == [INIT]


def test_a_name_that_waits_to_be_collected_is_in_use(engine: Place, web: Container) -> None:
    with engine.connect() as other:
        theirs = other.get("web").exec(["sleep", "1000"], NULL, name="x")
        with pytest.raises(AlreadyExistsError, match="'x'"):
            web.exec(["true"], NULL, name="x")
        theirs.signal("KILL")
        theirs.wait(WAIT)
    assert web.exec(["true"], NULL, name="x").wait(WAIT).code == 0


def test_as_many_as_the_shim_holds_run_at_once_and_one_more_is_refused(web: Container) -> None:
    running = [web.exec(["sleep", "1000"], NULL) for _ in range(63)]
    with pytest.raises(libctrd.UnavailableError, match="as many processes as its shim can hold"):
        web.exec(["true"], NULL)
    assert len(fifos(web)) == 0
    running[0].signal("KILL")
    running[0].wait(WAIT)
    assert web.exec(["true"], NULL).wait(WAIT).code == 0
    web.signal("KILL")
    assert {process.wait(WAIT).code for process in running} == {137}


def test_many_that_nobody_collects_make_room_for_the_next(web: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web._client._engine, "delete_process", lambda *_: None)
    for number in range(80):
        assert web.exec(["sh", "-c", f"exit {number}"], NULL, name=f"n{number}").wait(WAIT).code == number
    kept = web._client._engine.processes("web")
    assert [process.name for process in kept[1:]][-1:] == ["n79"] or "n79" in names(web)
    assert len(kept) == 64
    monkeypatch.undo()
    for process in kept[1:]:
        web._client._engine.delete_process("web", process.name)


def test_one_that_ends_before_its_start_has_returned_is_a_normal_one(web: Container) -> None:  # runc 2183
    for number in range(60):
        process = web.exec(["sh", "-c", f"echo {number}; exit {number}"])
        assert output(process) == b"%d\n" % number
        assert process.wait(WAIT).code == number
        for stream in (process.stdin, process.stderr):
            assert stream is not None
            stream.close()


def test_starts_side_by_side_get_each_their_own_exit(web: Container) -> None:  # C18, C28
    wrong = []

    def run(code: int) -> None:
        for _ in range(6):
            status = web.exec(["sh", "-c", f"exit {code}"], NULL).wait(WAIT)
            if status.code != code:
                wrong.append((code, status))

    with libctrd.connect(web._client.address):
        threads = [threading.Thread(target=run, args=(code,)) for code in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert wrong == []


def test_while_it_is_paused_none_can_be_started(web: Container) -> None:  # C20
    web.pause(WAIT)
    with pytest.raises(InvalidArgumentError, match="is paused: resume it"):
        web.exec(["true"], NULL)
    web.resume(WAIT)
    assert web.exec(["true"], NULL).wait(WAIT).code == 0
    assert fifos(web) == []


def test_a_runtime_that_hangs_in_a_start_holds_up_nothing_else(
    client: Client, engine: Place, spec: Make, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"
    runtime = tmp_path / "runtime"
    os.mkfifo(hangs)
    runtime.write_text(
        f'#!/bin/bash\n[[ " $* " == *" exec "* ]] && {{ echo here >{hangs}; read <{hangs}; exit 3; }}\n'
        f'exec {engine.runtime_name} "$@"\n'
    )
    runtime.chmod(0o755)
    container = client.create("slow", spec("trap 'exit 9' TERM; sleep 1000 & wait"), runtime=str(runtime))
    container.start(NULL)
    until(lambda: len(container.pids()) == 2)  # its trap is set by then
    refused: list[libctrd.CtrdError] = []

    def start() -> None:
        try:
            container.exec(["true"], NULL)
        except libctrd.CtrdError as error:
            refused.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert hangs.read_bytes() == b"here\n"
    # The container's lock is held by that start, as for every operation on one; another client has its own.
    with engine.connect() as other:
        other.get("slow").signal("TERM")
        assert other.get("slow").wait(WAIT).code == 9
    thread.join(WAIT)
    assert isinstance(refused[0], (RuntimeFailedError, NotFoundError))
    container.wait(WAIT)


# ---- what befalls the shim -------------------------------------------------------------------------------------------


def test_the_end_of_one_whose_shim_was_killed_is_told_and_not_known(web: Container, recorder: Recorder) -> None:
    process = web.exec(["sleep", "1000"], NULL, name="x")
    (shim,) = shims(os.path.dirname(web.bundle), "web")
    os.kill(shim, signal.SIGKILL)
    web.signal("KILL", process="x")
    status = process.wait(WAIT)
    assert (status.code, status.known) == (255, False)
    with pytest.raises(NotFoundError):
        web.exec(["true"], NULL)
    assert web.status == "running"
    web.signal("KILL")
    web.wait(WAIT)
    assert recorder.of("web") == ["exit-process", "exit"]


# C28
def test_without_a_pid_namespace_of_its_own_they_end_with_it_and_are_told_first(
    client: Client, spec: Make, recorder: Recorder
) -> None:
    document = spec("sleep 0.3; exit 5")
    document["linux"]["namespaces"] = [space for space in document["linux"]["namespaces"] if space["type"] != "pid"]
    container = client.create("open", document)
    container.start(NULL)
    process = container.exec(["sleep", "1000"], NULL)
    assert container.wait(WAIT).code == 5
    assert process.wait(WAIT).code == 137
    assert recorder.of("open") == ["start-container", "exit-process", "exit"]


@pytest.fixture
def late(client: Client, engine: Place, spec: Make, tmp_path: Path) -> Callable[[str], Container]:
    """A container whose runtime starts a further process, says so, and comes back only after the given command."""

    def make(command: str) -> Container:
        runtime = tmp_path / "runtime"
        runtime.write_text(
            f'#!/bin/bash\n[[ " $* " == *" exec "* ]] || exec {engine.runtime_name} "$@"\n'
            f'{engine.runtime_name} "$@" || exit; touch {tmp_path}/started; exec {command}\n'
        )
        runtime.chmod(0o755)
        container = client.create("late", spec("sleep 1000"), runtime=str(runtime))
        container.start(NULL)
        return container

    return make


@pytest.mark.parametrize("script", ["exit 5", "sleep 1000"])
def test_the_end_of_one_whose_runtime_comes_back_after_that_of_init_is_told_first(
    late: Callable[[str], Container], recorder: Recorder, tmp_path: Path, script: str
) -> None:  # C10, C28
    """It has ended by itself or with init, and nobody knew yet that it is there."""
    container = late("sleep 0.5")
    starting = Background(container.exec, ["sh", "-c", script], NULL)
    until((tmp_path / "started").exists)
    os.kill(container.pid, signal.SIGKILL)
    code = starting.result(WAIT).wait(WAIT).code
    assert code == 137 or (code, script) == (5, "exit 5")
    assert container.wait(WAIT).code == 137
    assert recorder.of("late") == ["start-container", "exit-process", "exit"]


def test_a_runtime_that_hangs_in_a_start_holds_up_the_end_of_init_for_a_moment_only(
    late: Callable[[str], Container], recorder: Recorder, tmp_path: Path
) -> None:  # C10
    container = late("sleep 1000")
    starting = Background(container.exec, ["true"], NULL)
    until((tmp_path / "started").exists)
    began = time.monotonic()
    os.kill(container.pid, signal.SIGKILL)
    with pytest.raises((RuntimeFailedError, NotFoundError)):
        starting.result(WAIT)
    assert container.wait(WAIT).code == 137
    assert 1 < time.monotonic() - began < 10
    assert recorder.of("late") == ["start-container", "exit"]


def test_its_terminal_is_its_own(web: Container) -> None:  # C13, C20
    first = web.exec(["sh", "-c", "read x; stty size; echo $x"], PIPE, terminal=True)
    second = web.exec(["sh", "-c", "read x; stty size; echo $x"], PIPE, terminal=True)
    first.resize(81, 25)
    second.resize(82, 26)
    for process, text in ((second, b"two\n"), (first, b"one\n")):
        assert process.stdin is not None
        process.stdin.write(text)
    assert b"25 81" in (one := output(first))
    assert b"one" in one
    assert b"26 82" in (two := output(second))
    assert b"two" in two
    for process in (first, second):
        assert process.wait(WAIT).code == 0
        assert process.stdin is not None
        process.stdin.close()
