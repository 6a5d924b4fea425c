"""The input of further processes, and their terminals: told at once, ended once. On a real containerd."""

from __future__ import annotations

import os
import threading

import pytest
from exec_kit import WAIT, close, fifos, output, web

from libctrd import NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import (
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["web"]  # the fixture


# ---- stdin (C7) ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "closed in the callback", "/dev/null", "a pipe at its end", "null"])
def test_the_end_of_its_input_ends_it(web: Container, how: str) -> None:  # C7, nerdctl 5042
    if how == "closed":
        process = web.exec(["cat"], Stdio(PIPE, NULL, NULL))
        assert process.stdin is not None
        process.stdin.close()
        process.stdin.close()
    elif how == "closed in the callback":
        process = web.exec(["cat"], lambda pipe: pipe.stdin.close())  # type: ignore[union-attr]
    elif how == "null":
        process = web.exec(["cat"], NULL)
    else:
        reader = os.open("/dev/null", os.O_RDONLY)
        if how == "a pipe at its end":
            os.close(reader)
            reader, writer = os.pipe()
            os.close(writer)
        process = web.exec(["cat"], Stdio(reader, NULL, NULL))
        os.close(reader)
    assert process.wait(WAIT).code == 0
    close(process)


def test_the_engine_is_told_at_once_by_whoever_closes_first(
    client: Client, web: Container, monkeypatch: pytest.MonkeyPatch
) -> None:  # C7
    told: list[tuple[str, str, str]] = []
    tell = client._engine.close_stdin

    def record(id: str, process: str) -> None:
        told.append((id, process, threading.current_thread().name))
        tell(id, process)

    monkeypatch.setattr(client._engine, "close_stdin", record)
    process = web.exec(["cat"], Stdio(PIPE, NULL, NULL), name="x")
    assert process.stdin is not None
    process.stdin.close()
    assert told == [("web", "x", threading.current_thread().name)]
    process.stdin.close()
    assert process.wait(WAIT).code == 0
    assert len(told) == 1


@pytest.mark.parametrize(("error", "raised"), [(NotFoundError("gone"), False), (UnavailableError("refused"), True)])
def test_the_engines_error_is_the_closers_unless_it_is_that_the_process_is_gone(
    client: Client, web: Container, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: bool
) -> None:  # C7
    process = web.exec(["cat"], Stdio(PIPE, NULL, NULL))
    assert process.stdin is not None

    def refuse(id: str, process: str) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(client._engine, "close_stdin", refuse)
        if raised:
            with pytest.raises(UnavailableError, match="refused"):
                process.stdin.close()
        else:
            process.stdin.close()
    assert process.stdin.closed
    process.signal("KILL")
    assert process.wait(WAIT).code == 137


def test_its_input_arrives_whole(web: Container) -> None:  # C28
    data = os.urandom(1 << 20)
    process = web.exec(["cat"])
    assert process.stdin is not None
    writer = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))  # type: ignore[union-attr]
    writer.start()
    assert output(process) == data
    writer.join(WAIT)
    assert process.wait(WAIT).code == 0
    close(process)


# ---- a terminal ------------------------------------------------------------------------------------------------------


def test_it_can_have_a_terminal(web: Container) -> None:  # C13, C20, C21
    process = web.exec(["sh", "-c", "read x; tty; stty size; echo err >&2; exit 3"], terminal=True, name="t")
    assert fifos(web) == ["t-stdin", "t-stdout"]
    process.resize(123, 45)
    assert process.stdin is not None
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stdin.write(b"go\n")
    text = output(process)
    assert b"45 123" in text
    assert b"err\r\n" in text
    assert b"/dev/" in text
    assert process.wait(WAIT).code == 3
    with pytest.raises(NotFoundError):
        process.resize(80, 24)
    close(process)


def test_one_without_a_terminal_has_no_size(web: Container) -> None:  # C20
    process = web.exec(["cat"], Stdio(PIPE, NULL, NULL))
    with pytest.raises(InvalidArgumentError, match="no terminal"):
        process.resize(80, 24)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WAIT).code == 0
