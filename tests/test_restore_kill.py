"""A client that is killed at any moment, with containers starting, running and ending around it, loses none of them.

The next one takes over each, with its output and its true exit code, or finds that it never came to be.

``CTRD_BAR_KILLS`` says how many times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess

import pytest
from container_kit import WAIT, as_before, descriptors, nothing_left, spec_of
from engine_kit import Place
from field_kit import python

from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import shim
from libctrd.errors import InvalidArgumentError, NotFoundError

KILLS = int(os.environ.get("CTRD_BAR_KILLS", "8"))
BUSY = """
    import sys, time, libctrd
    address, runtime, rootfs, gap = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    print("ready", flush=True)
    for number in range(40):
        then = "read x; " if number % 2 else ""
        script = f"echo hello {number}; {then}exit {number}"
        container = client.create(f"web{number}", libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
        container.start()
        print(number, flush=True)
        time.sleep(float(gap))
        if number % 4 == 0:
            container.wait()
"""


@pytest.mark.bar
@pytest.mark.timeout(1200)
def test_a_client_is_killed_at_any_moment_and_the_next_takes_over_all(
    engine: Place, rootfs: str, state_dir: str
) -> None:  # C22, C28
    moments = random.Random(22)
    engine.connect().close()
    before = descriptors()
    restored = 0
    for _ in range(KILLS):
        # A start that was cut off at a containerd leaves something of the daemon's own now and then, a shim's socket:
        # so there it is killed between two.
        gap = 0.0 if engine.kind == "local" else 0.2
        process = python(BUSY, engine.address, engine.runtime or "", rootfs, str(gap))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = set()
        if gap:
            started = {int(process.stdout.readline()) for _ in range(moments.randrange(1, 8))}
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        started |= {int(line) for line in process.stdout}
        process.stdout.close()
        with engine.connect() as client:
            for container in client.containers():
                restored += take_over(client, container, engine, started)
            assert client.containers() == []
            for id in os.listdir(state_dir):  # killed amid a create, which the next one of that id cleans (C19)
                client.create(id, spec_of("true", rootfs)).clean()
        nothing_left(state_dir)
    assert restored > KILLS
    as_before(before)


def had_been_read(container: Container) -> bool:
    """Was its client killed while it cleaned up? It had all of the output in its own descriptor then. Its word to the
    shim, if it was sent, is heard there before this question.
    """
    try:
        shim.processes(container.bundle)
    except NotFoundError:
        return True  # or it was not started
    return False


def take_over(client: Client, seen: Container, engine: Place, started: set[int]) -> bool:
    number = int(seen.id.removeprefix("web"))
    read = engine.kind == "local" and had_been_read(seen)
    try:
        container = client.restore(seen.id)
    except InvalidArgumentError:  # it was not started, or its start is under way with nobody to hear of it
        assert number not in started
        seen.clean(force=True)
        return False
    ended = container.stdin is None or number % 2 == 0
    if container.stdin is not None:
        container.stdin.close()
    status = container.wait(WAIT)
    assert (status.code, status.known) == (number, True) or (number not in started and not status.known)
    if container.stdout is not None:
        text = container.stdout.read()
        if status.known and not read and (engine.kind == "local" or not ended):
            assert text == f"hello {number}\n".encode()
        else:
            assert text in (b"", f"hello {number}\n".encode()), "a shim has let go of it"
        container.stdout.close()
    if container.stderr is not None:
        container.stderr.close()
    return True
