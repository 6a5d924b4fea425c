"""Checkpoints for real, with CRIU: what a container that goes on has kept, and where its streams are then (C8, C20)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.errors import InvalidArgumentError, RuntimeFailedError

WAIT = 30.0
Make = Callable[..., dict[str, Any]]
COUNT = "n=0; while read line; do n=$((n+1)); echo $n $line; echo err $n >&2; done; exit 3"


@pytest.fixture(autouse=True)
def _criu(runtime: str) -> None:
    criu = shutil.which("criu", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if criu is None or os.system(f"{criu} check >/dev/null 2>&1") != 0:
        pytest.skip("criu does not work on this host: `criu check` says why")
    if runtime == "crun" and os.path.isdir("/sys/fs/cgroup/unified"):
        pytest.skip("crun cannot do it where cgroup v1 and v2 are side by side")


def line(stream: Any) -> bytes:
    """The next line, and no byte more."""
    got = b""
    while not got.endswith(b"\n"):
        byte = stream.read(1)
        assert byte, got
        got += byte
    return got


@pytest.mark.local("containerd's shims have pipes of their own for a container")
def test_pipes_go_on_again_and_again(client: Client, runtime: str, spec: Make, tmp_path: Path) -> None:  # C8, C20
    where = str(tmp_path / "state")
    container = client.create("other", spec(COUNT))
    container.start(PIPE)
    container.stdin.write(b"a\n")
    assert line(container.stdout) == b"1 a\n"
    container.checkpoint(where)
    assert (container.stdout.read(), container.stderr.read()) == (b"", b"err 1\n")
    assert container.wait(WAIT).known
    for turn in (2, 3):
        container = client.create("other", spec(COUNT))
        container.start(PIPE, checkpoint=where)
        container.stdin.write(b"b\n")
        assert line(container.stdout) == b"%d b\n" % turn
        if turn == 2:
            where = str(tmp_path / "second")
            container.checkpoint(where)
            assert (container.stdout.read(), container.stderr.read()) == (b"", b"err 2\n")
            assert container.wait(WAIT).known
    container.stdin.close()
    assert (container.stdout.read(), container.stderr.read()) == (b"", b"err 3\n")
    assert container.wait(WAIT).code == 3


@pytest.mark.local("containerd's shims have pipes of their own for a container")
def test_two_go_on_from_one_that_runs_on(client: Client, runtime: str, spec: Make, tmp_path: Path) -> None:  # C8, C20
    where = str(tmp_path / "state")
    web = client.create("web", spec(COUNT))
    web.start(PIPE)
    further = web.exec(
        ["sh", "-c", "read line; exit 4"], stdio=PIPE
    )  # no part of it, though its fifos are ours as well
    web.stdin.write(b"a\n")
    assert line(web.stdout) == b"1 a\n"
    web.checkpoint(where, leave_running=True)
    others = [client.create(id, spec(COUNT)) for id in ("one", "two")]
    for other in others:
        other.start(PIPE, checkpoint=where)
    for container in (web, *others):
        container.stdin.write(b"b\n")
        assert line(container.stdout) == b"2 b\n"
        assert (len(container.pids()) == 1) == (container is not web)
    further.stdin.write(b"\n")
    assert further.wait(WAIT).code == 4
    for container in (web, *others):
        container.stdin.close()
        assert container.wait(WAIT).code == 3


@pytest.mark.local("containerd's shims have pipes of their own for a container")
def test_input_that_was_not_read_yet_goes_on(client: Client, runtime: str, spec: Make, tmp_path: Path) -> None:  # C28
    script = "echo ready; sleep 1; cat"
    container = client.create("other", spec(script))
    container.start(PIPE)
    assert line(container.stdout) == b"ready\n"
    container.stdin.write(b"unread\n")
    container.checkpoint(str(tmp_path / "state"))
    assert container.wait(WAIT).known
    container = client.create("other", spec(script))
    container.start(PIPE, checkpoint=str(tmp_path / "state"))
    container.stdin.write(b"more\n")
    container.stdin.close()
    assert container.stdout.read() == b"unread\nmore\n"
    assert container.wait(WAIT).code == 0


@pytest.mark.local("containerd's shims have terminals of their own for a container")
def test_a_terminal_goes_on_too(client: Client, runtime: str, spec: Make, tmp_path: Path) -> None:  # C20
    container = client.create("other", spec(COUNT, terminal=True))
    container.start(PIPE)
    container.stdin.write(b"a\n")
    assert line(container.stdout) == b"a\r\n"
    assert line(container.stdout) == b"1 a\r\n"
    container.checkpoint(str(tmp_path / "state"))
    assert container.wait(WAIT).known
    container = client.create("other", spec(COUNT, terminal=True))
    container.start(PIPE, checkpoint=str(tmp_path / "state"))
    container.stdin.write(b"b\n")
    assert b"2 b\r\n" in (line(container.stdout), line(container.stdout), line(container.stdout))
    container.clean(force=True)


@pytest.mark.local("the others leave it to CRIU to say so")
def test_pipes_cannot_become_nothing(client: Client, runtime: str, spec: Make, tmp_path: Path) -> None:  # C20
    where = tmp_path / "state"
    container = client.create("other", spec(COUNT))
    container.start(PIPE)
    container.checkpoint(str(where), leave_running=True)
    container.clean(force=True)
    container = client.create("other", spec(COUNT))
    with pytest.raises(
        InvalidArgumentError, match="made with stderr and stdin and stdout in use: start from it with PIPE"
    ):
        container.start(NULL, checkpoint=str(where))
    for text in ("[]", '{"file[1:2]\\nexec-cmd": 0}', '{"file[1:2]": 3}'):
        (where / "ctrd-streams.json").write_text(text)
        with pytest.raises(InvalidArgumentError, match="is damaged"):
            client.create("other", spec(COUNT)).start(PIPE, checkpoint=str(where))


@pytest.mark.local("the others have words of their own for it")
def test_of_what_is_no_checkpoint_criu_tells_why(
    client: Client, runtime: str, spec: Make, tmp_path: Path
) -> None:  # C20
    container = client.create("other", spec(COUNT))
    (tmp_path / "descriptors.json").write_text('["/dev/null", "/dev/null", "/dev/null"]')
    with pytest.raises(RuntimeFailedError, match="CRIU says: "):
        container.start(PIPE, checkpoint=str(tmp_path))
