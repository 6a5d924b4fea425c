"""`types.API` over gRPC: who listens where, which thread does what, and how it comes to an end (C25).

**Threads.** One runs an event loop, and in it gRPC and every stream of events: a client that only listens costs no
thread, and a hundred of them cost one queue each. Calls are done by a pool of threads, for the engine waits; health is
answered by the loop, so that it tells of the server and not of a runtime that hangs. The engine's events come by its
own threads and are handed to the loop (`call_soon_threadsafe`), in the order in which the log has them for a container.

**Streams.** A stream joins the table before it looks into the log, both in the loop: an event that is appended
meanwhile is in the log that it reads, or comes through the queue, or both, and then its time says so. One that is not
read is ended with a clear status when more than `STREAM_LIMIT` events wait for it; what waited is dropped at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

import libctrd
from libctrd import directory, protos, reactor
from libctrd.engine.local import LocalEngine
from libctrd.errors import CtrdError, from_os_error
from libctrd.events import STREAM_LIMIT
from libctrd.serve import sockets, wire
from libctrd.serve.eventlog import Entry, EventLog
from libctrd.serve.metrics import Metrics
from libctrd.serve.service import Refusal, Service

log = logging.getLogger("libctrd")

WORKERS: Final = 64
GRACE_SECONDS: Final = 10.0
_API: Final = "types.API"
_HEALTH: Final = "grpc.health.v1.Health"
_CALLS: Final = {
    "GetServerVersion": "get_server_version",
    "CreateContainer": "create_container",
    "UpdateContainer": "update_container",
    "Signal": "signal",
    "UpdateProcess": "update_process",
    "AddProcess": "add_process",
    "CreateCheckpoint": "create_checkpoint",
    "DeleteCheckpoint": "delete_checkpoint",
    "ListCheckpoint": "list_checkpoint",
    "State": "state",
    "Stats": "stats",
}


class Subscription:
    """One stream of events. All of it happens in the loop's thread."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._waiting: deque[Entry] = deque()
        self._ready = asyncio.Event()
        self.dropped = False
        self.closed = False

    def put(self, entry: Entry) -> None:
        """Takes an event, if it is one of that stream's."""
        if self.dropped or self.id not in ("", entry.id):
            return
        if len(self._waiting) >= STREAM_LIMIT:
            self.dropped = True
            self._waiting.clear()
        else:
            self._waiting.append(entry)
        self._ready.set()

    def close(self) -> None:
        """The server ends."""
        self.closed = True
        self._ready.set()

    async def get(self) -> Entry | None:
        """The next one; ``None`` when there will be none."""
        while not self._waiting:
            if self.dropped or self.closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft()


class Server:
    """Serves the containers of the state directory *state_dir* at *address*, ``unix:///PATH``."""

    def __init__(self, address: str, state_dir: str, runtime: str | None = None, metrics: str | None = None) -> None:
        self.path = sockets.path_of(address)
        self._state_dir = directory.check_state_dir(state_dir)
        self._runtime = runtime
        self._metrics_address = metrics
        self._subscriptions: set[Subscription] = set()
        self._serving = False

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serves until SIGTERM or SIGINT; calls under way are finished then, and containers run on.

        *ready* is called once it answers. Raises an error of the family when it cannot begin; nothing is left then.
        """
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            held = sockets.lock(self._state_dir)
            stack.callback(os.close, held)
            handed = sockets.handed_over()
            path = self.path if handed is None else os.path.join(self._state_dir, ".serve", "sock")
            sockets.make_room(path)
            events = EventLog(os.path.join(self._state_dir, ".serve", "events.log"))
            engine = LocalEngine(self._state_dir, reactor.shared(), self._runtime, served=True)
            self._events = events
            self._service = Service(engine, events, f"libctrd {libctrd.__version__}", self._publish)
            self._metrics = Metrics(self._metrics_address, lambda: len(engine.records()))
            stack.callback(self._metrics.close)
            self._pool = ThreadPoolExecutor(WORKERS, "ctrd-call")
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop.set)
            await self._loop.run_in_executor(self._pool, self._service.take_over)
            server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
            server.add_generic_rpc_handlers((self._handlers(), self._health()))
            self._listen(server, path)
            stack.callback(_unlink, path)
            await server.start()
            forwarding = await sockets.forward(handed, path) if handed is not None else None
            self._serving = True
            sockets.notify("READY=1")
            ready()
            await self._stop.wait()
            sockets.notify("STOPPING=1")
            self._serving = False
            if forwarding is not None:
                forwarding.close()
            for subscription in list(self._subscriptions):
                subscription.close()
            await server.stop(GRACE_SECONDS)
            await self._loop.run_in_executor(None, self._pool.shutdown)
            await self._loop.run_in_executor(None, self._service.close)

    def _listen(self, server: Any, path: str) -> None:
        """Binds with a mode of 0600 from the first moment on."""
        old = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise from_os_error(OSError(0, str(error)), f"listen at {path!r}: {error}") from error
        finally:
            os.umask(old)

    # ---- calls ---------------------------------------------------------------------------------------------------

    def _handlers(self) -> Any:
        methods: dict[str, Any] = {}
        for name, attribute in _CALLS.items():
            known = protos.method(f"{_API}/{name}")
            methods[name] = grpc.unary_unary_rpc_method_handler(
                self._unary(name, getattr(self._service, attribute)), _decoder(known), known.reply.SerializeToString
            )
        known = protos.method(f"{_API}/Events")
        methods["Events"] = grpc.unary_stream_rpc_method_handler(
            self._stream, _decoder(known), known.reply.SerializeToString
        )
        return grpc.method_handlers_generic_handler(_API, methods)

    def _unary(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
        def done(request: Any) -> Any:
            try:
                return call(request)
            except Refusal:
                raise
            except CtrdError as error:
                raise Refusal(wire.failure(error, name)) from error

        async def handle(request: Any, context: Any) -> Any:
            began = time.monotonic()
            if request is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"containerd: what came is no request of {name}")
            try:
                reply = await self._loop.run_in_executor(self._pool, done, request)
            except Refusal as error:
                self._metrics.call(name, error.code.name, time.monotonic() - began, request.ByteSize(), 0)
                log.debug("%s: %s", name, error)
                await context.abort(error.code, str(error))
            except Exception:
                self._metrics.call(name, "INTERNAL", time.monotonic() - began, request.ByteSize(), 0)
                log.exception("a fault in %s", name)
                await context.abort(
                    grpc.StatusCode.INTERNAL, f"containerd: a fault of the server in {name}: see its log"
                )
            else:
                self._metrics.call(name, "OK", time.monotonic() - began, request.ByteSize(), reply.ByteSize())
                return reply

        return handle

    # ---- events --------------------------------------------------------------------------------------------------

    def _publish(self, entry: Entry) -> None:
        """Called by any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: what is in the log comes with the next start
            self._loop.call_soon_threadsafe(self._spread, entry)

    def _spread(self, entry: Entry) -> None:
        self._metrics.event(entry.type)
        for subscription in self._subscriptions:
            subscription.put(entry)

    async def _stream(self, request: Any, context: Any) -> None:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "containerd: what came is no request of Events")
        try:
            since = wire.nanoseconds(request.timestamp)
        except ValueError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, f"invalid parameter: {error}")
        if request.storedOnly and not since:
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                "invalid parameter: StoredOnly cannot be specified without setting a valid Timestamp",
            )
        subscription = Subscription(request.id)
        self._subscriptions.add(subscription)
        self._metrics.streams(len(self._subscriptions))
        try:
            if since:
                for stored in self._events.after(since, request.id):
                    await context.write(wire.event(stored))
                    since = stored.at
            while not request.storedOnly and (entry := await subscription.get()) is not None:
                if entry.at > since:
                    await context.write(wire.event(entry))
        finally:
            self._subscriptions.discard(subscription)
            self._metrics.streams(len(self._subscriptions))
        if subscription.dropped:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"containerd: more than {STREAM_LIMIT} events were not read: begin again from the last one that was",
            )
        if subscription.closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "containerd: the server ends")

    # ---- health --------------------------------------------------------------------------------------------------

    def _health(self) -> Any:
        known = protos.method(f"{_HEALTH}/Check")
        status = protos.package("grpc.health.v1").HealthCheckResponse

        async def check(request: Any, context: Any) -> Any:
            if request is None or request.service not in ("", _API):
                await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            return status(status=1 if self._serving else 2)  # SERVING, NOT_SERVING

        handler = grpc.unary_unary_rpc_method_handler(check, _decoder(known), known.reply.SerializeToString)
        return grpc.method_handlers_generic_handler(_HEALTH, {"Check": handler})


def _decoder(known: protos.Method) -> Callable[[bytes], Any]:
    """Takes a request apart; ``None`` for bytes that are none, which gRPC would answer with a text of its own."""

    def decode(data: bytes) -> Any:
        try:
            return known.request.FromString(data)
        except DecodeError:
            return None

    return decode


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
