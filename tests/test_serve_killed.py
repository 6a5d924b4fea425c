"""Shims that are killed, behind `ctrd serve`: as with the daemon of containerd 0.2 the container is ended, and each of
its processes is told to have ended with 137 (C25, C28).
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from container_kit import kill_shim, shims
from engine_kit import on_host
from field_kit import until
from serve_kit import Events, Served, script, served

from libctrd import proc
from libctrd.errors import NotFoundError

__all__ = ["served"]  # the fixture

SLEEP = {"args": ["sleep", "1000"], "env": ["PATH=/bin"]}
LOOP = "while :; do sleep 0.05; done"
one_runtime = pytest.mark.parametrize("served", ["crun"], indirect=True)


def start(served: Served, spec: dict[str, Any]) -> list[int]:
    """A container `c` with two further processes; returns the pids of all three."""
    served.call("CreateContainer", id="c", **served.bundle("b", spec, fifos=False).create)
    for name in ("one", "two"):
        served.call("AddProcess", id="c", pid=name, **SLEEP)
    return [process.systemPid for process in served.call("State", id="c").containers[0].processes]


def runs(pid: int) -> bool:
    """Is it more than a zombie? Whose parent was killed is reaped by the host's init, when that comes to it."""
    try:
        return proc.ProcessRef.of(pid).alive()
    except NotFoundError:
        return False


def ends(served: Served, container: str = "c") -> list[tuple[str, int]]:
    return [(pid, status) for kind, id, pid, status in served.stored(container) if kind == "exit"]


def all_gone(served: Served, pids: list[int]) -> None:
    """Nothing is left of the container, and its id is free."""
    until(lambda: not any(runs(pid) for pid in pids))
    assert os.listdir(served.state) == [".serve"]
    assert on_host(served.state)["cgroups"] == []
    again = served.bundle("again", script("exit 3", served.made[0].root), fifos=False)
    served.call("CreateContainer", id="c", **again.create)
    until(lambda: ends(served)[-1] == ("init", 3))


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("own_pids", [True, False])
def test_what_is_left_is_ended(served: Served, rootfs: str, paused: bool, own_pids: bool) -> None:
    spec = script(LOOP, rootfs)
    if not own_pids:  # nothing but us ends its other processes then
        spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] != "pid"]
    pids = start(served, spec)
    listening = Events(served)
    if paused:
        served.call("UpdateContainer", id="c", status="paused")
    kill_shim(served.state, "c")
    listening.until("exit", "c", "init", 137)
    assert sorted(ends(served)[:2]) == [("one", 137), ("two", 137)]
    assert ends(served)[2:] == [("init", 137)], "the last one, and each once"
    all_gone(served, pids)
    listening.close()


def test_an_end_that_was_told_before_is_the_true_one(served: Served, rootfs: str) -> None:
    pids = start(served, script(LOOP, rootfs))
    served.call("Signal", id="c", pid="one", signal=signal.SIGTERM)
    until(lambda: ("one", 143) in ends(served))
    kill_shim(served.state, "c")
    until(lambda: ("init", 137) in ends(served))
    assert ends(served) == [("one", 143), ("two", 137), ("init", 137)]
    all_gone(served, pids)


def test_while_no_server_ran(served: Served, rootfs: str) -> None:
    """Its container runs on until there is one; what the shim had written down by then is true."""
    pids = start(served, script(LOOP, rootfs))
    served.stop(signal.SIGKILL)
    os.kill(pids[1], signal.SIGTERM)
    until(lambda: any(name.endswith(".exit") for name in os.listdir(f"{served.state}/c")))
    kill_shim(served.state, "c")
    assert runs(pids[0])
    served.start()
    until(lambda: ("init", 137) in ends(served))
    assert ends(served) == [("one", 143), ("two", 137), ("init", 137)]
    all_gone(served, pids)


def test_that_it_ended_by_itself_while_no_server_ran_nobody_knows(served: Served, rootfs: str) -> None:
    pids = start(served, script(LOOP, rootfs))
    served.stop(signal.SIGKILL)
    kill_shim(served.state, "c")
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not any(runs(pid) for pid in pids))
    served.start()
    until(lambda: any(name == "init" for name, _ in ends(served)))
    assert sorted(ends(served)[:2]) == [("one", 255), ("two", 255)]
    assert ends(served)[2:] == [("init", 255)]
    all_gone(served, pids)


@one_runtime
def test_a_shim_and_all_that_is_in_its_container_at_once(served: Served, rootfs: str) -> None:
    pids = start(served, script(LOOP, rootfs))
    (shim,) = shims(served.state, "c")
    for pid in (shim, *pids):
        os.kill(pid, signal.SIGKILL)
    until(lambda: any(name == "init" for name, _ in ends(served)))
    assert {code for _, code in ends(served)} == {137}
    assert [name for name, _ in ends(served)][-1] == "init"
    assert len(ends(served)) == 3
    all_gone(served, pids)


@one_runtime
def test_a_server_that_is_killed_while_it_ends_what_is_left(served: Served, rootfs: str) -> None:
    """At any moment of it: each exit is told once by the next one."""
    for moment in range(10):
        bundle = served.bundle(f"b{moment}", script(LOOP, rootfs), fifos=False)
        served.call("CreateContainer", id=f"c{moment}", **bundle.create)
        served.call("AddProcess", id=f"c{moment}", pid="p", **SLEEP)
        kill_shim(served.state, f"c{moment}")
        threading.Event().wait(moment / 500)  # the moment is what is tried
        served.stop(signal.SIGKILL)
        served.start()
        until(lambda: os.listdir(served.state) == [".serve"])
        until(lambda id=f"c{moment}": len(ends(served, id)) >= 2)  # init's is told once the container has gone
        told = ends(served, f"c{moment}")
        assert [name for name, _ in told] == ["p", "init"]
        assert {code for _, code in told} <= {137, 255}, "what has ended by then, nobody knows how"


@one_runtime
def test_a_shim_that_is_killed_in_the_middle_of_a_start(served: Served, rootfs: str, tmp_path: Path) -> None:
    """Its runtime, which would make a container yet, ends with it."""
    runtime = tmp_path / "runtime"
    hang = "exec sh -c 'while :; do sleep 0.1; done' \"$@\""
    runtime.write_text(f'#!/bin/sh\ncase " $* " in *" run "*{served.state}/c/*) {hang};; esac\nexec crun "$@"\n')
    runtime.chmod(runtime.stat().st_mode | stat.S_IXUSR)
    bundle = served.bundle("b", script("true", rootfs), fifos=False)
    errors: list[grpc.RpcError] = []
    fields = {"id": "c", "runtime": str(runtime), **bundle.create}
    call = threading.Thread(target=lambda: errors.append(served.refused("CreateContainer", **fields)))
    call.start()
    until(lambda: shims(served.state, "c"))
    kill_shim(served.state, "c")
    call.join()
    assert errors[0].details() == "containerd: shim exited before container process was started"
    assert errors[0].code() is grpc.StatusCode.UNKNOWN
    assert served.stored("c") == []
    assert os.listdir(served.state) == [".serve"]
