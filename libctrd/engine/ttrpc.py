"""ttrpc, the small protocol of containerd's shims: its frames, and a call over a connection of its own.

A frame is a header of ten bytes, big-endian (length of the content, number of the stream, type, flags), and that
content: a ``ttrpc.Request`` or ``ttrpc.Response``. Source: the protocol's own specification.

A call never blocks after its connect: who waits for the answer does so with `Call.fileno`, in a poll of its own or in
the reactor. So a thousand calls that are under way cost a descriptor each, and no thread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from libctrd import protos
from libctrd._checks import one_line
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
    from_os_error,
)

REQUEST: Final = 1
RESPONSE: Final = 2
LARGEST: Final = 1 << 16
"""Bytes of one frame's content. ttrpc allows 4 MiB; what is asked for here is answered in a few hundred."""

_HEADER: Final = struct.Struct(">IIBB")
_STREAM: Final = 1  # a client's streams have odd numbers, and a connection of ours has one
_READ: Final = 4096

# By the numbers of gRPC's codes, which ttrpc uses too.
_KINDS: Final[dict[int, type[CtrdError]]] = {
    1: DeadlineError,  # cancelled: a limit of the shim's own that races ours reads so
    3: InvalidArgumentError,
    4: DeadlineError,
    5: NotFoundError,
    6: AlreadyExistsError,
    9: InvalidArgumentError,
    11: InvalidArgumentError,
    12: UnsupportedError,
    14: UnavailableError,
}


class Frame(NamedTuple):
    """One frame: the number of its stream, its type (`REQUEST`, `RESPONSE`), its flags, its content."""

    stream: int
    type: int
    flags: int
    content: bytes


def encode(frame: Frame) -> bytes:
    """The bytes of *frame*. Raises `InvalidArgumentError` when its content is larger than `LARGEST`."""
    if len(frame.content) > LARGEST:
        raise InvalidArgumentError(f"a ttrpc frame of {len(frame.content)} bytes: {LARGEST} are allowed")
    return _HEADER.pack(len(frame.content), frame.stream, frame.type, frame.flags) + frame.content


class Frames:
    """Cuts what a peer sends into frames. Holds at most one unfinished frame beside what it is fed."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that *data* completes. Raises `UnavailableError` when one is larger than `LARGEST`."""
        self._held += data
        frames = []
        at = 0
        while len(self._held) - at >= _HEADER.size:
            length, stream, kind, flags = _HEADER.unpack_from(self._held, at)
            if length > LARGEST:
                raise UnavailableError(f"it sent a ttrpc frame of {length} bytes, and {LARGEST} are allowed")
            end = at + _HEADER.size + length
            if len(self._held) < end:
                break
            frames.append(Frame(stream, kind, flags, bytes(self._held[at + _HEADER.size : end])))
            at = end
        del self._held[:at]
        return frames


class Call:
    """One call under way over a connection of its own. One thread at a time uses it; `close` it in the end."""

    __slots__ = ("_doing", "_frames", "_peer", "_where")

    def __init__(
        self,
        path: str,
        method: str,
        request: Any,
        *,
        doing: str,
        timeout: float | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Connects to the socket *path* and sends *request* to *method*, ``package.Service/Name``.

        A *path* that begins with NUL is an abstract socket's. *timeout*, in seconds, is told to the peer; ``None``: no
        limit. *doing* completes the sentence "could not …".

        Raises `NotFoundError` when nobody listens there, `UnavailableError` when this user may not connect or the peer
        accepts no more.
        """
        self._doing = doing
        self._where = path.replace("\0", "@")
        self._frames = Frames()
        service, _, name = method.partition("/")
        wire = protos.package("ttrpc")
        message = wire.Request(
            service=service,
            method=name,
            payload=request.SerializeToString(),
            timeout_nano=0 if timeout is None else max(1, int(timeout * 1e9)),
            metadata=[wire.KeyValue(key=key, value=value) for key, value in metadata],
        )
        packet = encode(Frame(_STREAM, REQUEST, 0, message.SerializeToString()))
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._peer.setblocking(False)
            self._peer.connect(path)  # a unix socket's connect is done at once, or not at all
            # A new socket has room for far more than `LARGEST`, so this is never done by half.
            self._peer.sendall(packet)
        except BaseException as error:
            self._peer.close()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def fileno(self) -> int:
        """What becomes readable when there is something for `receive`; -1 when it is closed."""
        return self._peer.fileno()

    def receive(self) -> bytes | None:
        """The reply's bytes; ``None`` when it has not come yet. Never waits.

        Raises `NotFoundError` when the peer has gone, what the peer itself answered as an error of the family,
        `UnavailableError` when that is not ttrpc, `ClosedError` when this call is closed.
        """
        if self._peer.fileno() < 0:
            raise ClosedError(f"could not {self._doing}: this call is closed")
        while True:
            try:
                data = self._peer.recv(_READ)
            except BlockingIOError:
                return None
            except OSError as error:
                raise self._failure(error) from error
            if not data:
                raise NotFoundError(f"could not {self._doing}: whoever listened at {self._where} has gone")
            try:
                frames = self._frames.feed(data)
            except UnavailableError as error:
                raise self._refused(str(error)) from error
            for frame in frames:
                return self._content(frame)

    def wait(self, deadline: float) -> bytes:
        """Like `receive`, but waits until *deadline*, a time of the monotonic clock; then raises `DeadlineError`."""
        look = select.poll()
        look.register(self.fileno(), select.POLLIN)
        while True:
            reply = self.receive()
            if reply is not None:
                return reply
            left = deadline - time.monotonic()
            if left <= 0 or not look.poll(left * 1000):
                raise DeadlineError(f"could not {self._doing}: whoever listens at {self._where} did not answer in time")

    def close(self) -> None:
        """Gives the call up. Idempotent."""
        self._peer.close()

    def _content(self, frame: Frame) -> bytes:
        """What is in the one frame that a call is answered with."""
        if frame.type != RESPONSE or frame.stream != _STREAM:
            raise self._refused(f"it sent a frame of type {frame.type} for stream {frame.stream}, and no response")
        try:
            response = protos.package("ttrpc").Response.FromString(frame.content)
        except DecodeError as error:
            raise self._refused("its response cannot be decoded") from error
        code, text = response.status.code, response.status.message
        if code:
            said = one_line(text.removesuffix(": unknown")) or "no reason was given"
            message = f"could not {self._doing}: {said}"
            kind = _KINDS.get(code, RuntimeFailedError)
            raise RuntimeFailedError(message, output=text) if kind is RuntimeFailedError else kind(message)
        payload: bytes = response.payload
        return payload

    def _refused(self, why: str) -> UnavailableError:
        return UnavailableError(f"could not {self._doing}: {self._where} does not speak ttrpc as it should: {why}")

    def _failure(self, error: OSError) -> CtrdError:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return NotFoundError(f"could not {self._doing}: nobody listens at {self._where} any more")
        if error.errno in (errno.EACCES, errno.EPERM):
            return UnavailableError(
                f"could not {self._doing}: user {os.geteuid()} is not allowed to use {self._where}: only root is"
            )
        if error.errno == errno.EAGAIN:
            return UnavailableError(
                f"could not {self._doing}: whoever listens at {self._where} accepts no more: it hangs"
            )
        return from_os_error(error, f"{self._doing} through {self._where}")
