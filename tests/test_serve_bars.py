"""What `ctrd serve` and the local engine promise in figures: how soon an event is told, and in which order."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from engine_kit import need_runtime, on_host
from field_kit import until
from serve_kit import WAIT, Served, reach, script, served

import libctrd
from libctrd import NULL

__all__ = ["served"]  # the fixture

MANY = 200
LATENCY = 0.003  # seconds, at the median
SLEEP = "sleep 1000"


def latencies(kill: list[tuple[int, str]], told: dict[str, float], arrived: threading.Condition) -> list[float]:
    """Kills each process, one after another; returns how long it took until its end was told."""
    found = []
    for pid, key in kill:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        with arrived:
            assert arrived.wait_for(lambda key=key: key in told, WAIT)  # type: ignore[misc]
        found.append(told[key] - began)
    return found


class Many:
    """Many containers that run. A server has started them, and they outlive it: each bar has them as it needs them."""

    def __init__(self, rootfs: str) -> None:
        need_runtime("crun")
        self.served = Served("--runtime", "crun")
        self.served.start()
        bundle = self.served.bundle("b", script(SLEEP, rootfs), fifos=False)
        for number in range(MANY):
            self.served.call("CreateContainer", id=f"c{number}", **bundle.create)

    def serve(self) -> Served:
        """The server, running."""
        if self.served.process is None:
            self.served.start()
        return self.served

    def leave_alone(self) -> str:
        """Without a server; returns the state directory."""
        if self.served.process is not None:
            self.served.stop()
        return self.served.state

    def remove(self) -> None:
        """Ends them all; nothing of them may be left."""
        served = self.serve()
        for number in range(MANY):
            served.call("Signal", id=f"c{number}", pid="init", signal=signal.SIGKILL)
        until(lambda: not served.call("State").containers)
        self.leave_alone()
        left = {what: found for what, found in on_host(served.state).items() if found and what != "files"}
        served.remove()
        assert not left, left


@pytest.fixture(scope="module")
def many(rootfs: str) -> Iterator[Many]:
    """Shared by all bars that need them, for they take half a minute."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    made = Many(rootfs)
    yield made
    made.remove()


# C10, C25
def test_an_event_is_told_at_once_with_many_containers_running(many: Many) -> None:
    """From the kill, by which the kernel's part is in it too, to the listener at the other end of the socket."""
    served = many.serve()
    told: dict[str, float] = {}
    arrived = threading.Condition()
    stream = served.call("Events", timeout=None)  # type: ignore[arg-type]

    def listen() -> None:
        try:
            for event in stream:
                with arrived:
                    told[event.type + event.pid] = time.monotonic()
                    arrived.notify_all()
        except grpc.RpcError:
            pass  # it was cancelled

    thread = threading.Thread(target=listen)
    thread.start()
    processes = []
    for number in range(60):
        reply = served.call("AddProcess", id=f"c{number}", pid=f"p{number}", args=["sleep", "1000"], env=["PATH=/bin"])
        processes.append((reply.systemPid, f"exitp{number}"))
    found = latencies(processes, told, arrived)
    stream.cancel()
    thread.join(WAIT)
    assert statistics.median(found) < LATENCY, sorted(found)


# C10, C11
def test_a_listener_is_told_at_once_with_many_containers_running(many: Many) -> None:
    """The way from the shim to a listener of this process."""
    told: dict[str, float] = {}
    arrived = threading.Condition()

    class Listener:
        def state_changed(self, id: str, info: libctrd.StateInfo) -> None:
            with arrived:
                told[info.type + info.process] = time.monotonic()
                arrived.notify_all()

    with libctrd.connect(f"local:{many.leave_alone()}") as client:
        client.watch_all()
        client.subscribe(Listener())
        assert len(client.containers()) == MANY
        processes = []
        for number in range(60):
            process = client.get(f"c{number}").exec(["sleep", "1000"], NULL, name=f"p{number}")
            processes.append((process.pid, f"exit-processp{number}"))
        found = latencies(processes, told, arrived)
    assert statistics.median(found) < LATENCY, sorted(found)


_STEADY = """
import asyncio, sys, threading, time
from libctrd.serve.server import Server

server = Server(sys.argv[1], sys.argv[2])

def tell():
    sys.stdin.readline()
    began = time.monotonic()
    for number in range(6000):
        server._publish(server._events.append("exit", f"c{number % 7}", "init", number))
        wait = began + number / 2000 - time.monotonic()
        if wait > 0:
            time.sleep(wait)  # the pace, which is what is asked for
    print("told", flush=True)

threading.Thread(target=tell, daemon=True).start()
asyncio.run(server.run(lambda: print("ready", flush=True)))
"""


@pytest.mark.parametrize("served", ["crun"], indirect=True)
def test_two_thousand_events_a_second_keep_their_order(served: Served) -> None:  # C11, C24
    served.stop()
    arguments = [f"unix://{served.socket}", served.state]
    with subprocess.Popen(
        [sys.executable, "-c", _STEADY, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        served.channel.close()
        served.channel = reach(served.socket)
        seen: list[tuple[str, int]] = []
        stream = served.call("Events", timeout=None)  # type: ignore[arg-type]

        def read() -> None:
            with contextlib.suppress(grpc.RpcError):  # it was cancelled
                seen.extend((event.id, event.status) for event in stream)

        thread = threading.Thread(target=read)
        thread.start()
        served.call("GetServerVersion")  # the stream was asked for before
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stdout.readline() == b"told\n"
        until(lambda: len(seen) >= 6000)
        stream.cancel()
        thread.join(WAIT)
        for number in range(7):
            assert [status for id, status in seen if id == f"c{number}"] == list(range(number, 6000, 7))
        process.terminate()
        assert process.wait(WAIT) == 0
