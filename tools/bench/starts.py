"""How long a container takes from its start to its clean, and ``ctrd run`` as a whole, against others; and how that
grows with the number of containers that run already.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import daemon
from bare import Bare, Helper, write_bundle
from measure import Bar, Result, Series, at_most_times, in_turns, ratio, times_faster

import libctrd
from libctrd.engine import filters
from libctrd.engine import runtime as runtimes

TIMES = 1.5  # a start to a clean, of a bare run
FORKING_TIMES = 2.0  # the same through the runtime's own delete
CTR_TIMES = 5.0
PROFILE = {"crun": 1.0, "runc": 6.0}  # ms that the default seccomp profile adds
GROWTH = 1.2  # of what libctrd adds to a bare run, from none running to the most
RUNNING = (0, 100, 500, 1000)
PODMAN_LIMITS = (
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
)  # its own are more than some hosts allow
_numbers = itertools.count()


def start_to_clean(client: libctrd.Client, spec: dict[str, object], stdio: object) -> float:
    """From `start` to the return of `wait`, by which it is cleaned; in milliseconds."""
    container = client.create(f"bench{next(_numbers)}", spec)
    return _finished(container, stdio, time.perf_counter_ns())


def create_to_clean(client: libctrd.Client, spec: dict[str, object], stdio: object) -> float:
    """The same from `create` on, which writes what a bare run finds written."""
    begin = time.perf_counter_ns()
    return _finished(client.create(f"bench{next(_numbers)}", spec), stdio, begin)


def through_delete(client: libctrd.Client, spec: dict[str, object], stdio: object) -> float:
    """The same as `start_to_clean`, of a container of which it is not known that its runtime leaves little."""
    with mock.patch.object(runtimes, "leaves_little", return_value=False):
        container = client.create(f"bench{next(_numbers)}", spec)
    return _finished(container, stdio, time.perf_counter_ns())


def _finished(container: libctrd.Container, stdio: object, begin: int) -> float:
    container.start(stdio)  # type: ignore[arg-type]
    code = container.wait().code
    end = time.perf_counter_ns()
    if code or Path(container.bundle).exists():
        raise SystemExit(f"the container ended with exit code {code}, or was not cleaned")
    return (end - begin) / 1e6


def measure(rootfs: str, directory: Path, rounds: int, runtime: str) -> Iterator[Result]:
    name = Path(runtime).name
    how = f"/bin/true from start to clean, one warm client, {name}; the same spec for all"
    clean, command = Result("start", how, row="P1"), Result("command", "/bin/true by commands, as a whole", row="P3")
    try:
        found = runtimes.find(runtime)
    except libctrd.NotFoundError as error:
        clean.missing = command.missing = str(error)
        yield from (clean, command)
        return
    spec = libctrd.spec.default(["/bin/true"], rootfs)
    with ExitStack() as stack:
        client = stack.enter_context(libctrd.connect(f"local:{directory / 'state'}", runtime=runtime))
        bare = stack.enter_context(Bare(found.path, found.hide_unified, directory, spec_given(client, spec)))
        helper = stack.enter_context(Helper(found.hide_unified))
        takers = {
            "start to clean, three pipes": lambda: start_to_clean(client, spec, libctrd.PIPE),
            f"the same through {name} delete": lambda: through_delete(client, spec, libctrd.PIPE),
            "create to clean, three pipes": lambda: create_to_clean(client, spec, libctrd.PIPE),
            "start to clean, no streams": lambda: start_to_clean(client, spec, libctrd.NULL),
            f"bare {name} run": bare.once,
        }
        others, without = _others(stack, helper, rootfs, directory, _for_runc(client, spec))
        series = dict(zip(takers, in_turns(rounds, "ms", takers), strict=True))
        ours, deleting, *_, theirs = clean.series = list(series.values())
        clean.facts = [f"{s.label}: {ratio(s, theirs):.2f} times bare" for s in clean.series[2:-1]]
        clean.bars = [at_most_times(TIMES, ours, theirs), at_most_times(FORKING_TIMES, deleting, theirs)]
        few = max(1, rounds // 5)  # they take long
        if "ctr run --rm" in others:
            pair = {"start to clean": takers["start to clean, three pipes"], "ctr run --rm": others["ctr run --rm"]}
            ours, theirs = in_turns(few, "ms", pair)
            clean.series.append(theirs)
            clean.bars.append(times_faster(CTR_TIMES, ours, theirs))
        clean.without = [peer for peer in without if peer.startswith("ctr")]
        yield clean
        ours, *theirs_all = in_turns(few, "ms", {"ctrd run": _ctrd_run(helper, rootfs, directory, runtime), **others})
        command.series = [ours, *theirs_all]
        command.bars = [times_faster(1.0, ours, peer) for peer in theirs_all]
        command.without = without
        yield command


def spec_given(client: libctrd.Client, spec: dict[str, object]) -> dict[str, object]:
    """What the runtime gets of *spec*."""
    sample = client.create(f"sample{next(_numbers)}", spec)
    given = sample.spec()
    sample.clean()
    return given


def _for_runc(client: libctrd.Client, spec: dict[str, object]) -> dict[str, object]:
    """The same, with the seccomp profile as runc takes it, for it knows no compiled one."""
    given = spec_given(client, spec)
    annotations = {name: value for name, value in given.get("annotations", {}).items() if name != filters.ANNOTATION}
    return {**given, "annotations": annotations, "linux": {**given["linux"], "seccomp": spec["linux"]["seccomp"]}}


def measure_profile(rootfs: str, directory: Path, rounds: int) -> Iterator[Result]:
    """What the default seccomp profile adds to a start."""
    for name, limit in PROFILE.items():
        result = Result(
            "profile", f"/bin/true from start to clean with {name}, with and without the default seccomp profile"
        )
        try:
            runtimes.find(name)
        except libctrd.NotFoundError as error:
            result.missing = str(error)
            yield result
            continue
        filtered, free = (libctrd.spec.default(["/bin/true"], rootfs, seccomp=asked) for asked in (True, False))
        with libctrd.connect(f"local:{directory / name}", runtime=name) as client:
            takers = {
                "with it": lambda client=client, spec=filtered: start_to_clean(client, spec, libctrd.NULL),
                "without": lambda client=client, spec=free: start_to_clean(client, spec, libctrd.NULL),
            }
            ours, theirs = in_turns(2 * rounds, "ms", takers)
        added = Series("added", "ms", [a - b for a, b in zip(ours.values, theirs.values, strict=True)])
        quick = ours.spread()[0] - theirs.spread()[0]
        result.series = [ours, theirs, added]
        told = f"{quick:.2f} ms (median: {added.median:.2f})"  # see `measure_crowd`
        result.bars = [Bar(f"{name}: at most {limit:g} ms added at the quick end", told, quick <= limit)]
        yield result


def _others(
    stack: ExitStack, helper: Helper, rootfs: str, directory: Path, spec: dict[str, object]
) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """Other commands that run a container, and which there are not."""
    takers: dict[str, Callable[[], float]] = {}
    without = []
    if missing := daemon.missing():
        without.append(f"ctr run: {missing}")
    else:
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir="/run"))
        host = stack.enter_context(daemon.Daemon(directory, state))
        config = write_bundle(directory / "ctr", spec, "/ctrd-bench-ctr") / "config.json"
        takers["ctr run --rm"] = lambda: helper.run(host.run_command(directory, config))
    if shutil.which("podman") is None:
        without.append("podman run: there is no podman: apt-get install podman")
    else:
        podman = ["podman", "run", "--rm", *PODMAN_LIMITS, "--network", "none", "--rootfs", rootfs, "/bin/true"]
        takers["podman run --rm"] = lambda: helper.run(podman)
    return takers, without


def _ctrd_run(helper: Helper, rootfs: str, directory: Path, runtime: str) -> Callable[[], float]:
    ctrd = str(Path(sys.executable).parent / "ctrd")
    given = [ctrd, "--state-dir", str(directory / "state"), "--runtime", runtime]
    return lambda: helper.run([*given, "run", "--rootfs", rootfs, "--", "/bin/true"])


# ---- with others that run -------------------------------------------------------------------------------------------


def measure_crowd(rootfs: str, directory: Path, rounds: int, runtime: str, most: int) -> Iterator[Result]:
    """P12."""
    name = Path(runtime).name
    counts = [count for count in RUNNING if count < most] + [most]
    how = f"/bin/true from start to clean while others run; what libctrd adds to a bare {name} run in the same crowd"
    result = Result("crowd", how, row="P12")
    try:
        found = runtimes.find(runtime)
    except libctrd.NotFoundError as error:
        result.missing = str(error)
        yield result
        return
    spec = libctrd.spec.default(["/bin/true"], rootfs)
    added: list[Series] = []
    quick: list[float] = []
    with (
        libctrd.connect(f"local:{directory / 'state'}", runtime=runtime) as client,
        Bare(found.path, found.hide_unified, directory, spec_given(client, spec)) as bare,
    ):
        try:
            for count in counts:
                crowd(client, rootfs, count - len(client.containers()))
                ours, theirs = in_turns(
                    rounds,
                    "ms",
                    {
                        f"start to clean, {count} running": lambda: start_to_clean(client, spec, libctrd.PIPE),
                        f"bare {name} run, {count} running": bare.once,
                    },
                )
                difference = [our - their for our, their in zip(ours.values, theirs.values, strict=True)]
                added.append(Series(f"added, {count} running", "ms", difference))
                quick.append(ours.spread()[0] - theirs.spread()[0])
                result.series += [ours, theirs, added[-1]]
        finally:
            disperse(client)
    # A difference of two times has the noise of both, which is as large as itself: their quick ends have the least.
    for count, here, series in zip(counts[1:], quick[1:], added[1:], strict=True):
        times, median = here / quick[0], series.median / added[0].median
        limit = f"added at the quick end, {count} running: at most {GROWTH:g} times that of none"
        result.bars.append(Bar(limit, f"{times:.2f} times (medians: {median:.2f})", times <= GROWTH))
    result.facts.append("added at the quick end: " + ", ".join(f"{here:.2f} ms" for here in quick))
    yield result


def crowd(client: libctrd.Client, rootfs: str, count: int) -> None:
    """Starts so many containers that sleep."""
    spec = libctrd.spec.default(["/bin/sleep", "3600"], rootfs)

    def start(number: int) -> None:
        client.create(f"crowd{number}", spec).start(libctrd.NULL)

    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as workers:
        list(workers.map(start, [next(_numbers) for _ in range(count)]))


def disperse(client: libctrd.Client) -> None:
    """Ends and cleans all of them."""
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as workers:
        list(workers.map(lambda container: container.clean(force=True), client.containers()))
