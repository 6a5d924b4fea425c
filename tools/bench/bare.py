"""The peer: a bare OCI runtime on the same bundle, started and timed by a helper process.

A runtime that cannot use this host's mixture of cgroup v1 and v2 runs where v2 is hidden, as libctrd has it for each
of its containers. Here that is done once, outside of what is timed: the helper starts in a mount namespace of its own
with an empty tmpfs in place of the v2 hierarchy, and every bare run is its child. So the bare runtime is spared that
step each time, which makes the comparison harder for libctrd, not easier.

This file is that helper, too: ``bare.py RUNTIME ROOT BUNDLE`` runs one container for each line on its stdin, and
answers each with the nanoseconds from the start of the runtime to its end, and its exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

HIDE = 'umount /sys/fs/cgroup/unified && mount -t tmpfs -o size=64k tmpfs /sys/fs/cgroup/unified && exec "$@"'


class Bare:
    """A runtime that runs one bundle again and again. A context manager; use it within one."""

    def __init__(self, runtime: str, hide_unified: bool, directory: Path, spec: dict[str, Any]) -> None:
        """*spec* is what libctrd gave the same runtime; it gets a cgroup of its own, the rest stays."""
        bundle = directory / "bundle"
        bundle.mkdir()
        linux = {**spec["linux"], "cgroupsPath": f"/ctrd-bench-{os.getpid()}"}
        (bundle / "config.json").write_text(json.dumps({**spec, "linux": linux}))
        command = [sys.executable, "-I", __file__, runtime, str(directory / "runtime"), str(bundle)]
        if hide_unified:
            command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", HIDE, "sh", *command]
        self._helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> float:
        """One run, from the start of the runtime to its end, in milliseconds."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write("run\n")
        self._helper.stdin.flush()
        nanoseconds, code = map(int, self._helper.stdout.readline().split() or (0, 1))
        if code:
            raise SystemExit(f"the bare runtime ended with exit code {code}: see above")
        return nanoseconds / 1e6

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._helper.communicate()


def timed(command: list[str]) -> tuple[int, int]:
    """Runs *command*, its stdin and stdout on /dev/null; the nanoseconds that took, and its exit code."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    begin = time.perf_counter_ns()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=null)
    _, status = os.waitpid(pid, 0)
    return time.perf_counter_ns() - begin, os.waitstatus_to_exitcode(status)


def serve(runtime: str, root: str, bundle: str) -> None:
    for number, _ in enumerate(sys.stdin):
        print(*timed([runtime, "--root", root, "run", "--bundle", bundle, f"bare{number}"]), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
