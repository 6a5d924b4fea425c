"""The bars of the containerd engine: many lives, a daemon that is killed, two daemons at once; on a real containerd.

``CTRD_BAR_LIVES`` says how many lives the long test makes.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_kit import Recorder
from container_kit import WAIT, as_before, descriptors, spec_of
from containerd_kit import Containerd, new_namespace, nothing_left, until

import libctrd
from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.engine import cgroups

LIVES = int(os.environ.get("CTRD_BAR_LIVES", "500"))
Make = Callable[..., dict[str, Any]]


def left_of_ours(root: str, namespace: str) -> list[str]:
    """What there still is in our directory for a daemon and a namespace, and of the cgroups that go with it."""
    found = [str(path) for path in Path(root).glob("*")]
    found += [str(path) for path in Path(root).parent.glob(f".runc/{namespace}/*")]
    mark = cgroups.mark(root)
    found += [str(path) for path in Path(cgroups.TOP).glob(f"*/ctrd-{mark}-*")]
    found += [str(path) for path in Path(cgroups.TOP).glob(f"ctrd-{mark}-*")]
    return found


def nothing_of(daemon: Containerd, client: Client) -> None:
    """Fails when there still is anything of the containers of *client*, with containerd or on this host."""
    namespace = client.info().namespace
    nothing_left(daemon, namespace)
    until(
        lambda: not left_of_ours(client._root, namespace),
        lambda: f"nothing left: {left_of_ours(client._root, namespace)}",
    )


@pytest.fixture
def lives(containerd: Containerd) -> Iterator[Client]:
    """A client of the suite's containerd in a namespace of its own. Nothing may be left of what it ran."""
    with libctrd.connect(containerd.address, namespace=new_namespace()) as client:
        yield client
        nothing_of(containerd, client)


def life(client: Client, rootfs: str, n: int) -> None:
    done = libctrd.run(["echo", str(n)], rootfs=rootfs, capture_output=True, client=client)
    assert (done.stdout, done.stderr, done.exit_code) == (b"%d\n" % n, b"", 0)


@pytest.mark.bar
@pytest.mark.timeout(900)
def test_lives_eight_at_a_time_lose_nothing_and_leave_nothing(lives: Client, rootfs: str) -> None:  # C26, C28
    life(lives, rootfs, 0)  # what is opened once for all is open now
    before = descriptors()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: life(lives, rootfs, n), range(LIVES)):
            pass
    as_before(before)


def exits(recorder: Recorder) -> int:
    return sum(info.type == "exit" for _, info in recorder.told)


@pytest.mark.bar
@pytest.mark.timeout(300)
def test_no_exit_is_lost_when_containerd_is_killed(
    new_containerd: Callable[[], Containerd], rootfs: str
) -> None:  # C24, C26
    """Fifty run; they end at any moment, some while it is down. Each is told once, with its true code."""
    daemon = new_containerd()
    chance = random.Random(50)
    with libctrd.connect(daemon.address, namespace=new_namespace()) as client:
        recorder = Recorder()
        client.subscribe(recorder)
        with ThreadPoolExecutor(8) as pool:

            def start(n: int) -> libctrd.Container:
                script = f"read x; usleep {chance.randrange(3_000_000)}; echo {n}; exit {n + 1}"
                container = client.create(f"n{n}", spec_of(script, rootfs))
                container.start(PIPE)
                return container

            containers = list(pool.map(start, range(50)))
            for container in containers:
                assert container.stdin is not None
                container.stdin.close()
            until(lambda: exits(recorder) >= 10, "some exits while it runs", WAIT)
            daemon.kill()
            until(lambda: exits(recorder) >= 35, "some exits while it is down", WAIT)
            daemon.start()
            for n, container in enumerate(containers):
                status = container.wait(WAIT)
                assert (status.code, status.known) == (n + 1, True)
                assert container.stdout is not None
                assert container.stdout.read() == b"%d\n" % n
        nothing_of(daemon, client)
        told = Counter((id, info.exit_code) for id, info in recorder.told if info.type == "exit")
        assert told == {(f"n{n}", n + 1): 1 for n in range(50)}


def test_equal_ids_in_two_daemons_never_meet(
    containerd: Containerd, new_containerd: Callable[[], Containerd], rootfs: str
) -> None:  # C26
    """The same namespace and id in both; one fails to start, is killed, ends: the other does not notice."""
    other, namespace = new_containerd(), new_namespace()
    with (
        libctrd.connect(containerd.address, namespace=namespace) as here,
        libctrd.connect(other.address, namespace=namespace) as there,
    ):
        kept = here.create("web", spec_of("read x; exit 5", rootfs))
        kept.start(PIPE)
        with pytest.raises(libctrd.RuntimeFailedError):
            there.create("web", libctrd.spec.default(["/no/such/program"], rootfs)).start(NULL)
        killed = there.create("web", spec_of("sleep 100", rootfs))
        killed.start(NULL)
        assert kept.pids() != killed.pids()
        killed.clean(force=True)
        ended = there.create("web", spec_of("exit 6", rootfs))
        ended.start(NULL)
        assert ended.wait(WAIT).code == 6
        assert kept.status == "running"
        assert kept.stdin is not None
        kept.stdin.write(b"x\n")
        kept.stdin.close()
        assert kept.wait(WAIT).code == 5
        nothing_of(containerd, here)
        nothing_of(other, there)
