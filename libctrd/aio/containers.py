"""Containers and their processes in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from libctrd import container as containers
from libctrd import process as processes
from libctrd.aio.loop import CALLS, STARTS, crossing, off, outlast, settle
from libctrd.aio.mirror import Mirror, mirrored, until
from libctrd.aio.streams import Reader, Writer, communicate, in_loop, reader_of, writer_of
from libctrd.errors import InvalidArgumentError, NotFoundError
from libctrd.logs import Entries, LogEntry
from libctrd.state import INIT, ExitStatus
from libctrd.stdio import PIPE

if TYPE_CHECKING:
    from datetime import datetime

    from libctrd.errors import CtrdError
    from libctrd.state import Status
    from libctrd.stdio import Callback, Choice, Stdio

_SIGKILL = "KILL"
_LINES = 500  # of a log, that a thread reads at once


class Process(Mirror):
    """`libctrd.Process` in a loop. Made by `Container.exec` and `attach`, never directly."""

    __slots__ = ()
    _sync: processes.Process

    @property
    def name(self) -> str:
        """Its name: ``init`` for the first (C9)."""
        return self._sync.name

    @property
    def pid(self) -> int:
        """Its system pid; 0 while that is not known."""
        return self._sync.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; ``None`` while it runs."""
        return self._sync.status

    @property
    def terminal(self) -> bool:
        """Has it a terminal?"""
        return self._sync.terminal

    @property
    def stdin(self) -> Writer | None:
        """Its standard input when it was started with `PIPE`, to be written and closed."""
        return writer_of(self._sync)

    @property
    def stdout(self) -> Reader | None:
        """Its standard output when it was started with `PIPE`. With a terminal all output is here."""
        return reader_of(self._sync, "stdout")

    @property
    def stderr(self) -> Reader | None:
        """Its standard error when it was started with `PIPE`. With a terminal it reads as empty (C13)."""
        return reader_of(self._sync, "stderr")

    async def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits until it has ended and its output has come to its end, as `libctrd.Process.wait` does (C28)."""
        sync = self._sync
        await until(sync._notified, timeout, f"process {sync.name!r} of container {sync._container.id!r}")
        return sync._ended()

    async def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Sends *input*, gathers its output and waits for its end, as `libctrd.Process.communicate` does."""
        return await communicate(self._sync, self.wait(), input, timeout)

    def undelivered(self) -> dict[str, CtrdError]:
        """Which of its outputs could not be delivered to where they were to go, and why."""
        return self._sync.undelivered()

    def give_up_output(self) -> None:
        """Its end no longer waits for a sink that does not take its output (`INHERIT`, a descriptor)."""
        self._sync.give_up_output()

    signal = mirrored(processes.Process.signal)
    resize = mirrored(processes.Process.resize)
    detach = mirrored(processes.Process.detach)


def _end(process: processes.Process) -> None:
    with contextlib.suppress(NotFoundError):  # it has ended by itself
        process.signal(_SIGKILL)
    process.wait()


class Container(Mirror):
    """`libctrd.Container` in a loop. Made by `Client.create` and `Client.get`, never directly.

    ``status`` and ``pid`` may have to ask the engine: ``await container.status``.
    """

    __slots__ = ()
    _sync: containers.Container

    @property
    def id(self) -> str:
        """Its id."""
        return self._sync.id

    @property
    def bundle(self) -> str:
        """Its directory: ``config.json`` and the fifos lie in it."""
        return self._sync.bundle

    @property
    def created_at(self) -> datetime:
        """When it was created, in UTC."""
        return self._sync.created_at

    @property
    def oom_killed(self) -> bool:
        """Has the kernel killed a process of it for want of memory so far?"""
        return self._sync.oom_killed

    @property
    def pid(self) -> Coroutine[Any, Any, int]:
        """The system pid of its ``init``; 0 when it is not running."""
        return off(CALLS, lambda: self._sync.pid)

    @property
    def status(self) -> Coroutine[Any, Any, Status]:
        """``created``, ``running``, ``paused`` or ``stopped``; ``stopped`` also when it is gone."""
        return off(CALLS, lambda: self._sync.status)

    @property
    def stdin(self) -> Writer | None:
        """Its standard input when it was started with `PIPE`, to be written and closed."""
        return writer_of(self._sync._processes.get(INIT))

    @property
    def stdout(self) -> Reader | None:
        """Its standard output when it was started with `PIPE`. With a terminal all output is here."""
        return reader_of(self._sync._processes.get(INIT), "stdout")

    @property
    def stderr(self) -> Reader | None:
        """Its standard error when it was started with `PIPE`. With a terminal it reads as empty (C13)."""
        return reader_of(self._sync._processes.get(INIT), "stderr")

    def undelivered(self) -> dict[str, CtrdError]:
        """Which of its outputs could not be delivered to where they were to go, and why."""
        return self._sync.undelivered()

    def process(self, name: str) -> Process:
        """The further process *name* that this client started and that has not ended. Raises `NotFoundError`."""
        return Process(self._sync.process(name))

    async def start(self, stdio: Choice | Stdio | Callback = PIPE, **options: Any) -> int:
        """Starts it; returns the system pid of ``init``. *options* are those of `libctrd.Container.start`.

        A function as *stdio* is called by the thread that starts it, with an `IOPipe` of `libctrd`. Cancelled, the
        container is killed and cleaned.
        """
        sync = self._sync
        start = partial(sync.start, in_loop(stdio), **options)
        return await off(STARTS, start, lambda _: sync.clean(force=True))

    async def exec(self, args: Sequence[str], stdio: Choice | Stdio | Callback = PIPE, **options: Any) -> Process:
        """Starts a further process in it; *options* are those of `libctrd.Container.exec`. Cancelled, it is killed."""
        start = partial(self._sync.exec, args, in_loop(stdio), **options)
        return Process(await off(STARTS, start, _end))

    async def attach(self, stdio: Choice | Stdio | Callback = PIPE, **options: Any) -> Process:
        """Connects to the streams of a process, as `libctrd.Container.attach` does. Cancelled, it is let go of."""
        attach = partial(self._sync.attach, in_loop(stdio), **options)
        return Process(await off(CALLS, attach, processes.Process.detach))

    async def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits for its end, as `libctrd.Container.wait` does (C28): the output was gathered, or is in the pipe."""
        sync = self._sync
        told = sync if sync._processes or sync._exit is not None else await off(CALLS, sync._told)
        await until(told._notified, timeout, f"container {sync.id!r}")
        return sync._ended(told)

    async def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Sends *input*, gathers its output and waits for its end, as `libctrd.Container.communicate` does."""
        init = self._sync._processes.get(INIT)
        if init is None:
            raise InvalidArgumentError(f"container {self.id!r} was not started by this client: attach to it first")
        return await communicate(init, self.wait(), input, timeout)

    async def __aenter__(self) -> Container:
        return self

    async def __aexit__(self, *_: object) -> None:
        """At the end of the block it is killed if it still runs, and cleaned; its pipes are closed."""
        await outlast(off(CALLS, self._sync.__exit__))

    async def logs(
        self, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> AsyncIterator[LogEntry]:
        """What its log holds, line by line, as `libctrd.Container.logs` gives it: ``async for entry in ...``."""
        entries = await off(CALLS, partial(self._sync.logs, follow=follow, since=since, tail=tail), Entries.close)
        try:
            while not entries.finished:
                found = await off(CALLS, partial(entries.take, _LINES))
                for entry in found:
                    yield entry
                if not found and not entries.finished:
                    way, waiter = crossing(), asyncio.get_running_loop().create_future()
                    entries.ask(lambda way=way, waiter=waiter: way.call(lambda: settle(waiter)))  # type: ignore[misc]
                    await waiter
                    entries.look()
        finally:
            entries.close()

    info = mirrored(containers.Container.info)
    spec = mirrored(containers.Container.spec)
    signal = mirrored(containers.Container.signal)
    processes = mirrored(containers.Container.processes)
    pids = mirrored(containers.Container.pids)
    stats = mirrored(containers.Container.stats)
    update = mirrored(containers.Container.update)
    checkpoint = mirrored(containers.Container.checkpoint)
    checkpoints = mirrored(containers.Container.checkpoints)
    delete_checkpoint = mirrored(containers.Container.delete_checkpoint)
    resize = mirrored(containers.Container.resize)
    pause = mirrored(containers.Container.pause)
    resume = mirrored(containers.Container.resume)
    clean = mirrored(containers.Container.clean)
    clean_process = mirrored(containers.Container.clean_process)
