"""Kills a client, a shim or a runtime at each system call of a start and a clean, once.

The shim is that of a container that ends by itself, and "second" that of one that is cleaned by force; of the runtime
there is what starts a container, what that starts in its turn ("init"), and what deletes one.

The next client has to bring it to a clean end: every container there can be cleaned, and nothing of any is left.
Prints how many points there were, and each at which something was left or went wrong; exits with 1 then.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import libctrd
from libctrd.engine import cgroups
from libctrd.errors import CtrdError

HERE = Path(__file__).parent
KINDS = ("client", "shim", "second", "runtime", "init", "deletion")
PATIENCE = 15.0  # seconds until what ends by itself has ended
LOOK = 0.01


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/crash/run", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("kind", nargs="*", help=f"who is killed: {', '.join(KINDS)} (default: each)")
    parser.add_argument("--rootfs", required=True, help="a root file system with busybox")
    parser.add_argument("--runtime", default="crun", help="the OCI runtime (default: crun)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th point (default: 1)")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N", help="the first point (default: 1)")
    parser.add_argument("--to", type=int, default=0, dest="last", metavar="N", help="the last point (default: all)")
    given = parser.parse_args()
    if set(given.kind) - set(KINDS):
        parser.error(f"the kinds are {', '.join(KINDS)}")
    return given


def build(directory: Path) -> str:
    """The program that counts and kills."""
    program = directory / "crash"
    subprocess.run(["cc", "-std=gnu11", "-O2", "-o", program, HERE / "crash.c"], check=True)
    return str(program)


def left(state: str) -> dict[str, list[str]]:
    """What there still is of containers in that state directory."""
    mark = cgroups.mark(state)
    found = {
        "files": os.listdir(state) if os.path.isdir(state) else [],
        "processes": [pid for pid in filter(str.isdigit, os.listdir("/proc")) if state in command_line(pid)],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if state in line],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/ctrd-{mark}-*")]
        + [str(path) for path in Path("/sys/fs/cgroup").glob(f"ctrd-{mark}-*")],
    }
    return {what: things for what, things in found.items() if things}


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""  # it has ended


def recover(address: str, state: str, rootfs: str, told: Counter[str]) -> str:
    """What the next client finds, and what is wrong after it has cleaned; "" when nothing is."""
    with libctrd.connect(address) as client:
        for container in client.containers():
            told[container.status] += 1
            container.clean(force=True)
        for id in ("web", "other"):  # the ids are free again
            client.create(id, libctrd.spec.default(["/bin/true"], rootfs)).clean()
    end, pause = time.monotonic() + PATIENCE, threading.Event()
    while (found := left(state)) and time.monotonic() < end:
        pause.wait(LOOK)  # the end of processes that are no children of ours, above all
    return f"left: {found}" if found else ""


def sweep(kind: str, given: argparse.Namespace, program: str, top: Path) -> Iterator[str]:
    """Every point of one kind: a line for each at which something is wrong, and one about all."""
    told: Counter[str] = Counter()

    def once(point: int) -> tuple[int, str, int, str]:
        state = str(top / f"{kind}{point}")
        address = f"local:{state}"
        life = [sys.executable, HERE / "life.py", address, given.runtime, given.rootfs]
        done = subprocess.run(
            [program, kind, str(point), *life], capture_output=True, text=True, timeout=120, check=True
        )
        *said, last = done.stdout.splitlines()
        calls, how, code = last.split()
        try:
            wrong = recover(address, state, given.rootfs, told)
        except CtrdError as error:
            wrong = f"the next client could not: {error}"
        if point and how == "killed" and kind != "client" and int(code) not in (0, 3):
            wrong += f" the client ended with {code}: {said} {done.stderr[-300:]}"
        if not point and int(code) != 0:
            raise SystemExit(f"a life without a kill ended with {code}: {done.stderr}")
        shutil.rmtree(state, ignore_errors=True)
        return int(calls), how, int(code), wrong

    points, wrong_points = once(0)[0], 0
    last = min(given.last or points, points)
    tried = 0
    for point in range(given.first, last + 1, given.every):
        _, how, _, wrong = once(point)
        tried += how == "killed"
        if wrong:
            wrong_points += 1
            yield f"{kind} {point}: {wrong}"
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(told.items()))
    found = statuses or "nothing"
    yield f"{kind}: {points} points, killed at {tried}; the next client found {found}; wrong: {wrong_points}"


def main() -> int:
    given, failed = arguments(), False
    with tempfile.TemporaryDirectory(prefix="ctrd-crash-", dir="/run") as top:
        program = build(Path(top))
        for kind in given.kind or KINDS:
            for line in sweep(kind, given, program, Path(top)):
                print(line, flush=True)
                failed = failed or "wrong: 0" not in line
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
