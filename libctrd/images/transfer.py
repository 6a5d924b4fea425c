"""Pulls by the daemon itself: its transfer service fetches what an image is made of into the content store.

Nothing is unpacked that way, and the image gets a name that nobody looks for, taken back at once: what came is held by
the lease alone, until it was checked like anything else (`libctrd.images.intake`). The daemon asks for credentials and
tells of its progress over streams of ours, each of which costs a thread for as long as the pull lasts. It has no
limit for a registry that is silent: we have one, and cancel. Contract row C26; the wires are
``containerd.services.transfer.v1`` and ``.streaming.v1``, of daemons from 1.7 on.
"""

from __future__ import annotations

import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from libctrd import protos
from libctrd.errors import CtrdError, DeadlineError, RuntimeFailedError, UnavailableError, UnsupportedError
from libctrd.images import documents, leases
from libctrd.images.documents import Descriptor
from libctrd.images.intake import Progress, Report
from libctrd.images.login import Login
from libctrd.images.platforms import Platform
from libctrd.images.reference import Reference
from libctrd.images.registry import scheme
from libctrd.images.store import Store, descriptor_of

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

_TRANSFER: Final = "containerd.services.transfer.v1.Transfer/Transfer"
_STREAM: Final = "containerd.services.streaming.v1.Streaming/Stream"
_NAME: Final = "libctrd-pull-"
# The daemon's words for what a registry said; its code for all of these is UNKNOWN.
_REGISTRY: Final = re.compile(
    r"x509|tls:|certificate|\b(?:401|403|429|5\d\d)\b|unauthorized|denied|forbidden|too many requests|dial |"
    r"no such host|connection re|EOF|server gave HTTP response",
    re.IGNORECASE,
)
log = logging.getLogger(__name__)


def offered(channel: Channel) -> bool:
    """Whether the daemon has a transfer service, found out by a transfer of nothing from nowhere."""
    request = protos.package("containerd.services.transfer.v1").TransferRequest()
    try:
        channel.call(_TRANSFER, request, doing="ask for the transfer service")
    except UnsupportedError:
        return False
    except (RuntimeFailedError, ValueError):
        return True  # it is there, and does not know what to do with that
    return True


def fetch(
    channel: Channel,
    name: Reference,
    lease: str,
    wanted: Platform | None,
    *,
    login: Login,
    insecure_http: bool | None,
    timeout: float,
    progress: Report | None,
) -> Descriptor:
    """Has the daemon fetch the image *name* for *wanted* (``None``: all platforms); returns its root descriptor.

    All that came is under *lease*. Raises `UnsupportedError` when the daemon has no transfer service, `DeadlineError`
    when nothing came for *timeout* seconds, `NotFoundError` or `UnavailableError` for what the registry said.
    """
    doing = f"pull the image {name} through the daemon"
    kinds, types = protos.package("containerd.types.transfer"), protos.package("containerd.types")
    # Said outright: a daemon's own choice for loopback is to try both, and it takes some answers for neither.
    resolver = kinds.RegistryResolver(default_scheme=scheme(name, insecure_http))
    target = f"{_NAME}{secrets.token_hex(8)}"
    expire = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + leases.DAY))
    store = kinds.ImageStore(name=target, labels={leases.EXPIRE_LABEL: expire})
    if wanted is not None:
        platform = types.Platform(os=wanted.os, architecture=wanted.architecture, variant=wanted.variant)
        store.platforms.append(platform)
    watch = _Watch(progress)
    request = protos.package("containerd.services.transfer.v1").TransferRequest()
    with _stream(channel, doing, "progress", watch.told) as progress_stream:
        request.options.progress_stream = progress_stream
        with _stream(channel, doing, "auth", lambda asked: _answer(asked, login)) as auth_stream:
            resolver.auth_stream = auth_stream
            request.source.CopyFrom(protos.pack(kinds.OCIRegistry(reference=str(name), resolver=resolver)))
            request.destination.CopyFrom(protos.pack(store))
            names = Store(channel)
            try:
                _wait(channel, request, doing, lease, watch, timeout)
                return descriptor_of(names.get(target))
            finally:
                names.drop(target)


def _wait(channel: Channel, request: Any, doing: str, lease: str, watch: _Watch, timeout: float) -> None:
    """Sends the transfer and waits for its end, for as long as it comes forward."""
    future = channel.future(_TRANSFER, request, doing=doing, lease=lease)
    seen = -1
    try:
        while True:
            try:
                future.result(timeout)
                return
            except grpc.FutureTimeoutError:
                if watch.count == seen:
                    raise DeadlineError(f"could not {doing}: nothing came for {timeout:g} s") from None
                seen = watch.count
            except grpc.FutureCancelledError as error:
                raise DeadlineError(f"could not {doing}: it was cancelled") from error
            except grpc.RpcError as error:
                told = channel.error(error, doing)
                if isinstance(told, RuntimeFailedError) and _REGISTRY.search(str(told)):
                    told = UnavailableError(str(told))
                raise told from error
    finally:
        future.cancel()  # does nothing to one that has ended


class _Watch:
    """Counts what comes forward and hands it on. Used by the progress stream's thread; others read ``count``."""

    def __init__(self, progress: Report | None) -> None:
        self._progress = progress
        self._done: dict[str, tuple[str, int]] = {}
        self.count = 0

    def told(self, message: Any) -> None:
        digest = message.desc.digest
        event = (message.event, message.progress)
        if not digest or self._done.get(digest) == event:
            return
        self._done[digest] = event
        self.count += 1
        if self._progress is None or message.desc.media_type not in documents.LAYERS:
            return
        total = message.desc.size or message.total
        existed = message.event == "already exists"
        done = total if existed or message.event in ("complete", "done") else min(message.progress, total)
        self._progress(Progress(digest, "layer", done, total, existed))


def _answer(asked: Any, login: Login) -> Any:
    """The credentials that the daemon asks for. For another host than the image's there are none."""
    kinds = protos.package("containerd.types.transfer")
    pair = login.credentials() if login.is_for(asked.host) else None
    if pair is None:
        return kinds.AuthResponse(authType=kinds.AuthType.NONE)
    return kinds.AuthResponse(authType=kinds.AuthType.CREDENTIALS, username=pair[0], secret=pair[1])


@contextmanager
def _stream(channel: Channel, doing: str, kind: str, take: Callable[[Any], Any]) -> Iterator[str]:
    """A stream that the daemon can speak to us by, under the id that this gives, for the block.

    *take* is called in a thread of the stream's with each message; what it returns, if anything, is the answer. The
    thread ends when the daemon ends the stream, or with the cancel at the end of the block.
    """
    id = f"libctrd-{kind}-{secrets.token_hex(8)}"
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sent.put(protos.pack(protos.package("containerd.services.streaming.v1").StreamInit(id=id)))
    stream = channel.stream(_STREAM, iter(sent.get, None), doing=doing)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for packed in stream:
                message = protos.unpack(packed)
                if message is None:
                    continue
                try:
                    answer = take(message)
                except BaseException as error:  # noqa: BLE001 - it is raised below, where the caller hears of it
                    failures.append(error)
                    stream.cancel()
                    return
                if answer is not None:
                    sent.put(protos.pack(answer))
        except CtrdError as error:
            log.debug("the %s stream of a pull ended: %s", kind, error)

    reader = threading.Thread(target=read, name=f"libctrd-{kind}", daemon=True)
    try:
        next(stream)  # the daemon's word that it knows the id now
        reader.start()
        yield id
    except CtrdError:
        if failures:
            raise failures[0] from None  # the cause of whatever the daemon complained of
        raise
    finally:
        sent.put(None)  # gRPC's own thread waits there
        stream.cancel()
        if reader.ident is not None:
            reader.join()
    if failures:
        raise failures[0]
