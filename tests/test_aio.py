"""`libctrd.aio`: the same containers, the same promises, in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from container_kit import nothing_left
from engine_kit import Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import libctrd
from libctrd import aio
from libctrd.aio import loop as crossings
from libctrd.client import Client
from libctrd.errors import ClosedError, DeadlineError, ExitError, InvalidArgumentError, UnavailableError

WAIT = 60.0
MANY = 1000
Make = Callable[..., dict[str, Any]]
Main = Coroutine[Any, Any, Any]


def asyncio_run(main: Main) -> None:
    asyncio.run(asyncio.wait_for(main, WAIT))


def uvloop_run(main: Main) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is missing: pip install uvloop")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main, WAIT))
    finally:
        loop.close()


@pytest.fixture(params=[asyncio_run, uvloop_run], ids=["asyncio", "uvloop"])
def in_loop(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine in each kind of loop."""
    run: Callable[[Main], None] = request.param
    return run


# ---- the names -----------------------------------------------------------------------------------------------------

PAIRS = [
    (libctrd.Client, aio.Client),
    (libctrd.Container, aio.Container),
    (libctrd.Process, aio.Process),
    (libctrd.EventStream, aio.EventStream),
]
# How it stands between client and container, for those two alone; and what a stream gets from its client.
INNER = {
    libctrd.Process: {"began", "clean", "drained", "exited", "failed", "let_go", "let_go_of_ends", "open", "take"},
    libctrd.EventStream: {"get_nowait", "put"},
}
AT_ONCE = {"close", "events", "give_up_output", "process", "subscribe", "undelivered"}


@pytest.mark.parametrize(("sync", "mirror"), PAIRS)
def test_every_name_is_there_and_what_may_take_time_is_a_coroutine(sync: type, mirror: type) -> None:
    names = {name for name in vars(sync) if not name.startswith("_")} | {
        name for base in sync.__mro__[1:-1] for name in vars(base) if not name.startswith("_")
    }
    for name in names - INNER.get(sync, set()):
        there = inspect.getattr_static(mirror, name)
        if isinstance(inspect.getattr_static(sync, name), property):
            assert isinstance(there, property), name
        elif name not in AT_ONCE:
            assert inspect.iscoroutinefunction(there), name
            assert there.__doc__, name


def test_run_takes_what_the_other_takes() -> None:
    assert inspect.signature(aio.run).parameters == inspect.signature(libctrd.run).parameters
    assert inspect.iscoroutinefunction(aio.run)


# ---- a container ---------------------------------------------------------------------------------------------------


def test_one_run_gives_all_of_the_output_and_the_code(
    any_client: Client, rootfs: str, in_loop: Callable[[Main], None]
) -> None:  # C28
    async def main() -> None:
        client = aio.Client(any_client)
        done = await aio.run(
            ["/bin/sh", "-c", "cat; echo to stderr >&2; exit 7"],
            rootfs=rootfs,
            input=b"in" * 100_000,
            capture_output=True,
            client=client,
        )
        assert (done.exit_code, done.stdout, done.stderr) == (7, b"in" * 100_000, b"to stderr\n")
        with pytest.raises(ExitError, match="exit code 7"):
            await aio.run(["/bin/sh", "-c", "exit 7"], rootfs=rootfs, check=True, client=any_client)

    in_loop(main())


def test_a_whole_life_with_lines_stdin_events_and_a_further_process(
    any_client: Client, spec: Make, in_loop: Callable[[Main], None]
) -> None:
    script = "echo ready; while read line; do echo got $line; done; echo end >&2; exit 5"

    async def main() -> None:
        client = aio.Client(any_client)
        async with client.events() as events:
            container = await client.create("web", spec(script))
            assert await container.status == "created"
            pid = await container.start()
            assert (await container.status, await container.pid) == ("running", pid)
            assert container.stdin is not None
            assert container.stdout is not None
            assert container.stderr is not None
            assert await container.stdout.readline() == b"ready\n"
            process = await container.exec(["/bin/sh", "-c", "echo further; exit 3"])
            assert process.stdout is not None
            assert await process.stdout.read() == b"further\n"
            assert (await process.wait(WAIT)).code == 3
            async with container.stdin as stdin:
                await stdin.write(b"one\ntwo\n")
            assert [line async for line in container.stdout] == [b"got one\n", b"got two\n"]
            assert await container.stderr.read() == b"end\n"
            assert (await container.wait(WAIT)).code == 5
            assert (await container.wait()).code == 5
            told = []
            async for id, info in events:
                told.append((id, info.type, info.process))
                if info.type == "exit":
                    break
            assert told == [
                ("web", "start-container", "init"),
                ("web", "exit-process", process.name),
                ("web", "exit", "init"),
            ]

    in_loop(main())


def test_two_in_a_loop_are_one_and_the_same_when_they_stand_for_the_same(any_client: Client, spec: Make) -> None:
    async def main() -> None:
        client = aio.Client(any_client)
        one = await client.create("web", spec("cat"))
        assert await client.get("web") == one
        assert len({one, await client.get("web")}) == 1
        assert repr(one).startswith("<aio Container 'web' of ")
        await one.clean()

    asyncio_run(main())


def test_a_reader_that_does_not_come_holds_the_container_back_and_loses_nothing(
    any_client: Client, spec: Make
) -> None:  # C28
    """What the relay reads ahead is bounded: with 1 MiB of its own and what a pipe holds, 8 MiB are far from there."""
    size = 8 << 20

    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec(f"head -c {size} /dev/zero; exit 3"))
        await container.start()
        with pytest.raises(DeadlineError, match=r"container 'web' did not end within 0\.2 s"):
            await container.wait(0.2)
        assert container.stdout is not None
        found = 0
        while block := await container.stdout.read(100_000):
            found += len(block)
        assert found == size
        assert (await container.wait(WAIT)).code == 3

    asyncio_run(main())


def test_output_that_nobody_has_read_can_be_read_after_the_wait(any_client: Client, spec: Make) -> None:  # C28
    """More than a buffer holds: the rest is in the pipe, whose reader the relay still is."""
    size = (1 << 20) + 50_000

    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec(f"head -c {size} /dev/zero; echo err >&2"))
        await container.start()
        assert (await container.wait(WAIT)).code == 0
        assert container.stdout is not None
        assert container.stderr is not None
        assert len(await container.stdout.read()) == size
        assert await container.stderr.read() == b"err\n"
        assert await container.stdout.read() == await container.stdout.read(1) == b""

    asyncio_run(main())


def test_a_long_line_comes_in_pieces_and_the_last_needs_no_end(any_client: Client, spec: Make) -> None:
    size = 3 << 20

    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec(f"head -c {size} /dev/zero; echo; printf rest"))
        await container.start()
        assert container.stdout is not None
        lines = [line async for line in container.stdout]
        assert lines[-1] == b"rest"
        assert b"".join(lines[:-1]) == bytes(size) + b"\n"
        assert 1 < len(lines) <= 5
        await container.wait(WAIT)

    asyncio_run(main())


def test_a_read_that_is_given_up_loses_nothing(any_client: Client, spec: Make) -> None:
    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec("printf begun; read x; echo ' and ended'"))
        await container.start()
        assert container.stdout is not None
        assert container.stdin is not None
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(container.stdout.readline(), 0.1)
        await container.stdin.write(b"\n")
        assert await container.stdout.readline() == b"begun and ended\n"
        await container.wait(WAIT)

    asyncio_run(main())


def test_more_than_a_pipe_is_written_while_it_is_read_back(any_client: Client, spec: Make) -> None:
    data = os.urandom(1 << 20) * 4

    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec("cat"))
        await container.start()
        stdin, stdout = container.stdin, container.stdout
        assert stdin is not None
        assert stdout is not None

        async def write() -> None:
            assert await stdin.write(data) == len(data)
            await stdin.close()
            assert stdin.closed
            with pytest.raises(ClosedError):
                await stdin.write(b"more")

        _, found = await asyncio.gather(write(), stdout.read())
        assert found == data
        assert (await container.wait(WAIT)).code == 0

    asyncio_run(main())


def test_a_write_to_one_that_ends_is_told_so(any_client: Client, spec: Make) -> None:
    """It waits for room when the container goes: nothing else would wake it."""

    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec("exec sleep 1000"))
        await container.start()
        assert container.stdin is not None
        writing = asyncio.ensure_future(container.stdin.write(bytes(8 << 20)))
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        await container.signal("KILL")
        with pytest.raises((UnavailableError, ClosedError)):
            await asyncio.wait_for(writing, WAIT)
        assert (await container.wait(WAIT)).code == 137

    asyncio_run(main())


def test_a_terminal_has_no_stderr_that_says_anything(any_client: Client, spec: Make) -> None:  # C13
    async def main() -> None:
        container = await aio.Client(any_client).create("web", spec("echo hello", terminal=True))
        await container.start()
        assert container.stdout is not None
        assert container.stderr is not None
        assert await container.stderr.read() == b""
        assert await container.stdout.read() == b"hello\r\n"
        await container.wait(WAIT)

    asyncio_run(main())


# ---- cancelled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "start"])
def test_who_is_cancelled_leaves_nothing(engine: Place, spec: Make, what: str) -> None:
    """At whatever moment: before its start, in it, while it runs."""
    seconds = st.one_of(st.just(0.0), st.floats(0, 0.15))

    async def begin(client: aio.Client) -> None:
        if what == "run":
            await aio.run(spec=spec("sleep 1000"), client=client)
        else:
            container = await client.create("web", spec("sleep 1000"))
            await container.start(aio.NULL)
            await container.wait()

    with engine.connect() as connected:

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(seconds)
        def check(after: float) -> None:
            async def main() -> None:
                task = asyncio.ensure_future(begin(aio.Client(connected)))
                await asyncio.wait([task], timeout=after)
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()  # an impatient one
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                for container in connected.containers():  # who only waited has left it alone
                    assert what == "start"
                    container.clean(force=True)

            asyncio_run(main())
            assert connected.containers() == []

        check()


def test_a_time_limit_of_the_loop_kills_and_cleans(any_client: Client, rootfs: str) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.run(["/bin/sleep", "1000"], rootfs=rootfs, client=any_client), 0.5)
        assert await aio.Client(any_client).containers() == []
        with pytest.raises(DeadlineError, match=r"did not end within 0\.1 s and was killed"):
            await aio.run(["/bin/sleep", "1000"], rootfs=rootfs, client=any_client, timeout=0.1)
        assert await aio.Client(any_client).containers() == []

    asyncio_run(main())


# ---- the loop ------------------------------------------------------------------------------------------------------


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
            assert bell_count() == before == 1
        for container in containers:
            assert container.stdin is not None
            await container.stdin.write(b"now\n")
        assert await asyncio.gather(*reads) == [b"now\n"] * 5
        assert [status.code for status in await asyncio.gather(*waits)] == [0] * 5

    def bell_count() -> int:
        assert crossings.crossing() is crossings.crossing()
        return len(crossings._crossings)

    asyncio_run(main())
    gc.collect()
    assert len(crossings._crossings) == 0


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
