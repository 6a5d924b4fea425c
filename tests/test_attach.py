"""To come later to the streams of a container that runs: `Container.attach`, and to leave again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_kit import WAIT, as_before, descriptors, nothing_left
from engine_kit import Place

import libctrd
from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import AlreadyExistsError, ClosedError, InvalidArgumentError, NotFoundError
from libctrd.process import Process

Make = Callable[..., dict[str, Any]]


def close(process: Process | libctrd.Container) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def test_what_was_held_comes_first_and_the_end_is_told(client: Client, engine: Place, spec: Make) -> None:  # C28
    with engine.connect() as starter:
        starter.create("web", spec("echo before; read x; echo got $x; exit 3")).start(DETACHED)
    container = client.get("web")
    process = container.attach(PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(7) == b"before\n"
    process.stdin.write(b"it\n")
    assert process.wait(WAIT).code == container.wait(WAIT).code == 3
    assert process.stdout.read() == b"got it\n"
    close(process)
    assert client.get("web").info().exit is not None, "it is nobody's, and stays until it is removed"
    container.clean()


@pytest.mark.local("containerd's shim was told at the start that its output is for nobody")
@pytest.mark.parametrize("policy", ["discard", "log"])
def test_while_attached_nothing_is_discarded_or_logged(
    client: Client, spec: Make, tmp_path: Path, policy: Any
) -> None:  # C28
    container = client.create("web", spec("read x; seq 1 20000; read x; seq 1 20000; exit 3"))
    log = tmp_path / "log"
    container.start(DETACHED, unattended=policy, log=str(log) if policy == "log" else None)
    process = container.attach(PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    numbers = "".join(f"{number}\n" for number in range(1, 20001)).encode()
    process.stdin.write(b"\n")
    assert b"".join(iter_exactly(process, len(numbers))) == numbers
    process.detach()
    again = client.get("web").attach(Stdio(PIPE, NULL, NULL))
    assert again.stdin is not None
    again.stdin.write(b"\n")
    again.detach()
    assert container.wait(WAIT).code == 3
    container.clean()
    if policy == "log":
        assert log.read_bytes() == numbers


def iter_exactly(process: Process, size: int) -> Any:
    while size:
        assert process.stdout is not None
        block = process.stdout.read(size)
        assert block
        size -= len(block)
        yield block


@pytest.mark.local("containerd's shim was told at the start that its output is for nobody")
def test_who_attends_what_is_else_discarded_gets_all_of_it(client: Client, spec: Make, tmp_path: Path) -> None:  # C28
    with (tmp_path / "out").open("wb") as out:
        container = client.create("web", spec("seq 1 50000; exit 3"))
        container.start(Stdio(NULL, out, NULL), unattended="discard")
        assert container.wait(WAIT).code == 3
    assert (tmp_path / "out").read_text().split() == [str(number) for number in range(1, 50001)]


def test_detaching_neither_ends_it_nor_its_stdin(client: Client, engine: Place, spec: Make) -> None:
    with engine.connect() as starter:
        starter.create("web", spec("cat; exit 4")).start(DETACHED)
    for word in (b"one\n", b"two\n"):
        process = client.get("web").attach(PIPE)
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(word)
        assert stdout.read(4) == word
        process.detach()
        process.detach()
        assert stdin.closed
        with pytest.raises(ClosedError, match="detached"):
            process.wait(WAIT)
        assert client.get("web").status == "running"
    process = client.get("web").attach(PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WAIT).code == 4
    close(process)
    client.get("web").clean()


def test_of_two_who_attach_one_is_first(client: Client, engine: Place, spec: Make) -> None:
    container = client.create("web", spec("read x; exit 4"))
    container.start(DETACHED)
    with engine.connect() as other:
        process = other.get("web").attach(PIPE)
        with pytest.raises(AlreadyExistsError, match="another client, which lives"):
            container.attach(PIPE)
        with pytest.raises(AlreadyExistsError, match="in this client already"):
            other.get("web").attach(PIPE)
        process.detach()
    process = container.attach(PIPE)
    close(process)
    assert container.wait(WAIT).code == 4
    container.clean()


def test_what_cannot_be_attached_to_is_a_clear_error(client: Client, engine: Place, spec: Make) -> None:
    container = client.create("web", spec("sleep 1000"))
    with pytest.raises(InvalidArgumentError, match="not started"):
        container.attach()
    container.start(NULL)
    with pytest.raises(AlreadyExistsError, match="in this client"):
        container.attach()
    with engine.connect() as other:
        with pytest.raises(AlreadyExistsError, match="another client"):
            other.get("web").attach()
        with pytest.raises(NotFoundError, match="'nobody'"):
            other.get("web").attach(process="nobody")
    container.clean(force=True)
    with pytest.raises(NotFoundError):
        container.attach()
    with engine.connect() as starter:
        starter.create("mute", spec("sleep 1000")).start(Stdio(NULL, NULL, NULL))
    with pytest.raises(InvalidArgumentError, match="no stream to attach to"):
        client.get("mute").attach()
    with pytest.raises(InvalidArgumentError, match="stdio="):
        client.get("mute").attach("all")  # type: ignore[arg-type]
    client.get("mute").clean(force=True)


def test_a_failing_callback_leaves_it_to_others_as_it_was(client: Client, engine: Place, spec: Make) -> None:
    with engine.connect() as starter:
        starter.create("web", spec("read x; exit 4")).start(DETACHED)
    before = descriptors()

    def refuse(_: libctrd.IOPipe) -> None:
        raise RuntimeError("on purpose")

    for _ in range(20):
        with pytest.raises(RuntimeError, match="on purpose"):
            client.get("web").attach(refuse)
    assert len(descriptors()) <= len(before) + 3, "the watch of it, and no more"
    process = client.get("web").attach(PIPE)
    close(process)
    assert process.wait(WAIT).code == 4
    client.get("web").clean()


def test_hundreds_of_attachments_leave_descriptors_as_before(any_client: Client, spec: Make, state_dir: str) -> None:
    container = any_client.create("web", spec("read x; exit 4"))
    container.start(DETACHED)
    container.attach(PIPE).detach()
    before = descriptors()
    for _ in range(200):
        container.attach(PIPE).detach()
    as_before(before)
    process = container.attach(PIPE)
    close(process)
    assert process.wait(WAIT).code == 4
    container.clean()
    nothing_left(state_dir)


@pytest.mark.local("the fifos of containerd's containers stay this user's")
def test_fifos_that_may_not_be_opened_by_path_come_over_the_shims_socket(
    any_client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = any_client.create("web", spec("echo before; read x; echo got $x; exit 3"))
    container.start(DETACHED)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    process = container.attach(PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(7) == b"before\n"
    process.stdin.write(b"it\n")
    assert process.wait(WAIT).code == 3
    assert process.stdout.read() == b"got it\n"
    monkeypatch.undo()
    close(process)
    container.clean()


def test_an_end_that_was_handed_over_is_a_fifo(tmp_path: Path) -> None:  # C14
    from libctrd.fifo import adopt_fifo

    reading, writing = os.pipe()
    with adopt_fifo(reading, "handed") as reader, adopt_fifo(writing, "handed") as writer:
        assert (reader.mode, writer.mode) == ("read", "write")
        assert reader.read_nowait(4) is None
        writer.write(b"word")
        writer.close()
        assert reader.read() == b"word"
    with pytest.raises(ClosedError):
        adopt_fifo(writing, "gone")
    with (tmp_path / "file").open("wb") as file, pytest.raises(InvalidArgumentError, match="no reading or writing end"):
        adopt_fifo(file.fileno(), "file")
    os.mkfifo(tmp_path / "both")
    both = os.open(tmp_path / "both", os.O_RDWR)
    with pytest.raises(InvalidArgumentError, match="no reading or writing end"):
        adopt_fifo(both, "both")
    os.close(both)
