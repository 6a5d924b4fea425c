"""Containers from their creation to their end, in any order of calls by two clients, on real engines.

The model knows of each container its state, every byte it has to write and every exit it may have. Where a container
ends by itself, its end races with the call at hand: then the model allows both, and what follows tells which it was.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from container_kit import (
    WAIT,
    Program,
    as_before,
    descriptors,
    kill_shim,
    nothing_left,
    programs,
    spec_of,
)
from containerd_kit import Containerd
from engine_kit import ContainerdPlace, Place, need_runtime
from examples_kit import examples
from fifo_kit import Background
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import libctrd
from libctrd import DETACHED, PIPE
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import (
    AlreadyExistsError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
)

KILLED = 137
IDS = st.sampled_from(["a", "b.1"])
NUMBERS = st.integers(0, 5)
CLIENTS = st.sampled_from([0, 1])


class Box:
    """What the model knows of one container."""

    def __init__(self, container: Container, owner: int, program: Program) -> None:
        self.container = container
        self.owner = owner
        self.program = program
        self.started = self.detached = self.paused = self.orphan = False
        self.stdin_open = False
        self.out, self.err = program.out, program.err  # what it writes, as far as is known
        self.out_read = self.err_read = 0
        self.codes: set[int] = set()  # how it may end; empty while nothing makes it end
        self.waits: list[Background] = []
        self.status: Any = None  # how it ended, once that was seen

    @property
    def ending(self) -> bool:
        """Does it end by itself, so that any call may find it ended?"""
        return bool(self.codes) and not self.paused

    @property
    def ended(self) -> bool:
        return self.status is not None

    def check_exit(self, status: Any) -> None:
        """*status* is the true one; and the same for whoever asks."""
        if status.known:
            assert status.code in self.codes
        else:
            assert self.orphan, "with its shim alive every exit is known"
            assert status.code == 255
        assert not status.oom_killed
        if self.status is None:
            self.status = status
        assert status.code == self.status.code


class Lifecycle(RuleBasedStateMachine):
    rootfs = ""
    place: Place
    """Where it is; a place of its own for each run."""
    new_place: Callable[[], Place]

    def __init__(self) -> None:
        super().__init__()
        self.before = descriptors()
        self.place = type(self).new_place()
        self.clients: list[Client] = []
        self.boxes: dict[str, Box] = {}
        self.past: list[Box] = []

    @initialize()
    def connect(self) -> None:
        for _ in range(2):
            self.clients.append(self.place.connect())

    # ---- how calls are expected to go --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def may_end_meanwhile(self, box: Box) -> Iterator[None]:
        """A call on a container that ends by itself may find it ended; on any other it may not."""
        try:
            yield
        except NotFoundError:
            if not box.ending:
                raise

    def seen_by(self, client: int, id: str) -> Container:
        """The container as one of the clients has it: the owner's own object, another's found by its id."""
        box = self.boxes[id]
        if client == box.owner:
            return box.container
        return self.clients[client].get(id)

    def ended(self, id: str) -> None:
        """It is known to have ended and, where a client owned it, to have gone."""
        box = self.boxes.pop(id)
        for wait in box.waits:
            box.check_exit(wait.result())
        self.past.append(box)

    # ---- rules -------------------------------------------------------------------------------------------------------
    #
    # No rule draws what depends on what went before: races have outcomes that differ from run to run. So each takes a
    # number, and picks by it one of the containers that it suits, or makes one where there is none.

    def pick(self, which: int, suits: Callable[[Box], bool], then: str = "trap", start: bool = True) -> tuple[str, Box]:
        found = [id for id, box in sorted(self.boxes.items()) if suits(box)]
        if found:
            id = found[which % len(found)]
            return id, self.boxes[id]
        id = next(id for id in (f"own-{n}" for n in itertools.count()) if id not in self.boxes)
        self.make(id, which % 2, Program(b"ready\n", b"%d" % which, which, then))
        if start:
            self.begin(id, which % 2, detached=False)
        return id, self.boxes[id]

    def make(self, id: str, by: int, program: Program) -> None:
        container = self.clients[by].create(id, spec_of(program.script, self.rootfs))
        self.boxes[id] = Box(container, by, program)

    def begin(self, id: str, by: int, detached: bool) -> None:
        """Any client may start it, and owns it from then on."""
        box = self.boxes[id]
        box.container, box.owner = self.seen_by(by, id), by
        stdio, unattended = (DETACHED, "discard") if detached else (PIPE, "hold")
        assert box.container.start(stdio, unattended=unattended) > 1
        box.started, box.detached, box.stdin_open = True, detached, not detached
        if box.program.then == "exit":
            box.codes.add(box.program.code)

    @rule(id=IDS, by=CLIENTS, program=programs("exit", "cat", "trap"), start=st.booleans(), detached=st.booleans())
    def create(self, id: str, by: int, program: Program, start: bool, detached: bool) -> None:  # C6, C19
        box = self.boxes.get(id)
        if box is not None:
            try:
                container = self.clients[by].create(id, spec_of(program.script, self.rootfs))
            except AlreadyExistsError:
                return
            assert box.ending
            assert not box.detached or box.orphan, "a record stays until it is cleaned; a killed shim leaves none"
            box.check_exit(box.container.wait(WAIT))
            self.ended(id)
            self.boxes[id] = Box(container, by, program)
        else:
            self.make(id, by, program)
        if start:
            self.begin(id, by, detached)

    @rule(which=NUMBERS, by=CLIENTS, detached=st.booleans(), then=st.sampled_from(["exit", "cat", "trap"]))
    def start(self, which: int, by: int, detached: bool, then: str) -> None:  # C6
        id, box = self.pick(which, lambda box: not box.started, then, start=False)
        self.begin(id, by, detached)
        with pytest.raises(AlreadyExistsError):
            box.container.start(PIPE)

    @rule(which=NUMBERS, data=st.binary(min_size=1, max_size=2000))
    def write(self, which: int, data: bytes) -> None:
        _, box = self.pick(which, lambda box: box.started and not box.detached, "cat")
        stdin = box.container.stdin
        assert stdin is not None
        if not box.stdin_open:
            with pytest.raises(ClosedError):
                stdin.write(data)
        elif box.program.then == "cat" and not box.codes:
            assert stdin.write(data) == len(data)
            box.out += data
        else:  # its process reads nothing and may end at any time
            with contextlib.suppress(ClosedError, UnavailableError):
                stdin.write(data)

    @rule(which=NUMBERS)
    def close_stdin(self, which: int) -> None:  # C7
        _, box = self.pick(which, lambda box: box.stdin_open and box.program.then == "cat", "cat")
        assert box.container.stdin is not None
        box.container.stdin.close()
        box.stdin_open = False
        if not (box.paused and box.codes):
            box.codes.add(box.program.code)

    @rule(which=NUMBERS, size=st.integers(1, 4000), stderr=st.booleans())
    def read(self, which: int, size: int, stderr: bool) -> None:  # C28
        _, box = self.pick(which, lambda box: box.started and not box.detached, "cat")
        self.read_some(box, size, stderr)

    def read_some(self, box: Box, size: int, stderr: bool) -> None:
        expected = box.err[box.err_read :] if stderr else box.out[box.out_read :]
        fifo: Any = box.container.stderr if stderr else box.container.stdout
        if KILLED in box.codes or box.paused or not expected:
            got = fifo.read_nowait(size) or b""  # it may be too late to write that, or nothing may come for now
        else:
            got = fifo.read(size)
            assert got, "the end came before all was read"
        assert expected.startswith(got)
        if stderr:
            box.err_read += len(got)
        else:
            box.out_read += len(got)

    def read_to_end(self, box: Box) -> None:
        """All that is left to be read of one that has ended, or ends."""
        out, err = box.container.stdout.read(), box.container.stderr.read()  # type: ignore[union-attr]
        whole = (box.out[box.out_read :], box.err[box.err_read :])
        if KILLED in box.codes:  # it may have been killed before it wrote
            assert whole[0].startswith(out)
            assert whole[1].startswith(err)
        else:
            assert (out, err) == whole
        box.out_read, box.err_read = len(box.out), len(box.err)
        box.container.stdout.close()  # type: ignore[union-attr]
        box.container.stderr.close()  # type: ignore[union-attr]

    @rule(which=NUMBERS, by=CLIENTS, name=st.sampled_from(["TERM", "KILL"]))
    def signal(self, which: int, by: int, name: str) -> None:  # C20
        id, box = self.pick(which, lambda box: box.started and not box.ended)
        trapped = name == "TERM" and box.program.then == "trap"
        if trapped and not box.out_read:
            if box.paused or box.ending or box.detached:
                return  # whether its trap is set yet nobody can tell
            self.read_some(box, 1, stderr=False)
        with self.may_end_meanwhile(box):
            self.seen_by(by, id).signal(name)
        if name == "KILL":
            box.paused = box.paused and not box.orphan  # without a shim nobody could thaw it for its end any more
            if box.paused:  # all that was sent comes at once when it is thawed, and SIGKILL counts
                box.codes = {KILLED}
            else:
                box.codes.add(KILLED)
        elif trapped and not (box.paused and KILLED in box.codes):
            box.codes.add(box.program.code)

    @rule(which=NUMBERS, by=CLIENTS, change=st.sampled_from(["pause", "resume"]))
    def change(self, which: int, by: int, change: str) -> None:  # C18
        pausing = change == "pause"
        id, box = self.pick(which, lambda box: box.started and not box.ended and not box.orphan)
        if not pausing and not any(box.paused for box in self.boxes.values()):
            self.change(which, by, "pause")
        doomed, was = bool(box.codes), box.paused
        if doomed and pausing and self.place.kind == "containerd":
            return  # its shim can freeze what is ending: then it is told to be paused, and has ended all the same
        try:
            getattr(self.seen_by(by, id), change)(WAIT)
        except NotFoundError:
            assert doomed
            box.paused = was and pausing  # what is doomed is not frozen anew; if it was frozen it stays so
        except InvalidArgumentError:
            assert was == pausing, "what is so already is refused, and nothing else"
        except RuntimeFailedError:
            assert doomed, "a runtime may refuse what has ended"
        else:
            assert was != pausing
            box.paused = pausing

    @rule(which=NUMBERS, by=CLIENTS, read_first=st.booleans())
    def wait(self, which: int, by: int, read_first: bool) -> None:  # C28
        id, box = self.pick(which, lambda box: box.ending, "exit")
        if read_first and not box.detached:
            self.read_to_end(box)
        with self.may_end_meanwhile(box):
            box.check_exit(self.seen_by(by, id).wait(WAIT))
        box.check_exit(box.container.wait(WAIT))
        if not box.detached:
            self.ended(id)

    @rule(which=NUMBERS, by=CLIENTS)
    def wait_meanwhile(self, which: int, by: int) -> None:  # C28
        """A client waits for it in a thread; it gets the true code whenever that comes."""
        id, box = self.pick(which, lambda box: box.started and not box.ending and not box.ended)
        container = self.seen_by(by, id)
        with pytest.raises(DeadlineError):
            container.wait(0)  # from here on it is being told of the end
        box.waits.append(Background(container.wait))

    @precondition(lambda self: self.place.kind == "local")
    @rule(which=NUMBERS)
    def kill_its_shim(self, which: int) -> None:
        id, box = self.pick(which, lambda box: box.started and not box.codes and not box.orphan)
        kill_shim(self.place.root, id)
        box.orphan = True
        if box.detached and box.program.then == "cat":
            box.codes.add(box.program.code)  # only its shim held the far end of its stdin, and so let it end

    @rule(which=NUMBERS, by=CLIENTS, force=st.booleans())
    def clean(self, which: int, by: int, force: bool) -> None:  # C2
        id, _ = self.pick(which, lambda box: not box.ending or box.ended)
        self.clean_up(id, self.seen_by(by, id), force)

    def clean_up(self, id: str, container: Container, force: bool) -> None:
        box = self.boxes[id]
        if box.started and not box.ended and not force:
            with pytest.raises(InvalidArgumentError, match="end it first"):
                container.clean()
            return
        if box.started and not box.ended:
            box.codes.add(KILLED)
            box.paused = False
        container.clean(force=force)
        if not box.started:
            del self.boxes[id]
            return
        box.check_exit(box.container.wait(WAIT))
        self.ended(id)

    @rule(which=NUMBERS, by=CLIENTS, call=st.sampled_from(["signal", "pause", "resume", "wait", "resize", "get"]))
    def refused(self, which: int, by: int, call: str) -> None:  # C20
        """What needs a running process is refused where there is none; a container that is not there is not found."""
        id, box = self.pick(
            which, lambda box: not box.started or box.ended or (box.orphan and not box.codes), start=False
        )
        if call == "get":
            with pytest.raises(NotFoundError):
                self.clients[by].get("nobody")
            return
        container = self.seen_by(by, id)
        if call == "resize":
            with pytest.raises(InvalidArgumentError, match="no terminal"):
                container.resize(80, 24)
        elif not box.started:
            with pytest.raises(InvalidArgumentError, match="not started"):
                getattr(container, call)(*(["KILL"] if call == "signal" else [WAIT]))
        elif call in ("pause", "resume"):
            with pytest.raises(NotFoundError):
                getattr(container, call)(WAIT)

    @rule(which=NUMBERS, take_output=st.booleans())
    def look_back(self, which: int, take_output: bool) -> None:
        """What has ended stays as it was, whoever has its id now; and its output is complete."""
        if not self.past:
            return
        box = self.past[which % len(self.past)]
        assert box.container.status == "stopped"
        box.check_exit(box.container.wait(0))
        box.container.clean(force=True)
        if take_output and not box.detached and not box.container.stdout.closed:  # type: ignore[union-attr]
            self.read_to_end(box)

    # ---- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def both_clients_see_the_same(self) -> None:
        sure = {id for id, box in self.boxes.items() if not box.ending or box.detached}
        for client in self.clients:
            seen = {container.id: container for container in client.containers()}
            assert sure <= set(seen) <= set(self.boxes)
            for id, container in seen.items():
                assert container.status in self.statuses(self.boxes[id])

    @staticmethod
    def statuses(box: Box) -> set[str]:
        if not box.started:
            return {"created"}
        if box.ended:
            return {"stopped"}
        if box.ending:
            return {"running", "stopped"}
        if box.orphan:
            return {"running", "paused"}
        return {"paused" if box.paused else "running"}

    def teardown(self) -> None:
        try:
            for id in list(self.boxes):
                self.clean_up(id, self.boxes[id].container, force=True)
            for box in self.past:
                if not box.detached:
                    if not box.container.stdout.closed:  # type: ignore[union-attr]
                        self.read_to_end(box)
                    box.container.stdin.close()  # type: ignore[union-attr]
            nothing_left(self.place.root)
        finally:
            for client in self.clients:
                client.close()
            self.place.remove()
        self.boxes.clear()
        self.past.clear()
        as_before(self.before)


def run_model(new_place: Callable[[], Place], rootfs: str, count: int, steps: int) -> None:
    place = new_place()
    with place.connect() as client:  # what is made once a process is there before anything is counted
        libctrd.run(["true"], rootfs=rootfs, client=client)
    place.remove()
    machine = type("Lifecycle", (Lifecycle,), {"rootfs": rootfs, "new_place": staticmethod(new_place)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(count),
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[
                Phase.explicit,
                Phase.reuse,
                Phase.generate,
            ],  # with real containers it is quicker to read than to shrink
        ),
    )


@pytest.mark.timeout(300)
def test_any_order_of_calls_by_two_clients_with_crun(rootfs: str) -> None:  # C2, C6, C7, C18, C19, C20, C28
    need_runtime("crun")
    run_model(lambda: Place("crun"), rootfs, count=25, steps=30)


@pytest.mark.timeout(300)
def test_any_order_of_calls_by_two_clients_with_runc(rootfs: str) -> None:  # C2, C6, C7, C18, C19, C20, C28
    need_runtime("runc")
    run_model(lambda: Place("runc"), rootfs, count=8, steps=20)


@pytest.mark.timeout(300)
def test_any_order_of_calls_by_two_clients_with_containerd(
    rootfs: str, containerd: Containerd
) -> None:  # C2, C6, C7, C18, C19, C20, C26, C28
    run_model(lambda: ContainerdPlace(containerd), rootfs, count=8, steps=20)
