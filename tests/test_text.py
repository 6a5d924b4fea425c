"""A container as `subprocess.Popen` has a process: streams of text, lines, `communicate`, a block."""

from __future__ import annotations

import io
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from container_kit import as_before, descriptors, nothing_left
from engine_kit import Place
from hypothesis import given
from hypothesis import strategies as st

import libctrd
from libctrd import PIPE, text
from libctrd.client import Client
from libctrd.errors import ClosedError, DeadlineError, ExitError, InvalidArgumentError, NotFoundError

WAIT = 30.0
BIG = 3 << 20
Make = Callable[..., dict[str, Any]]


# ---- text ----------------------------------------------------------------------------------------------------------


def test_run_takes_and_gives_text(any_client: Client, rootfs: str) -> None:
    script = ["/bin/sh", "-c", "cat; printf 'one\\r\\ntwo' >&2; exit 3"]
    done = libctrd.run(script, rootfs=rootfs, client=any_client, input="h\u00e4h\n", capture_output=True, text=True)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "h\u00e4h\n", "one\ntwo")
    done = libctrd.run(
        script, rootfs=rootfs, client=any_client, input="h\u00e4h", capture_output=True, encoding="latin-1"
    )
    assert done.stdout == "h\u00e4h"
    with pytest.raises(ExitError, match="two") as caught:
        done.check()
    assert caught.value.stderr == "one\ntwo"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"text": True, "input": b"bytes"}, "give a str, for text=True was given"),
        ({"input": "text"}, "give bytes, or give text=True"),
        ({"encoding": "no such"}, "unknown encoding: no such"),
        ({"errors": "no such"}, "unknown error handler name 'no such'"),
    ],
)
def test_what_cannot_be_text_is_told_before_anything_runs(
    given: dict[str, Any], why: str, any_client: Client, rootfs: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        libctrd.run(["/bin/cat"], rootfs=rootfs, client=any_client, **given)
    assert any_client.containers() == []


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
def test_text_goes_through_unchanged_but_for_the_ends_of_lines(data: str, encoding: str) -> None:
    chosen = text.wanted(False, encoding, None)
    there = text.decoded(text.encoded(data, chosen), chosen)
    assert there == data.replace("\r\n", "\n").replace("\r", "\n")
    assert text.decoded(b"as it is", None) == b"as it is"
    assert text.decoded(None, chosen) is None


def test_streams_of_text_are_read_by_lines_and_printed_to(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("while read line; do echo got $line; done; echo end >&2"))
    container.start(PIPE, text=True)
    assert isinstance(container.stdout, io.TextIOWrapper)
    assert container.stdout is container.stdout
    for word in ("one", "two", "\u00fcber"):
        print(word, file=container.stdin)
        assert container.stdout.readline() == f"got {word}\n"
    process = container.exec(["/bin/sh", "-c", "echo further"], encoding="utf-8")
    assert list(process.stdout) == ["further\n"]
    assert process.wait(WAIT).code == 0
    container.stdin.close()
    assert container.stdout.read() == ""
    assert container.stderr.read() == "end\n"
    assert container.wait(WAIT).code == 0


def test_the_stderr_of_a_terminal_is_empty_text_too(any_client: Client, spec: Make) -> None:  # C13
    container = any_client.create("web", spec("echo hello", terminal=True))
    container.start(PIPE, text=True)
    assert (container.stdout.read(), container.stderr.read()) == ("hello\n", "")
    container.wait(WAIT)


def test_bytes_come_by_lines_as_well(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("echo one; echo two; printf three"))
    container.start(PIPE)
    assert list(container.stdout) == [b"one\n", b"two\n", b"three"]
    container.wait(WAIT)


# ---- communicate ---------------------------------------------------------------------------------------------------


def test_communicate_sends_all_and_gathers_all(any_client: Client, spec: Make) -> None:  # C28
    """More each way than pipes hold, so that whoever does one thing after the other stands still."""
    data = os.urandom(BIG)
    container = any_client.create("web", spec(f"head -c {BIG} /dev/zero >&2; cat; exit 4"))
    container.start(PIPE)
    assert container.communicate(data, WAIT) == (data, bytes(BIG))
    assert container.wait(0).code == 4
    assert container.communicate() == (b"", b""), "it is all given"


def test_communicate_that_takes_too_long_loses_nothing(any_client: Client, spec: Make) -> None:  # C28
    container = any_client.create("web", spec("echo begun; read x; echo $x; cat"))
    container.start(libctrd.Stdio(PIPE, PIPE, libctrd.NULL), text=True)
    process = container.exec(["/bin/sh", "-c", "cat; echo err >&2; exit 6"])
    assert process.communicate(b"further", WAIT) == (b"further", b"err\n")
    assert process.wait(0).code == 6
    with pytest.raises(DeadlineError, match=r"container 'web' did not end within 0\.1 s"):
        any_client.get("web").wait(0.1)
    with any_client.get("web").exec(["/bin/cat"]).stdin:
        pass
    assert container.communicate("word\nrest", WAIT) == ("begun\nword\nrest", None)
    with pytest.raises(InvalidArgumentError, match="has sent an input before"):
        container.communicate("again")


def test_communicate_can_be_called_again_after_its_time_limit(any_client: Client, spec: Make) -> None:  # C28
    go = f"/tmp/{uuid.uuid4()}"
    container = any_client.create(
        "web", spec(f"echo begun; cat; while test ! -e {go}; do usleep 10000; done; echo end")
    )
    container.start(PIPE)
    for _ in range(2):
        with pytest.raises(DeadlineError):
            container.communicate(b"sent once" if _ == 0 else None, 0.1)
    container.exec(["/bin/touch", go], libctrd.NULL).wait(WAIT)
    assert container.communicate(timeout=WAIT) == (b"begun\nsent onceend\n", b"")


def test_communicate_needs_what_it_is_to_use(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("sleep 1000"))
    with pytest.raises(InvalidArgumentError, match="was not started by this client: attach to it first"):
        container.communicate()
    container.start(libctrd.Stdio(libctrd.NULL, PIPE, PIPE))
    with pytest.raises(InvalidArgumentError, match="has no stdin to write to: start it with stdin=PIPE"):
        container.communicate(b"input")
    with pytest.raises(InvalidArgumentError, match="timeout="):
        container.communicate(timeout="soon")  # type: ignore[arg-type]
    killer = threading.Timer(0.2, container.signal, ("KILL",))
    killer.start()
    assert container.communicate(timeout=WAIT) == (b"", b"")
    killer.join()
    assert container.wait().code == 137


# ---- a block -------------------------------------------------------------------------------------------------------


def test_a_container_in_a_block_is_gone_after_it(engine: Place, rootfs: str) -> None:
    with engine.connect() as client:
        before = descriptors()
        with client.container(["/bin/cat"], rootfs=rootfs, id="web", stdin=PIPE, stdout=PIPE) as container:
            container.stdin.write(b"there\n")
            assert container.stdout.readline() == b"there\n"
            assert client.get("web").status == "running"
        with pytest.raises(NotFoundError):
            client.get("web")
        with pytest.raises(ClosedError):
            container.stdout.read()
        assert container.wait().code == 137

        class Interruption(Exception):
            pass

        with pytest.raises(Interruption), client.container(["/bin/sleep", "1000"], rootfs=rootfs, memory="64m"):
            raise Interruption
        with client.container(
            ["/bin/sh", "-c", "echo all; exit 5"], rootfs=rootfs, stdout=PIPE, text=True
        ) as container:
            assert container.communicate(timeout=WAIT) == ("all\n", None)
        assert container.wait().code == 5
        assert client.containers() == []
        del container
        as_before(before)
    nothing_left(engine.root)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "give one of: a spec; args and the rootfs"),
        ({"rootfs": "/", "spec": {}}, "give one of: a spec; args and the rootfs"),
        ({"rootfs": "/"}, "give the args to run on that rootfs"),
        ({"args": ["true"], "spec": {"process": {}}}, "these belong into the spec that was given"),
    ],
)
def test_what_shall_run_must_be_told_in_one_way(given: dict[str, Any], why: str, any_client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        any_client.container(**given)
    with pytest.raises(InvalidArgumentError, match=why):
        libctrd.run(**given, client=any_client)
    assert any_client.containers() == []


def test_a_block_that_cannot_begin_leaves_nothing(any_client: Client, rootfs: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown encoding"):
        any_client.container(["/bin/true"], rootfs=rootfs, encoding="no such")
    with pytest.raises(libctrd.CtrdError):
        any_client.container(["/no/such/program"], rootfs=rootfs)
    assert any_client.containers() == []
