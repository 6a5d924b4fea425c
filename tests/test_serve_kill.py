"""A server that is killed at any moment, with containers starting and ending around it (C25, C28)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import grpc
from field_kit import until
from serve_kit import WAIT, Served, script, served

__all__ = ["served"]  # the fixture

KILLS = int(os.environ.get("CTRD_TEST_KILLS", "5"))
"""How often it is killed: 100 times is the bar, which takes some minutes."""
SIDE_BY_SIDE = 20
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Collector:
    """A client that takes every event, and goes on from the last one when the server comes back."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._over = False
        self._stream: Any = None
        self.events: list[tuple[str, str, str, int]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        since: Any = {"seconds": 1}
        while not self._over:
            try:
                self._stream = self._served.call("Events", timeout=None, timestamp=since)  # type: ignore[arg-type]
                for event in self._stream:
                    self.events.append((event.type, event.id, event.pid, event.status))
                    since = event.timestamp
            except (grpc.RpcError, ValueError):  # it was killed; or its channel is just being made anew
                threading.Event().wait(0.02)

    def close(self) -> None:
        self._over = True
        self._stream.cancel()
        self._thread.join(WAIT)


def test_a_server_is_killed_at_any_moment_and_every_exit_is_told_once(served: Served, rootfs: str) -> None:
    chance = random.Random(7)
    bundles = [
        served.bundle(f"b{code}", script(f"sleep 0.{code % 9}; exit {code}", rootfs), fifos=False)
        for code in range(1, 12)
    ]
    stop = threading.Event()
    faults: list[str] = []
    numbers = iter(range(1_000_000))
    guard = threading.Lock()

    def client() -> None:
        while not stop.is_set():
            with guard:
                number = next(numbers)
            code = number % 11 + 1
            id = f"c{number}"
            try:
                served.call("CreateContainer", id=id, bundlePath=bundles[code - 1].path)
                served.call("AddProcess", id=id, pid="p", args=["sh", "-c", f"exit {code}"], env=["PATH=/bin"])
            except grpc.RpcError as error:
                gone = "not found" in (error.details() or "") or "not running" in (error.details() or "")
                # A container that has ended already has no further processes, and the runtime may be the one to say so.
                if error.code() not in AWAY and not gone and "oci runtime error" not in (error.details() or ""):
                    faults.append(f"{id}: {error.code()} {error.details()}")
                if error.code() in AWAY:
                    stop.wait(0.05)
            except ValueError:  # the channel is just being made anew
                stop.wait(0.05)

    collector = Collector(served)
    clients = [threading.Thread(target=client, daemon=True) for _ in range(SIDE_BY_SIDE // 5)]
    for thread in clients:
        thread.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.1, 1.2))  # a random moment is what is asked for
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        served.start()
    stop.set()
    for thread in clients:
        thread.join(WAIT)
    until(lambda: not served.call("State").containers)
    # What the server has told by now, the collector has once it has seen one event more.
    last = served.bundle("last", script("exit 42", rootfs), fifos=False)
    served.call("CreateContainer", id="last", bundlePath=last.path)
    until(lambda: ("exit", "last", "init", 42) in collector.events)
    collector.close()
    assert faults == []
    seen = Counter(collector.events)
    assert [event for event, times in seen.items() if times > 1] == []
    started = {id for kind, id, _, _ in seen if kind == "start-container"} - {"last"}
    assert len(started) > KILLS
    ends = {id: status for kind, id, pid, status in seen if kind == "exit" and pid == "init"}
    assert {id: status for id, status in ends.items() if id != "last"} == {id: int(id[1:]) % 11 + 1 for id in started}
    further = {id: status for kind, id, pid, status in seen if kind == "exit" and pid == "p"}
    begun = {id for kind, id, _, _ in seen if kind == "start-process"}
    assert begun <= set(further)
    assert {id for id in further if further[id] not in (int(id[1:]) % 11 + 1, 137)} == set()
    order = [(kind, id, pid) for kind, id, pid, _ in collector.events]
    for id in started:
        assert order.index(("start-container", id, "")) < order.index(("exit", id, "init"))
        if id in further:
            assert order.index(("exit", id, "p")) < order.index(("exit", id, "init"))
