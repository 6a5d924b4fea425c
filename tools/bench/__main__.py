"""The benchmark: measures, tells medians, spread and ratios, and whether the bars hold. See ``run --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fifos
import imports
import lives
import many
import phases
import rates
import reporting
import shims
import specs
import starts
import streams
from measure import Result
from table import plot, table

Group = Callable[[argparse.Namespace, str, Path], Iterable[Result]]
GROUPS: dict[str, Group] = {
    "starts": lambda given, rootfs, place: starts.measure(rootfs, place, given.rounds, given.runtime),
    "phases": lambda given, rootfs, place: phases.measure(rootfs, place, given.rounds),
    "profile": lambda given, rootfs, place: starts.measure_profile(rootfs, place, given.rounds),
    "rates": lambda given, rootfs, place: rates.measure(
        rootfs, place, given.containers, given.runtime, given.go_client
    ),
    "streams": lambda given, rootfs, place: streams.measure(rootfs, place, few(given), given.size, given.go_fifo),
    "fifos": lambda given, rootfs, place: fifos.measure(place, given.rounds, given.go_fifo),
    "shims": lambda given, rootfs, place: shims.measure(rootfs, place),
    "many": lambda given, rootfs, place: many.measure(rootfs, place, given.crowd, given.ticks),
    "crowd": lambda given, rootfs, place: starts.measure_crowd(rootfs, place, given.rounds, given.runtime, given.crowd),
    "imports": lambda given, rootfs, place: imports.measure(rootfs, place, given.rounds, given.runtime),
    "specs": lambda given, rootfs, place: specs.measure(rootfs, place, given.rounds),
    "reporting": lambda given, rootfs, place: reporting.measure(rootfs, place, few(given)),
    "lives": lambda given, rootfs, place: lives.measure(rootfs, place, given.rounds, given.lives, given.go_client),
}


def few(given: argparse.Namespace) -> int:
    """Rounds of what takes as long as many starts."""
    return max(1, given.rounds // 5)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Measures libctrd against bare runtimes, pipes, system calls and other tools, "
        "in turns on the same host; exits with 1 when a bar does not hold or a peer is missing.",
    )
    parser.add_argument("group", nargs="*", help=f"what to measure: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rootfs", required=True, help="a root file system with busybox")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="rounds of each start (default: 50)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="bytes of each stream (default: 2048)")
    parser.add_argument("--runtime", default="crun", help="the OCI runtime to start with (default: crun)")
    parser.add_argument("--containers", type=int, default=400, metavar="N", help="containers of a rate (default: 400)")
    parser.add_argument("--crowd", type=int, default=1000, metavar="N", help="containers at once (default: 1000)")
    parser.add_argument("--ticks", type=int, default=60, metavar="N", help="seconds that they last (default: 60)")
    parser.add_argument("--lives", type=int, default=500, metavar="N", help="lives with containerd (default: 500)")
    parser.add_argument("--go-client", metavar="PATH", help="a client in Go to compare with: see lives.py")
    parser.add_argument("--go-fifo", metavar="PATH", help="fifos in Go to compare with: see peers/fifo.go")
    parser.add_argument("--json", metavar="FILE", help="write all values there, too")
    parser.add_argument("--plot", metavar="FILE", help="draw them there, too, as a PNG")
    given = parser.parse_args()
    for group in given.group:
        if group not in GROUPS:
            parser.error(f"{group}: there is no such group")
    if min(given.rounds, given.size, given.lives, given.containers, given.crowd, given.ticks) < 1:
        parser.error("there is nothing to measure in less than one round, MiB, life, container or second")
    for program in (given.go_client, given.go_fifo):
        if program is not None and not os.access(program, os.X_OK):
            parser.error(f"{program}: there is no such program")
    return given


def measured(given: argparse.Namespace) -> Iterator[Result]:
    """The results, group by group, as they come. Programs of ours go into a copy of the root file system."""
    place_of_state = "/run" if os.geteuid() == 0 and os.path.isdir("/run") else None  # in memory, as it is with users
    with tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir=place_of_state) as name:
        rootfs = os.path.join(name, "rootfs")
        os.mkdir(rootfs)
        subprocess.run(["cp", "-a", f"{given.rootfs}/.", rootfs], check=True)  # hard links stay what they are
        for group in given.group or GROUPS:
            place = Path(name) / group
            place.mkdir()
            yield from GROUPS[group](given, rootfs, place)


def main() -> int:
    given = arguments()
    # pip compiles what it installs. What lies in a clone is compiled by who first imports it, unless this forbids it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results = []
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    for result in measured(given):
        print(f"\n{result}", flush=True)
        results.append(result)
    if given.json:
        Path(given.json).write_text(json.dumps([result.as_dict() for result in results], indent=1) + "\n")
    if given.plot:
        plot(results, Path(given.plot))
    print(f"\n{table(results)}")
    failed = [result.name for result in results if not result.holds]
    print("\nevery bar holds" if not failed else f"\nnot every bar holds: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
