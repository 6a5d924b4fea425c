"""What the tests of swaps share: who exchanges names in a loop (renameat2), and canaries that must stay as they are."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

from engine_kit import need
from host_kit import PYTHON

EXCHANGER = """
    import ctypes, os, random, select, sys, time
    libc = ctypes.CDLL(None, use_errno=True)
    pairs = [tuple(os.fsencode(path) for path in pair.split("=")) for pair in sys.argv[1:]]
    AT_FDCWD, EXCHANGE = -100, 2
    swaps = 0
    def exchange(one, other):
        global swaps
        done = libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, EXCHANGE) == 0
        if done and not swaps:
            print("begun", flush=True)
        swaps += done
        if not done and not os.path.lexists(one):  # it was removed, or is not there yet: a link will be, then
            try:
                os.symlink(os.readlink(other), one)
            except OSError:
                pass
    while not select.select([sys.stdin], [], [], random.choice((0, 0.0002, 0.001)))[0]:
        for one, other in random.sample(pairs, len(pairs)):
            for _ in range(random.choice((1, 2, 2, 2))):
                exchange(one, other)
                for _ in range(random.randrange(300)):
                    pass
    for one, other in pairs:  # all as it was
        if os.path.islink(one) and not os.path.islink(other):
            exchange(one, other)
    print(swaps, flush=True)
"""


@contextlib.contextmanager
def exchanging(uid: int, *pairs: tuple[str, str]) -> Iterator[list[int]]:
    """While the block runs, user *uid* exchanges what stands at each pair of paths, again and again.

    Where the first of them is missing, a link like that at the second is made. Afterwards all is as it was, as far as
    it is there. How often it has been exchanged is in the list then.
    """
    setpriv = need(shutil.which("setpriv"), "util-linux")
    python = shutil.which("python3", path="/usr/bin:/bin") or PYTHON
    words = [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python, "-c", textwrap.dedent(EXCHANGER)]
    swaps: list[int] = []
    with subprocess.Popen(
        [*words, *("=".join(pair) for pair in pairs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            yield swaps
        finally:
            process.stdin.close()
            swaps.append(int(process.stdout.readline()))
    assert process.returncode == 0


class Canary:
    """Directories with files and fifos named like those of containers, none of which may be touched."""

    CONTENT = b"canary"

    def __init__(self, top: Path, *directories: str) -> None:
        self.top = top
        self._fds: dict[str, int] = {}
        for directory in directories:
            where = top / directory
            where.mkdir(parents=True)
            for name in ("config.json", "state.json", "exit.json", "precious"):
                (where / name).write_bytes(self.CONTENT)
            for process in ("init", "more"):
                for stream in ("stdin", "stdout", "stderr"):
                    fifo = str(where / f"{process}-{stream}")
                    os.mkfifo(fifo, 0o600)
                    self._fds[fifo] = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
                    os.write(self._fds[fifo], self.CONTENT)
        self._before = self._look()

    def _look(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for path in [self.top, *self.top.rglob("*")]:
            status = path.lstat()
            times = () if stat.S_ISFIFO(status.st_mode) else (status.st_mtime_ns, status.st_ctime_ns)
            found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_ino, status.st_size, *times)
        return found

    def forgive_empty(self) -> None:
        """Takes away what was made in it, as long as that is empty, and begins anew."""
        for path in sorted({*map(Path, self._look())} - {*map(Path, self._before)}, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        now = self._look()
        assert {path: status[:5] for path, status in now.items()} == {
            path: status[:5] for path, status in self._before.items()
        }
        self._before = now

    def check(self) -> None:
        """It is as it was, and all that was in its fifos is, and nothing else."""
        now = self._look()
        touched = {path for path in {*now, *self._before} if now.get(path) != self._before.get(path)}
        assert not touched, touched
        for path, fd in self._fds.items():
            assert os.read(fd, 1000) == self.CONTENT, path
            os.write(fd, self.CONTENT)
        assert str(self.top) not in Path("/proc/self/mountinfo").read_text()

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
