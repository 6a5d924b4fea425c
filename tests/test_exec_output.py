"""The output of further processes in a container, to its last byte; and such processes in the containers of others."""

from __future__ import annotations

import os
import threading
import time

import pytest
from engine_kit import Place
from exec_kit import Make, close, output, web

from libctrd import NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import DeadlineError, InvalidArgumentError, NotFoundError

pytestmark = pytest.mark.containerd("the local engine runs no further processes")

__all__ = ["web"]  # a fixture of another file

WAIT = 30.0
UNREAD = 131_072

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
