"""A `ctrd serve` of our own, as a kind of daemon: its command, its socket, how it is asked (C23)."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from libctrd import protos
from libctrd.engine.channel import Channel
from libctrd.engine.taskshim import Ended
from libctrd.errors import UnavailableError

_CHECK: Final = "grpc.health.v1.Health/Check"
_SERVING: Final = 1


class Serve:
    """`ctrd serve` of this very installation, by the interpreter that runs us. Its containers are in ``containers``.

    *runtime* is for containers whose create names none.
    """

    name = "ctrd serve"
    package = "python3"

    def __init__(self, runtime: str | None = None) -> None:
        self._runtime = runtime

    def command(self, directory: str) -> list[str]:
        """See `daemon.Kind.command`."""
        state = ["--state-dir", os.path.join(directory, "containers")]
        runtime = ["--runtime", self._runtime] if self._runtime else []
        address = f"unix://{self.sockets(directory)[0]}"
        return [sys.executable, "-m", "libctrd.cli", *state, *runtime, "serve", "--address", address]

    def sockets(self, directory: str) -> list[str]:
        """See `daemon.Kind.sockets`."""
        return [os.path.join(directory, "ctrd.sock")]

    def prepare(self, directory: str) -> None:
        """See `daemon.Kind.prepare`: it makes what it needs itself."""

    def probe(self, directory: str) -> _Probe:
        """See `daemon.Kind.probe`."""
        return _Probe(f"unix://{self.sockets(directory)[0]}")

    def ended(self, directory: str) -> list[Ended]:
        """See `daemon.Kind.ended`: it forgets nothing, for the shims keep the exits until it has told them."""
        return []

    def ends(self, directory: str) -> _NoEnds:
        """See `daemon.Kind.ends`."""
        return _NoEnds()


class _NoEnds:
    """Of a daemon that misses none."""

    def heard(self) -> list[Ended]:
        return []

    def close(self) -> None:
        pass


class _Probe:
    """Well is a server that says so of itself: that its loop runs is what makes it able to."""

    def __init__(self, address: str) -> None:
        self._channel = Channel(address, "libctrd-health")
        self._request: Any = protos.message("grpc.health.v1.HealthCheckRequest")()

    def ask(self, seconds: float) -> None:
        reply = self._channel.call(_CHECK, self._request, doing="ask how ctrd serve is", timeout=seconds)
        if reply.status != _SERVING:
            raise UnavailableError("ctrd serve does not serve yet, or any more")

    def close(self) -> None:
        self._channel.close()
