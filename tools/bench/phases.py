"""Where the time of one life goes, from `start` to the return of `wait`: by marks on the way, in one warm client."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from measure import WARM_UP, Result, Series

import libctrd
from libctrd import client, handling, proc
from libctrd.engine import local, shim

# What ends each phase, in their order.
PHASES = {
    "spawn": "locks, checks, three fifos",
    "spawned": "posix_spawn of the shim",
    "started": "the shim's start, and the OCI runtime",
    "returned": "registering, reporting start-container",
    "exit": "the program, its exit, the record",
    "lane": "to the thread of the container's lane",
    "cleaning": "the output has come to its end",
    "deleting": "the lock of the directory",
    "deleted": "cgroups and shim go",
    "cleaned": "record and directory go",
    "done": "listeners are told, wait returns",
}


def measure(rootfs: str, directory: Path, rounds: int) -> list[Result]:
    result = Result("phases", "/bin/true from start to clean, three pipes: where the time goes")
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks.setdefault(name, time.perf_counter())

    def around(stack: ExitStack, owner: Any, name: str, before: str = "", after: str = "") -> None:
        really = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            if before:
                mark(before)
            returned = really(*given, **named)
            if after:
                mark(after)
            return returned

        stack.enter_context(mock.patch.object(owner, name, call))

    rows: list[dict[str, float]] = []
    with ExitStack() as stack:
        around(stack, proc, "spawn", "spawn", "spawned")
        around(stack, shim.Shim, "started", after="started")
        around(stack, local.LocalEngine, "_read", before="exit")
        around(stack, handling, "ended", before="lane")
        around(stack, handling, "_finish", before="cleaning")
        around(stack, local.LocalEngine, "delete", "deleting", "deleted")
        around(stack, client.Client, "_remove", after="cleaned")
        here = stack.enter_context(libctrd.connect(f"local:{directory / 'state'}"))
        spec = libctrd.spec.default(["/bin/true"], rootfs)
        for number in range(rounds + WARM_UP):
            container = here.create(f"phase{number}", spec)
            marks.clear()
            mark("begin")
            container.start(libctrd.PIPE)
            mark("returned")
            container.wait()
            mark("done")
            rows.append(dict(marks))
    for earlier, later in itertools.pairwise(["begin", *PHASES]):
        spent = [max(0.0, row[later] - row[earlier]) * 1e6 for row in rows[WARM_UP:]]
        result.series.append(Series(PHASES[later], "us", spent))
    result.series.append(Series("all of it", "us", [(row["done"] - row["begin"]) * 1e6 for row in rows[WARM_UP:]]))
    return [result]
