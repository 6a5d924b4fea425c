"""What the tests of a daemon of ours share: a place for one of either kind, and a look at all that runs there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator

import psutil
import pytest
from containerd_kit import PATH, Containerd, new_namespace, program, until
from engine_kit import on_host
from serve_kit import Bundle, Served, reach

from libctrd import protos
from libctrd import spec as specs
from libctrd.engine import private, privateserve
from libctrd.engine.channel import Channel
from libctrd.engine.daemon import Daemon, Kind
from libctrd.engine.taskshim import Ended


class Place(ABC):
    """The directory of a daemon of ours, and what a test needs there without the code under test."""

    import_kind = ""
    """Makes a name ``Kind`` of it, in another process."""
    files: tuple[str, ...] = ()
    """What it is started with, beside its pid file and its log."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="cd-", dir="/run" if os.access("/run", os.W_OK) else "/tmp")
        self._made: list[Daemon] = []
        self.socket = self.kind().sockets(self.directory)[0]

    def daemon(self, **how: object) -> Daemon:
        """One object for the daemon here; at the end of the test it watches no more."""
        made = Daemon(self.kind(), self.directory, **how)  # type: ignore[arg-type]
        self._made.append(made)
        return made

    def processes(self) -> list[psutil.Process]:
        """Every daemon that runs here."""
        arguments = self.kind().command(self.directory)[1:]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-len(arguments) :] == arguments and process.status() != "zombie":
                    found.append(process)
        return found

    def end_daemons(self) -> None:
        """Ends whatever a test has left running."""
        for made in self._made:
            made.close()
        for process in self.processes():
            process.kill()
            until(lambda process=process: process not in self.processes(), "the end of a daemon")

    @abstractmethod
    def kind(self) -> Kind:
        """What runs here."""

    @abstractmethod
    def answers(self) -> bool:
        """Returns once it has answered what a client asks."""

    @abstractmethod
    def start_container(self, id: str, rootfs: str, *command: str) -> int:
        """Starts a container without output; returns the pid of its first process."""

    @abstractmethod
    def has_container(self, id: str, pid: int) -> bool:
        """Does the daemon know that container, as one that runs with that pid?"""

    @abstractmethod
    def end_of(self, id: str, told: list[Ended]) -> int:
        """With which code a container has ended while the daemon was away; *told* is what was told before its start."""

    @abstractmethod
    def remove(self) -> None:
        """Ends all that runs here, and removes the directory."""


class ContainerdPlace(Place, Containerd):
    """That of a private containerd, with the kit's means to make containers there and to look at them."""

    import_kind = "from libctrd.engine.private import Containerd as Kind"
    files = ("containerd.toml",)

    def __init__(self) -> None:
        self.binary = program("containerd")
        self.ctr_binary = program("ctr")
        Place.__init__(self)
        self.root, self.state = f"{self.directory}/root", f"{self.directory}/state"
        self.log_file, self.runc_root = f"{self.directory}/containerd.log", f"{self.directory}/runc"
        self.namespace = new_namespace()
        self._process = None

    def kind(self) -> Kind:
        """See `Place.kind`."""
        return private.Containerd()

    def answers(self) -> bool:
        """See `Place.answers`."""
        channel = Channel(f"unix://{self.socket}", "default")
        try:
            request = protos.message("google.protobuf.Empty")()
            channel.call("containerd.services.version.v1.Version/Version", request, doing="ask its version")
        finally:
            channel.close()
        return True

    def start_container(self, id: str, rootfs: str, *command: str) -> int:
        """See `Place.start_container`."""
        return self.run(self.namespace, id, rootfs, *command)

    def has_container(self, id: str, pid: int) -> bool:
        """See `Place.has_container`."""
        lines = self.ctr("tasks", "ls", namespace=self.namespace).splitlines()
        return [id, str(pid), "RUNNING"] in [line.split() for line in lines]

    def end_of(self, id: str, told: list[Ended]) -> int:
        """See `Place.end_of`: newer ones forget it, so the shims are asked before one is started."""
        ((namespace, name, process, code),) = [(end.namespace, end.id, end.exec_id, end.status.code) for end in told]
        assert (namespace, name, process) == (self.namespace, id, "")
        return code

    def remove(self) -> None:
        """See `Place.remove`."""
        self.end_daemons()
        Containerd.remove(self)


class ServePlace(Place):
    """That of a `ctrd serve`."""

    import_kind = "from libctrd.engine.privateserve import Serve as Kind"

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("containers of this suite need root: run it as root")
        super().__init__()
        self.state = f"{self.directory}/containers"
        self.served = Served()  # for its calls: its process is what the daemon starts
        shutil.rmtree(self.served.top)
        self.served.top, self.served.state, self.served.socket = self.directory, self.state, self.socket

    def kind(self) -> Kind:
        """See `Place.kind`."""
        return privateserve.Serve()

    def reached(self) -> Served:
        """For calls by a channel that has not seen an earlier daemon: gRPC would wait before it tries again."""
        self.served.channel.close()
        self.served.channel = reach(self.socket)
        return self.served

    def answers(self) -> bool:
        """See `Place.answers`."""
        assert self.reached().call("GetServerVersion").minor == 2
        return True

    def start_container(self, id: str, rootfs: str, *command: str) -> int:
        """See `Place.start_container`."""
        bundle = Bundle(f"{self.directory}/bundle-{id}", specs.default(list(command), rootfs), fifos=False)
        container = self.reached().call("CreateContainer", id=id, **bundle.create).container
        return int(container.processes[0].systemPid)

    def has_container(self, id: str, pid: int) -> bool:
        """See `Place.has_container`."""
        (container,) = self.reached().call("State", id=id).containers
        return (container.status, container.processes[0].systemPid) == ("running", pid)

    def end_of(self, id: str, told: list[Ended]) -> int:
        """See `Place.end_of`: the shims keep it until the next daemon has told it."""
        assert told == []
        served = self.reached()
        until(lambda: served.stored(id)[-1][0] == "exit", f"the end of {id}")
        return served.stored(id)[-1][3]

    def remove(self) -> None:
        """See `Place.remove`."""
        for made in self._made:
            made.close()
        if os.path.isdir(self.state):
            self._end_containers()
        self.end_daemons()
        self.served.channel.close()
        left = {what: found for what, found in on_host(self.state).items() if found and what != "files"}
        shutil.rmtree(self.directory)
        assert not left, left

    def _end_containers(self) -> None:
        """By the daemon, for its shims are nobody's children; one that a test has stopped is not asked."""
        self.end_daemons()
        daemon = Daemon(self.kind(), self.directory)
        daemon.start()
        served = self.reached()
        for container in served.call("State").containers:
            served.call("Signal", id=container.id, pid="init", signal=signal.SIGKILL)
        until(lambda: not served.call("State").containers, "the end of all containers")
        daemon.stop()


KINDS = {"containerd": ContainerdPlace, "serve": ServePlace}
one_kind = pytest.mark.parametrize("place", ["containerd"], indirect=True)
"""For what is about containerd, or about no kind of daemon."""


@pytest.fixture(name="place", params=KINDS)
def place_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place of each kind."""
    monkeypatch.setenv("PATH", PATH)
    made = KINDS[request.param]()
    yield made
    monkeypatch.undo()  # what it starts to clean up is as it should be
    made.remove()
    until(lambda: not [child for child in psutil.Process().children() if child.status() == "zombie"], "no zombie")


def restarted(place: Place, daemon: Daemon, pid: int | None) -> None:
    """Returns once another one runs and answers."""
    until(lambda: daemon.pid not in (None, pid) and os.path.exists(daemon.socket), "another daemon")
    assert place.answers()


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def elsewhere(place: Place, script: str, **how: object) -> subprocess.Popen[str]:
    """A Python of its own that has a `daemon` for this place, and then does *script*."""
    text = (
        "import os, signal, sys, threading\n"
        "from libctrd.engine.daemon import Daemon\n"
        f"{place.import_kind}\n"
        f"daemon = Daemon(Kind(), {place.directory!r}, **{how!r})\n{script}"
    )
    return subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
