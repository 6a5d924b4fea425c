"""A thread whose start was interrupted is waited for all the same."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from libctrd._worker import Worker
from libctrd.errors import UnavailableError


def test_it_ends_when_its_target_has_returned() -> None:
    go = threading.Event()
    worker = Worker(lambda: bool(go.wait()) and None, "test")
    assert worker.ended(0)  # it was not started: there is nothing to wait for
    worker.start()
    assert not worker.ended(0.01)
    go.set()
    assert worker.ended(30)


def test_it_has_ended_when_there_is_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    worker = Worker(lambda: None, "test")
    with pytest.raises(UnavailableError, match="could not start the thread 'test'"):
        worker.start()
    assert worker.ended(0)


_INTERRUPTED = """
import os, signal, threading
from libctrd._worker import Worker

class Late(Worker):
    def _bootstrap(self):                      # before Thread.start() is told that the thread is up
        os.kill(os.getpid(), signal.SIGINT)
        go.wait()
        super()._bootstrap()

go = threading.Event()
worker = Late(lambda: None, "test")
try:
    worker.start()
except KeyboardInterrupt:
    pass
else:
    raise SystemExit("not interrupted")
try:
    worker.join()
except RuntimeError:
    print("join refuses")
go.set()
assert worker.ended(30)
"""


def test_one_whose_start_was_interrupted_is_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "join refuses\n", "")
