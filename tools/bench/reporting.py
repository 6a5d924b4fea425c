"""How many events a second go through the queue to a listener, in order for each container.

Measured from the report of an event to the listener, which is what the origin's queue does, in Go with one goroutine
for each event (C11); and, without a bar, from the engine's word to the listener, which is what an event takes as a
whole: it waits in its container's lane, is handled under its container's lock, and then goes through the same queue.
The listener counts and looks whether the order is kept.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import peers
from measure import Bar, Result, Series, in_turns, ratio

import libctrd
from libctrd.events import Lanes
from libctrd.state import Event, StateInfo

RATE = 100_000.0
EVENTS = 50_000
CONTAINERS = (1, 100, 1000)
THREADS = 4 * Lanes.AT_ONCE


class Listener:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong = 0
        self._last: dict[str, int] = {}

    def state_changed(self, id: str, info: StateInfo) -> None:
        self.count += 1
        if info.pid <= self._last.get(id, 0):
            self.wrong += 1
        self._last[id] = info.pid


class Reports:
    """The two ways of an event through one client of many containers."""

    def __init__(self, client: libctrd.Client, rootfs: str, containers: int) -> None:
        self._client = client
        spec = libctrd.spec.default(["/bin/true"], rootfs)
        self._ids = [client.create(f"container{number}", spec).id for number in range(containers)]
        self.threads = 0

    def reported(self) -> float:
        """From the report to the listener; events a second."""
        tell, ids, now = self._client._report, self._ids, self._client._now
        listener = Listener()

        def all_of_them() -> Iterator[None]:
            for number in range(1, EVENTS + 1):
                tell(ids[number % len(ids)], StateInfo("oom", number, at=now()))
                yield

        rate = self._rate(listener, all_of_them())
        if listener.wrong:
            raise SystemExit(f"{listener.wrong} events came out of order")
        return rate

    def handled(self) -> float:
        """From the engine's word to the listener; events a second."""
        told, events = self._client._on_event, [Event(id, "oom") for id in self._ids]

        def all_of_them() -> Iterator[None]:
            for number in range(EVENTS):
                told(events[number % len(events)])
                yield

        return self._rate(Listener(), all_of_them())

    def _rate(self, listener: Listener, steps: Iterator[None]) -> float:
        unsubscribe = self._client.subscribe(listener)
        begin = time.perf_counter()
        for number, _ in enumerate(steps):
            if number % 1000 == 0:
                self.threads = max(self.threads, threading.active_count())
        self._client._lanes.drain()
        seconds = time.perf_counter() - begin
        unsubscribe()
        if listener.count != EVENTS:
            raise SystemExit(f"the listener was told of {listener.count} events of {EVENTS}")
        return EVENTS / seconds


def go(program: str, containers: int) -> float:
    """The same as `Reports.reported`, in Go; events a second."""
    command = [program, str(containers), str(EVENTS)]
    nanoseconds, wrong = map(int, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split())
    if wrong:
        raise SystemExit(f"{wrong} events of the queue in Go came out of order")
    return EVENTS / nanoseconds * 1e9


def measure(rootfs: str, directory: Path, rounds: int) -> Iterator[Result]:
    program = peers.go(directory, "queue.go")
    for containers in CONTAINERS:
        how = f"{EVENTS} events of {containers} container{'s' if containers > 1 else ''} to a listener, in one process"
        result = Result("events", how, row="P11")
        with libctrd.connect(f"local:{directory / f'state{containers}'}") as client:
            reports = Reports(client, rootfs, containers)
            takers: dict[str, Callable[[], float]] = {
                "report to listener": reports.reported,
                "engine to listener": reports.handled,
            }
            if program is not None:
                takers["Go, a goroutine for each event"] = lambda program=program, n=containers: go(program, n)
            result.series = in_turns(rounds, "/s", takers)
            for container in client.containers():
                container.clean()
        result.bars = [_at_least(RATE, result.series[0])]
        result.bars.append(Bar(f"at most {THREADS} threads", f"{reports.threads} at most", reports.threads <= THREADS))
        if program is None:
            result.without.append(peers.NO_GO)
        else:
            result.facts.append(f"report to listener: {ratio(result.series[0], result.series[2]):.2f} times Go's rate")
        yield result


def _at_least(limit: float, series: Series) -> Bar:
    found = f"{series.median:.0f} {series.unit} ({series.spread()[1]:.0f} at the quick end)"
    return Bar(f"{series.label}: at least {limit:.0f} {series.unit}", found, series.median >= limit)
