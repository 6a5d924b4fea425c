"""System calls that fail on purpose: strace(1) injects the error, at the call that a test names, into one process."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from libctrd import proc

WAIT = 60.0


def need_strace() -> str:
    """Its path; a test that cannot have it says so."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is missing on this host: apt-get install strace")
    return path


def faults(call: str, number: int, when: str, path: str) -> list[str]:
    """The words that tell strace so; see `faulty`."""
    of_path = ["-P", path] if path else []
    return [*of_path, "-e", f"trace={call}", "-e", f"inject={call}:error={int(number)}:when={when}"]


def faulty(
    at: Path, real: str, call: str, number: int, *, when: str = "1", path: str = "", children: bool = False
) -> str:
    """A program in the place of *real*, in which that *call* fails with the errno *number*; written to *at*.

    *when* is which of its calls does, as strace has it ("1", "2+"); with *path* only calls count that are about that
    file, with *children* those of its children too. The program keeps its pid and its parent (-D).
    """
    words = [need_strace(), "-D", "-qq", *(["-f"] if children else []), "-o", "/dev/null", "-e", "signal=none"]
    words += faults(call, number, when, path)
    at.write_text(f'#!/bin/sh\nexec {shlex.join(words)} -- {shlex.quote(real)} "$@"\n')
    at.chmod(0o755)
    return str(at)


def started_alone(directory: Path, program: str, words: list[str], starter: bool = True) -> tuple[socket.socket, int]:
    """That program as a shim is started, without a client of ours: the other end of its socket, and its exit code."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    state = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fds = {3: its.fileno(), 4: state} if starter else {}
        pid = proc.spawn([program, *words], fds=fds, env=dict(os.environ))
    finally:
        its.close()
        os.close(state)
    ended = proc.reap(pid)
    assert ended is not None
    return ours, ended.code


@contextlib.contextmanager
def fails(call: str, number: int, *, when: str = "1", path: str = "", pid: int = 0) -> Iterator[None]:
    """Meanwhile that call fails in this process with all of its threads, or in that of *pid* alone (see `faulty`)."""
    whom = ["-p", str(pid)] if pid else ["-f", "-p", str(os.getpid())]
    words = [need_strace(), "-o", "/dev/null", "-e", "signal=none", *faults(call, number, when, path), *whom]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    with tracer.stderr:
        said = ""
        while "attached" not in said:
            said = tracer.stderr.readline()
            assert said, "strace has ended"
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(WAIT)


def in_python(script: str, *words: str) -> str:
    """What a fresh Python prints that runs *script*, with `fails` and the module errno at hand."""
    source = f"import errno, os, sys, threading\nfrom fault_kit import fails\n{textwrap.dedent(script)}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, env=environment, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
