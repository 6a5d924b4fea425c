"""The gRPC channel to a containerd: calls with a deadline and in a namespace, and their errors in words (C26).

What a socket that cannot be used lacks is `diagnosis`'s to find out, not gRPC's: of that its texts tell nothing that a
caller could act on. No call is ever sent twice. Importing this module imports gRPC, which takes longer than most calls:
only an engine over a socket does so.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from libctrd import ids, protos
from libctrd.engine.diagnosis import fault_at, socket_path
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
)

_LARGEST_MESSAGE: Final = 16 << 20  # containerd's own limit

_OPTIONS: Final = (
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # A restarted daemon is to be found at once: gRPC's own first wait is a second, and its longest two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name the time that one attempt to connect may take: longer than any call but the longest, so that a
    # peer that accepts and then says nothing is the deadline's affair.
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has a connection of its own, and a close really closes it
    ("grpc.enable_http_proxy", 0),
)

_KINDS: Final[dict[grpc.StatusCode, type[CtrdError]]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.PERMISSION_DENIED: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: DeadlineError,  # a limit of the daemon's own that races ours reads so
}
_FIRST_WORD: Final = 10.0  # seconds that a daemon has for it when the call has no limit
_NOT_SENT: Final = "failed to connect to all addresses"  # gRPC's words for it; its code is that of much else
_PATIENCE: Final = 10.0  # seconds for the answer to a whole call that a signal has cut short
_TOO_LATE: Final = ("context deadline exceeded", "context canceled")  # or so, behind other words


class Channel:
    """Calls to the daemon at *address*, ``unix:///absolute/path``, in one *namespace*. Any thread may use it.

    Nothing is opened before the first call. Raises `InvalidArgumentError` for an address or a namespace that cannot be.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self.path = socket_path(address)
        self.address = address
        self.namespace = ids.check(namespace, "namespace")
        self._metadata = (("containerd-namespace", namespace),)
        # Guards the two below. Calls only read, and find what they need under a name once it is there.
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._closed = False
        self._calls: dict[str, Callable[..., Any]] = {}

    def call(
        self,
        method: str,
        request: Any,
        *,
        doing: str,
        timeout: float | None = 10.0,
        lease: str = "",
        whole: bool = False,
    ) -> Any:
        """Calls ``package.Service/Method`` and returns its reply.

        *doing* completes the sentence "could not …", for the error. *timeout* is in seconds; ``None``: no limit. What
        the call makes is held by *lease*, when one is named. Ctrl-C, or another signal whose handler raises, gives the
        call up, whatever becomes of it; one that is *whole* has been answered by then, unless that takes very long.

        Before the first call whoever listens is asked what it is, which *timeout* includes.

        Raises an error of the family: `NotFoundError`, `AlreadyExistsError`, `InvalidArgumentError`,
        `UnsupportedError`, `UnavailableError`, `DeadlineError`, `ClosedError`, else `RuntimeFailedError`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        call = self._calls.get(method) or self._prepare(method, doing, timeout)
        try:
            headers = self._headers(lease)
            if whole and threading.current_thread() is threading.main_thread():  # handlers of signals run in no other
                call = functools.partial(_to_its_answer, call)
            try:
                return call(request, None if end is None else end - time.monotonic(), headers)
            except grpc.RpcError as error:
                if end is None or not self._is_back(error):
                    raise
            return call(request, end - time.monotonic(), headers, wait_for_ready=True)
        except grpc.RpcError as error:
            raise self.error(error, doing, timeout) from error
        except ValueError as error:
            raise self._refused(error, doing) from error

    def _is_back(self, error: grpc.RpcError) -> bool:
        """Is there a daemon after all, and a call that was never sent?

        After a daemon has gone gRPC tries to connect again only now and then, and between that answers every call with
        how the last attempt went, of up to half a second ago.
        """
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not (error.details() or "").startswith(_NOT_SENT):
            return False
        return fault_at(self.path) is None

    def future(self, method: str, request: Any, *, doing: str = "ask containerd", lease: str = "") -> grpc.Future:
        """Sends a call that may take for ever, and returns at once. Its errors are for `error` to put into words.

        *doing* is for what prevents it from being sent at all: `UnavailableError`, `ClosedError`.
        """
        call = self._calls.get(method) or self._prepare(method, doing)
        try:
            return call.future(request, None, self._headers(lease))  # type: ignore[attr-defined]
        except ValueError as error:
            raise self._refused(error, doing) from error

    def stream(
        self, method: str, requests: Any, *, doing: str, timeout: float | None = None, lease: str = ""
    ) -> Stream:
        """Calls a method that answers with many messages. *requests*: one, or where it takes many, their iterator."""
        call = self._calls.get(method) or self._prepare(method, doing, timeout)
        try:
            return Stream(self, call(requests, timeout, self._headers(lease)), doing, timeout)
        except ValueError as error:
            raise self._refused(error, doing) from error

    def error(self, error: grpc.RpcError, doing: str, timeout: float | None = None) -> CtrdError:
        """The error of the family for one of gRPC's, which becomes its cause. Raise what it gives.

        The answer's text is kept, and in a `RuntimeFailedError` it is also the ``output``.
        """
        code, text = error.code(), (error.details() or "no reason was given").removesuffix(": unknown")
        kind = _KINDS.get(code, RuntimeFailedError)
        if self._closed and code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
            kind, text = ClosedError, "the channel was closed meanwhile"
        elif code is grpc.StatusCode.UNAVAILABLE:
            fault = fault_at(self.path)
            text = fault.text if fault else f"containerd at {self.path} ended the connection ({text}): try again"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            within = "in time" if timeout is None else f"within {timeout:g} s"
            fault = fault_at(self.path, 0)  # what it is was asked before the first call
            silent = f"containerd at {self.path} did not answer {within}: is it stopped or overloaded?"
            text = fault.text if fault else silent
        elif code is grpc.StatusCode.UNKNOWN and text.endswith(_TOO_LATE):
            kind = DeadlineError
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Sent message larger" in text:
            kind, text = InvalidArgumentError, f"a message to containerd has at most {_LARGEST_MESSAGE >> 20} MiB"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            text = f"containerd at {self.path} does not offer this ({text}): it is too old, or that plugin is disabled"
        said = f"could not {doing}: {text}"
        failure = RuntimeFailedError(said, output=text) if kind is RuntimeFailedError else kind(said)
        failure.__cause__ = error
        return failure

    def close(self) -> None:
        """Closes the connection; calls that are under way end with `ClosedError`. Idempotent."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
            self._calls.clear()
        if channel is not None:
            channel.close()

    def _headers(self, lease: str) -> tuple[tuple[str, str], ...]:
        if not lease:
            return self._metadata
        if not (lease.isascii() and lease.isprintable()):  # gRPC would also tell the process's stderr
            raise ValueError(f"no lease can be called {lease!r}")
        return (*self._metadata, ("containerd-lease", lease))

    def _meet(self, doing: str, patience: float) -> None:
        """Asks whoever listens what it is, before gRPC does: that would try for long after its channel was closed."""
        fault = fault_at(self.path, patience)
        if fault is not None:
            raise (DeadlineError if fault.silent else UnavailableError)(f"could not {doing}: {fault.text}")

    def _prepare(self, method: str, doing: str, timeout: float | None = None) -> Callable[..., Any]:
        """What gRPC needs to know for a method, kept: putting that together takes longer than a call."""
        known = protos.method(method)
        if self._channel is None and not self._closed:  # without the lock: of two who come here both may ask
            self._meet(doing, _FIRST_WORD if timeout is None else timeout)
        with self._lock:
            if self._closed:
                raise ClosedError(f"could not {doing}: the channel to containerd at {self.path} is closed")
            if self._channel is None:
                self._channel = grpc.insecure_channel(self.address, options=_OPTIONS)
            make = {
                (False, False): self._channel.unary_unary,
                (False, True): self._channel.unary_stream,
                (True, True): self._channel.stream_stream,
            }[known.sends_many, known.receives_many]
            call: Callable[..., Any] = make(known.path, known.request.SerializeToString, known.reply.FromString)
            self._calls[method] = call
            return call

    def _refused(self, error: ValueError, doing: str) -> CtrdError:
        """ValueError is for what does not even begin: a call on a closed channel, or for a lease that is no header."""
        if self._closed:
            return ClosedError(f"could not {doing}: the channel to containerd at {self.path} is closed")
        return InvalidArgumentError(f"could not {doing}: {error}")


def _to_its_answer(call: Any, request: Any, timeout: float | None, headers: Any, **options: Any) -> Any:
    """Makes a call and returns its reply; whatever is raised by a handler of signals meanwhile goes on after that."""
    future = call.future(request, timeout, headers, **options)
    try:
        return future.result()
    except grpc.RpcError:
        raise
    except BaseException:
        with contextlib.suppress(grpc.FutureTimeoutError):
            future.exception(_PATIENCE)
        raise


class Stream(Iterator[Any]):
    """The messages of a call that answers with many, as they come; iterating raises errors of the family.

    One thread iterates; any may `cancel`.
    """

    def __init__(self, channel: Channel, call: Any, doing: str, timeout: float | None) -> None:
        self._channel, self._call, self._doing, self._timeout = channel, call, doing, timeout

    def __next__(self) -> Any:
        """The next message, waited for."""
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise self._channel.error(error, self._doing, self._timeout) from error

    def cancel(self) -> None:
        """Ends the call; the iteration that waits raises `DeadlineError`. Idempotent."""
        self._call.cancel()
