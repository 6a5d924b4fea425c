"""A daemon of ours behind a client (``containerd:/DIR``, ``serve:/DIR``): found again, killed, stopped, restarted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from client_kit import Recorder
from container_kit import WAIT, spec_of
from containerd_kit import PATH, program, until
from engine_kit import need_runtime

import libctrd
from libctrd import DETACHED, NULL, PIPE
from libctrd.client import Client
from libctrd.engine import cgroups, private, privateserve
from libctrd.errors import InvalidArgumentError, UnavailableError, UnsupportedError


class Own:
    """A directory for a daemon of ours, of either kind, and a look at what there is of it."""

    def __init__(self, kind: str, top: str) -> None:
        self.kind = kind
        self.directory = f"{top}/d"
        self.address = f"{kind}:{self.directory}"
        self._daemon = {"containerd": private.Containerd, "serve": privateserve.Serve}[kind]()

    def connect(self) -> Client:
        """A client of it, which starts it."""
        return libctrd.connect(self.address, namespace="own" if self.kind == "containerd" else None)

    @property
    def pid_file(self) -> Path:
        """Where its pid is while it runs."""
        return Path(self.directory, f"{self._daemon.name}.pid")

    @property
    def pid(self) -> int:
        """The pid of the daemon."""
        return int(self.pid_file.read_text())

    def left(self) -> list[str]:
        """What there still is of its containers, shims too."""
        here = Path(self.directory)
        found = [str(path) for pattern in ("bundles/[!.]*/*", "bundles/.runc/*/*") for path in here.glob(pattern)]
        found += [str(path) for path in (here / "state/io.containerd.runtime.v2.task").glob("*/*")]
        found += [str(path) for path in (here / "containers").glob("[!.]*")]
        marks = [cgroups.mark(str(root)) for root in [*here.glob("bundles/[!.]*"), here / "containers"]]
        found += [str(path) for mark in marks for path in Path(cgroups.TOP).glob(f"*/ctrd-{mark}-*")]
        daemon = self._daemon.command(self.directory)[1:]
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(word.startswith(self.directory) for word in words) and words[-len(daemon) :] != daemon:
                found.append(" ".join(words))
        return found


@pytest.fixture(params=["containerd", "serve"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    """A directory for a daemon; whatever a test has left running there is ended."""
    need_runtime("runc")
    if request.param == "containerd":
        program("containerd")
    monkeypatch.setenv("PATH", PATH)
    top = tempfile.mkdtemp(prefix="ctrd-own-", dir="/run" if os.access("/run", os.W_OK) else None)
    own = Own(request.param, top)
    yield own
    if own.left() or own.pid_file.exists():
        with libctrd.connect(own.address) as client:
            for container in client.containers():
                container.clean(force=True)
            client.stop_daemon()
    shutil.rmtree(top)


def answers(client: Client) -> bool:
    try:
        return bool(client.info().version)
    except UnavailableError:
        return False


def test_it_comes_when_it_is_wanted_and_goes_when_it_is_told(place: Own, rootfs: str) -> None:  # C23
    with place.connect() as client:
        assert client.address == place.address
        assert client.info().generation.startswith("containerd")
        assert libctrd.run(["echo", "own"], rootfs=rootfs, capture_output=True, client=client).stdout == b"own\n"
        assert os.stat(place.directory).st_mode & 0o777 == 0o700
        pid = place.pid
        client.stop_daemon()
        assert not psutil.pid_exists(pid)
    assert place.left() == []
    assert not [name for name in os.listdir(place.directory) if name.endswith((".pid", ".sock"))]


def test_the_next_client_finds_the_same_one(place: Own) -> None:  # C23
    with place.connect():
        pid = place.pid
    ask = f"import libctrd; client = libctrd.connect({place.address!r}); print(client.info().version)"
    subprocess.run([sys.executable, "-c", ask], check=True, timeout=WAIT)
    assert place.pid == pid


def test_containers_outlive_its_restart_and_the_exits_meanwhile_are_known(place: Own, rootfs: str) -> None:  # C23, C26
    client = place.connect()
    for n in range(3):
        container = client.create(f"gone{n}", spec_of("sleep 1000", rootfs))
        container.start(DETACHED, unattended="discard")
    kept = client.create("kept", spec_of("read x; echo $x; exit 7", rootfs))
    kept.start(libctrd.Stdio(DETACHED, DETACHED, DETACHED))
    pids = [client.get(f"gone{n}").pid for n in range(3)]
    assert all(pids)
    client.stop_daemon()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(_runs(pid) for pid in pids), "their end")
    with place.connect() as again:
        for n in range(3):
            ended = again.get(f"gone{n}")
            exit = ended.info().exit
            assert exit is not None
            assert (exit.code, exit.known) == (137, True)
            assert ended.wait(WAIT).code == 137
            ended.clean()
        kept = again.get("kept")
        assert kept.status == "running"
        kept.clean(force=True)
        until(lambda: not place.left(), lambda: f"nothing left: {place.left()}")
        again.stop_daemon()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_is_killed_comes_back_by_itself_and_loses_nothing(place: Own, rootfs: str) -> None:  # C23, C28
    with place.connect() as client:
        recorder = Recorder()
        client.subscribe(recorder)
        containers = []
        for n in range(8):
            container = client.create(f"n{n}", spec_of(f"read x; echo out {n}; exit {n}", rootfs))
            container.start(PIPE)
            containers.append(container)
        pid = place.pid
        os.kill(pid, signal.SIGKILL)
        for n, container in enumerate(containers):
            assert container.stdin is not None
            assert container.stdout is not None
            container.stdin.write(b"go\n")
            assert container.stdout.read() == b"out %d\n" % n
            assert container.wait(WAIT).code == n
        until(lambda: place.pid_file.exists() and place.pid != pid, "its restart", WAIT)
        until(lambda: answers(client), "an answer of the new one", WAIT)
        until(lambda: not place.left(), lambda: f"only the daemon: {place.left()}", WAIT)
        assert sorted(recorder.of("n3")) == ["exit", "start-container"]
        assert libctrd.run(["true"], rootfs=rootfs, client=client).exit_code == 0
        client.stop_daemon()


def test_only_what_is_ours_is_stopped(any_client: Client, rootfs: str) -> None:  # C23
    with pytest.raises(UnsupportedError, match=r"local engine|not ours"):
        any_client.stop_daemon()
    any_client.create("still", spec_of("true", rootfs)).clean()


def test_an_address_without_a_directory_is_refused() -> None:
    for address in ("containerd:", "containerd:relative", "serve:", "serve:relative"):
        with pytest.raises(InvalidArgumentError, match="DIR"):
            libctrd.connect(address)


def test_no_stream_is_left_of_a_container_that_nobody_hears(place: Own, rootfs: str) -> None:  # C23
    with place.connect() as client:
        container = client.create("quiet", spec_of("yes | head -c 200000; exit 4", rootfs))
        container.start(NULL)
        assert container.wait(WAIT).code == 4
        client.stop_daemon()
