"""Where `ctrd serve` listens, for calls and for Prometheus, and what it counts (C25)."""

from __future__ import annotations

import os
import socket
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from field_kit import until
from hypothesis import given
from hypothesis import strategies as st
from serve_kit import Events, Served, script, served

from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, UnavailableError
from libctrd.serve import sockets
from libctrd.serve.metrics import Metrics, parse_address

__all__ = ["served"]  # the fixture

one_runtime = pytest.mark.parametrize("served", ["crun"], indirect=True)

# ---- the socket for calls --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


def test_a_path_of_a_socket() -> None:
    assert sockets.path_of("unix:///run/x") == "/run/x"
    longest = "/" + "x" * (sockets.LONGEST - 1)
    assert sockets.path_of(f"unix://{longest}") == longest


@pytest.mark.parametrize(
    "address",
    ["", "/run/x", "unix:", "unix://", "unix://x", "unix:/run/x", "tcp:///run/x", "unix:///a\0b", "unix://@abstract"],
)
def test_an_address_that_is_none_to_listen_at(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unix:///PATH"):
        sockets.path_of(address)


@pytest.mark.parametrize("path", ["/" + "x" * sockets.LONGEST, "/" + "\u20ac" * 36])
def test_a_path_is_too_long_by_its_bytes(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has 10[89] bytes"):
        sockets.path_of(f"unix://{path}")


def test_the_longest_path_can_be_listened_at(tmp_path: Path) -> None:
    path = f"{tmp_path}/" + "x" * (sockets.LONGEST - len(f"{tmp_path}/"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sockets.path_of(f"unix://{path}"))


@given(st.text(max_size=130))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for address in (text, f"unix://{text}", f"unix:///{text}"):
        try:
            path = sockets.path_of(address)
        except InvalidArgumentError:
            continue
        assert f"unix://{path}" == address
        assert len(path.encode()) <= sockets.LONGEST


def test_where_nothing_is_there_is_room(path: Path) -> None:
    sockets.make_room(str(path))
    assert not path.exists()


def test_a_stale_socket_makes_room(path: Path, listener: socket.socket) -> None:
    listener.close()
    sockets.make_room(str(path))
    assert not path.exists()


def test_a_live_one_does_not(path: Path, listener: socket.socket) -> None:
    with pytest.raises(AlreadyExistsError, match="somebody listens"):
        sockets.make_room(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_one_that_has_no_time_to_accept_is_live_too(path: Path, listener: socket.socket) -> None:
    waiting = []
    try:
        for _ in range(10):  # its queue of two is full by then
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(str(path))
        with pytest.raises(AlreadyExistsError, match="somebody listens"):
            sockets.make_room(str(path))
        assert path.exists()
    finally:
        for peer in waiting:
            peer.close()


def test_one_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(AlreadyExistsError, match="somebody listens"):
            sockets.make_room(str(path))
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link"])
def test_what_is_no_socket_is_left_alone(path: Path, listener: socket.socket, kind: str) -> None:
    other = path.with_name("other")
    make = {"file": other.touch, "directory": other.mkdir, "fifo": lambda: os.mkfifo(other)}
    make.get(kind, lambda: other.symlink_to(path))()
    with pytest.raises(AlreadyExistsError, match="is no socket"):
        sockets.make_room(str(other))
    assert other.is_symlink() or other.exists()


def test_a_directory_is_one_servers(tmp_path: Path) -> None:
    held = sockets.lock(str(tmp_path))
    assert stat.S_IMODE((tmp_path / ".serve").stat().st_mode) == 0o700
    with pytest.raises(UnavailableError, match="is served already"):
        sockets.lock(str(tmp_path))
    os.close(held)
    os.close(sockets.lock(str(tmp_path)))


# ---- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        (":9100", ("127.0.0.1", 9100)),
        ("[::1]:9100", ("::1", 9100)),
        ("host.example:0", ("host.example", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_an_address_for_metrics(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "9100",
        "host",
        *(f"host:{port}" for port in ("", "x", "-1", "+1", "65536", " 1", "1\n", "1_0", "\u0663", "9" * 5000)),
    ],
)
def test_an_address_for_metrics_that_is_none(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="say HOST:PORT"):
        parse_address(text)


@given(st.one_of(st.text(max_size=20), st.from_regex(r".*:[0-9]{1,8}", fullmatch=True)))
def test_any_text_is_an_address_for_metrics_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except InvalidArgumentError:
        return
    assert host
    assert 0 <= port <= 65535


def scrape(port: int, host: str = "127.0.0.1") -> dict[str, float]:
    """All that is told at a port: each name with its labels, and its number."""
    pytest.importorskip("prometheus_client", reason="prometheus-client is missing: pip install 'libctrd[metrics]'")
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(number) for name, _, number in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_what_is_counted_is_told() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is missing: pip install 'libctrd[metrics]'")
    metrics = Metrics("127.0.0.1:0", lambda: 3)
    try:
        metrics.call("State", "OK", 0.004, 10, 500)
        metrics.call("State", "OK", 0.6, 10, 500)
        metrics.call("Signal", "UNKNOWN", 0.001, 7, 0)
        metrics.event("exit")
        metrics.streams(2)
        told = scrape(metrics.port)
    finally:
        metrics.close()
        metrics.close()
    assert told['ctrd_serve_calls_total{code="OK",method="State"}'] == 2
    assert told['ctrd_serve_calls_total{code="UNKNOWN",method="Signal"}'] == 1
    assert told['ctrd_serve_call_seconds_count{method="State"}'] == 2
    assert told['ctrd_serve_call_seconds_bucket{le="0.005",method="State"}'] == 1
    assert told['ctrd_serve_call_seconds_bucket{le="1.0",method="State"}'] == 2
    assert told['ctrd_serve_message_bytes_total{direction="received"}'] == 27
    assert told['ctrd_serve_message_bytes_total{direction="sent"}'] == 1000
    assert told['ctrd_serve_events_total{type="exit"}'] == 1
    assert told["ctrd_serve_streams"] == 2
    assert told["ctrd_serve_containers"] == 3
    with pytest.raises(OSError, match="refused"):
        scrape(metrics.port or 9)


def test_without_an_address_nothing_is_counted_and_nobody_is_needed() -> None:
    metrics = Metrics(None, lambda: 0)
    metrics.call("State", "OK", 1.0, 1, 1)
    metrics.event("exit")
    metrics.streams(1)
    assert metrics.port == 0
    metrics.close()


def test_a_port_that_is_taken_and_a_host_that_is_none() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is missing: pip install 'libctrd[metrics]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CtrdError, match=f"serve metrics at 127.0.0.1:{taken.getsockname()[1]}"):
            Metrics(f"127.0.0.1:{taken.getsockname()[1]}", lambda: 0)
    for host in ("256.1.1.1", "no..host", "x" * 300, "a b"):
        with pytest.raises(CtrdError, match="serve metrics at"):
            Metrics(f"{host}:0", lambda: 0)


@one_runtime
def test_a_server_tells_of_its_calls_and_containers(served: Served, rootfs: str) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is missing: pip install 'libctrd[metrics]'")
    served.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served.start("--metrics", f"127.0.0.1:{port}")
    before = scrape(port)
    assert before["ctrd_serve_containers"] == 0
    assert before['ctrd_serve_calls_total{code="OK",method="GetServerVersion"}'] == 1
    events = Events(served)
    bundle = served.bundle("b", script("sleep 1000", rootfs), fifos=False)
    served.call("CreateContainer", id="c", **bundle.create)
    assert served.refused("Signal", id="nobody", pid="init", signal=9).code() is grpc.StatusCode.UNKNOWN
    events.until("start-container", "c")
    told = scrape(port)
    assert told["ctrd_serve_containers"] == 1
    assert told["ctrd_serve_streams"] == 1
    assert told['ctrd_serve_calls_total{code="OK",method="CreateContainer"}'] == 1
    assert told['ctrd_serve_calls_total{code="UNKNOWN",method="Signal"}'] == 1
    assert told['ctrd_serve_events_total{type="start-container"}'] == 1
    assert told['ctrd_serve_message_bytes_total{direction="received"}'] > len(bundle.path)
    served.call("Signal", id="c", pid="init", signal=9)
    events.until("exit", "c", "init", 137)
    events.close()
    until(lambda: scrape(port)["ctrd_serve_streams"] == 0)
    told = scrape(port)
    assert told["ctrd_serve_containers"] == 0
    assert told['ctrd_serve_events_total{type="exit"}'] == 1
