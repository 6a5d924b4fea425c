"""What libctrd adds to a containerd: in one life of a container, and to the rate of many at a time.

One life is split: what containerd takes for its answers, together with what it takes from the start's answer to the
first word of the end, is its own; all else between `create` and the return of `wait` is libctrd's. The rates are those
of whole lives, in batches that take turns: of libctrd, of ``ctr run --rm`` and, when its path was given, of a client
in Go. That is called as ::

    CLIENT -address SOCKET -namespace NAMESPACE -spec FILE -runc-root DIR -fifo-dir DIR -prefix PREFIX -warm 0
        -n LIVES -p PARALLEL

and makes so many lives, so many at a time: container and task created with fifos for stdout and stderr that are read
and thrown away, waited for, started, ended, both deleted. *FILE* is the ``config.json`` to take byte for byte, but for
a ``linux.cgroupsPath`` of its own in each life; ids begin with *PREFIX*. It prints one JSON object: ``seconds`` from
the first life's begin to the last one's end, and ``cpu_seconds``, its own of user and system together.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from daemon import NAMESPACE, Daemon, missing
from measure import Bar, Result, Series, in_turns, ratio

import libctrd
from libctrd import reactor
from libctrd.client import Client
from libctrd.engine import store
from libctrd.engine.channel import Channel
from libctrd.engine.containerd import ContainerdEngine

OUTSIDE = 5.0  # ms of one life that are libctrd's
RATE = 0.95  # of the Go client's
BATCH = 25
PARALLEL = 8


class Timed(Channel):
    """A channel that keeps when calls were made and answered, and when the first word of an end came."""

    def __init__(self, address: str, namespace: str) -> None:
        super().__init__(address, namespace)
        self.forget()

    def forget(self) -> None:
        """From now on for another life."""
        self.calls: list[tuple[float, float]] = []
        self.started = 0.0
        self.ended = 0.0

    def call(self, method: str, request: Any, **how: Any) -> Any:  # type: ignore[override]
        begin = time.perf_counter()
        try:
            return super().call(method, request, **how)
        finally:
            end = time.perf_counter()
            self.calls.append((begin, end))
            if method.endswith(".Tasks/Start"):
                self.started = end

    def future(self, method: str, request: Any, **how: Any) -> Any:  # type: ignore[override]
        future = super().future(method, request, **how)
        if method.endswith(".Tasks/Wait"):
            future.add_done_callback(lambda _: self._word())
        return future

    def stream(self, method: str, requests: Any, **how: Any) -> Any:  # type: ignore[override]
        return Overheard(super().stream(method, requests, **how), self._word)

    def _word(self) -> None:
        if not self.ended:
            self.ended = time.perf_counter()

    def inside(self) -> float:
        """Milliseconds in which containerd was waited for; where two calls overlap they count once."""
        total, reached = 0.0, 0.0
        for begin, end in sorted([*self.calls, (self.started, max(self.started, self.ended))]):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total * 1e3


class Overheard:
    """A stream of containerd's, with a word to *heard* before each end is handed on."""

    def __init__(self, stream: Any, heard: Callable[[], None]) -> None:
        self._stream, self._heard = stream, heard
        self.cancel = stream.cancel

    def __iter__(self) -> Iterator[Any]:
        for envelope in self._stream:
            if envelope.topic == "/tasks/exit":
                self._heard()
            yield envelope


class Lives:
    """Whole lives of ``/bin/true`` of each kind, with the same spec. `close` it."""

    def __init__(self, daemon: Daemon, rootfs: str, directory: Path, go: str | None) -> None:
        self._daemon, self._directory, self._go = daemon, directory, go
        self._numbers = itertools.count()
        self._workers = ThreadPoolExecutor(PARALLEL)
        self._spec = libctrd.spec.default(["/bin/true"], rootfs)
        self.channel = Timed(daemon.address, NAMESPACE)
        engine = ContainerdEngine(self.channel, str(directory / "bundles"), reactor.shared())
        self.client = Client(engine, engine.root)
        sample = self.client.create("sample", self._spec)
        self._config = directory / "config.json"
        self._config.write_bytes(Path(sample.bundle, "config.json").read_bytes())
        sample.clean()

    def close(self) -> None:
        self._workers.shutdown()
        self.client.close()

    # ---- one ----

    def ours(self) -> float:
        """One of libctrd's from `create` to the return of `wait`, by which all of it is gone; in milliseconds."""
        self.channel.forget()
        begin = time.perf_counter()
        done = libctrd.run(spec=self._spec, capture_output=True, client=self.client)
        end = time.perf_counter()
        if done.exit_code or not self.channel.ended:
            raise SystemExit(f"the container ended with exit code {done.exit_code}")
        return (end - begin) * 1e3

    def empty_call(self) -> float:
        """What a call costs that containerd has nothing to do for, in milliseconds."""
        begin = time.perf_counter()
        store.version(self.channel)
        return (time.perf_counter() - begin) * 1e3

    def _ctr(self, config: Path) -> None:
        command = self._daemon.run_command(self._directory, config)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:  # only then: newer ones warn of old cgroups at every call
            raise SystemExit(f"ctr run ended with exit code {done.returncode}: {done.stderr}")

    # ---- many ----

    def _batch(self, count: int, life: Callable[[int], object]) -> float:
        """*count* lives, so many at a time; seconds."""
        begin = time.perf_counter()
        for _ in self._workers.map(life, range(count)):
            pass  # which raises what one of them has raised
        return time.perf_counter() - begin

    def batch_of_ours(self, count: int) -> tuple[float, float]:
        """Lives a second, and milliseconds of processor time that this process takes for each."""

        def life(_: int) -> None:
            libctrd.run(spec=self._spec, capture_output=True, client=self.client).check()

        before = time.process_time()
        seconds = self._batch(count, life)
        self.channel.forget()
        return count / seconds, (time.process_time() - before) / count * 1e3

    def batch_of_ctr(self, count: int) -> tuple[float, float]:
        """The same of ``ctr run --rm``, a command for each."""
        spec = json.loads(self._config.read_bytes())
        configs = []
        for _ in range(count):
            id = f"ctr{next(self._numbers)}"
            spec["linux"]["cgroupsPath"] = f"/ctrd-bench-{os.getpid()}-{id}"
            configs.append(self._directory / f"{id}.json")
            configs[-1].write_text(json.dumps(spec, separators=(",", ":")))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = self._batch(count, lambda number: self._ctr(configs[number]))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return count / seconds, spent / count * 1e3

    def batch_of_go(self, count: int) -> tuple[float, float]:
        """The same of the client in Go, a process for all."""
        assert self._go is not None
        command = [self._go, "-address", self._daemon.socket, "-namespace", NAMESPACE, "-spec", str(self._config)]
        command += ["-runc-root", str(self._directory / "runc"), "-fifo-dir", str(self._directory / "fifos")]
        command += ["-prefix", f"go{next(self._numbers)}", "-warm", "0", "-n", str(count), "-p", str(PARALLEL)]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return count / told["seconds"], told["cpu_seconds"] / count * 1e3


def measure(rootfs: str, directory: Path, rounds: int, lives: int, go: str | None) -> list[Result]:
    life = Result("life", "/bin/true through containerd, create to gone, one at a time; what of it is containerd's own")
    rate = Result("rate", f"{lives} lives of /bin/true through containerd, {PARALLEL} at a time, the same spec for all")
    life.missing = rate.missing = missing()
    if life.missing:
        return [life, rate]
    # Where containerd's state, bundles and fifos are anywhere else, too: in memory.
    with tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir="/run") as state, Daemon(directory, state) as daemon:
        made = Lives(daemon, rootfs, Path(state), go)
        try:
            _measure_life(life, made, rounds)
            _measure_rate(rate, made, lives, go is not None)
        finally:
            made.close()
    return [life, rate]


def _measure_life(result: Result, made: Lives, rounds: int) -> None:
    parts: list[tuple[float, float]] = []
    calls: list[int] = []

    def one() -> float:
        whole, inside = made.ours(), made.channel.inside()
        parts.append((inside, whole - inside))
        calls.append(len(made.channel.calls))
        return whole

    whole, empty = in_turns(rounds, "ms", {"one life": one, "an empty call, for comparison": made.empty_call})
    counted = parts[-rounds:]
    inside = Series("containerd's own answers", "ms", [part for part, _ in counted])
    outside = Series("outside of them", "ms", [part for _, part in counted])
    result.series = [whole, inside, outside, empty]
    result.facts = [f"calls in a life, beside the wait: {statistics.median(calls):g}"]
    result.bars = [Bar(f"at most {OUTSIDE:g} ms outside", f"{outside.median:.2f} ms", outside.median <= OUTSIDE)]


def _measure_rate(result: Result, made: Lives, lives: int, with_go: bool) -> None:
    """Batches in turns, as many as make up *lives*; each gives a rate and the processor time of a life."""
    size = min(BATCH, lives)
    batches = {"libctrd": made.batch_of_ours, "ctr run --rm": made.batch_of_ctr}
    if with_go:
        batches["Go client"] = made.batch_of_go
    spent: dict[str, list[float]] = {name: [] for name in batches}

    def taker(name: str) -> Callable[[], float]:
        def take() -> float:
            rate, milliseconds = batches[name](size)
            spent[name].append(milliseconds)
            return rate

        return take

    rounds = max(1, lives // size)
    rates = in_turns(rounds, "/s", {name: taker(name) for name in batches})
    ours, *theirs = rates
    result.series = rates
    result.series += [Series(f"{name}: its CPU for a life", "ms", spent[name][-rounds:]) for name in batches]
    found = [ratio(ours, peer) for peer in theirs]
    result.facts = [f"libctrd: {of:.2f} times the rate of {peer.label}" for of, peer in zip(found, theirs, strict=True)]
    if with_go:
        holds = found[-1] >= RATE
        result.bars = [Bar(f"at least {RATE:.2f} times the Go client's rate", f"{found[-1]:.2f} times", holds)]
    else:
        result.facts.append("no bar on the rate: give a Go client with --go-client")
