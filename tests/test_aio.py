"""`libctrd.aio`: the same containers, the same promises, in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aio_kit import WAIT, Main, asyncio_run, in_loop
from engine_kit import Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import libctrd
from libctrd import aio
from libctrd.client import Client
from libctrd.errors import ClosedError, DeadlineError, ExitError, InvalidArgumentError, UnavailableError

Make = Callable[..., dict[str, Any]]
__all__ = ["in_loop"]


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
AT_ONCE = {"close", "container", "events", "give_up_output", "process", "subscribe", "undelivered"}


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
            assert inspect.iscoroutinefunction(there) or inspect.isasyncgenfunction(there), name
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


# ---- as subprocess has it ------------------------------------------------------------------------------------------


def test_a_container_in_a_block_communicates_and_is_gone_after_it(
    any_client: Client, rootfs: str, in_loop: Callable[[Main], None]
) -> None:
    data = os.urandom(3 << 20)

    async def main() -> None:
        client = aio.Client(any_client)
        pipes = {"stdin": aio.PIPE, "stdout": aio.PIPE, "stderr": aio.PIPE}
        script = ["/bin/sh", "-c", "echo err >&2; cat; exit 4"]
        async with client.container(script, rootfs=rootfs, **pipes) as container:
            assert await container.communicate(data, WAIT) == (data, b"err\n")
            assert (await container.wait()).code == 4
            with pytest.raises(InvalidArgumentError, match="has sent an input before"):
                await container.communicate(b"again")
        async with client.container(["/bin/cat"], rootfs=rootfs, id="web", **pipes, text=True) as container:
            process = await container.exec(["/bin/sh", "-c", "echo further"])
            assert await process.communicate(timeout=WAIT) == (b"further\n", b"")
            assert container.stdin is not None
            assert container.stdout is not None
            assert await container.stdin.write("h\u00e4h\r\nsecond") == 11
            assert await container.stdout.readline() == "h\u00e4h\n"
            assert await container.stdout.read(3) == "sec"
            assert await container.stdout.read(100) == "ond"
        assert (await container.wait()).code == 137
        assert await client.containers() == []

    in_loop(main())


def test_communicate_in_a_loop_can_be_called_again_after_its_time_limit(any_client: Client, rootfs: str) -> None:
    async def main() -> None:
        client = aio.Client(any_client)
        go = f"/tmp/{uuid.uuid4()}"
        script = f"echo begun; cat; while test ! -e {go}; do usleep 10000; done; echo end"
        pipes = {"stdin": aio.PIPE, "stdout": aio.PIPE}
        async with client.container(["/bin/sh", "-c", script], rootfs=rootfs, **pipes, encoding="utf-8") as container:
            for data in ("s\u00e4nt once", None):
                with pytest.raises(DeadlineError, match=r"did not end within 0\.1 s"):
                    await container.communicate(data, 0.1)
            await (await container.exec(["/bin/touch", go], aio.NULL)).wait(WAIT)
            assert await container.communicate(timeout=WAIT) == ("begun\ns\u00e4nt onceend\n", None)

    asyncio_run(main())


def test_a_character_that_comes_in_parts_is_one(any_client: Client, rootfs: str) -> None:
    async def main() -> None:
        script = ["/bin/sh", "-c", "printf '\\303'; read x; printf '\\244\\n'"]
        pipes = {"stdin": aio.PIPE, "stdout": aio.PIPE}
        async with aio.Client(any_client).container(script, rootfs=rootfs, **pipes, text=True) as container:
            assert container.stdin is not None
            assert container.stdout is not None
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(container.stdout.read(10), 0.1)
            await container.stdin.write("\n")
            assert [line async for line in container.stdout] == ["\u00e4\n"]

    asyncio_run(main())


@pytest.mark.local("its shim writes the log")
def test_a_log_is_followed_in_a_loop(any_client: Client, spec: Make, tmp_path: Path) -> None:
    async def main() -> None:
        client = aio.Client(any_client)
        container = await client.create("web", spec("seq 2000; usleep 200000; echo end >&2; exit 3"))
        settings = {"unattended": "log", "log": str(tmp_path / "log"), "log_format": "json"}
        await container.start(aio.DETACHED, **settings)
        found = [(entry.stream, entry.data) async for entry in container.logs(follow=True)]
        assert found == [("stdout", b"%d\n" % number) for number in range(1, 2001)] + [("stderr", b"end\n")]
        assert [entry.data async for entry in container.logs(tail=1)] == [b"end\n"]
        async for entry in container.logs(follow=True):
            assert entry.data == b"1\n"
            break
        assert (await container.wait(WAIT)).code == 3
        await container.clean()

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
