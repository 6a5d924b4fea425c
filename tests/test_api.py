"""The api engine: which generation listens, the events across the death of the daemon, the time that is kept."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_kit import ApiPlace
from client_kit import Recorder
from engine_kit import need_runtime
from field_kit import until
from hypothesis import given
from hypothesis import strategies as st

import libctrd
from libctrd import protos
from libctrd.engine import apioperations, apitime, apiwire, startmark
from libctrd.engine.apitime import KeptTime
from libctrd.errors import InvalidArgumentError, NotFoundError, RuntimeFailedError, UnsupportedError

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def place() -> Any:
    need_runtime("crun")
    one = ApiPlace()
    yield one
    one.remove()


# ---- the time that is kept -------------------------------------------------------------------------------------------


@given(st.integers(0, apitime.LAST_SECOND * apitime.NANOSECONDS))
def test_a_time_is_read_as_it_was_written(at: int) -> None:  # C24
    assert apitime.parse(apitime.text_of(at)) == at


@given(st.text(max_size=40))
def test_what_is_no_time_is_refused_and_nothing_else(text: str) -> None:  # C24
    with contextlib.suppress(ValueError):
        assert apitime.parse(text) == apitime.parse(apitime.text_of(apitime.parse(text)))


def test_a_time_with_an_offset_is_the_same_moment() -> None:  # C24
    assert apitime.parse("1970-01-01T01:00:00.5+01:00") == apitime.parse("1969-12-31T23:00:00.5-01:00") == 500_000_000


def test_the_time_is_kept_for_the_next_one(tmp_path: Path) -> None:  # C24
    kept = KeptTime(str(tmp_path))
    assert kept.at_start == 0
    kept.advance(1_700_000_000_123_456_789)
    kept.advance(1_600_000_000_000_000_000)
    (file,) = tmp_path.iterdir()
    assert file.read_text() == "2023-11-14T22:13:20.123456789Z"
    assert file.stat().st_mode & 0o777 == 0o600
    assert KeptTime(str(tmp_path)).at_start == 1_700_000_000_123_456_789


@pytest.mark.parametrize("content", [b"", b"yesterday", b"\xff\xfe", b"2023-13-14T22:13:20Z", b"9000-01-01T00:00:00Z"])
def test_a_corrupt_time_is_a_warning_and_since_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:  # C24
    (tmp_path / apitime.NAME).write_bytes(content)
    assert KeptTime(str(tmp_path)).at_start == 0
    assert "all events count" in caplog.text


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("containerd: container not found", NotFoundError),
        ("containerd: process not found for container", NotFoundError),
        ("mkdir /run/x: file exists", libctrd.AlreadyExistsError),
        ("containerd: container did not start before the specified timeout", libctrd.DeadlineError),
        ("process id cannot be empty", InvalidArgumentError),
        ("oci runtime error: whatever", RuntimeFailedError),
    ],
)
def test_the_words_of_that_daemon_tell_errors_apart(text: str, kind: type) -> None:  # C25
    assert type(apiwire.error_of(RuntimeFailedError(f"could not do it: {text}"))) is kind


def test_a_limit_that_cannot_be_carried_is_refused() -> None:  # C27
    assert apiwire.resources({"memory": {"swap": -1}}).memorySwap == (1 << 64) - 1
    with pytest.raises(UnsupportedError, match=r"the api engine cannot change the limit 'memory.swappiness'"):
        apiwire.resources({"memory": {"swappiness": 3}})


# ---- who listens -----------------------------------------------------------------------------------------------------


def test_it_finds_out_which_generation_listens(place: ApiPlace) -> None:  # C25
    with libctrd.connect(place.daemon.socket) as client:
        info = client.info()
    assert (info.name, info.version.split()[0]) == ("api", "0.2.3")
    with pytest.raises(InvalidArgumentError, match="has no namespaces"):
        libctrd.connect(place.address, namespace="x")
    with libctrd.connect(place.address) as client, pytest.raises(UnsupportedError, match="keep images"):
        _ = client.images


def test_who_speaks_neither_is_one_clear_error(tmp_path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    try:
        with pytest.raises(UnsupportedError, match=r"is no containerd 1\.x or 2\.x, .*types\.API"):
            libctrd.connect(f"unix://{tmp_path}/s")
    finally:
        server.stop(0).wait()


class Starting(grpc.GenericRpcHandler):
    """containerd 0.2.9 while it starts: its health is told at once, its API only when it knows its containers."""

    def __init__(self) -> None:
        self.asked = 0
        self.known_after = 0

    def service(self, call: Any) -> Any:
        replies = {
            "/grpc.health.v1.Health/Check": protos.message("grpc.health.v1.HealthCheckResponse")(status=1),
            "/types.API/GetServerVersion": apiwire.API.GetServerVersionResponse(minor=2, patch=3),
        }
        if call.method.startswith("/types.API"):
            self.asked += 1
            if self.asked <= self.known_after:
                return None
        reply = replies.get(call.method)
        if reply is None:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: reply.SerializeToString())


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("libctrd.engine.default_state_dir", lambda: f"{tmp_path}/ctrd")
    handler = Starting()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[handler])
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    yield handler
    server.stop(0).wait()


def test_a_daemon_that_is_still_starting_is_waited_for(
    tmp_path: Path, starting: Starting, monkeypatch: pytest.MonkeyPatch
) -> None:  # C25
    starting.known_after = 5
    with libctrd.connect(f"unix://{tmp_path}/s") as client:
        assert client.info().version == "0.2.3"
        starting.known_after = 1000  # it was started anew
        with pytest.raises(libctrd.UnavailableError, match=r"has just started .* try again"):
            client.containers()
    monkeypatch.setattr(apioperations, "STARTING_SECONDS", 0.1)
    with pytest.raises(UnsupportedError, match=r"does not speak the types\.API"):
        libctrd.connect(f"unix://{tmp_path}/s")


# ---- the last event --------------------------------------------------------------------------------------------------


def test_the_last_event_is_asked_for_since_the_kept_time_and_else_since_ever(
    place: ApiPlace, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C22, C24
    with place.connect() as client:
        for id in ("paused", "resumed", "busy", "plain"):
            client.create(id, spec("sleep 1000")).start(libctrd.DETACHED)
        client.get("busy").exec(["sleep", "1000"], libctrd.DETACHED, name="further")
        for id in ("busy", "paused", "resumed"):
            client.get(id).pause(WAIT)
        client.get("resumed").resume(WAIT)
    with place.connect() as client:
        engine: Any = client._engine
        kept = engine._kept.at_start
        assert kept, "the client before this one has handled something"
        asked: list[int] = []
        stored = engine._stored
        monkeypatch.setattr(engine, "_stored", lambda id, since: asked.append(since) or stored(id, since))
        for id, last in {"paused": "pause", "resumed": "resume", "busy": "pause", "plain": "start-container"}.items():
            asked.clear()
            event = engine.last_event(id)
            assert (event.id, event.type, event.process) == (id, last, "init")
            assert asked == [kept, engine._since(id)], "what was handled by any client is asked for last"
        # Later than that time, and the last word.
        place.daemon.call("UpdateContainer", id="resumed", status="paused")
        place.daemon.call("UpdateContainer", id="paused", status="running")
        asked.clear()
        assert [engine.last_event(id).type for id in ("resumed", "paused")] == ["pause", "resume"]
        assert asked == [kept, kept]
        for id in ("paused", "resumed", "busy", "plain"):
            client.get(id).clean(force=True)
        assert engine.last_event("never") is None


def test_what_a_further_process_did_does_not_say_how_a_container_is(
    place: ApiPlace, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C22
    with place.connect() as client:
        client.create("web", spec("read x; exit 3")).start(libctrd.DETACHED)
        engine: Any = client._engine
        kept: list[Any] = []
        for number, (kind, pid) in enumerate([("pause", ""), ("exit", "further")], start=1):
            kept.append(apiwire.API.Event(id="web", type=kind, pid=pid, status=9))
            kept[-1].timestamp.seconds = number
        monkeypatch.setattr(engine, "_stored", lambda id, since: [e for e in kept if e.timestamp.seconds >= since])
        monkeypatch.setattr(engine, "_since", lambda id: 1)
        monkeypatch.setattr(engine._kept, "at_start", 2)
        assert engine.last_event("web").type == "pause"
        kept.pop(0)
        event = engine.last_event("web")
        assert (event.type, event.process, event.status.code) == ("exit", "further", 9), "there is nothing else"
        monkeypatch.undo()
        client.get("web").clean(force=True)


# ---- events across deaths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_exits_while_the_daemon_is_away_are_told_once(place: ApiPlace, spec: Make, number: int) -> None:  # C24
    recorder = Recorder()
    with place.connect() as client:
        client.subscribe(recorder)
        made = []
        for code in range(4):
            made.append(client.create(f"c{code}", spec(f"read x; exit {code}")))
            made[-1].start()
        place.daemon.stop(number)
        for container in made[:2]:  # they end while it is away
            assert container.pid > 1
            os.kill(container.pid, signal.SIGKILL)
        place.daemon.start()
        for container in made[2:]:
            assert container.stdin is not None
            container.stdin.close()
        assert [container.wait(WAIT).code for container in made] == [137, 137, 2, 3]
        assert sorted(id for id, info in recorder.told if info.type == "exit") == ["c0", "c1", "c2", "c3"]
        until(lambda: not client.containers())
        for container in made:
            for stream in (container.stdout, container.stderr):
                assert stream is not None
                stream.close()


def test_the_time_of_the_last_event_is_on_disk(place: ApiPlace, spec: Make) -> None:  # C24
    with place.connect() as client:
        container = client.create("web", spec("exit 4"))
        container.start(libctrd.NULL)
        assert container.wait(WAIT).code == 4
    kept = Path(place.root).parent / apitime.NAME
    (at,) = [
        apiwire.nanoseconds(event.timestamp)
        for event in place.daemon.call("Events", timestamp={"seconds": 1}, storedOnly=True)
        if event.type == "exit"
    ]
    assert apitime.parse(kept.read_text()) == at


def test_one_that_has_ended_and_is_removed_while_it_is_looked_at_was_started(
    place: ApiPlace, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon still has it and says that it does not run; its mark of a start has gone with its directory."""
    with place.connect() as owner, place.connect() as other:
        container = owner.create("web", spec("sleep 1000"))
        container.start(libctrd.NULL)
        had = other._engine._container("web")  # type: ignore[attr-defined]
        had.status = "stopped"
        monkeypatch.setattr(other._engine, "_container", lambda id: had)
        is_left = startmark.is_left

        def removed_by_then(where: str) -> bool:
            monkeypatch.undo()
            container.clean(force=True)
            return is_left(where)

        monkeypatch.setattr(startmark, "is_left", removed_by_then)
        with pytest.raises(NotFoundError):
            other._engine.snapshot("web")
