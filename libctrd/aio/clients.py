"""Clients, events and images in an event loop; `connect` and `run`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from libctrd import client as clients
from libctrd import container as containers
from libctrd import engine, events, once
from libctrd._checks import seconds_of
from libctrd.aio.containers import Container
from libctrd.aio.loop import CALLS, IMAGES, STARTS, crossing, off, outlast, settle
from libctrd.aio.mirror import Mirror, mirrored
from libctrd.aio.streams import gathered, in_loop, send
from libctrd.errors import ClosedError, DeadlineError
from libctrd.once import Completed
from libctrd.starting import chosen_streams
from libctrd.state import StateInfo
from libctrd.stdio import DETACHED, PIPE, Stdio

if TYPE_CHECKING:
    from libctrd.events import Listener
    from libctrd.images import Image
    from libctrd.stdio import Callback, Choice, Stream
M = TypeVar("M", bound="Client | Container")


class EventStream:
    """``async for id, info in client.events()``: as `libctrd.EventStream`, with its limit."""

    def __init__(self, client: clients.Client) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        way = crossing()
        self._sync = client._stream(events.EventStream(client._end_stream, lambda: way.call(self._wake)))

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            settle(waiter)

    async def get(self, timeout: float | None = None) -> tuple[str, StateInfo]:
        """The next event: the container's id and what happened. Raises as `libctrd.EventStream.get` does."""
        seconds_of(timeout, "timeout=")
        event = self._sync.get_nowait()
        if event is not None:
            return event
        try:
            return await asyncio.wait_for(self._next(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineError(f"no event came within {timeout:g} s") from None

    async def _next(self) -> tuple[str, StateInfo]:
        """None is missed: what comes after the look calls `_wake` in this loop, and so after we have come to wait."""
        while (event := self._sync.get_nowait()) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return event

    def close(self) -> None:
        """Ends the iteration; what came before is still handed out. Idempotent."""
        self._sync.close()

    def __aiter__(self) -> AsyncIterator[tuple[str, StateInfo]]:
        return self

    async def __anext__(self) -> tuple[str, StateInfo]:
        try:
            return await self._next()
        except ClosedError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Images:
    """`libctrd.Client.images` in a loop; the *options* are those of the methods there."""

    def __init__(self, client: clients.Client) -> None:
        self._client = client

    async def list(self) -> Sequence[Image]:
        """All images of the namespace, by name."""
        return await off(IMAGES, lambda: self._client.images.list())

    async def get(self, ref: str) -> Image:
        """The image *ref*; `NotFoundError` when it is not here."""
        return await off(IMAGES, lambda: self._client.images.get(ref))

    async def remove(self, ref: str) -> None:
        """Removes the name *ref*."""
        await off(IMAGES, lambda: self._client.images.remove(ref))

    async def import_archive(self, file: Any, **options: Any) -> Sequence[Image]:
        """Imports the images of an archive."""
        return await off(IMAGES, lambda: self._client.images.import_archive(file, **options))

    async def pull(self, ref: str, **options: Any) -> Image:
        """Pulls the image *ref* from its registry, unpacked and ready to run."""
        return await off(IMAGES, lambda: self._client.images.pull(ref, **options))

    async def spec(self, ref: str, args: Sequence[str] | None = None, **settings: Any) -> dict[str, Any]:
        """The OCI spec of a container of the image *ref*."""
        return await off(IMAGES, lambda: self._client.images.spec(ref, args, **settings))


class Client(Mirror):
    """`libctrd.Client` in a loop. Made by `connect`; an asynchronous context manager."""

    __slots__ = ()
    _sync: clients.Client

    @property
    def address(self) -> str:
        """The engine's address, such as ``local:/run/ctrd``."""
        return self._sync.address

    @property
    def images(self) -> Images:
        """The images that its engine has; each call raises `UnsupportedError` for one without."""
        return Images(self._sync)

    async def create(self, id: str, spec: dict[str, Any], **options: Any) -> Container:
        """Creates a container, as `libctrd.Client.create` does. Cancelled, it is cleaned."""
        create = partial(self._sync.create, id, spec, **options)
        return Container(await off(STARTS, create, containers.Container.clean))

    def container(
        self,
        args: Sequence[str] | None = None,
        *,
        stdin: Stream | None = None,
        stdout: Stream | None = None,
        stderr: Stream | None = None,
        **options: Any,
    ) -> Making[Container]:
        """Creates a container and starts it, as `libctrd.Client.container` does: to be awaited, or entered.

        ``async with client.container(...) as container`` kills and cleans it at the end of the block.
        """
        first, *outputs = chosen_streams(stdin, stdout, stderr).streams
        out, err = map(gathered, outputs)
        make = partial(self._sync.container, args, stdin=first, stdout=out, stderr=err, **options)

        async def made() -> Container:
            return Container(await off(STARTS, make, containers.Container.__exit__))

        return Making(made)

    async def containers(self) -> Sequence[Container]:
        """Every container of the engine, whoever started it, by id."""
        return [Container(found) for found in await off(CALLS, self._sync.containers)]

    async def get(self, id: str) -> Container:
        """The container *id*, whoever started it. Raises `NotFoundError` when there is none."""
        return Container(await off(CALLS, partial(self._sync.get, id)))

    async def restore(
        self, id: str, *, stdio: Choice | Stdio | Callback = PIPE, further: Choice | Stdio = DETACHED, **options: Any
    ) -> Container:
        """Takes over a container whose client has gone, as `libctrd.Client.restore` does; it stays this client's."""
        own: Any = in_loop(stdio)
        others: Any = in_loop(further)
        return Container(await off(STARTS, partial(self._sync.restore, id, stdio=own, further=others, **options)))

    def events(self) -> EventStream:
        """What happens to the containers of this client from now on, to be iterated in this loop."""
        return EventStream(self._sync)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """As `libctrd.Client.subscribe`: the listener is called by threads of the client, not in the loop."""
        return self._sync.subscribe(listener)

    info = mirrored(clients.Client.info)
    watch_all = mirrored(clients.Client.watch_all)
    stop_daemon = mirrored(clients.Client.stop_daemon)
    close = mirrored(clients.Client.close)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await outlast(self.close())


class Making(Generic[M]):
    """What makes something: ``await`` it, or enter it with ``async with``, which ends what was made."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, M]]) -> None:
        self._make = make
        self._made: M | None = None

    def __await__(self) -> Generator[Any, None, M]:
        return self._make().__await__()

    async def __aenter__(self) -> M:
        self._made = await self._make()
        return self._made

    async def __aexit__(self, *_: object) -> None:
        if self._made is not None:
            await self._made.__aexit__()


def connect(address: str | None = None, *, runtime: str | None = None, namespace: str | None = None) -> Making[Client]:
    """Connects to an engine, as `libctrd.connect` does: ``await connect()``, or ``async with connect() as client``."""
    there = partial(engine.connect, address, runtime=runtime, namespace=namespace)

    async def made() -> Client:
        return Client(await off(CALLS, there, clients.Client.close))

    return Making(made)


@functools.wraps(once.run, assigned=())
async def run(
    args: Sequence[str] | None = None, *, client: Client | clients.Client | None = None, **options: Any
) -> Completed:
    """Runs a container as `libctrd.run` does, with the same arguments. Cancelled, it has been killed and cleaned.

    *client* may be a client of `libctrd` or of `libctrd.aio`; without one there is one for all calls.
    """
    prepared = once.prepare(args, client=client._sync if isinstance(client, Client) else client, **options)
    try:
        container = Container(await off(STARTS, prepared.start))
        stdin = container.stdin
        if stdin is not None and prepared.input is not None:
            await send(stdin, prepared.input)
        status = await container.wait()
    except BaseException:
        await outlast(off(CALLS, prepared.stop))
        raise
    return prepared.complete(status)
