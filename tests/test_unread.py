"""Output that nobody reads any more holds up no end: of a process that was killed, of a container that is cleaned."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from container_kit import WAIT, nothing_left
from engine_kit import Place
from field_kit import killed, python, said

import libctrd
from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.state import StateInfo

Make = Callable[..., dict[str, Any]]

LEAVER = """
    import sys, signal, libctrd
    address, runtime, rootfs, where = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    script = "yes" if where == "init" else "sleep 1000"
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
    container.start()
    writes = container if where == "init" else container.exec(["yes"], name="further")
    writes.stdout.read(1)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("where", ["init", "further"])
def test_cleaned_by_force_it_goes_though_its_client_was_killed_before_it_read_all(
    client: Client, rootfs: str, runtime: str, state_dir: str, where: str
) -> None:  # C2, C12
    process = python(LEAVER, client.address, runtime, rootfs, where)
    assert said(process) == "ready"
    killed(process)
    container = client.get("web")
    container.clean(force=True)
    assert container.wait(WAIT).code == 137
    nothing_left(state_dir)


def test_who_reads_goes_on_while_another_client_cleans_by_force(client: Client, engine: Place, spec: Make) -> None:
    # C28
    container = client.create("web", spec("seq 1 100000; sleep 1000"))
    container.start()
    assert container.stdout is not None
    got = b""
    while len(got) < 10_000:
        got += container.stdout.read(10_000)
    with engine.connect() as other:
        cleaning = threading.Thread(target=lambda: other.get("web").clean(force=True))
        cleaning.start()
        got += container.stdout.read()
        assert container.wait(WAIT).code == 137
        cleaning.join(WAIT)
        assert not cleaning.is_alive()
    wanted = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
    assert wanted.startswith(got), "a part of it went to somebody else"
    container.stdout.close()


def test_killed_it_ends_though_its_streams_were_closed(client: Client, spec: Make) -> None:  # C20
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)
    process = container.exec(["yes"])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    process.stderr.close()
    process.signal("KILL")
    assert process.wait(WAIT).code == 137
    other = container.exec(["sh", "-c", "yes & yes >&2"])  # only one of its two is let go of
    assert other.stdout is not None
    assert other.stderr is not None
    other.stdout.read(1)
    other.stdout.close()
    container.signal("KILL")
    err = other.stderr.read()
    assert set(err) <= set(b"y\n")
    assert len(err) > 1000
    assert other.wait(WAIT).code == 137
    assert container.wait(WAIT).code == 137
    other.stderr.close()


def test_a_listener_that_refuses_the_start_of_one_that_writes_much(client: Client, spec: Make, state_dir: str) -> None:
    # C6
    class Refusing:
        def state_changed(self, id: str, info: StateInfo) -> None:
            if info.type == "start-container":
                raise RuntimeError("the listener's")

    client.subscribe(Refusing())
    container = client.create("web", spec("yes"))
    with pytest.raises(RuntimeError, match="the listener's"):
        container.start(PIPE)
    nothing_left(state_dir)


def test_a_callback_that_refuses_a_further_process_that_writes_much(client: Client, spec: Make) -> None:  # C21
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)

    def refuse(_: libctrd.IOPipe) -> None:
        raise RuntimeError("the callback's")

    with pytest.raises(RuntimeError, match="the callback's"):
        container.exec(["yes"], refuse, name="further")
    container.signal("KILL")
    assert container.wait(WAIT).code == 137
