"""Events and their reports when many threads act at once (C10, C11): what was told must be a story that can have been.

Each container's story is told once and in order: its start, what befell it, its end. Whatever listeners do (raise,
block, create the same id anew) it is told to all of them and to every stream alike.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from container_kit import WAIT, Program, spec_of
from engine_kit import leftovers, need, remove
from examples_kit import examples
from fifo_kit import Background, until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import libctrd
from libctrd import DETACHED, PIPE
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import DeadlineError, InvalidArgumentError, NotFoundError, RuntimeFailedError
from libctrd.events import EventStream
from libctrd.state import Event, StateInfo

Make = Callable[..., dict[str, Any]]
QUICK = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # with real containers it is quicker to read than to shrink
)


class Chronicle:
    """A listener that writes down what it is told, and then does what it was made for."""

    def __init__(self, then: Callable[[str, StateInfo], None] = lambda id, info: None) -> None:
        self.told: dict[str, list[StateInfo]] = defaultdict(list)
        self.failures: list[BaseException] = []
        self._then = then

    def state_changed(self, id: str, info: StateInfo) -> None:
        self.told[id].append(info)
        try:
            self._then(id, info)
        except Refusal:
            raise
        except BaseException as error:
            self.failures.append(error)
            raise

    def types(self, id: str) -> list[str]:
        return [info.type for info in self.told[id]]


class Refusal(Exception):
    """What a listener raises on purpose."""


def taken_from(stream: EventStream) -> dict[str, list[StateInfo]]:
    """All that a stream holds, once everything has been told."""
    stream.close()
    taken: dict[str, list[StateInfo]] = defaultdict(list)
    for id, info in stream:
        taken[id].append(info)
    return taken


def check_story(types: list[str]) -> None:
    """Start first, the end once and last, in between only what can be."""
    assert types[0] == "start-container"
    assert types[-1] == "exit"
    assert set(types[1:-1]) <= {"pause", "resume", "oom"}


@contextmanager
def own_client(runtime: str | None = None) -> Iterator[Client]:
    """A client of a state directory of its own, for each example anew; nothing may be left in it."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    top = tempfile.mkdtemp(prefix="ctrd-model-", dir="/run")
    state = os.path.join(top, "state")
    try:
        with libctrd.connect(f"local:{state}", runtime=runtime) as client:
            yield client
        until(lambda: not any(leftovers(state).values()), f"nothing left: {leftovers(state)}")
    finally:
        remove(state)
        shutil.rmtree(top)


# ---- several threads at once -----------------------------------------------------------------------------------------

OPERATIONS = st.sampled_from(["pause", "resume", "pause", "resume", "term", "kill", "clean", "look", "wait"])
SCRIPTS = st.lists(st.tuples(OPERATIONS, st.sampled_from(["x", "y"])), min_size=1, max_size=5)
RAISES = st.sets(st.sampled_from(["pause", "resume", "exit"]))


class Outcome:
    """What the calls of all threads came to."""

    def __init__(self) -> None:
        self.changed: dict[tuple[str, str], int] = defaultdict(int)
        self.lock = threading.Lock()

    def act(self, container: Container, operation: str) -> None:
        """One call; what it may not raise is raised."""
        if operation in ("pause", "resume"):
            try:
                getattr(container, operation)(WAIT)
            except (NotFoundError, InvalidArgumentError, RuntimeFailedError):
                return  # it has ended, or is so already
            with self.lock:
                self.changed[container.id, operation] += 1
        elif operation in ("term", "kill"):
            try:
                container.signal(operation)
            except NotFoundError:
                return
        elif operation == "clean":
            container.clean(force=True)
        elif operation == "look":
            assert container.status in ("running", "paused", "stopped")
        else:
            try:
                container.wait(0)
            except DeadlineError:
                return


def act_all(threads: list[Callable[[], None]]) -> None:
    """Runs all at once; raises what one of them raised."""
    together = threading.Barrier(len(threads))

    def begin(act: Callable[[], None]) -> None:
        together.wait(WAIT)
        act()

    for thread in [Background(begin, act) for act in threads]:
        thread.result(WAIT)


@pytest.mark.local("a place of each example's own")
@pytest.mark.timeout(300)
@settings(QUICK, max_examples=examples(40))
@given(scripts=st.lists(SCRIPTS, min_size=2, max_size=4), raises=RAISES)
def test_what_several_threads_do_is_told_as_one_story_of_each_container(
    rootfs: str, scripts: list[list[tuple[str, str]]], raises: set[str]
) -> None:  # C10, C11, C18
    with own_client() as client:

        def free(id: str, info: StateInfo) -> None:
            if info.type == "exit":  # the id is free already: it is taken, and given back
                assert not os.path.exists(containers[id].bundle)
                client.create(id, spec_of("exit 0", rootfs)).clean()

        def refuse(id: str, info: StateInfo) -> None:
            if info.type in raises:
                raise Refusal(info.type)

        refusing, plain, last = Chronicle(refuse), Chronicle(), Chronicle(free)
        for listener in (refusing, plain, last):
            client.subscribe(listener)
        containers: dict[str, Container] = {}
        with client.events() as stream:
            outcome = Outcome()
            for n, id in enumerate(("x", "y")):
                containers[id] = client.create(id, spec_of(Program(b"r", b"", n + 1, "trap").script, rootfs))
                containers[id].start(PIPE)
                stdout: Any = containers[id].stdout
                assert stdout.read(1) == b"r"
            waits = {id: Background(container.wait) for id, container in containers.items()}

            def play(script: list[tuple[str, str]]) -> None:
                for operation, id in script:
                    outcome.act(containers[id], operation)

            act_all([lambda script=script: play(script) for script in scripts])  # type: ignore[misc]
            for container in containers.values():
                container.clean(force=True)
            for n, (id, container) in enumerate(containers.items()):
                status = waits[id].result()
                assert status == container.wait(0)
                assert status.code in (n + 1, 137)
                assert plain.told[id][-1].exit_code == status.code
            told = taken_from(stream)
        for id, container in containers.items():
            check_story(plain.types(id))
            assert plain.told[id] == refusing.told[id] == last.told[id] == told[id]
            for change in ("pause", "resume"):
                assert outcome.changed[id, change] <= plain.types(id).count(change), (
                    "who returned was told of it before"
                )
            for stream_of in (container.stdout, container.stderr, container.stdin):
                stream_of.close()  # type: ignore[union-attr]
        assert not plain.failures
        assert not last.failures


@pytest.mark.cannot(
    "api029", "know the end of what has ended and is deleted before runc has come back from its start", strict=False
)
def test_many_short_lives_are_each_told_once(client: Client, spec: Make) -> None:  # C10, C11
    chronicle = Chronicle()
    client.subscribe(chronicle)
    with client.events() as stream:

        def live(first: int) -> None:
            for n in range(first, 64, 8):
                container = client.create(f"c{n}", spec(f"exit {n}"))
                container.start(DETACHED if n % 2 else libctrd.NULL, unattended="discard" if n % 2 else "hold")
                assert container.wait(WAIT).code == n
                container.clean()

        act_all([lambda first=first: live(first) for first in range(8)])  # type: ignore[misc]
        told = taken_from(stream)
    for n in range(64):
        assert chronicle.types(f"c{n}") == ["start-container", "exit"]
        assert chronicle.told[f"c{n}"][1].exit_code == n
        assert chronicle.told[f"c{n}"] == told[f"c{n}"]


def test_a_listener_may_start_the_same_id_anew_when_it_is_told_of_the_exit(client: Client, spec: Make) -> None:  # C10
    """An old container's clean() in between touches nothing of the new one."""
    generations = 15
    done = threading.Event()
    lived: list[Container] = []

    def again(id: str, info: StateInfo) -> None:
        if info.type != "exit":
            return
        assert info.exit_code == len(lived)
        if len(lived) == generations:
            done.set()
            return
        begin()

    def begin() -> None:
        container = client.create("phoenix", spec(f"exit {len(lived) + 1}"))
        if lived:
            lived[-1].clean(force=True)
        lived.append(container)
        container.start(libctrd.NULL)

    chronicle = Chronicle(again)
    client.subscribe(chronicle)
    begin()
    assert done.wait(WAIT), chronicle.failures
    assert chronicle.types("phoenix") == ["start-container", "exit"] * generations
    assert [container.wait(WAIT).code for container in lived] == list(range(1, generations + 1))
    assert not chronicle.failures


def test_a_listener_that_blocks_holds_back_its_own_container_alone(client: Client, spec: Make) -> None:  # C11
    blocked, gate = threading.Event(), threading.Event()

    def block(id: str, info: StateInfo) -> None:
        if (id, info.type) == ("slow", "pause"):
            blocked.set()
            assert gate.wait(WAIT)

    chronicle = Chronicle(block)
    client.subscribe(chronicle)
    slow = client.create("slow", spec("read x; exit 1"))
    slow.start(PIPE)
    pausing = Background(slow.pause, WAIT)
    assert blocked.wait(WAIT)
    for n in range(5):
        quick = client.create("quick", spec(f"exit {n}"))
        quick.start(libctrd.NULL)
        assert quick.wait(WAIT).code == n
    assert chronicle.types("quick") == ["start-container", "exit"] * 5
    with pytest.raises(DeadlineError):
        slow.resume(0)  # its event may have come, but the report before it is not through
    assert chronicle.types("slow") == ["start-container", "pause"]
    gate.set()
    pausing.result()
    slow.clean(force=True)
    check_story(chronicle.types("slow"))
    assert not chronicle.failures


def test_a_refused_start_is_ended_and_its_caller_told_while_others_go_on(client: Client, spec: Make) -> None:  # C6
    def refuse(id: str, info: StateInfo) -> None:
        if info.type == "start-container" and id.startswith("bad"):
            raise Refusal(id)

    chronicle = Chronicle(refuse)
    client.subscribe(chronicle)

    def live(id: str) -> None:
        container = client.create(id, spec("read x; exit 6"))
        if id.startswith("bad"):
            with pytest.raises(Refusal, match=id):
                container.start(PIPE)
            assert container.status == "stopped"
            assert not os.path.exists(container.bundle)
            assert container.wait(WAIT).code == 137
        else:
            container.start(PIPE)
            assert container.stdin is not None
            container.stdin.close()
            assert container.wait(WAIT).code == 6
            container.stdout.close()  # type: ignore[union-attr]
            container.stderr.close()  # type: ignore[union-attr]

    ids = [f"{kind}-{n}" for n in range(4) for kind in ("bad", "good")]
    act_all([lambda id=id: live(id) for id in ids])  # type: ignore[misc]
    for id in ids:
        assert chronicle.types(id) == ["start-container", "exit"]
    assert client.containers() == []


# ---- who waits for a pause or a resume -------------------------------------------------------------------------------


class Waiters(RuleBasedStateMachine):
    """Callers of pause() and resume() queue, events come, listeners fail: the oldest is woken, after the report.

    The container is real; that it is paused is only said, so that events come when the model wants them.
    """

    rootfs = ""

    @initialize()
    def start(self) -> None:
        self.context = own_client()
        self.client = self.context.__enter__()
        self.container = self.client.create("web", spec_of("read x; exit 3", self.rootfs))
        self.container.start(PIPE)
        self.raising = False
        self.chronicle = Chronicle(self.maybe_refuse)
        self.client.subscribe(self.chronicle)
        engine: Any = self.client._engine
        engine.pause = engine.resume = lambda id: None
        self.queues: dict[str, list[tuple[int, Background]]] = {"pause": [], "resume": []}
        self.numbers: dict[str, int] = {"pause": 0, "resume": 0}
        self.woken: dict[str, list[tuple[int, int]]] = {"pause": [], "resume": []}

    def maybe_refuse(self, id: str, info: StateInfo) -> None:
        if self.raising:
            raise Refusal(info.type)

    @rule(raising=st.booleans())
    def listener(self, raising: bool) -> None:
        self.raising = raising

    @rule(change=st.sampled_from(["pause", "resume"]))
    def call(self, change: str) -> None:
        number, waiting = self.numbers[change], self.container._changes._waiting[change]
        self.numbers[change] += 1
        before = len(waiting)

        def wait() -> None:
            getattr(self.container, change)(WAIT)
            self.woken[change].append((number, self.chronicle.types("web").count(change)))

        self.queues[change].append((number, Background(wait)))
        until(lambda: len(waiting) > before, "a caller in the queue")

    @rule(change=st.sampled_from(["pause", "resume"]), times=st.integers(1, 3))
    def event(self, change: str, times: int) -> None:
        told = self.chronicle.types("web").count(change)
        for _ in range(times):
            self.client._on_event(Event("web", change))  # type: ignore[arg-type]
        woken, self.queues[change] = self.queues[change][:times], self.queues[change][times:]
        for place, (number, caller) in enumerate(woken):
            caller.result()
            (reports,) = [reports for who, reports in self.woken[change] if who == number]
            assert reports > told + place, "woken after its report"
        assert self.client._lanes.drain(WAIT)
        assert self.chronicle.types("web").count(change) == told + times
        assert len(self.container._changes._waiting[change]) == len(self.queues[change])

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        self.container.stdin.close()  # type: ignore[union-attr]
        for queue in self.queues.values():
            for _, caller in queue:
                with pytest.raises(NotFoundError, match="ended before"):
                    caller.result()
        assert self.container.wait(WAIT).code == 3
        self.container.stdout.close()  # type: ignore[union-attr]
        self.container.stderr.close()  # type: ignore[union-attr]
        assert not self.chronicle.failures
        self.context.__exit__(None, None, None)


@pytest.mark.local("a place of its own")
@pytest.mark.timeout(300)
def test_the_oldest_caller_is_woken_first_after_the_report_and_an_exit_ends_the_rest(rootfs: str) -> None:  # C11
    need(shutil.which("crun"), "crun")
    machine = type("Waiters", (Waiters,), {"rootfs": rootfs})
    run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=examples(25), stateful_step_count=25))
