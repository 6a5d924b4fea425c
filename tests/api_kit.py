"""Places of the api engine: a daemon of each test's own, `ctrd serve` or containerd 0.2.9 itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from containerd_kit import until
from engine_kit import OLD_CONTAINERD, ContainerdPlace, Place, _places, need, need_runtime, on_host
from serve_kit import Served

from libctrd.client import Client
from libctrd.engine import cgroups, default_state_dir
from libctrd.engine.api import CONTAINERS


class ApiPlace(Place):
    """A place of the api engine: a daemon of the test's own, for that API lists the containers of everybody."""

    kind = "api"

    def __init__(self, old: bool = False) -> None:
        self.runtime = self.runtime_name = "runc" if old else "crun"
        self.namespace = None
        self.daemon = OldContainerd(OLD_CONTAINERD or "") if old else Served("--runtime", self.runtime)
        self.daemon.start()
        self.address = f"unix://{self.daemon.socket}"
        self.options = ["--address", self.address, "--runtime", self.runtime]
        self._base = os.path.join(default_state_dir() + ".api", cgroups.mark(os.path.realpath(self.daemon.socket)))
        self.root = os.path.join(self._base, CONTAINERS)
        _places[self.root] = self
        self.argument = self.argument_as_passed = "--debug"
        self.null_pipes = 2 if old else 0

    def watches(self, client: Client, id: str) -> bool:
        """See `Place.watches`."""
        return bool(client._engine._feed.known(id))  # type: ignore[attr-defined]

    descriptors = ContainerdPlace.descriptors

    def leftovers(self) -> dict[str, list[str]]:
        """See `Place.leftovers`: those of the daemon, too."""
        found = on_host(self.root)
        there = on_host(self.daemon.state)
        found["mounts"] += there["mounts"]
        found["cgroups"] += there["cgroups"]
        found["containers"] = [container.id for container in self.daemon.call("State").containers]
        return found

    def remove(self) -> None:
        """See `Place.remove`."""
        try:
            with self.connect() as client:
                for container in client.containers():
                    container.clean(force=True)
        finally:
            self.daemon.remove()
            del _places[self.root]
            for place in Path(self._base).parent.glob(f"{os.path.basename(self._base)}*"):
                shutil.rmtree(place)  # also where the directories of mapped roots lay (C19)


class OldContainerd(Served):
    """containerd 0.2.9 itself, from the programs in the directory *programs*."""

    def __init__(self, programs: str) -> None:
        super().__init__()
        self._programs = programs

    def start(self, *arguments: str) -> None:
        """See `Served.start`."""
        need(os.path.join(self._programs, "containerd"), "containerd 0.2.9")
        command = [os.path.join(self._programs, "containerd"), "-l", f"unix://{self.socket}", "--state-dir", self.state]
        command += ["--shim", os.path.join(self._programs, "containerd-shim"), "--runtime", need_runtime("runc")]
        command += ["--runtime-args", f"--root={self.top}/runc"]  # else all daemons share the ids of one
        with open(os.path.join(self.top, "log"), "wb") as log:
            self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=log)
        until(self._listens, "the socket of containerd 0.2.9")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as peer:
            return peer.connect_ex(self.socket) == 0
