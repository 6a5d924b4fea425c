"""The channel to a containerd: what a real daemon answers, and every way that there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from libctrd import protos
from libctrd.engine.channel import Channel
from libctrd.errors import (
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

VERSION = "containerd.services.version.v1.Version/Version"
EMPTY = protos.message("google.protobuf.Empty")
EVENTS = protos.package("containerd.services.events.v1")
NAMESPACES = protos.package("containerd.services.namespaces.v1")
TASKS = protos.package("containerd.services.tasks.v1")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a containerd that is private to these tests, and runs no containers."""
    directory = tmp_path_factory.mktemp("d")
    directory.chmod(0o700)
    config = directory / "config.toml"
    path = directory / "s"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{path}"\n'
        f'[ttrpc]\naddress = "{path}.ttrpc"\n'
    )
    with subprocess.Popen(["containerd", "--config", config], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # it says so once it serves, and then says more that someone must read
            if "successfully booted" in line:
                break
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        yield path
        process.terminate()
        process.wait()
        reader.join()


@pytest.fixture
def channel(daemon: Path) -> Iterator[Channel]:
    channel = Channel(f"unix://{daemon}", "tests")
    yield channel
    channel.close()


# C26
def test_a_call_is_answered(channel: Channel) -> None:
    assert channel.call(VERSION, EMPTY(), doing="ask").version


# C26
def test_what_is_unknown_is_not_found(channel: Channel) -> None:
    with pytest.raises(NotFoundError, match=r"could not look at x: .*not found"):
        channel.call("containerd.services.tasks.v1.Tasks/Get", TASKS.GetRequest(container_id="x"), doing="look at x")


# C26
def test_a_service_that_the_daemon_has_not_is_unsupported(channel: Channel) -> None:
    with pytest.raises(UnsupportedError, match="too old"):
        channel.call(
            "containerd.task.v2.Task/State",
            protos.package("containerd.task.v2").StateRequest(id="x"),
            doing="ask for a shim's state",
        )


# C26
def test_a_future_ends_with_an_error_that_can_be_put_into_words(channel: Channel) -> None:
    ended = channel.future("containerd.services.tasks.v1.Tasks/Wait", TASKS.WaitRequest(container_id="x"))
    assert isinstance(channel.error(ended.exception(timeout=10), "wait for x"), NotFoundError)


# C26
def test_a_stream_gives_what_comes_until_it_is_cancelled(channel: Channel) -> None:
    stream = channel.stream("containerd.services.events.v1.Events/Subscribe", EVENTS.SubscribeRequest(), doing="listen")
    seen = threading.Event()

    def make_namespaces() -> None:
        number = 0
        while not seen.is_set():  # until one is made after the daemon has taken up the subscription
            number += 1
            request = NAMESPACES.CreateNamespaceRequest(namespace=NAMESPACES.Namespace(name=f"n{number}"))
            channel.call("containerd.services.namespaces.v1.Namespaces/Create", request, doing="make a namespace")

    maker = threading.Thread(target=make_namespaces)
    maker.start()
    envelope = next(stream)
    seen.set()
    maker.join()
    assert envelope.topic == "/namespaces/create"
    stream.cancel()
    with pytest.raises(DeadlineError):
        for _ in stream:
            pass


# C26
def test_a_closed_channel_refuses(channel: Channel) -> None:
    channel.call(VERSION, EMPTY(), doing="ask")
    channel.close()
    channel.close()
    with pytest.raises(ClosedError):
        channel.call(VERSION, EMPTY(), doing="ask")


# C26
@pytest.mark.parametrize(
    "address", ["", "local:", "/run/x", "unix:x", "unix://x", "unix:///" + "x" * 200, "unix:///\0"]
)
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address"):
        Channel(address, "tests")


# C26
@pytest.mark.parametrize("namespace", ["", "a b", "a\n", "é", "-a", "a" * 77])
def test_a_namespace_that_cannot_be_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidArgumentError, match="namespace"):
        Channel("unix:///x", namespace)


# C26
def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="could not ask: there is no socket"):
        Channel(f"unix://{tmp_path}/s", "tests").call(VERSION, EMPTY(), doing="ask")


# C26
def test_something_that_is_no_socket(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is no socket"):
        Channel(f"unix://{tmp_path}", "tests").call(VERSION, EMPTY(), doing="ask")


# C26
def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(tmp_path / "s"))
    with pytest.raises(UnavailableError, match="nobody listens"):
        Channel(f"unix://{tmp_path}/s", "tests").call(VERSION, EMPTY(), doing="ask")
