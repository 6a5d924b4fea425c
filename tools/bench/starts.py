"""How long a container takes from its start to its clean, and ``ctrd run`` as a whole, against the bare runtime."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bare import Bare, timed
from measure import Result, at_most_over, at_most_times, in_turns, ratio

import libctrd
from libctrd.engine import runtime as runtimes

TIMES = 2.0  # a start to a clean, of a bare run
OVER = 150.0  # ctrd run over a bare run, in milliseconds
_numbers = itertools.count()


def start_to_clean(client: libctrd.Client, spec: dict[str, object], stdio: object) -> float:
    """From `start` to the return of `wait`, by which it is cleaned; in milliseconds."""
    container = client.create(f"bench{next(_numbers)}", spec)
    return _finished(container, stdio, time.perf_counter_ns())


def create_to_clean(client: libctrd.Client, spec: dict[str, object], stdio: object) -> float:
    """The same from `create` on, which writes what a bare run finds written."""
    begin = time.perf_counter_ns()
    return _finished(client.create(f"bench{next(_numbers)}", spec), stdio, begin)


def _finished(container: libctrd.Container, stdio: object, begin: int) -> float:
    container.start(stdio)  # type: ignore[arg-type]
    code = container.wait().code
    end = time.perf_counter_ns()
    if code or Path(container.bundle).exists():
        raise SystemExit(f"the container ended with exit code {code}, or was not cleaned")
    return (end - begin) / 1e6


def measure(rootfs: str, directory: Path, rounds: int, runtime: str) -> list[Result]:
    name = Path(runtime).name
    clean = Result(
        "start", f"/bin/true from start to clean, one warm client, {name}; the bare {name} on the same bundle"
    )
    command = Result("command", f"`ctrd run` of /bin/true as a whole command; `{name} run` on the same bundle")
    try:
        found = runtimes.find(runtime)
    except libctrd.NotFoundError as error:
        clean.missing = command.missing = str(error)
        return [clean, command]
    spec = libctrd.spec.default(["/bin/true"], rootfs)
    with libctrd.connect(f"local:{directory / 'state'}", runtime=runtime) as client:
        sample = client.create("sample", spec)
        given = sample.spec()
        sample.clean()
        with Bare(found.path, found.hide_unified, directory, given) as bare:
            clean.series = in_turns(
                rounds,
                "ms",
                {
                    "start to clean, three pipes": lambda: start_to_clean(client, spec, libctrd.PIPE),
                    "create to clean, three pipes": lambda: create_to_clean(client, spec, libctrd.PIPE),
                    "start to clean, no streams": lambda: start_to_clean(client, spec, libctrd.NULL),
                    f"bare {name} run": bare.run,
                },
            )
            clean.facts = [f"{s.label}: {ratio(s, clean.series[-1]):.2f} times bare" for s in clean.series[1:-1]]
            clean.bars = [at_most_times(TIMES, clean.series[0], clean.series[-1])]
            command.series = in_turns(
                rounds, "ms", {"ctrd run": _ctrd_run(rootfs, directory, runtime), f"bare {name} run": bare.run}
            )
            command.bars = [at_most_over(OVER, *command.series)]
    return [clean, command]


def _ctrd_run(rootfs: str, directory: Path, runtime: str) -> Callable[[], float]:
    ctrd = str(Path(sys.executable).parent / "ctrd")
    given = [ctrd, "--state-dir", str(directory / "state"), "--runtime", runtime]

    def run() -> float:
        nanoseconds, code = timed([*given, "run", "--rootfs", rootfs, "--", "/bin/true"])
        if code:
            raise SystemExit(f"ctrd run ended with exit code {code}: see above")
        return nanoseconds / 1e6

    return run
