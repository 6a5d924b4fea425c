"""The channel to a containerd: what a real daemon answers, and every way that there is none."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from containerd_kit import program, stop_still
from field_kit import need_root, output_of
from peer_kit import Peer, as_nobody, peer

from libctrd import protos
from libctrd.engine.channel import Channel
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

__all__ = ["peer"]  # a fixture of another file

VERSION = "containerd.services.version.v1.Version/Version"
EMPTY = protos.message("google.protobuf.Empty")
CONTENT = protos.package("containerd.services.content.v1")
EVENTS = protos.package("containerd.services.events.v1")
LEASES = protos.package("containerd.services.leases.v1")
NAMESPACES = protos.package("containerd.services.namespaces.v1")
TASKS = protos.package("containerd.services.tasks.v1")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The socket and the pid of a containerd that is private to these tests, and runs no containers."""
    directory = tmp_path_factory.mktemp("d")
    directory.chmod(0o700)
    config = directory / "config.toml"
    path = directory / "s"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{path}"\n'
        f'[ttrpc]\naddress = "{path}.ttrpc"\n'
    )
    with subprocess.Popen([program("containerd"), "--config", config], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # it says so once it serves, and then says more that someone must read
            if "successfully booted" in line:
                break
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        yield path, process.pid
        process.terminate()
        process.wait()
        reader.join()


@pytest.fixture
def daemon(running: tuple[Path, int]) -> Path:
    return running[0]


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
def test_what_a_lease_is_named_for_is_held_by_it_and_streams_go_both_ways(channel: Channel) -> None:
    data = os.urandom(100_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    request = LEASES.CreateRequest(id="of-a-test")
    channel.call("containerd.services.leases.v1.Leases/Create", request, doing="make a lease")

    def frames() -> Iterator[object]:
        yield CONTENT.WriteContentRequest(action=CONTENT.WriteAction.STAT, ref="a", total=len(data))
        for at in range(0, len(data), 30_000):
            yield CONTENT.WriteContentRequest(
                action=CONTENT.WriteAction.WRITE, ref="a", offset=at, data=data[at : at + 30_000]
            )
        yield CONTENT.WriteContentRequest(
            action=CONTENT.WriteAction.COMMIT, ref="a", offset=len(data), total=len(data), expected=digest
        )

    stream = channel.stream(
        "containerd.services.content.v1.Content/Write", frames(), doing="write a blob", timeout=10, lease=request.id
    )
    offsets = [reply.offset for reply in stream]
    assert (offsets[:4], offsets[-1]) == ([0, 30_000, 60_000, 90_000], len(data))
    listed = channel.call(
        "containerd.services.leases.v1.Leases/ListResources",
        LEASES.ListResourcesRequest(id=request.id),
        doing="look at what a lease holds",
    )
    assert [(held.type, held.id) for held in listed.resources] == [("content", digest)]
    read = channel.stream(
        "containerd.services.content.v1.Content/Read", CONTENT.ReadContentRequest(digest=digest), doing="read a blob"
    )
    assert b"".join(part.data for part in read) == data


# C26
def test_a_stream_that_fails_raises_when_it_is_read(channel: Channel) -> None:
    digest = f"sha256:{'0' * 64}"
    read = channel.stream(
        "containerd.services.content.v1.Content/Read", CONTENT.ReadContentRequest(digest=digest), doing="read a blob"
    )
    with pytest.raises(NotFoundError, match="could not read a blob: "):
        list(read)


# C26
def test_what_is_there_already_is_told_apart(channel: Channel) -> None:
    request = NAMESPACES.CreateNamespaceRequest(namespace=NAMESPACES.Namespace(name="twice"))
    channel.call("containerd.services.namespaces.v1.Namespaces/Create", request, doing="make it")
    with pytest.raises(AlreadyExistsError, match="could not make it again"):
        channel.call("containerd.services.namespaces.v1.Namespaces/Create", request, doing="make it again")


# C26
def test_a_message_of_16_mib_goes_and_one_that_is_longer_is_refused(channel: Channel) -> None:
    def publish(size: int) -> None:
        request = EVENTS.PublishRequest(topic="/a", event=protos.any("b", bytes(size)))
        channel.call("containerd.services.events.v1.Events/Publish", request, doing="publish")

    publish((16 << 20) - 100)
    with pytest.raises(InvalidArgumentError, match="could not publish: a message to containerd has at most 16 MiB"):
        publish(16 << 20)
    publish(100)


# C26
@pytest.mark.parametrize("lease", ["a\nb", "é", "a\0"], ids=repr)
def test_a_lease_that_cannot_be_a_header_is_refused(channel: Channel, lease: str) -> None:
    with pytest.raises(InvalidArgumentError, match="could not ask: no lease can be called"):
        channel.call(VERSION, EMPTY(), doing="ask", lease=lease)


# C26
def test_an_answer_that_does_not_come_costs_the_limit_and_no_more(channel: Channel) -> None:
    """Ours may pass first, or that of the daemon, which is told it: both are the caller's."""
    began = time.monotonic()
    stream = channel.stream(
        "containerd.services.events.v1.Events/Subscribe", EVENTS.SubscribeRequest(), doing="listen", timeout=0.2
    )
    with pytest.raises(DeadlineError, match=r"could not listen: .*(did not answer within|deadline exceeded)"):
        next(stream)
    assert time.monotonic() - began < 1


# C24, C26
class Raised(BaseException):
    """What a handler of signals raises."""


@pytest.mark.parametrize("whole", [True, False])
def test_a_signal_gives_a_call_up_unless_it_is_whole(channel: Channel, running: tuple[Path, int], whole: bool) -> None:
    def handler(*_: object) -> None:
        raise Raised

    _, pid = running
    create = "containerd.services.leases.v1.Leases/Create"
    channel.call(create, LEASES.CreateRequest(id=f"first-{whole}"), doing="ask")
    went_on = threading.Event()

    def go_on() -> None:
        went_on.set()
        os.kill(pid, signal.SIGCONT)

    before = signal.signal(signal.SIGALRM, handler)
    stop_still(pid)
    timer = threading.Timer(1.0, go_on)
    timer.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Raised):
            channel.call(create, LEASES.CreateRequest(id=f"second-{whole}"), doing="ask", whole=whole)
        assert went_on.is_set() == whole
    finally:
        timer.join()
        signal.signal(signal.SIGALRM, before)
    if whole:
        found = channel.call("containerd.services.leases.v1.Leases/List", LEASES.ListRequest(), doing="ask").leases
        assert f"second-{whole}" in [lease.id for lease in found]


def test_one_that_is_back_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def serve() -> grpc.Server:
        service, _, method = VERSION.partition("/")
        answer = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: answer})])
        server.add_insecure_port(f"unix://{path}")
        server.start()
        return server

    server = serve()
    channel = Channel(f"unix://{path}", "tests")
    for _ in range(3):
        channel.call(VERSION, EMPTY(), doing="look")
        server.stop(None).wait()
        for _ in range(3):  # each leaves gRPC waiting for longer before it tries again
            with pytest.raises(UnavailableError, match=r"could not look: there is no socket|nobody listens"):
                channel.call(VERSION, EMPTY(), doing="look")
        server = serve()
    channel.call(VERSION, EMPTY(), doing="look")
    channel.close()
    server.stop(None).wait()


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
@pytest.mark.parametrize("address", [None, 5, b"unix:///x"])
def test_an_address_that_is_no_str_is_refused(address: object) -> None:
    with pytest.raises(InvalidArgumentError, match="address"):
        Channel(address, "tests")  # type: ignore[arg-type]


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


def asked(path: Path, timeout: float = 5) -> CtrdError:
    """The error of a call to whatever listens at *path*, which must come within *timeout* seconds, and in one line."""
    channel = Channel(f"unix://{path}", "tests")
    began = time.monotonic()
    with pytest.raises(CtrdError) as caught:
        channel.call(VERSION, EMPTY(), doing="ask", timeout=timeout)
    took = time.monotonic() - began
    channel.close()
    assert took < timeout + 0.4, "more than was asked for"
    text = str(caught.value)
    assert text.startswith("could not ask: ")
    assert "\n" not in text
    assert str(path) in text
    return caught.value


# C26
@pytest.mark.parametrize(
    "words",
    [b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 64, bytes(range(256)), b"x"],
)
def test_a_peer_that_speaks_something_else(peer: Peer, words: bytes) -> None:
    peer.says(words)
    error = asked(peer.path)
    assert isinstance(error, UnavailableError)
    assert "does not speak gRPC" in str(error)


# C26
def test_a_peer_that_hangs_up(peer: Peer) -> None:
    peer.says(b"")
    error = asked(peer.path)
    assert isinstance(error, UnavailableError)
    assert "does not speak gRPC" in str(error)


# C26
@pytest.mark.parametrize("timeout", [0.4, 2])
def test_a_peer_that_is_silent_costs_the_limit_and_no_more(peer: Peer, timeout: float) -> None:
    error = asked(peer.path, timeout)
    assert isinstance(error, DeadlineError)
    assert "says nothing: is it containerd, and is that stopped?" in str(error)


# C26
def test_a_peer_that_accepts_no_more_connections(peer: Peer) -> None:
    with peer.full():
        error = asked(peer.path)
    assert isinstance(error, UnavailableError)
    assert "accepts no more connections" in str(error)


# C26
def test_the_socket_that_is_for_shims_is_told(tmp_path: Path, daemon: Path) -> None:
    error = asked(daemon.with_name(daemon.name + ".ttrpc"), 1)
    assert isinstance(error, (UnavailableError, DeadlineError))
    assert "the socket for gRPC is the one without .ttrpc" in str(error)


# C26
@pytest.mark.parametrize("closed", ["directory", "socket"])
def test_who_may_not_use_the_socket_is_told_so(peer: Peer, closed: str) -> None:
    need_root()
    peer.path.chmod(0o600)
    peer.path.parent.chmod(0o700 if closed == "directory" else 0o755)
    where = f"user 65534 may not {'reach' if closed == 'directory' else 'use the socket'} {peer.path}"

    def ask() -> str:
        try:
            Channel(f"unix://{peer.path}", "tests").call(VERSION, EMPTY(), doing="ask")
        except UnavailableError as error:
            return str(error)
        return "it was answered"

    said = as_nobody(ask)
    assert said.startswith(f"could not ask: {where}")
    assert "run as root" in said


# C26
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_package_may_bring_messages_of_the_same_names(first: str) -> None:
    """In the process's own pool, with other fields: theirs and ours are both what they were meant to be."""
    script = """
        import sys
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        def ours():
            from libctrd import protos
            return protos

        def theirs():
            file = descriptor_pb2.FileDescriptorProto(
                name="libctrd/protos/types.proto", package="containerd.types", syntax="proto3"
            )
            mount = file.message_type.add(name="Mount")
            mount.field.add(name="other", number=1, type="TYPE_INT64", label="LABEL_OPTIONAL")
            pool = descriptor_pool.Default()
            pool.AddSerializedFile(file.SerializeToString())
            from google.protobuf import any_pb2, empty_pb2, timestamp_pb2
            return message_factory.GetMessageClass(pool.FindMessageTypeByName("containerd.types.Mount"))

        made = [which() for which in ((theirs, ours) if sys.argv[1] == "theirs" else (ours, theirs))]
        protos, other = reversed(made) if sys.argv[1] == "theirs" else made
        mine = protos.message("containerd.types.Mount")
        print(mine(source="s").SerializeToString(), other(other=5).SerializeToString())
        print(protos.any("u", b"v").type_url)
        """
    assert output_of(script, first).splitlines() == [r"b'\x12\x01s' b'\x08\x05'", "u"]
