"""A private containerd of ours behind a client (``containerd:/DIR``): it comes, is found again, dies and comes back."""

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

import libctrd
from libctrd import DETACHED, NULL, PIPE
from libctrd.client import Client
from libctrd.engine import cgroups
from libctrd.errors import InvalidArgumentError, UnavailableError, UnsupportedError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory for a daemon; whatever a test has left running there is ended."""
    program("containerd")
    monkeypatch.setenv("PATH", PATH)
    top = tempfile.mkdtemp(prefix="ctrd-own-", dir="/run" if os.access("/run", os.W_OK) else None)
    yield f"{top}/d"
    if left(f"{top}/d") or os.path.exists(f"{top}/d/containerd.pid"):
        with libctrd.connect(f"containerd:{top}/d") as client:
            for container in client.containers():
                container.clean(force=True)
            client.stop_daemon()
    shutil.rmtree(top)


def pid_of(place: str) -> int:
    return int(Path(place, "containerd.pid").read_text())


def left(place: str) -> list[str]:
    """What there still is of containers of the daemon in *place*."""
    found = [str(path) for pattern in ("bundles/[!.]*/*", "bundles/.runc/*/*") for path in Path(place).glob(pattern)]
    found += [str(path) for path in Path(place, "state/io.containerd.runtime.v2.task").glob("*/*")]
    marks = [cgroups.mark(str(root)) for root in Path(place, "bundles").glob("[!.]*")]
    found += [str(path) for mark in marks for path in Path(cgroups.TOP).glob(f"*/ctrd-{mark}-*")]
    found += [
        str(p.pid) for p in psutil.process_iter(["cmdline"]) if f"{place}/containerd.sock" in (p.info["cmdline"] or [])
    ]
    return found


def connected(place: str, namespace: str = "own") -> Client:
    return libctrd.connect(f"containerd:{place}", namespace=namespace)


def answers(client: Client) -> bool:
    try:
        return bool(client.info().version)
    except UnavailableError:
        return False


def test_it_comes_when_it_is_wanted_and_goes_when_it_is_told(place: str, rootfs: str) -> None:  # C23
    with connected(place) as client:
        assert client.address == f"containerd:{place}"
        assert client.info().generation.startswith("containerd")
        assert libctrd.run(["echo", "own"], rootfs=rootfs, capture_output=True, client=client).stdout == b"own\n"
        assert os.stat(place).st_mode & 0o777 == 0o700
        pid = pid_of(place)
        client.stop_daemon()
        assert not psutil.pid_exists(pid)
    assert left(place) == []
    assert not [name for name in os.listdir(place) if name.endswith((".pid", ".sock"))]


def test_the_next_client_finds_the_same_one(place: str) -> None:  # C23
    with connected(place):
        pid = pid_of(place)
    ask = f"import libctrd; client = libctrd.connect('containerd:{place}'); print(client.info().version)"
    subprocess.run([sys.executable, "-c", ask], check=True, timeout=WAIT)
    assert pid_of(place) == pid


def test_containers_outlive_its_restart_and_the_exits_meanwhile_are_known(place: str, rootfs: str) -> None:  # C23, C26
    client = connected(place)
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
    with connected(place) as again:
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
        until(lambda: not left(place), f"nothing left: {left(place)}")
        again.stop_daemon()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_is_killed_comes_back_by_itself_and_loses_nothing(place: str, rootfs: str) -> None:  # C23, C28
    with connected(place) as client:
        recorder = Recorder()
        client.subscribe(recorder)
        containers = []
        for n in range(8):
            container = client.create(f"n{n}", spec_of(f"read x; echo out {n}; exit {n}", rootfs))
            container.start(PIPE)
            containers.append(container)
        pid = pid_of(place)
        os.kill(pid, signal.SIGKILL)
        for n, container in enumerate(containers):
            assert container.stdin is not None
            assert container.stdout is not None
            container.stdin.write(b"go\n")
            assert container.stdout.read() == b"out %d\n" % n
            assert container.wait(WAIT).code == n
        until(lambda: os.path.exists(f"{place}/containerd.pid") and pid_of(place) != pid, "its restart", WAIT)
        until(lambda: answers(client), "an answer of the new one", WAIT)
        until(lambda: not left(place) or len(left(place)) == 1, f"only the daemon: {left(place)}", WAIT)
        assert sorted(recorder.of("n3")) == ["exit", "start-container"]
        assert libctrd.run(["true"], rootfs=rootfs, client=client).exit_code == 0
        client.stop_daemon()


def test_only_what_is_ours_is_stopped(any_client: Client, rootfs: str) -> None:  # C23
    with pytest.raises(UnsupportedError, match=r"local engine|not ours"):
        any_client.stop_daemon()
    any_client.create("still", spec_of("true", rootfs)).clean()


def test_an_address_without_a_directory_is_refused() -> None:
    for address in ("containerd:", "containerd:relative"):
        with pytest.raises(InvalidArgumentError, match="DIR"):
            libctrd.connect(address)


def test_no_stream_is_left_of_a_container_that_nobody_hears(place: str, rootfs: str) -> None:  # C23
    with connected(place) as client:
        container = client.create("quiet", spec_of("yes | head -c 200000; exit 4", rootfs))
        container.start(NULL)
        assert container.wait(WAIT).code == 4
        client.stop_daemon()
