"""What a shim of containerd is told of stdin: its end, once it reads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from libctrd.engine import taskio

WAIT = 20.0


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "init-stdin")
    os.mkfifo(path, 0o700)
    return path


def test_the_end_of_input_is_told_once_the_shim_reads(fifo: str) -> None:  # C7
    told = threading.Event()

    def close() -> None:
        with taskio.until_read(fifo):
            told.set()

    closing = threading.Thread(target=close)
    closing.start()
    assert not told.wait(0.2)
    with open(fifo, "rb", buffering=0) as shim:  # blocks until there is a writer, as a shim's own opening does
        assert told.wait(WAIT)
        closing.join(WAIT)
        assert shim.read() == b""


def test_of_a_fifo_that_is_gone_it_is_told_at_once(tmp_path: Path) -> None:  # C7
    with taskio.until_read(str(tmp_path / "none")):
        pass


def test_a_shim_that_never_reads_is_waited_for_only_so_long(fifo: str, monkeypatch: pytest.MonkeyPatch) -> None:  # C7
    monkeypatch.setattr(taskio, "STDIN_SECONDS", 0.05)
    with taskio.until_read(fifo):
        pass
    taskio.end_terminal(fifo)


def test_the_input_of_a_terminal_is_ended_as_by_a_keyboard(fifo: str) -> None:  # C7
    ending = threading.Thread(target=taskio.end_terminal, args=(fifo,))
    ending.start()
    with open(fifo, "rb", buffering=0) as shim:
        assert shim.read(10) == taskio.END_OF_INPUT
    ending.join(WAIT)
