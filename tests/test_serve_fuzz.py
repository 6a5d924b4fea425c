"""`ctrd serve` under random requests, valid, broken and of bytes that are none, in any order (C25).

After each it answers within a second, holds no more than before, and has left nothing; no status is one of a fault, and
every container that was started was told to have started and to have ended, once. Some seconds here; ``tools/fuzz/serve
--minutes N`` goes on for longer.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from engine_kit import need_runtime
from examples_kit import examples
from fuzz_kit import CODES, FATES, Target
from fuzz_messages import CALLS, HUGE, PREFACE, Requests, http2, request
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from serve_kit import WAIT

from libctrd import protos

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
_QUICK = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # with real containers it is quicker to read than to shrink
)


def quick(count: int) -> settings:
    return settings(_QUICK, max_examples=examples(count))


@pytest.fixture(scope="module")
def target(rootfs: str) -> Iterator[Target]:
    """One server for all: what an attack leaves behind is there for the next one."""
    need_runtime("crun")
    target = Target(rootfs)
    try:
        target.begin()
        yield target
    finally:
        target.end()


@pytest.fixture
def requests(target: Target) -> Requests:
    return Requests(target)


# ---- single calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_valid_requests_of_every_shape(target: Target, requests: Requests, call: str) -> None:
    """Some of them to containers that run."""

    @quick(15)
    @given(requests.valid(call), st.booleans())
    def attack(message: Any, runs: bool) -> None:
        if runs:
            target.call("CreateContainer", id="fuzz0", **target.bundles["trap"].create)
            target.created["fuzz0"] += 1
        target.attempt(call, message.SerializeToString())
        target.answers()
        target.clear()

    attack()
    target.settle()


def running(target: Target) -> None:
    """Container fuzz0 runs, with a further process."""
    target.call("CreateContainer", id="fuzz0", **target.bundles["trap"].create)
    target.created["fuzz0"] += 1
    target.call("AddProcess", id="fuzz0", pid="p0", args=["sleep", "1000"], env=["PATH=/bin"])


def looks(target: Target) -> tuple[Any, ...]:
    """All containers, without the processes that they have started themselves, and all that was told."""
    listed = target.call("State").containers
    for container in listed:
        del container.pids[:]
    return listed, target.stored()


@pytest.mark.parametrize("call", CALLS)
def test_requests_that_are_good_but_for_one_field(target: Target, requests: Requests, call: str) -> None:
    """To a container that runs. What is refused has changed nothing and told nothing."""
    running(target)

    @quick(12)
    @given(Requests.one_wrong(requests, call))
    def attack(asked: tuple[str, Any]) -> None:
        if not target.call("State").containers:  # it was killed, as was asked for
            running(target)
        before = looks(target)
        code = target.attempt(call, asked[1].SerializeToString())
        if code is not grpc.StatusCode.OK:
            assert looks(target) == before, asked
        elif call not in ("Stats", "State", "ListCheckpoint", "Events", "GetServerVersion"):
            target.clear()

    attack()
    target.settle()


def test_requests_that_are_broken(target: Target, requests: Requests) -> None:
    @quick(100)
    @given(st.sampled_from(CALLS).flatmap(lambda call: st.tuples(st.just(call), requests.broken(call))))
    def attack(asked: tuple[str, bytes]) -> None:
        target.attempt(*asked)
        target.answers()

    attack()
    target.settle()


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x80", b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("call", CALLS)
def test_a_request_that_is_none_is_said_to_be_none(target: Target, call: str, data: bytes) -> None:
    if data == b"\x0a\x02\xff\xfe" and call in ("GetServerVersion", "Events"):
        data = b"\x22\x02\xff\xfe" if call == "Events" else b"\x0a\x02\xff"  # its id; it has no fields
    assert target.attempt(call, data) is grpc.StatusCode.INVALID_ARGUMENT


def test_methods_that_there_are_not(target: Target) -> None:
    @quick(40)
    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40), st.binary(max_size=50))
    def attack(name: str, data: bytes) -> None:
        for path in (f"/types.API/{name}", f"/{name}/State", f"/{name}"):
            if path.rpartition("/")[2] not in CALLS or not path.startswith("/types.API/"):
                assert target.send(path, data) is grpc.StatusCode.UNIMPLEMENTED, path

    attack()
    target.settle()


def test_health_is_asked_for_with_anything(target: Target) -> None:
    path = protos.method("grpc.health.v1.Health/Check").path

    @quick(30)
    @given(st.binary(max_size=60))
    def attack(data: bytes) -> None:
        assert target.send(path, data) in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)

    attack()
    target.settle()


@pytest.mark.parametrize("call", CALLS)
def test_a_request_that_is_too_long(target: Target, call: str) -> None:
    """The stream of events too: it is ended, though it has no end by itself."""
    known = protos.method(f"types.API/{call}")
    if "id" not in known.request.DESCRIPTOR.fields_by_name:
        return
    data = known.request(id="x" * (5 << 20)).SerializeToString()
    assert target.send(known.path, data) is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.settle()


@pytest.mark.parametrize("huge", range(len(HUGE)))
def test_long_strings_go_where_they_can(target: Target, huge: int) -> None:
    """Labels are kept and shown; what a program is started with has an end, and then it is said to be too long."""
    label = HUGE[huge]
    target.call("CreateContainer", id="fuzz0", labels=[label], **target.bundles["trap"].create)
    target.created["fuzz0"] += 1
    assert target.call("State", id="fuzz0").containers[0].labels == [label]
    for field in ({"args": ["true", label]}, {"args": ["true"], "env": ["PATH=/bin", label]}, {"args": [label]}):
        error = target.outcome("AddProcess", id="fuzz0", pid="p0", **field)
        if isinstance(error, grpc.RpcError):
            assert error.code() is grpc.StatusCode.UNKNOWN, error
            assert len(error.details() or "") < 5000, "a text that a client can print"
    target.settle()


@pytest.mark.parametrize("messages", [0, 2, 50])
@pytest.mark.parametrize("call", CALLS)
def test_no_request_and_several(target: Target, call: str, messages: int) -> None:
    """Where one is asked for. Of several the first one counts, or none."""
    path = protos.method(f"types.API/{call}").path
    target.send(path, *[b""] * messages, timeout=0.3 if messages == 0 or call == "Events" else WAIT)
    target.answers()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_requests_that_are_compressed(target: Target, compression: grpc.Compression) -> None:
    bomb = protos.method("types.API/State").request(id="x" * (64 << 20)).SerializeToString()
    path = protos.method("types.API/State").path
    for _ in range(3):
        assert target.send(path, bomb, compression=compression) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert target.send(path, b"", compression=compression) is grpc.StatusCode.OK
    target.settle()


def test_a_runtime_that_there_is_not_is_no_container(target: Target) -> None:
    bundle = target.bundles["exit"].path
    error = target.refused("CreateContainer", id="fuzz0", bundlePath=bundle, runtime="no-such-runtime")
    assert "no-such-runtime" in error.details()
    assert "container not found" not in error.details()


@pytest.mark.parametrize("name", ["..", "a/b", "\0", "x" * 300, "never"])
def test_a_create_from_a_checkpoint_that_cannot_be_leaves_nothing(target: Target, name: str) -> None:
    error = target.refused("CreateContainer", id="fuzz0", checkpoint=name, **target.bundles["exit"].create)
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert target.call("State").containers == []
    target.settle()


@pytest.mark.parametrize("content", [b"\xff" * 40, b"", None])
def test_a_container_whose_description_is_damaged_is_told_of_all_the_same(
    target: Target, content: bytes | None
) -> None:
    target.call("CreateContainer", id="fuzz0", **target.bundles["trap"].create)
    target.created["fuzz0"] += 1
    path = Path(target.state, "fuzz0", "served")
    path.unlink()
    if content is None:
        path.mkdir()  # nor can another be put in its place
    else:
        path.write_bytes(content)
    assert len(target.call("State").containers) == 1
    added = target.call("AddProcess", id="fuzz0", pid="p0", args=["sleep", "1000"], env=["PATH=/bin"])
    (listed,) = target.call("State", id="fuzz0").containers
    assert (listed.id, listed.status) == ("fuzz0", "running")
    assert added.systemPid in listed.pids
    target.settle()


# ---- calls that nobody waits for -------------------------------------------------------------------------------------


def test_calls_that_are_given_up(target: Target, requests: Requests) -> None:
    calls = st.sampled_from(CALLS).flatmap(lambda call: st.tuples(st.just(call), requests.valid(call)))

    @quick(60)
    @given(calls, st.one_of(st.none(), st.sampled_from((0.0, 0.001, 0.01, 0.05))))
    def attack(asked: tuple[str, Any], cancel_after: float | None) -> None:
        call, message = asked
        deadline = 0.001 if cancel_after is None else WAIT
        target.attempt(call, message.SerializeToString(), deadline, cancel_after)

    attack()
    target.settle()


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_creates_that_are_given_up_are_whole_or_nothing(target: Target, moment: float) -> None:
    """The caller has gone: the container may have started or not; it is told of, and can be ended, when it has."""
    kind = protos.method("types.API/CreateContainer").request
    for number in range(4):
        message = kind(id=f"up{moment}{number}".replace(".", "x"), **target.bundles["exit"].create)
        target.attempt("CreateContainer", message.SerializeToString(), cancel_after=moment)
    target.settle()


def test_a_hundred_streams_that_are_dropped(target: Target) -> None:
    streams = [target.call("Events", timeout=None) for _ in range(100)]  # type: ignore[arg-type]
    target.answers()
    for stream in streams:
        stream.cancel()
    target.settle()


# ---- not even a call -------------------------------------------------------------------------------------------------


def test_bytes_on_the_socket(target: Target) -> None:
    @quick(60)
    @given(http2(), st.booleans())
    def attack(pieces: list[bytes], half: bool) -> None:
        target.raw(*pieces, half=half)
        target.answers()

    attack()
    target.settle()


def test_a_call_by_hand_is_one(target: Target) -> None:
    """So that the fuzzer above starts from something that works."""
    path = protos.method("types.API/GetServerVersion").path
    assert b"libctrd " in target.raw(PREFACE, *request(path, b""), until=b"libctrd ")


def test_many_connections_that_say_nothing(target: Target) -> None:

    peers = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    for peer in peers:
        peer.connect(target.socket)
        peer.send(PREFACE[:7])
    target.answers()
    for peer in peers:
        peer.close()
    target.settle()


# ---- orders of calls -------------------------------------------------------------------------------------------------

WHICH = st.integers(0, 2)
NAMES = st.sampled_from(("p0", "p1"))
GONE = ("container not found", "process not found", "no such process")
_numbers = itertools.count()


class Orders(RuleBasedStateMachine):
    """Real containers of three ids, and calls on them in any order, one by one and many at once."""

    target: Target

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.ids = [f"m{number}-{which}" for which in range(3)]
        self.fates: dict[str, str] = {}

    def ask(self, call: str, *allowed: str, **fields: Any) -> Any:
        """The reply; ``None`` when it was refused, which it may be for a container that is not there, or with one of
        the texts *allowed*.
        """
        came = self.target.outcome(call, **fields)
        if not isinstance(came, grpc.RpcError):
            return came
        assert came.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND), came
        text = came.details() or ""
        assert any(word in text for word in (*GONE, *allowed)), (call, fields, text)
        return None

    @rule(which=WHICH, fate=st.sampled_from(FATES), fifos=st.booleans())
    def create(self, which: int, fate: str, fifos: bool) -> None:
        id, bundle = self.ids[which], self.target.bundles[fate]
        fields = bundle.create if fifos else {"bundlePath": bundle.path}
        before = id in self.fates
        reply = self.ask("CreateContainer", "file exists", id=id, **fields)
        if reply is None:
            assert before, "an id that nobody had"
            return
        assert reply.container.id == id
        self.target.created[id] += 1
        self.fates[id] = fate

    @rule(which=WHICH, name=NAMES, code=st.sampled_from((0, 3)), terminal=st.booleans())
    def add(self, which: int, name: str, code: int, terminal: bool) -> None:
        fields = {"args": ["sh", "-c", f"exit {code}"], "env": ["PATH=/bin"], "terminal": terminal}
        # The container may end meanwhile, or be paused; the process may be there already.
        allowed = ("not running", "oci runtime error", "file exists", "paused", "has ended")
        self.ask("AddProcess", *allowed, id=self.ids[which], pid=name, **fields)

    @rule(which=WHICH, name=st.sampled_from(("init", "p0", "p1", "px")), number=st.sampled_from((0, 1, 9, 15, 18, 64)))
    def signal(self, which: int, name: str, number: int) -> None:
        self.ask("Signal", id=self.ids[which], pid=name, signal=number)

    @rule(which=WHICH, status=st.sampled_from(("running", "paused", "gone")))
    def change(self, which: int, status: str) -> None:
        allowed = ("unknown container status", "oci runtime error", "is not running", "has ended", "paused")
        self.ask("UpdateContainer", *allowed, id=self.ids[which], status=status)

    @rule(which=WHICH, limit=st.sampled_from((0, 20, 100)), shares=st.sampled_from((0, 2, 1024)))
    def limit(self, which: int, limit: int, shares: int) -> None:
        limits = {"pidsLimit": limit, "cpuShares": shares}
        self.ask("UpdateContainer", "oci runtime error", "ended", id=self.ids[which], resources=limits)

    @rule(which=WHICH, name=st.sampled_from(("init", "p0")), close=st.booleans(), width=st.sampled_from((0, 80, 70000)))
    def update(self, which: int, name: str, close: bool, width: int) -> None:
        allowed = ("no terminal", "resize", "ioctl", "ended")
        self.ask("UpdateProcess", *allowed, id=self.ids[which], pid=name, closeStdin=close, width=width, height=width)

    @rule(which=WHICH)
    def look(self, which: int) -> None:
        id = self.ids[which]
        listed = {container.id for container in self.ask("State").containers}
        assert listed <= set(self.fates) | self.target.unsure, "one that nobody made"
        state = self.ask("State", id=id)
        assert state is None or [container.id for container in state.containers] == [id]
        self.ask("Stats", "ended", "not running", "no such file", "No such file", id=id)
        self.ask("ListCheckpoint", "no such", "No such", id=id)
        self.ask("DeleteCheckpoint", id=id, name="fuzz-check-1")

    @rule(which=WHICH)
    def stored(self, which: int) -> None:
        stored = self.target.stored(self.ids[which])
        assert {id for _, id, _, _ in stored} <= {self.ids[which]}

    @rule(
        calls=st.lists(
            st.tuples(WHICH, st.sampled_from(("create", "add", "kill", "pause", "resume", "give up"))), max_size=8
        )
    )
    def at_once(self, calls: list[tuple[int, str]]) -> None:
        """Many clients: what comes of each of these nobody can tell, but all of it must be told."""

        def act(which: int, what: str) -> None:
            if what == "create":
                self.create(which, "exit", False)
            elif what == "add":
                self.add(which, "p0", 3, False)
            elif what == "kill":
                self.signal(which, "init", 9)
            elif what == "give up":
                self.give_up(which)
            else:
                self.change(which, "paused" if what == "pause" else "running")

        failures: list[BaseException] = []

        def guarded(which: int, what: str) -> None:
            try:
                act(which, what)
            except BaseException as error:  # noqa: BLE001 - it is raised by the thread that asked for it
                failures.append(error)

        # Of creates of one id at once all but one are refused: for this the id counts as had.
        for which, what in calls:
            if what in ("create", "give up"):
                self.fates.setdefault(self.ids[which], "exit")
        threads = [threading.Thread(target=guarded, args=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive(), "a call hangs"
        for failure in failures:
            raise failure

    @rule(which=WHICH)
    def give_up(self, which: int) -> None:
        id = self.ids[which]
        self.fates.setdefault(id, "exit")
        self.target.unsure.add(id)
        message = protos.method("types.API/CreateContainer").request(id=id, **self.target.bundles["exit"].create)
        self.target.attempt("CreateContainer", message.SerializeToString(), 0.001)

    def teardown(self) -> None:
        seen = list(self.target.events.seen)
        for kind, id, pid, status in seen:
            if kind == "exit" and id in self.fates and pid == "init":
                assert status in (*CODES.values(), 129, 137, 143, 192), (id, status)
        self.target.settle()


def test_calls_in_any_order(target: Target) -> None:
    class Attack(Orders):
        pass

    Attack.target = target
    how = settings(quick(8), stateful_step_count=25)
    run_state_machine_as_test(Attack, settings=how)


# ---- all of it, for long ---------------------------------------------------------------------------------------------

MINUTES = float(os.environ.get("CTRD_FUZZ_MINUTES", "0"))


@pytest.mark.bar
@pytest.mark.timeout(0)
def test_all_of_it_for_minutes(target: Target, requests: Requests) -> None:
    """On one server, whose memory is told in the end."""
    if not MINUTES:
        pytest.skip("CTRD_FUZZ_MINUTES is not set, which says for how long: see tools/fuzz/serve")
    end = time.monotonic() + MINUTES * 60
    grown: list[int] = []
    while not grown or time.monotonic() < end:
        test_requests_that_are_broken(target, requests)
        test_calls_in_any_order(target)
        for call in CALLS:
            test_valid_requests_of_every_shape(target, requests, call)
            test_requests_that_are_good_but_for_one_field(target, requests, call)
        test_calls_that_are_given_up(target, requests)
        test_creates_that_are_given_up_are_whole_or_nothing(target, next(_numbers) % 100 / 1000)
        test_methods_that_there_are_not(target)
        test_health_is_asked_for_with_anything(target)
        test_bytes_on_the_socket(target)
        test_a_hundred_streams_that_are_dropped(target)
        grown.append(target.holds()["rss"] >> 20)
    print(
        f"{len(grown)} rounds, {target.calls} calls, {target.starts} containers; MiB: {grown}, holds {target.holds()}"
    )
