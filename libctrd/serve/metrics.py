"""What a server counts, for Prometheus: calls and how long they took, events, containers, and the bytes of messages.

The bytes of containers are not among them: they go through the fifos of the clients, never through a server. Needs the
package ``prometheus-client`` (``pip install libctrd[metrics]``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from libctrd.errors import InvalidArgumentError, UnavailableError, UnsupportedError, from_os_error

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_PORT = re.compile(r"[0-9]{1,5}\Z")


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``:PORT`` (of this host alone) as both. Raises `InvalidArgumentError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.match(port) or int(port) > 0xFFFF:
        raise InvalidArgumentError(
            f"the address {text!r} for metrics is none: say HOST:PORT, or :PORT for this host alone"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


class Metrics:
    """Counts, and answers to who asks at *address*; ``None``: to nobody. *containers* tells how many there are."""

    def __init__(self, address: str | None, containers: Callable[[], int]) -> None:
        self._server: Any = None
        self._on = address is not None
        if address is None:
            return
        host, port = parse_address(address)
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise UnsupportedError(
                "this installation cannot serve metrics: install prometheus-client (pip install 'libctrd[metrics]')"
            ) from error
        registry = prometheus.CollectorRegistry()
        self._calls = prometheus.Counter(
            "ctrd_serve_calls", "Calls that were answered, by status.", ["method", "code"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            "ctrd_serve_call_seconds", "How long calls took.", ["method"], registry=registry, buckets=_BUCKETS
        )
        self._events = prometheus.Counter("ctrd_serve_events", "Events that were told.", ["type"], registry=registry)
        self._streams = prometheus.Gauge("ctrd_serve_streams", "Event streams that are open.", registry=registry)
        self._bytes = prometheus.Counter(
            "ctrd_serve_message_bytes", "Bytes of requests and of replies.", ["direction"], registry=registry
        )
        there = prometheus.Gauge("ctrd_serve_containers", "Containers that there are.", registry=registry)
        there.set_function(containers)
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, registry)
        except OSError as error:
            raise from_os_error(error, f"serve metrics at {address} (bind)") from error
        except ValueError as error:
            raise UnavailableError(f"could not serve metrics at {address}: {error}") from error

    @property
    def port(self) -> int:
        """The port that it answers at; 0 when it does not."""
        return int(self._server.server_port) if self._server is not None else 0

    def call(self, method: str, code: str, seconds: float, received: int, sent: int) -> None:
        """One was answered: with the status *code*, after so many *seconds*, and messages of so many bytes."""
        if self._on:
            self._calls.labels(method, code).inc()
            self._seconds.labels(method).observe(seconds)
            self._bytes.labels("received").inc(received)
            self._bytes.labels("sent").inc(sent)

    def event(self, type: str) -> None:
        """One was told to those who listen."""
        if self._on:
            self._events.labels(type).inc()

    def streams(self, count: int) -> None:
        """So many are open."""
        if self._on:
            self._streams.set(count)

    def close(self) -> None:
        """Answers no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()
