"""What a large spec costs from `create` to the engine's request: checked, planned, encoded once, written, never read.

Against what that takes who writes it with ``json.dumps`` and has the next step read it back. Both have the state
directory on a tmpfs, where there is one. The rest of `create` and `start` (directories, locks, the record) is the same
for each spec, and told as what the same way takes with one that says only what to run.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from measure import Bar, Result, Series, in_turns, times_faster

import libctrd
from libctrd import spec as specs
from libctrd.engine.local import LocalEngine

FASTER = 5.0  # the encoding, than json.dumps
THIRD = 1 / 3  # the step, of theirs
TMPFS = "/dev/shm"
BATCH = 20
SIZE = (35_000, 40_000)
_numbers = itertools.count()


def large(rootfs: str) -> dict[str, Any]:
    """A spec as an orchestrator makes it: an address and a port of each service there is, a mount of each file."""
    env = [f"SERVICE_{n:03}_PORT_8080_TCP_ADDR=10.{n % 256}.{n * 7 % 256}.17" for n in range(140)]
    mounts = [
        {
            "destination": f"/etc/service/config-{n:03}",
            "type": "bind",
            "source": f"/var/lib/orchestrator/volumes/config-{n:03}",
            "options": ["rbind", "rprivate", "ro"],
        }
        for n in range(150)
    ]
    spec = libctrd.spec.default(["/bin/true"], rootfs, env=env, mounts=mounts)
    spec["annotations"] = {f"org.example.service-{n:02}/revision": f"{n * 7919:08x}" for n in range(30)}
    return spec


class _Asked(Exception):
    """The engine is asked, at that time, in place of what it would do: so the container is gone right away."""

    def __init__(self, _: Any) -> None:
        super().__init__()
        self.at = time.perf_counter()


class Steps:
    """The ways of a spec. Each takes a batch, and gives the microseconds of one."""

    def __init__(self, client: libctrd.Client, place: str) -> None:
        self._client = client
        self._file = os.path.join(place, "config.json")

    def ours(self, spec: dict[str, Any]) -> float:
        """From `create` to the engine's request."""
        seconds = 0.0
        for _ in range(BATCH):
            begin = time.perf_counter()
            try:
                self._client.create(f"spec{next(_numbers)}", spec).start(libctrd.NULL)
            except _Asked as asked:
                seconds += asked.at - begin
        return seconds / BATCH * 1e6

    def theirs(self, spec: dict[str, Any]) -> float:
        """Encoded, written, read, decoded."""
        begin = time.perf_counter()
        for _ in range(BATCH):
            with open(self._file, "w", encoding="utf-8") as file:
                file.write(json.dumps(spec))
            with open(self._file, encoding="utf-8") as file:
                json.loads(file.read())
        return (time.perf_counter() - begin) / BATCH * 1e6


def _encoded(encode: Any, spec: dict[str, Any]) -> float:
    begin = time.perf_counter()
    for _ in range(BATCH):
        encode(spec)
    return (time.perf_counter() - begin) / BATCH * 1e6


def _ask(_: LocalEngine, request: Any) -> int:
    raise _Asked(request)


def measure(rootfs: str, directory: Path, rounds: int) -> list[Result]:
    spec, small = large(rootfs), libctrd.spec.default(["/bin/true"], rootfs)
    size = len(json.dumps(spec))
    if not SIZE[0] <= size <= SIZE[1]:
        raise SystemExit(f"the spec has {size} bytes")
    counts = f"{len(spec['mounts'])} mounts, {len(spec['process']['env'])} variables"
    result = Result("spec", f"a spec of {size} bytes, {counts}; batches of {BATCH}", row="P10")
    on = TMPFS if os.path.ismount(TMPFS) else str(directory)
    with (
        tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir=on) as place,
        libctrd.connect(f"local:{place}/state") as client,
        mock.patch.object(LocalEngine, "create", _ask),
    ):
        steps = Steps(client, place)
        takers = {
            "create to the engine's request": lambda: steps.ours(spec),
            "the same with a small spec": lambda: steps.ours(small),
            "json.dumps, write, read, json.loads": lambda: steps.theirs(spec),
            "encode": lambda: _encoded(partial(specs.encode, checked=True), spec),
            "json.dumps": lambda: _encoded(json.dumps, spec),
            "validate": lambda: _encoded(specs.validate, spec),
        }
        whole, base, theirs, encode, dumps, validate = in_turns(rounds, "us", takers)
    step = Series("added by the spec", "us", [a - b for a, b in zip(whole.values, base.values, strict=True)])
    result.series = [whole, base, step, validate, encode, dumps, theirs]
    part = step.median / theirs.median
    result.facts = [f"as a whole: {whole.median / theirs.median:.2f} times {theirs.label}"]
    result.bars = [
        times_faster(FASTER, encode, dumps),
        Bar(f"{step.label}: under a third of {theirs.label}", f"{part:.2f}", part < THIRD),
    ]
    return [result]
