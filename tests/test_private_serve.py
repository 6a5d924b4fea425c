"""A `ctrd serve` of ours as a daemon: started, found again, restarted, stopped, like a private containerd (C23)."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator

import grpc
import pytest
from field_kit import until
from serve_kit import Bundle, Served, reach, script

import libctrd
from libctrd.engine.daemon import Daemon
from libctrd.engine.privateserve import Serve

WAIT = 60.0


@pytest.fixture
def place() -> Iterator[Served]:
    """A directory for a daemon, and calls to it: a `Served` whose process the daemon starts."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    top = tempfile.mkdtemp(prefix="cd-", dir="/run")
    served = Served()
    shutil.rmtree(served.top)
    served.top, served.state, served.socket = top, f"{top}/containers", f"{top}/ctrd.sock"
    yield served
    served.channel.close()
    shutil.rmtree(top)


def reached(served: Served) -> Served:
    served.channel.close()
    served.channel = reach(served.socket)
    return served


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_is_started_found_again_and_stopped(place: Served) -> None:
    daemon = Daemon(Serve(), place.top)
    daemon.start()
    pid = daemon.pid
    assert pid
    assert reached(place).call("GetServerVersion").minor == 2
    assert stat.S_IMODE(os.stat(place.socket).st_mode) == 0o600
    again = Daemon(Serve(), place.top)
    again.start()
    assert again.pid == pid, "it is taken, not started a second time"
    again.close()
    daemon.stop()
    assert gone(pid)
    assert not os.path.exists(place.socket)
    assert not os.path.exists(daemon.pid_file)
    daemon.close()


# C28
def test_its_containers_survive_it_and_what_ends_meanwhile_is_told_by_the_next(place: Served, rootfs: str) -> None:
    daemon = Daemon(Serve("runc"), place.top)
    daemon.start()
    first = daemon.pid
    assert first
    bundle = Bundle(f"{place.top}/b", script("trap 'exit 9' TERM; while :; do sleep 0.02; done", rootfs), fifos=False)
    reached(place).call("CreateContainer", id="c", **bundle.create)
    pid = place.call("State", id="c").containers[0].processes[0].systemPid
    os.kill(first, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    until(lambda: daemon.pid not in (None, first))
    until(lambda: _answers(place))
    until(lambda: place.stored() == [("start-container", "c", "", 0), ("exit", "c", "init", 9)])
    daemon.stop()
    daemon.close()


def _answers(place: Served) -> bool:
    try:
        return reached(place).call("GetServerVersion").minor == 2
    except grpc.RpcError:
        return False


def test_one_that_hangs_is_killed_and_started_again(place: Served) -> None:
    daemon = Daemon(Serve(), place.top)
    daemon.start()
    first = daemon.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    until(lambda: daemon.pid not in (None, first))
    assert gone(first)
    daemon.stop()
    daemon.close()


# C23, C28
def test_a_client_starts_one_by_its_address_and_the_next_finds_all(place: Served, rootfs: str) -> None:
    address = f"serve:{place.top}"
    with libctrd.connect(address) as client:
        done = libctrd.run(["sh", "-c", "echo out; exit 7"], rootfs=rootfs, capture_output=True, client=client)
        assert (done.exit_code, done.stdout) == (7, b"out\n")
        spec = libctrd.spec.default(["sh", "-c", "sleep 0.3; exit 3"], rootfs)
        client.create("job", spec).start(libctrd.DETACHED)
        client.stop_daemon()
    with libctrd.connect(address) as client:
        job = client.get("job")
        assert job.wait(WAIT).code == 3
        job.clean()
        assert client.containers() == []
        client.stop_daemon()
    with pytest.raises(libctrd.InvalidArgumentError, match="no namespaces"):
        libctrd.connect(address, namespace="x")
