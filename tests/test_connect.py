"""Connecting to what is no containerd, by `libctrd.connect` and by the command: one clear line, and nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cli_kit import Ctrd
from containerd_kit import Containerd, stop_still
from field_kit import WAIT, census, more_than, need_root, refused, until
from peer_kit import Peer, as_nobody, peer

import libctrd
from libctrd import engine
from libctrd.engine.channel import Channel
from libctrd.errors import CtrdError, DeadlineError, InvalidArgumentError, UnavailableError, UnsupportedError

__all__ = ["peer"]  # a fixture of another file

HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request"


@pytest.fixture
def no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our directories would be made in a place of the test's own; at the end there are none."""
    place = tmp_path / "run"
    monkeypatch.setattr(engine, "default_state_dir", lambda: str(place / "ctrd"))
    yield
    assert not place.exists(), "a directory was made for a daemon that is none"


@pytest.fixture
def grpc_is_up() -> Iterator[None]:
    """gRPC's own descriptors are there from before the test until after it, so that what a test leaves can be told."""
    with tempfile.TemporaryDirectory(prefix="ctrd-peer-") as directory:
        held = Peer(Path(directory) / "s")
        channel = grpc.insecure_channel(held.address)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/a.B/C")(b"", timeout=0.01)
        yield
        channel.close()
        held.close()


@contextlib.contextmanager
def refused_in_time(kind: type[CtrdError], *words: str) -> Iterator[None]:
    """Like `refused`; but gRPC closes a connection at its leisure, and the limit of a call holds."""
    before, began = census(), time.monotonic()
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert time.monotonic() - began < 5
    del caught
    until(lambda: gc.collect() >= 0 and more_than(before) == {}, 5)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls have a second, not ten."""
    monkeypatch.setitem(Channel.call.__kwdefaults__, "timeout", 1.0)


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that speaks gRPC and has no service at all."""
    with tempfile.TemporaryDirectory(prefix="ctrd-peer-") as directory, ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        address = f"unix://{directory}/s"
        server.add_insecure_port(address)
        server.start()
        yield address
        server.stop(None).wait()


def nothing_there(path: Path) -> None:
    """No socket."""


def nobody_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))


def a_plain_file(path: Path) -> None:
    path.write_text("a socket, really")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


DEAD = [
    (nothing_there, "there is no socket"),
    (nobody_listens, "nobody listens"),
    (a_plain_file, "is no socket"),
    (a_directory, "is no socket"),
    (a_dangling_link, "there is no socket"),
]


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
@pytest.mark.parametrize(("make", "words"), DEAD, ids=[make.__name__ for make, _ in DEAD])
def test_where_no_daemon_is(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "s"
    make(path)
    with refused(UnavailableError, "could not ask containerd who it is", words, str(path)):
        libctrd.connect(f"unix://{path}")
    with refused(UnavailableError, words):  # the path alone is an address as well
        libctrd.connect(str(path))


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
@pytest.mark.parametrize("words", [HTTP, b"SSH-2.0-x\r\n", bytes(range(50)), b""], ids=["http", "ssh", "noise", "end"])
def test_a_peer_that_speaks_something_else(peer: Peer, words: bytes) -> None:
    peer.says(words)
    with refused_in_time(UnavailableError, "does not speak gRPC", str(peer.path)):
        libctrd.connect(peer.address)


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
def test_a_peer_that_is_silent(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    with refused_in_time(DeadlineError, "says nothing: is it containerd, and is that stopped?", str(peer.path)):
        libctrd.connect(peer.address)


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
def test_a_peer_with_no_room_for_a_connection(peer: Peer) -> None:
    with peer.full(), refused(UnavailableError, "accepts no more connections", str(peer.path)):
        libctrd.connect(peer.address)


# C26
@pytest.mark.usefixtures("no_state", "grpc_is_up")
def test_a_server_of_grpc_that_is_no_containerd(stranger: str) -> None:
    with refused_in_time(UnsupportedError, f"what listens at {stranger} is no containerd 1.x or 2.x"):
        libctrd.connect(stranger)


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
@pytest.mark.parametrize("closed", ["directory", "socket"])
def test_a_socket_that_is_for_others(peer: Peer, closed: str) -> None:
    need_root()
    peer.path.chmod(0o600)
    peer.path.parent.chmod(0o700 if closed == "directory" else 0o755)

    def ask() -> str:
        try:
            libctrd.connect(peer.address)
        except UnavailableError as error:
            return str(error)
        return "it was let in"

    said = as_nobody(ask)
    assert f"user 65534 may not {'reach' if closed == 'directory' else 'use the socket'} {peer.path}" in said


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
@pytest.mark.parametrize(
    "namespace", ["a b", "a\n", "é", "-a", "a..b", "../x", "a/b", "a" * 77, "\0", 5, b"a"], ids=repr
)
def test_a_namespace_that_cannot_be(peer: Peer, namespace: object) -> None:
    with refused(InvalidArgumentError, "namespace"):
        libctrd.connect(peer.address, namespace=namespace)  # type: ignore[arg-type]


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
@pytest.mark.parametrize(
    "address",
    ["unix:", "unix://", "unix:///" + "x" * 200, "unix://relative", "unix:relative", "/" + "x" * 200, "unix:///a\0b"],
    ids=lambda address: repr(address[:20]),
)
def test_an_address_that_names_no_socket(address: str) -> None:
    with refused(InvalidArgumentError, "address"):
        libctrd.connect(address)


# C26
@pytest.mark.usefixtures("no_state", "same_resources")
def test_a_daemon_that_is_stopped(new_containerd: Callable[[], Containerd], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    daemon = new_containerd()
    stop_still(daemon.pid)
    until(lambda: {state(thread) for thread in Path(f"/proc/{daemon.pid}/task").iterdir()} == {"T"})
    with refused_in_time(DeadlineError, "is it containerd, and is that stopped?", daemon.socket):
        libctrd.connect(daemon.address)


def state(thread: Path) -> str:
    """A letter; T is stopped (proc_pid_stat(5), field 3)."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def failure(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The one line with which ``ctrd --address A ARGS`` fails; it may make nothing where our directories would be."""
    place = tmp_path / "run"
    place.mkdir()
    program = [sys.executable, "-c", COMMAND, os.fspath(place)]

    def fail(address: str, *args: str) -> str:
        return Ctrd.failure(subprocess.run([*program, "--address", address, *args], timeout=WAIT, capture_output=True))

    yield fail
    assert os.listdir(place) == []


# The command as it is, but for the place of its directories, which is fixed for root, and for calls of ten seconds.
COMMAND = """
import os, sys
from libctrd import engine
from libctrd.engine.channel import Channel
place = sys.argv.pop(1)
engine.default_state_dir = lambda: os.path.join(place, "ctrd")
from libctrd.engine.channel import Channel
Channel.call.__kwdefaults__["timeout"] = 1.0
from libctrd.cli import main
main()
"""


# C26
@pytest.mark.parametrize(("make", "words"), DEAD, ids=[make.__name__ for make, _ in DEAD])
def test_the_command_where_no_daemon_is(
    tmp_path: Path, failure: Callable[..., str], make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "s"
    make(path)
    for command in (("ps",), ("run", "--rootfs", "/", "true")):
        said = failure(f"unix://{path}", *command)
        assert words in said
        assert str(path) in said


# C26
def test_the_command_with_peers_of_other_kinds(peer: Peer, stranger: str, failure: Callable[..., str]) -> None:
    with peer.full():
        assert "accepts no more connections" in failure(peer.address, "ps")
    peer.says(HTTP)
    assert "does not speak gRPC" in failure(peer.address, "ps")
    assert "is no containerd 1.x or 2.x" in failure(stranger, "ps")


# C26
def test_the_command_with_a_peer_that_is_silent(peer: Peer, failure: Callable[..., str]) -> None:
    assert "says nothing" in failure(peer.address, "ps")


# C26
def test_the_command_with_a_namespace_that_cannot_be(peer: Peer, failure: Callable[..., str]) -> None:
    assert "namespace" in failure(peer.address, "--namespace", "a b", "ps")
    assert "namespace" in failure(peer.address, "--namespace", "a/../b", "ps")
