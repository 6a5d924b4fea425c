"""What a client asks of a container of the local engine while it runs: a request to its shim, or a look at its cgroup.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

from typing import Any

from libctrd import spec as specs
from libctrd.engine import shim
from libctrd.engine.base import Spec, unsupported
from libctrd.engine.further import Further
from libctrd.errors import NotFoundError
from libctrd.state import INIT, Stats


class LocalOperations(Further):
    """The requests of `LocalEngine`."""

    def spec(self, id: str) -> Spec:
        """See `Engine.spec`: every container of the local engine is libctrd's own."""
        return specs.load(self.record(id).bundle)

    def signal(self, id: str, process: str, number: int, everyone: bool = False) -> None:
        """See `Engine.signal`. The shim sends it, as the parent: it knows whether the pid is still that process."""
        if everyone:
            shim.request(self._directory(id), f"kill-all {number}")
            return
        try:
            shim.request(self._directory(id), f"kill {number}{_named(process)}")
        except NotFoundError:
            self._signal_orphan(id, number, process)

    def close_stdin(self, id: str, process: str) -> None:
        """See `Engine.close_stdin`."""
        shim.request(self._directory(id), f"close-stdin{_named(process)}")

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """See `Engine.resize`."""
        shim.request(self._directory(id), f"resize {width} {height}{_named(process)}")

    def pause(self, id: str) -> None:
        """See `Engine.pause`."""
        shim.request(self._directory(id), "pause")

    def resume(self, id: str) -> None:
        """See `Engine.resume`."""
        shim.request(self._directory(id), "resume")

    def pids(self, id: str) -> list[int]:
        """See `Engine.pids`."""
        raise unsupported("local", "list the processes of a container", "a containerd engine can")

    def stats(self, id: str) -> Stats:
        """See `Engine.stats`."""
        raise unsupported("local", "measure a container", "a containerd engine can")

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Engine.update`."""
        raise unsupported("local", "change the limits of a running container", "a containerd engine can")

    def checkpoint(self, id: str, path: str, leave_running: bool) -> None:
        """See `Engine.checkpoint`."""
        raise unsupported("local", "checkpoint a container", "a containerd engine can")


def _named(process: str) -> str:
    """What a request says to mean that process: of init nothing."""
    return "" if process == INIT else f" {process}"
