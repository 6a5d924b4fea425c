"""Where the containers of a run are: in which engine, what is killed there, and what may not be left."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from containerd_kit import Containerd
from engine_kit import ContainerdPlace, Place

from libctrd.client import Client
from libctrd.errors import CtrdError


class LocalPlace:
    """A state directory of the local engine."""

    has_daemon = False

    def __init__(self, runtime: str | None, environment: dict[str, str]) -> None:
        self._place = self.make(runtime, environment)
        self.root = self._place.root
        self.runtime_name = self._place.runtime_name or "of its choice"

    def make(self, runtime: str | None, environment: dict[str, str]) -> Place:
        """A place of the tests' kit. *environment*: what sets the clock of processes of ours."""
        return Place(runtime)

    def connect(self) -> Client:
        """A client."""
        return self._place.connect()

    def of_clients(self) -> dict[str, Any]:
        """What a client in a process of its own has to know."""
        return {name: getattr(self._place, name) for name in ("address", "runtime", "namespace", "root", "kind")}

    def daemons(self) -> set[int]:
        """The processes that belong to the place itself."""
        return set()

    def restart(self) -> None:
        """Kills the daemon, and starts it again."""
        raise NotImplementedError("there is no daemon")

    def id_of(self, words: list[str]) -> str | None:
        """For which container a process with that command line works; ``None``: for none of ours."""
        return _below(self.root, words)

    def is_shim(self, words: list[str]) -> bool:
        """Is it a shim, and not a runtime?"""
        return words[0].endswith("ctrd-shim")

    def leftovers(self) -> dict[str, list[str]]:
        """All that there is of containers."""
        try:
            return self._place.leftovers()
        except AssertionError as error:  # what ends by itself has not
            return {"of containers": [str(error)]}

    def remove(self) -> None:
        """In the end, whatever is left: what is frozen would keep our namespace from its end."""
        with contextlib.suppress(CtrdError):
            self._place.remove()


class ContainerdsPlace(LocalPlace):
    """A namespace of a containerd of our own. What that keeps itself does not lie on the disk that is filled."""

    has_daemon = True

    def make(self, runtime: str | None, environment: dict[str, str]) -> Place:
        """See `LocalPlace.make`."""
        self._daemon = Containerd()
        config = Path(self._daemon.config).read_bytes()
        options = ["-t", "tmpfs", "-o", "mode=700", "tmpfs"]
        subprocess.run(["mount", *options, self._daemon.directory], check=True)
        Path(self._daemon.config).write_bytes(config)
        self._daemon.start()
        return ContainerdPlace(self._daemon)

    def daemons(self) -> set[int]:
        """See `LocalPlace.daemons`."""
        return {self._daemon.pid}

    def restart(self) -> None:
        """See `LocalPlace.restart`."""
        self._daemon.restart()

    def leftovers(self) -> dict[str, list[str]]:
        """See `LocalPlace.leftovers`. containerd leaves the sockets of shims that were killed."""
        found = super().leftovers()
        found.pop("shim sockets", None)
        return found

    def id_of(self, words: list[str]) -> str | None:
        """See `LocalPlace.id_of`: a shim's bundle, or a file of runc's, lies in a directory of the namespace."""
        if self.is_shim(words) and "-id" in words:
            return words[words.index("-id") + 1] if self._place.namespace in words else None
        found = re.search(rf"/{re.escape(self._place.namespace or '')}/([\w.-]+)", " ".join(words))
        return found[1] if found is not None else None

    def is_shim(self, words: list[str]) -> bool:
        """See `LocalPlace.is_shim`."""
        return "containerd-shim" in words[0]

    def remove(self) -> None:
        """See `LocalPlace.remove`."""
        super().remove()
        self._daemon.stop()


class ApisPlace(LocalPlace):
    """A `ctrd serve` of our own."""

    has_daemon = True

    def make(self, runtime: str | None, environment: dict[str, str]) -> Place:
        """See `LocalPlace.make`."""
        from api_kit import ApiPlace  # which needs gRPC

        place = ApiPlace()
        self._daemon = place.daemon
        self._daemon.environment = environment
        self.restart()
        return place

    def daemons(self) -> set[int]:
        """See `LocalPlace.daemons`."""
        return {self._daemon.process.pid} if self._daemon.process is not None else set()

    def restart(self) -> None:
        """See `LocalPlace.restart`."""
        self._daemon.stop(signal.SIGKILL)
        self._daemon.start()

    def id_of(self, words: list[str]) -> str | None:
        """See `LocalPlace.id_of`."""
        return _below(self._daemon.state, words)


def _below(directory: str, words: list[str]) -> str | None:
    for word in words:
        if word.startswith(f"{directory}/"):
            return word[len(directory) + 1 :].partition("/")[0]
    return None


PLACES = {"local": LocalPlace, "containerd": ContainerdsPlace, "api": ApisPlace}
