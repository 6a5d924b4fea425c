"""What a start at containerd has left whose client was killed: it is gone once the container is cleaned (C26)."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containerd_kit import TASKS, Containerd, program
from engine_kit import ContainerdPlace
from field_kit import WAIT, killed, python, until

from libctrd.client import Client
from libctrd.engine import cutstart
from libctrd.errors import RuntimeFailedError

STARTER = """
    import os, sys
    import libctrd
    from libctrd.engine.channel import Channel
    address, namespace, rootfs, runtime, last = sys.argv[1:]
    call = Channel.call

    def call_or_die(channel, method, *arguments, **how):
        if method.endswith(last):
            os.kill(os.getpid(), 9)
        return call(channel, method, *arguments, **how)

    Channel.call = call_or_die
    client = libctrd.connect(address, namespace=namespace, runtime=runtime or None)
    client.create("web", libctrd.spec.default(["/bin/sleep", "1000"], rootfs)).start()
"""
# `containerd-shim start`, but for two things: the shim that it starts has a log that nobody reads, as it has when
# containerd kills `start` before the shim came to that; and it says nothing, so that it will be killed.
MUTE = """#!/bin/sh
for last; do :; done
[ "$last" = start ] || exec {shim} "$@"
while [ $# -gt 1 ]; do
    case $1 in
    -namespace) namespace=$2 ;;
    -address) address=$2 ;;
    -id) id=$2 ;;
    esac
    shift
done
rm log && mkfifo log
{shim} -namespace "$namespace" -id "$id" -address "$address" </dev/null >/dev/null 2>&1 &
exec sleep 1000
"""


@pytest.fixture
def place(new_containerd: Callable[[], Containerd]) -> Iterator[ContainerdPlace]:
    """A place in a daemon of the test's own, in which nothing may be left."""
    place = ContainerdPlace(new_containerd())
    yield place
    left = {what: found for what, found in place.leftovers().items() if found}
    place.remove()
    assert not left, left


@pytest.fixture
def client(place: ContainerdPlace) -> Iterator[Client]:
    with place.connect() as client:
        yield client


def cut(place: ContainerdPlace, rootfs: str, last: str) -> None:
    """A start whose client is killed when it is about to make the call *last*."""
    starter = python(STARTER, place.address, str(place.namespace), rootfs, "", last)
    assert starter.wait(WAIT) == -signal.SIGKILL
    assert starter.stdout is not None
    starter.stdout.close()


def bundle(place: ContainerdPlace) -> Path:
    return Path(place.daemon.state, TASKS, str(place.namespace), "web")


def patient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(cutstart, "END_SECONDS", seconds)
    monkeypatch.setattr(cutstart, "LAST_SECONDS", seconds)


def test_a_shim_that_waits_for_its_log_to_be_read_is_ended(
    place: ContainerdPlace, client: Client, rootfs: str, tmp_path: Path
) -> None:
    shim = tmp_path / "containerd-shim-runc-v2"
    shim.write_text(MUTE.format(shim=program("containerd-shim-runc-v2")))
    shim.chmod(0o755)
    starter = python(STARTER, place.address, str(place.namespace), rootfs, str(shim), "no call")
    until(lambda: any(process.cmdline()[-1] != "start" for process in place.daemon.shims(place.namespace)))
    killed(starter)
    until(lambda: not bundle(place).exists())
    assert place.daemon.shims(place.namespace), "it waits for ever"
    assert client.get("web").status == "stopped"
    client.get("web").clean(force=True)
    assert not place.daemon.shims(place.namespace)


def test_a_shim_that_keeps_a_container_that_containerd_has_given_up_is_ended_with_it(
    place: ContainerdPlace, client: Client, rootfs: str
) -> None:
    cut(place, rootfs, "Tasks/Start")
    (shim,) = place.daemon.shims(place.namespace)
    assert shim.children(), "the container's first process, which waits for its start"
    place.daemon.kill()
    shutil.rmtree(bundle(place))
    place.daemon.start()
    client.get("web").clean(force=True)
    assert not place.daemon.shims(place.namespace)
    assert not place.daemon.shim_socket(str(place.namespace), "web").exists()


def test_a_create_that_containerd_has_only_begun_is_waited_for(
    place: ContainerdPlace, client: Client, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bundle is there before any shim is."""
    cut(place, rootfs, "Tasks/Create")
    bundle(place).mkdir(parents=True)
    looked = threading.Event()
    real = cutstart._await

    def look_again(pid: int) -> None:
        looked.set()
        real(pid)

    monkeypatch.setattr(cutstart, "_await", look_again)
    cleaner = threading.Thread(target=lambda: client.get("web").clean(force=True))
    cleaner.start()
    assert looked.wait(WAIT)
    with place.connect() as other:
        assert [container.id for container in other.containers()] == ["web"]
        bundle(place).rmdir()
        cleaner.join(WAIT)
        assert other.containers() == []


def test_a_bundle_that_stays_is_told(
    place: ContainerdPlace, client: Client, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(place, rootfs, "Tasks/Create")
    bundle(place).mkdir(parents=True)
    patient(monkeypatch, 0.1)
    with pytest.raises(RuntimeFailedError, match=rf"container 'web'.*the bundle '{bundle(place)}' stayed: "):
        client.get("web").clean(force=True)
    bundle(place).rmdir()
    client.get("web").clean(force=True)  # it is still there to be cleaned again


def test_a_shim_that_has_other_processes_than_its_containers_is_told_and_not_killed(
    place: ContainerdPlace, client: Client, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(place, rootfs, "Tasks/Start")
    (shim,) = place.daemon.shims(place.namespace)
    place.daemon.kill()
    shutil.rmtree(bundle(place))
    place.daemon.start()
    patient(monkeypatch, 0.5)
    with monkeypatch.context() as more:
        more.setattr(cutstart, "_has_children", lambda pid: True)
        with pytest.raises(RuntimeFailedError, match=rf"process {shim.pid} \(containerd-shim-runc-v2\) stayed"):
            client.get("web").clean(force=True)
    assert place.daemon.shims(place.namespace) == [shim]
    client.get("web").clean(force=True)
    assert not place.daemon.shims(place.namespace)
