"""The benchmark: measures, tells medians, spread and ratios, and whether the bars hold. See ``run --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fifos
import lives
import shims
import starts
import streams
from measure import Result

GROUPS = ("starts", "streams", "shims", "fifos", "lives")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Measures libctrd against bare runtimes, pipes, system calls and other clients of containerd, "
        "in turns on the same host; exits with 1 when a bar does not hold or a peer is missing.",
    )
    parser.add_argument("group", nargs="*", help=f"what to measure: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rootfs", required=True, help="a root file system with busybox")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="rounds of each start (default: 50)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="bytes of each stream (default: 1024)")
    parser.add_argument("--runtime", default="crun", help="the OCI runtime to start with (default: crun)")
    parser.add_argument("--lives", type=int, default=500, metavar="N", help="lives with containerd (default: 500)")
    parser.add_argument("--go-client", metavar="PATH", help="a client in Go to compare with: see lives.py")
    parser.add_argument("--json", metavar="FILE", help="write all values there, too")
    given = parser.parse_args()
    for group in given.group:
        if group not in GROUPS:
            parser.error(f"{group}: there is no such group")
    if given.rounds < 1 or given.size < 1 or given.lives < 1:
        parser.error("there is nothing to measure in less than one round, MiB or life")
    if given.go_client is not None and not os.access(given.go_client, os.X_OK):
        parser.error(f"{given.go_client}: there is no such program")
    return given


def measured(given: argparse.Namespace) -> Iterator[Result]:
    """The results, group by group, as they come."""
    rootfs = os.path.abspath(given.rootfs)
    groups = given.group or GROUPS
    few = max(1, given.rounds // 5)  # a stream or a batch takes as long as many starts
    for group in groups:
        with tempfile.TemporaryDirectory(prefix="ctrd-bench-") as name:
            directory = Path(name)
            if group == "starts":
                yield from starts.measure(rootfs, directory, given.rounds, given.runtime)
            elif group == "streams":
                yield from streams.measure(rootfs, directory, few, given.size)
            elif group == "shims":
                yield from shims.measure(rootfs, directory)
            elif group == "fifos":
                yield from fifos.measure(directory, given.rounds)
            else:
                yield from lives.measure(rootfs, directory, given.rounds, given.lives, given.go_client)


def main() -> int:
    given = arguments()
    results = []
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    for result in measured(given):
        print(f"\n{result}", flush=True)
        results.append(result)
    if given.json:
        Path(given.json).write_text(json.dumps([result.as_dict() for result in results], indent=1) + "\n")
    failed = [result.name for result in results if not result.holds]
    print("\nevery bar holds" if not failed else f"\nnot every bar holds: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
