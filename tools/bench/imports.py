"""What ``ctrd run`` takes before there is a container: the interpreter, the imports, the command line.

A run whose id cannot be is refused by `Client.create`: by then all is imported, the command line is understood and the
engine is there. Modules are compiled beforehand, as pip does when it installs. All of that is work of one processor, so
it is the processor's time that is told: what else the host does is in it least. As a whole ``ctrd run`` is measured
with the starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from measure import Result, at_most_over, in_turns

OVER = 60.0  # ms over bare Python
PACKAGE_OVER = 10.0  # the same for `import libctrd` alone
REFUSED = 125
LOADED = """
import sys
before = set(sys.modules)
from libctrd.cli import main
code = main(sys.argv[1:])
print(len(set(sys.modules) - before), len([name for name in sys.modules if name.startswith("libctrd")]))
sys.exit(code)
"""


def measure(rootfs: str, directory: Path, rounds: int, runtime: str) -> list[Result]:
    result = Result("imports", "`ctrd run` until its container could begin; time of the processor", row="P3")
    options = [
        "--state-dir",
        str(directory / "state"),
        "--runtime",
        runtime,
        "run",
        "--rootfs",
        rootfs,
        "--id",
        "no id",
    ]
    ctrd = [str(Path(sys.executable).parent / "ctrd"), *options, "/bin/true"]
    takers = {
        "bare Python": _spent([sys.executable, "-c", "pass"]),
        "import libctrd": _spent([sys.executable, "-c", "import libctrd"]),
        "ctrd --version": _spent([ctrd[0], "--version"]),
        "ctrd run": _spent(ctrd, REFUSED),
    }
    python, package, _, run = result.series = in_turns(rounds, "ms", takers)
    command = [sys.executable, "-c", LOADED, *ctrd[1:]]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    result.facts = [f"ctrd run imports {loaded[0]} modules that bare Python does not, {loaded[1]} of them libctrd's"]
    result.bars = [at_most_over(PACKAGE_OVER, package, python), at_most_over(OVER, run, python)]
    return [result]


def _spent(command: list[str], code: int = 0) -> Callable[[], float]:
    """Takes the processor's milliseconds of *command*, which ends with *code*; its streams are ``/dev/null``."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]

    def run() -> float:
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=null)
        _, status, used = os.wait4(pid, 0)
        if (ended := os.waitstatus_to_exitcode(status)) != code:
            raise SystemExit(f"{' '.join(command)} ended with exit code {ended}, and not with {code}")
        return (used.ru_utime + used.ru_stime) * 1e3

    return run
