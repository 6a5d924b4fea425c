"""The client: how one connects, ids and locks, cleaning. On the real engine, with each runtime."""

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
from client_kit import Recorder
from engine_kit import Place

import libctrd
from libctrd.client import Client
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


# ---- connecting ------------------------------------------------------------------------------------------------------


def test_the_address_comes_from_the_caller_or_the_environment(engine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "unix:///run/nobody.sock")
    with pytest.raises(UnavailableError, match=r"nobody\.sock"):
        libctrd.connect()
    monkeypatch.setenv("CONTAINERD_ADDRESS", "tcp://somewhere")
    with pytest.raises(UnsupportedError, match="somewhere"):
        libctrd.connect()
    monkeypatch.setenv("CTRD_ADDRESS", engine.address)
    with libctrd.connect() as client:
        assert client.address == engine.address
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
    def fail(record: object, config: bytes) -> None:
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
    assert container.bundle.endswith(f"/{os.path.basename(state_dir)}.123456.654321/web")
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
    assert len(client._locks) == 0, "a lock lives as long as somebody uses it"


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
    client: Client, engine: Place, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # C2
    container = client.create("web", spec("exit 3"))
    with monkeypatch.context() as patched:
        patched.setenv("LIBCONTAINERD_NOCLEAN", "1")
        container.start()
        container.wait(WAIT)
        container.clean()
        assert os.path.exists(os.path.join(state_dir, "web", "config.json"))
    # Where an engine keeps its records elsewhere they have gone, and the directory is a leftover (C19).
    (client.get("web") if engine.kind != "containerd" else client.create("web", spec("true"))).clean()
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
