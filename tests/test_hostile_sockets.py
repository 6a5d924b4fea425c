"""Sockets that are not theirs: an ordinary user reaches none, even where the directories let everybody in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine_kit import need
from field_kit import WAIT, Make
from host_kit import PYTHON

import libctrd
from libctrd.client import Client

if TYPE_CHECKING:
    from serve_kit import Served

pytest_plugins = ["serve_kit"]
pytestmark = [
    pytest.mark.local("its sockets are the shim's and the server's"),
    pytest.mark.skipif(os.geteuid() != 0, reason="it acts as another user: run the suite as root"),
]
NOBODY = 65534
KNOCK = """
    import errno, os, socket, sys
    for path in sys.argv[1:]:
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            peer = socket.socket(socket.AF_UNIX, kind)
            try:
                peer.connect(path)
            except PermissionError:
                continue
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:  # it is of the other kind, and would let us in
                    continue
                raise
            sys.exit(f"{path} let {os.geteuid()} in")
"""


def knock(*paths: str) -> str:
    """What an ordinary user sees who tries to connect to each: "" when none lets him."""
    nobody = [need(shutil.which("setpriv"), "util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    python = shutil.which("python3", path="/usr/bin:/bin") or PYTHON
    done = subprocess.run(
        [*nobody, python, "-c", textwrap.dedent(KNOCK), *paths],
        capture_output=True, text=True, check=False, cwd="/", timeout=WAIT,
    )  # fmt: skip
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def sockets_below(top: str) -> list[str]:
    return [str(path) for path in Path(top).rglob("*") if path.is_socket()]


@pytest.fixture
def opened() -> Any:
    """Lets everybody into all directories on the way to a path, for the time of the test."""
    modes: dict[str, int] = {}

    def enter(path: str) -> None:
        while path != "/":
            mode = stat.S_IMODE(os.stat(path).st_mode)
            if not mode & stat.S_IXOTH and path not in modes:
                modes[path] = mode
                os.chmod(path, mode | 0o055)
            path = os.path.dirname(path)

    yield enter
    for path, mode in modes.items():
        if os.path.exists(path):
            os.chmod(path, mode)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_nobody_else_gets_to_a_shim(
    client: Client, spec: Make, state_dir: str, opened: Callable[[str], None], terminal: bool
) -> None:
    container = client.create("web", spec("sleep 1000", terminal=terminal))
    container.start(libctrd.PIPE)
    opened(container.bundle)
    found = sockets_below(state_dir)
    assert f"{container.bundle}/shim.sock" in found
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in found] == [0o600] * len(found)
    assert knock(*found) == ""
    container.clean(force=True)


def test_nobody_else_gets_to_a_server(served: Served, opened: Callable[[str], None]) -> None:
    opened(served.top)
    found = sockets_below(served.top)
    assert served.socket in found
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in found] == [0o600] * len(found)
    assert knock(*found) == ""
    opened_by_mistake = os.path.join(served.top, "knock")  # that the test itself would see one who gets in
    os.link(served.socket, opened_by_mistake)
    os.chmod(served.socket, 0o666)
    assert "let 65534 in" in knock(opened_by_mistake)
