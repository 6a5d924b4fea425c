"""A containerd of our own, as a kind of daemon: its minimal configuration, its socket, how it is asked (C23)."""

from __future__ import annotations

import json
import os
from typing import Any, Final

from libctrd import protos
from libctrd.engine import taskshim
from libctrd.engine.channel import Channel
from libctrd.engine.taskshim import Ended
from libctrd.errors import from_os_error

# What no container needs. Kubernetes' service; what acts by itself (restarts, plugins from elsewhere, verifiers, NRI);
# other snapshotters than overlayfs and its substitute; measures and traces over TCP. A name that a version does not
# know is no error to it. Never io.containerd.runtime.v1.linux (1.x) nor io.containerd.sandbox.controller.v1.shim (2.x):
# without them tasks are missing, and nothing says so.
DISABLED: Final = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.mount-handler.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.metrics.v1.grpc-prometheus",
    "io.containerd.metrics.v1.grpc-otel",
    "io.containerd.http.v1.pprof",
    "io.containerd.tracing.processor.v1.otlp",
)
# Nobody's, so that the answer is short however many tasks there are, and asks no shim that may hang.
_NAMESPACE: Final = "libctrd-health"


class Containerd:
    """containerd 1.6 and later. Its root, its state and its configuration are in the directory too."""

    name = "containerd"
    package = "containerd"

    def command(self, directory: str) -> list[str]:
        """See `daemon.Kind.command`."""
        return ["containerd", "--config", self._config(directory)]

    def sockets(self, directory: str) -> list[str]:
        """See `daemon.Kind.sockets`. The second one is for the shims, which tell their events there."""
        return [os.path.join(directory, "containerd.sock"), os.path.join(directory, "containerd.sock.ttrpc")]

    def state(self, directory: str) -> str:
        """Where it keeps its bundles."""
        return os.path.join(directory, "state")

    def prepare(self, directory: str) -> None:
        """See `daemon.Kind.prepare`. Version 2 of the configuration is what all of them read."""
        grpc, ttrpc = self.sockets(directory)
        lines = (
            "version = 2",
            f"root = {_toml(os.path.join(directory, 'root'))}",
            f"state = {_toml(self.state(directory))}",
            f"disabled_plugins = [{', '.join(map(_toml, DISABLED))}]",
            f"[grpc]\naddress = {_toml(grpc)}",
            f"[ttrpc]\naddress = {_toml(ttrpc)}",
            '[debug]\nlevel = "warn"',
        )
        path = self._config(directory)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            raise from_os_error(error, f"write the configuration {path!r}") from error

    def probe(self, directory: str) -> _Probe:
        """See `daemon.Kind.probe`."""
        return _Probe(f"unix://{self.sockets(directory)[0]}")

    def ended(self, directory: str) -> list[Ended]:
        """See `daemon.Kind.ended`: newer ones forget it when they start (C26)."""
        return taskshim.ended(self.state(directory))

    def ends(self, directory: str) -> taskshim.Ends:
        """See `daemon.Kind.ends`: in that moment."""
        return taskshim.Ends(self.state(directory))

    def _config(self, directory: str) -> str:
        return os.path.join(directory, "containerd.toml")


class _Probe:
    """Well is a containerd whose service of tasks answers."""

    def __init__(self, address: str) -> None:
        self._channel = Channel(address, _NAMESPACE)
        self._request: Any = protos.message("containerd.services.tasks.v1.ListTasksRequest")()

    def ask(self, seconds: float) -> None:
        self._channel.call(
            "containerd.services.tasks.v1.Tasks/List", self._request, doing="ask how containerd is", timeout=seconds
        )

    def close(self) -> None:
        self._channel.close()


def _toml(text: str) -> str:
    """A basic string of TOML; JSON's escapes are some of its own."""
    return json.dumps(text)
