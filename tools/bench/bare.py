"""The peers that are commands: started and timed by a helper process, so that this one's size and threads do not count.

A runtime that cannot use this host's mixture of cgroup v1 and v2 runs where v2 is hidden, as libctrd has it for each
of its containers. Here that is done once, outside of what is timed: the helper starts in a mount namespace of its own
with an empty tmpfs in place of the v2 hierarchy, and all it starts are its children. So the bare runtime is spared that
step each time, which makes the comparison harder for libctrd, not easier.

This file is that helper, too: it reads a command on each line, as a JSON list, and answers each with the nanoseconds
from its start to its end, and its exit code.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

HIDE = 'umount /sys/fs/cgroup/unified && mount -t tmpfs -o size=1m tmpfs /sys/fs/cgroup/unified && exec "$@"'


def hidden(command: list[str], hide_unified: bool) -> list[str]:
    """*command*, to be run where cgroup v2 is hidden if it must be."""
    return ["unshare", "-m", "--propagation", "slave", "sh", "-c", HIDE, "sh", *command] if hide_unified else command


class Helper:
    """Starts commands and times them. A context manager; use it within one."""

    def __init__(self, hide_unified: bool) -> None:
        command = hidden([sys.executable, "-I", __file__], hide_unified)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, command: list[str]) -> float:
        """Milliseconds from its start to its end. It reads nothing, and what it prints goes nowhere."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        nanoseconds, code = map(int, self._process.stdout.readline().split() or (0, 1))
        if code:
            raise SystemExit(f"{' '.join(command)} ended with exit code {code}: see above")
        return nanoseconds / 1e6

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()


class Bare(Helper):
    """A runtime that runs one bundle again and again."""

    def __init__(self, runtime: str, hide_unified: bool, directory: Path, spec: dict[str, Any]) -> None:
        """*spec* is what libctrd gave the same runtime; it gets a cgroup of its own, the rest stays."""
        super().__init__(hide_unified)
        self.bundle = write_bundle(directory / "bundle", spec, f"/ctrd-bench-{os.getpid()}")
        self.command = [runtime, "--root", str(directory / "runtime"), "run", "--bundle", str(self.bundle)]
        self._numbers = itertools.count()

    def once(self) -> float:
        """One run, from the start of the runtime to its end, in milliseconds."""
        return self.run([*self.command, f"bare{next(self._numbers)}"])


def write_bundle(bundle: Path, spec: dict[str, Any], cgroup: str) -> Path:
    """Makes the directory *bundle* with that spec, in a cgroup of its own."""
    bundle.mkdir()
    linux = {**spec["linux"], "cgroupsPath": cgroup}
    (bundle / "config.json").write_text(json.dumps({**spec, "linux": linux}))
    return bundle


def timed(command: list[str]) -> tuple[int, int]:
    """Runs *command*, its stdin and stdout on /dev/null; the nanoseconds that took, and its exit code."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    begin = time.perf_counter_ns()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=null)
    _, status = os.waitpid(pid, 0)
    return time.perf_counter_ns() - begin, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(*timed(json.loads(line)), flush=True)
