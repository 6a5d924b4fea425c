"""Lanes and streams: order within, independence between, nothing lost and no thread kept."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from examples_kit import examples
from fifo_kit import until
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libctrd import reactor
from libctrd.errors import ClosedError, DeadlineError, UnavailableError
from libctrd.events import STREAM_LIMIT, EventStream, Lanes
from libctrd.state import StateInfo

WAIT = 20.0


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.integers(0, 5), max_size=200))
def test_a_lane_keeps_its_order(lanes_used: list[int]) -> None:  # C11
    lanes = Lanes("test-lane")
    seen: dict[int, list[int]] = defaultdict(list)
    for number, lane in enumerate(lanes_used):
        lanes.submit(lane, lambda lane=lane, number=number: seen[lane].append(number))
    assert lanes.drain(WAIT)
    for lane in set(lanes_used):
        assert seen[lane] == [n for n, used in enumerate(lanes_used) if used == lane]
    lanes.close()


def test_a_blocked_lane_holds_back_no_other() -> None:  # C11
    lanes = Lanes("test-lane")
    gate = threading.Event()
    entered = threading.Semaphore(0)

    def block() -> None:
        entered.release()
        assert gate.wait(WAIT)

    for lane in range(20):
        lanes.submit(("blocked", lane), block)
    for _ in range(20):
        assert entered.acquire(timeout=WAIT), "all twenty are in their listener at once"
    done = threading.Event()
    lanes.submit("free", done.set)
    assert done.wait(WAIT)
    gate.set()
    assert lanes.drain(WAIT)
    lanes.close()


def test_quick_work_needs_few_threads() -> None:
    lanes = Lanes("test-few")
    for number in range(5000):
        lanes.submit(number, lambda: None)
    peak = sum(t.name == "test-few" for t in threading.enumerate())
    assert lanes.drain(WAIT)
    lanes.close()
    # Those, and a lookout; and now and then one more, where the host runs none of them for several looks on end.
    assert peak < 4 * Lanes.AT_ONCE


def test_lanes_that_never_run_dry_hold_back_no_other() -> None:  # C11
    lanes = Lanes("test-lane")
    going = True

    def again(lane: int) -> None:
        if going:
            lanes.submit(lane, lambda: again(lane))

    for lane in range(2 * Lanes.AT_ONCE):
        for _ in range(2):  # so that there is always one more
            lanes.submit(lane, lambda lane=lane: again(lane))
    done = threading.Event()
    lanes.submit("other", done.set)
    assert done.wait(WAIT)
    going = False
    assert lanes.drain(WAIT)
    lanes.close()


@settings(max_examples=examples(30), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["pass", "wait", "raise"])), max_size=60),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_lanes_keep_their_order_whatever_some_of_them_wait_for(
    jobs: list[tuple[int, str]], at_once: int, batch: int
) -> None:  # C11
    class Few(Lanes):
        AT_ONCE = at_once
        BATCH = batch

    lanes = Few("test-order")
    seen: dict[int, list[int]] = defaultdict(list)
    gate = threading.Event()

    def run(lane: int, number: int, how: str) -> None:
        if how == "wait":
            assert gate.wait(WAIT)
        seen[lane].append(number)
        if how == "raise":
            raise RuntimeError("on purpose")

    given_to: dict[int, list[int]] = defaultdict(list)
    for number, (lane, how) in enumerate(jobs):
        given_to[lane].append(number)
        lanes.submit(lane, lambda lane=lane, number=number, how=how: run(lane, number, how))
    free = [lane for lane in given_to if ("wait") not in {how for other, how in jobs if other == lane}]
    until(lambda: all(len(seen[lane]) == len(given_to[lane]) for lane in free), "lanes that wait for nothing end")
    gate.set()
    assert lanes.drain(WAIT)
    assert {lane: seen[lane] for lane in given_to} == given_to
    lanes.close()


def test_who_is_idle_comes_before_anybody_new() -> None:
    lanes = Lanes("test-again")
    workers = set()
    for _ in range(200):
        done = threading.Event()
        lanes.submit("a", lambda: workers.add(threading.get_ident()))
        lanes.submit("a", done.set)
        assert done.wait(WAIT)
        assert lanes.drain(WAIT)
    assert len(workers) <= 2
    lanes.close()


def test_with_no_room_for_a_thread_events_wait_for_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reactor.shared().later(0, lambda: None)  # it is there: that is where events come from
    lanes = Lanes("test-none")
    seen: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        lanes.submit("a", lambda: seen.append("a"))
    assert "no thread can be started" in caplog.text
    assert seen == []
    lanes.submit("b", lambda: seen.append("b"))
    assert lanes.drain(WAIT)
    assert sorted(seen) == ["a", "b"]
    lanes.close()


def test_those_that_are_idle_end_when_it_is_closed() -> None:
    lanes = Lanes("test-close")
    gate = threading.Event()
    workers: list[threading.Thread] = []

    def work() -> None:
        workers.append(threading.current_thread())
        assert gate.wait(WAIT)

    for lane in range(3):
        lanes.submit(lane, work)
    until(lambda: len(workers) == 3, "each has its thread")
    gate.set()
    assert lanes.drain(WAIT)
    lanes.close()
    for worker in workers:
        worker.join(WAIT)
        assert not worker.is_alive()


def test_what_a_job_raises_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:  # C11
    lanes = Lanes("test-lane")
    done = threading.Event()

    def fail() -> None:
        raise RuntimeError("on purpose")

    lanes.submit("a", fail)
    lanes.submit("a", done.set)
    assert done.wait(WAIT)
    assert "on purpose" in caplog.text
    lanes.close()


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanes, "IDLE_SECONDS", 0.01)
    lanes = Lanes("test-idle")
    done = threading.Event()
    workers: list[threading.Thread] = []
    lanes.submit("a", lambda: workers.append(threading.current_thread()))
    lanes.submit("a", done.set)
    assert done.wait(WAIT)
    workers[0].join(WAIT)
    assert not workers[0].is_alive()
    done.clear()
    lanes.submit("a", done.set)
    assert done.wait(WAIT), "a thread is started anew when there is work"
    lanes.close()


def test_many_threads_may_submit_at_once() -> None:
    lanes = Lanes("test-lane")
    seen: list[tuple[int, int]] = []

    def submit(me: int) -> None:
        for number in range(300):
            lanes.submit("one", lambda number=number: seen.append((me, number)))

    threads = [threading.Thread(target=submit, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lanes.drain(WAIT)
    assert len(seen) == 8 * 300
    for me in range(8):
        assert [n for who, n in seen if who == me] == list(range(300))
    lanes.close()


def test_after_close_nothing_is_taken() -> None:
    lanes = Lanes("test-lane")
    lanes.close()
    lanes.submit("a", lambda: pytest.fail("was run"))
    assert lanes.drain(WAIT)


class StreamMachine(RuleBasedStateMachine):
    """An event stream against a list: what comes out is what went in, until it was overrun."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0
        self.stream = EventStream(lambda _: setattr(self, "closed", self.closed + 1))
        self.model: list[str] = []
        self.count = 0
        self.overrun = False

    @rule(burst=st.sampled_from([1, 3, STREAM_LIMIT // 2]))
    def put(self, burst: int) -> None:
        for _ in range(burst):
            name = f"c{self.count}"
            self.count += 1
            self.stream.put(name, StateInfo("exit"))
            if len(self.model) >= STREAM_LIMIT:
                self.overrun = True
            elif not self.overrun and not self.closed:
                self.model.append(name)

    @rule(times=st.sampled_from([1, 5, STREAM_LIMIT]))
    def get(self, times: int) -> None:
        for _ in range(times):
            if self.model:
                assert self.stream.get(timeout=0)[0] == self.model.pop(0)
            elif self.overrun and not self.closed:
                with pytest.raises(UnavailableError):
                    self.stream.get(timeout=0)
            elif self.closed:
                with pytest.raises(ClosedError):
                    self.stream.get(timeout=0)
            else:
                with pytest.raises(DeadlineError):
                    self.stream.get(timeout=0)

    @rule()
    def close(self) -> None:
        self.stream.close()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.model) <= STREAM_LIMIT


TestEventStream = StreamMachine.TestCase
TestEventStream.settings = settings(max_examples=examples(30), stateful_step_count=20, deadline=None)


def test_iteration_ends_with_close() -> None:
    stream = EventStream(lambda _: None)
    stream.put("a", StateInfo("exit"))
    stream.close()
    assert [id for id, _ in stream] == ["a"]


def test_a_reader_is_woken_by_an_event_and_by_close() -> None:
    stream = EventStream(lambda _: None)
    got: list[str] = []
    ended = threading.Event()

    def read() -> None:
        got.extend(id for id, _ in stream)
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    stream.put("a", StateInfo("exit"))
    stream.close()
    assert ended.wait(WAIT)
    thread.join()
    assert got == ["a"]
