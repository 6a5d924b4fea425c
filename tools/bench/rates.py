"""How many containers a second go from start to clean, eight at a time."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import daemon
from bare import Helper, write_bundle
from lives import PARALLEL, Lives
from measure import Result, at_least_times, in_turns
from starts import spec_given

import libctrd
from libctrd.engine import runtime as runtimes

XARGS = 0.75  # of the rate of xargs
GO = 3.0
BATCH = 50


def measure(rootfs: str, directory: Path, count: int, runtime: str, go: str | None) -> list[Result]:
    name = Path(runtime).name
    result = Result("rate", f"{count} containers of /bin/true, {PARALLEL} at a time, with {name}", row="P2")
    try:
        found = runtimes.find(runtime)
    except libctrd.NotFoundError as error:
        result.missing = str(error)
        return [result]
    size = min(BATCH, count)
    spec = libctrd.spec.default(["/bin/true"], rootfs)
    with (
        libctrd.connect(f"local:{directory / 'state'}", runtime=runtime) as client,
        Helper(found.hide_unified) as helper,
        ThreadPoolExecutor(PARALLEL) as workers,
    ):
        given = spec_given(client, spec)
        bundles = directory / "bundles"
        bundles.mkdir()
        for number in range(size):
            write_bundle(bundles / str(number), given, f"/ctrd-bench-{os.getpid()}-{number}")

        def life(_: int) -> None:
            libctrd.run(spec=spec, capture_output=True, client=client).check()

        def ours() -> float:
            begin = time.perf_counter()
            list(workers.map(life, range(size)))
            return size / (time.perf_counter() - begin)

        def xargs() -> float:
            run = f"{shlex.quote(found.path)} --root {directory}/runtime run --bundle {bundles}/{{}} x{{}}"
            return size / helper.run(["sh", "-c", f"seq 0 {size - 1} | xargs -P{PARALLEL} -I{{}} {run}"]) * 1e3

        rounds = max(1, count // size)
        takers: dict[str, Callable[[], float]] = {"libctrd": ours, f"xargs -P{PARALLEL} {name} run": xargs}
        result.series = in_turns(rounds, "/s", takers)
        result.bars = [at_least_times(XARGS, *result.series)]
        if missing := daemon.missing():
            result.without.append(f"containerd: {missing}")
        else:
            with (
                tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir="/run") as state,
                daemon.Daemon(directory, state) as host,
                contextlib.closing(Lives(host, rootfs, Path(state), go)) as lives,
            ):
                takers = {"libctrd": ours, "ctr run --rm": lambda: lives.batch_of_ctr(max(1, size // 5))[0]}
                if go is not None:
                    takers["containerd's Go client"] = lambda: lives.batch_of_go(max(1, size // 2))[0]
                mine, *theirs = in_turns(max(1, rounds // 2), "/s", takers)
            result.series += theirs
            result.bars += [at_least_times(GO, mine, peer) for peer in theirs]
        if go is None:
            result.without.append("containerd's Go client: give one with --go-client, see lives.py")
    return [result]
