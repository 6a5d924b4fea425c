"""Checkpoints for real, with CRIU: what a container that goes on has kept, and where its streams are then (C8, C20)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Place

from libctrd import NULL, PIPE
from libctrd.client import Client
from libctrd.errors import InvalidArgumentError

WAIT = 30.0
Make = Callable[..., dict[str, Any]]
COUNT = "trap 'echo $n; exit 7' TERM; echo ready; n=0; while read line; do n=$((n+1)); echo $n $line; echo err $n >&2; done; exit 3"


def need_criu(engine: Place) -> None:
    criu = shutil.which("criu", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if criu is None or os.system(f"{criu} check >/dev/null 2>&1") != 0:
        pytest.skip("criu does not work on this host: `criu check` says why")
    if engine.runtime_name == "crun" and os.path.isdir("/sys/fs/cgroup/unified"):
        pytest.skip("crun restores nothing where cgroup v1 and v2 are side by side")


def line(stream: Any) -> bytes:
    """The next line, and no byte more."""
    got = b""
    while not got.endswith(b"\n"):
        byte = stream.read(1)
        assert byte, got
        got += byte
    return got


@pytest.mark.local("containerd's shims have pipes of their own for a container")
def test_pipes_go_on_too(client: Client, engine: Place, spec: Make, tmp_path: Path) -> None:  # C8, C20
    need_criu(engine)
    where = str(tmp_path / "state")
    container = client.create("other", spec(COUNT))
    container.start(PIPE)
    assert line(container.stdout) == b"ready\n"
    container.stdin.write(b"a\n")
    assert line(container.stdout) == b"1 a\n"
    container.checkpoint(where)
    assert container.wait(WAIT).known
    for turn in (2, 3):
        again = client.create("other", spec(COUNT))
        again.start(PIPE, checkpoint=where)
        again.stdin.write(b"b\n")
        assert line(again.stdout) == b"%d b\n" % turn
        if turn == 2:
            where = str(tmp_path / "second")
            again.checkpoint(where)
            assert again.stdout.read() == b""
            assert again.stderr.read() == b"err 2\n"
            assert again.wait(WAIT).known
        else:
            again.stdin.close()
            assert again.wait(WAIT).code == 3
