"""What the tests of the command line share: the real ``ctrd`` as a process of its own, and a terminal to run it on."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from engine_kit import Place

SECONDS = 30.0
"""How long anything may take before a test calls it a hang."""


class Ctrd:
    """``ctrd`` in the place of a test, with one root file system."""

    def __init__(self, engine: Place, rootfs: str) -> None:
        self.engine = engine
        self.state_dir = engine.root
        self.rootfs = rootfs
        self.program = [sys.executable, "-m", "libctrd.cli", *engine.options]
        self.environment = dict(os.environ)
        if self.environment.pop("PYTHONDONTWRITEBYTECODE", None):  # compiled once for all tests, not by each process
            self.environment["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), f"ctrd-tests-{os.getuid()}")
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *args: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs ``ctrd ARGS`` to its end, with its output captured and nothing as its input."""
        if "input" not in settings:
            settings.setdefault("stdin", subprocess.DEVNULL)
        settings.setdefault("env", self.environment)
        settings.setdefault("stdout", subprocess.PIPE)
        settings.setdefault("stderr", subprocess.PIPE)
        return subprocess.run([*self.program, *args], timeout=SECONDS, **settings)

    def run(self, *args: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        """``ctrd run --rootfs R ARGS``."""
        return self("run", "--rootfs", self.rootfs, *args, **settings)

    def popen(self, *args: str, through: Sequence[str] = (), **settings: Any) -> subprocess.Popen[bytes]:
        """``ctrd ARGS``, under way. It is killed when the test ends first.

        *through* is a command that sets up its own process and then is it. Never ``preexec_fn``: that runs in a fork of
        this process, in which gRPC makes its descriptors and threads anew, and now and then ends it.
        """
        for stream in ("stdin", "stdout", "stderr"):
            settings.setdefault(stream, subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE)
        settings.setdefault("env", self.environment)
        process = subprocess.Popen([*through, *self.program, *args], **settings)
        self.started.append(process)
        return process

    def detached(self, script: str, *options: str) -> str:
        """``ctrd run -d`` of a shell script; returns the id."""
        done = self.run("-d", *options, "sh", "-c", script)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().strip()

    def ids(self) -> list[str]:
        """The ids that ``ctrd ps`` shows."""
        return self("ps", "-q").stdout.decode().split()

    @staticmethod
    def failure(done: subprocess.CompletedProcess[bytes]) -> str:
        """The one line with which *done* has failed."""
        text = done.stderr.decode()
        assert done.returncode == 125, (done.returncode, text)
        assert text.startswith("ctrd: "), text
        assert text.endswith("\n"), text
        assert text.count("\n") == 1, text
        assert done.stdout == b""
        return text

    @staticmethod
    def until(true: Callable[[], Any], what: str) -> Any:
        """Waits for what nobody announces; returns what *true* gave at last."""
        deadline = time.monotonic() + SECONDS
        while not (value := true()):
            assert time.monotonic() < deadline, f"it never came: {what}"
            time.sleep(0.01)
        return value

    def end(self) -> None:
        """Kills what is still under way, and closes its pipes."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def each_ctrd(engine: Place, rootfs: str, runtime: str) -> Iterator[Ctrd]:
    """``ctrd`` in every engine, with each OCI runtime in turn."""
    ctrd = Ctrd(engine, rootfs)
    yield ctrd
    ctrd.end()


@pytest.fixture
def ctrd(engine: Place, rootfs: str) -> Iterator[Ctrd]:
    """``ctrd`` in every engine with the runtime that it chooses itself, for what no runtime changes."""
    ctrd = Ctrd(engine, rootfs)
    yield ctrd
    ctrd.end()


class Terminal:
    """A pseudo-terminal: *user* is the descriptor of its screen and keyboard, *program* the one that programs get."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.user, self.program = pty.openpty()
        self.seen = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.program, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.program)

    def type(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def read(self) -> bytes:
        """What comes on the screen next; b"" when no program has the terminal any more."""
        ready, _, _ = select.select([self.user], [], [], SECONDS)
        assert ready, f"nothing came after {self.seen!r}"
        try:
            new = os.read(self.user, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""
        self.seen += new
        return new

    def expect(self, text: bytes) -> bytes:
        """Waits until *text* is on the screen; returns what was there up to and with it, and forgets that."""
        while text not in self.seen:
            assert self.read(), f"the terminal closed after {self.seen!r}, before {text!r}"
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def own(self) -> dict[str, Any]:
        """What makes it the controlling terminal of a new process, with all its streams on it: for `Ctrd.popen`."""

        return {"stdin": self.program, "stdout": self.program, "stderr": self.program, "through": ("setsid", "--ctty")}

    def close(self) -> None:
        os.close(self.user)
        os.close(self.program)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of 80 columns and 24 lines."""
    made = Terminal()
    yield made
    made.close()
