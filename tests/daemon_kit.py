"""What the tests of a daemon of ours share: a place for a private containerd, and a look at all that runs there."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import psutil
import pytest
from containerd_kit import PATH, Containerd, program, until

from libctrd import protos
from libctrd.engine import private
from libctrd.engine.channel import Channel
from libctrd.engine.daemon import Daemon


class Place(Containerd):
    """The directory of a private containerd, with the kit's means to make containers there and to look at them."""

    def __init__(self) -> None:
        self.binary = program("containerd")
        self.ctr_binary = program("ctr")
        self.directory = tempfile.mkdtemp(prefix="cd-", dir="/run" if os.access("/run", os.W_OK) else "/tmp")
        self.root, self.state = f"{self.directory}/root", f"{self.directory}/state"
        self.socket = f"{self.directory}/containerd.sock"
        self.log_file, self.runc_root = f"{self.directory}/containerd.log", f"{self.directory}/runc"
        self._process = None
        self._made: list[Daemon] = []

    def daemon(self, **how: object) -> Daemon:
        """One object for the daemon here; at the end of the test it watches no more."""
        made = Daemon(private.Containerd(), self.directory, **how)  # type: ignore[arg-type]
        self._made.append(made)
        return made

    def processes(self) -> list[psutil.Process]:
        """Every containerd that runs here."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"{self.directory}/containerd.toml" in process.cmdline() and process.status() != "zombie":
                    found.append(process)
        return found

    def remove(self) -> None:
        for made in self._made:
            made.close()
        for process in self.processes():
            process.kill()
            until(lambda process=process: process not in self.processes(), "the end of a daemon")
        super().remove()


@pytest.fixture(name="place")
def place_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("PATH", PATH)
    made = Place()
    yield made
    made.remove()
    until(lambda: not [child for child in psutil.Process().children() if child.status() == "zombie"], "no zombie")


def answers(daemon: Daemon) -> bool:
    channel = Channel(daemon.address, "default")
    try:
        channel.call(
            "containerd.services.version.v1.Version/Version",
            protos.message("google.protobuf.Empty")(),
            doing="ask its version",
        )
    finally:
        channel.close()
    return True


def restarted(daemon: Daemon, pid: int | None) -> None:
    until(lambda: daemon.pid not in (None, pid) and os.path.exists(daemon.socket), "another daemon")
    assert answers(daemon)


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def elsewhere(place: Place, script: str, **how: object) -> subprocess.Popen[str]:
    """A Python of its own that has a `daemon` for this place, and then does *script*."""
    text = (
        "import os, signal, sys, threading\n"
        "from libctrd.engine.daemon import Daemon\n"
        "from libctrd.engine.private import Containerd\n"
        f"daemon = Daemon(Containerd(), {place.directory!r}, **{how!r})\n{script}"
    )
    return subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
