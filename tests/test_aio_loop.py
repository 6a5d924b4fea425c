"""How `libctrd.aio` is in its loop: one descriptor, few threads, events that come from outside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from aio_kit import WAIT, asyncio_run
from container_kit import nothing_left

import libctrd
from libctrd import aio
from libctrd.aio import loop as crossings
from libctrd.client import Client
from libctrd.errors import ClosedError, DeadlineError, InvalidArgumentError, UnavailableError

MANY = 1000
Make = Callable[..., dict[str, Any]]


@pytest.mark.local("it connects to the local engine")
def test_a_client_is_awaited_or_entered(state_dir: str) -> None:
    async def main() -> None:
        async with aio.connect(f"local:{state_dir}") as client:
            assert client.address == f"local:{state_dir}"
        with pytest.raises(ClosedError):
            await client.containers()
        client = await aio.connect(f"local:{state_dir}")
        assert (await client.info()) == client._sync.info()
        await client.close()
        with pytest.raises(InvalidArgumentError):
            await aio.connect("nonsense")

    asyncio_run(main())


def test_events_that_come_while_nobody_waits_are_kept_and_too_many_are_told(any_client: Client) -> None:
    async def main() -> None:
        stream = aio.Client(any_client).events()
        with pytest.raises(DeadlineError, match=r"no event came within 0\.01 s"):
            await stream.get(0.01)
        info = libctrd.StateInfo("pause")
        waiting = asyncio.ensure_future(stream.get(WAIT))
        await asyncio.sleep(0)
        threading.Thread(target=any_client._tell, args=("web", info)).start()
        assert await waiting == ("web", info)
        for _ in range(2049):
            any_client._tell("web", info)
        for _ in range(2048):
            assert await stream.get(0) == ("web", info)
        with pytest.raises(UnavailableError, match="fell more than 2048 events behind"):
            await stream.get()
        with pytest.raises(ClosedError):
            await stream.get()
        assert [event async for event in stream] == []

    asyncio_run(main())


def test_a_loop_has_one_descriptor_for_everything(any_client: Client, spec: Make) -> None:
    """And nothing of it is left when the loop has gone."""

    async def main() -> None:
        client = aio.Client(any_client)
        before = bell_count()
        containers = [await client.create(f"web{number}", spec("read x; echo $x")) for number in range(5)]
        for container in containers:
            await container.start()
        waits = [asyncio.ensure_future(container.wait()) for container in containers]
        reads = [asyncio.ensure_future(container.stdout.read()) for container in containers if container.stdout]
        async with client.events():
            await asyncio.sleep(0.1)
            assert bell_count() == before
        for container in containers:
            assert container.stdin is not None
            await container.stdin.write(b"now\n")
        assert await asyncio.gather(*reads) == [b"now\n"] * 5
        assert [status.code for status in await asyncio.gather(*waits)] == [0] * 5

    ours: list[weakref.ref[crossings.Crossing]] = []
    gc.collect()  # those of the loops before this one, as far as nothing waits in them any more

    def bell_count() -> int:
        assert crossings.crossing() is crossings.crossing()
        ours.append(weakref.ref(crossings.crossing()))
        return len(crossings._crossings)

    asyncio_run(main())
    gc.collect()
    assert [way() for way in ours] == [None, None]


@pytest.mark.local("the number of starts a second is the engine's own")
def test_a_thousand_at_once_are_all_right(state_dir: str, rootfs: str) -> None:  # C28
    """Each has its own output and its own code; one relay, and no thread for a container or a call."""
    most = 0

    async def one(client: aio.Client, number: int) -> None:
        nonlocal most
        done = await aio.run(
            ["/bin/sh", "-c", f"echo {number}; echo err {number} >&2; exit {number % 200}"],
            rootfs=rootfs,
            capture_output=True,
            client=client,
        )
        assert (done.exit_code, done.stdout) == (number % 200, b"%d\n" % number)
        assert done.stderr == b"err %d\n" % number
        most = max(most, threading.active_count())

    async def main() -> None:
        async with aio.connect(f"local:{state_dir}") as client:
            await asyncio.gather(*(one(client, number) for number in range(MANY)))
        names = []
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        assert names.count("ctrd-relay") == 1

    before = threading.active_count()
    asyncio.run(asyncio.wait_for(main(), 10 * WAIT))
    assert most - before <= crossings.processors() + crossings.CALLERS + 12, "lanes, callbacks, and those of the loop"
    nothing_left(state_dir)
