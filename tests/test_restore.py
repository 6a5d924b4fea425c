"""A container outlives its client, and the next client takes it over: `Client.restore` (C22)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from client_kit import Recorder
from container_kit import WAIT, nothing_left
from engine_kit import Place
from field_kit import killed, python, said
from fifo_kit import until

import libctrd
from libctrd import DETACHED, NULL, PIPE, restoring
from libctrd.client import Client
from libctrd.engine.base import Snapshot
from libctrd.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from libctrd.state import Event, ExitStatus, StateInfo

Make = Callable[..., dict[str, Any]]

STARTER = """
    import sys, signal, libctrd
    address, runtime, rootfs, script, take, paused, terminal = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    spec = libctrd.spec.default(["/bin/sh", "-c", script], rootfs, terminal=terminal == "t")
    container = client.create("web", spec)
    pid = container.start()
    taken = b""
    while len(taken) < int(take):
        taken += container.stdout.read(int(take) - len(taken))
    if paused == "p":
        container.pause()
    print(pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def leave(client: Client, rootfs: str, runtime: str) -> Callable[..., int]:
    """Starts a container in a client that is killed once it has read so many bytes; returns the container's pid."""

    def leave(script: str, take: int = 0, *, paused: bool = False, terminal: bool = False) -> int:
        process = python(
            STARTER, client.address, runtime, rootfs, script, str(take), "p" if paused else "", "t" if terminal else ""
        )
        pid = int(said(process))
        killed(process)
        return pid

    return leave


def go_on(client: Client) -> None:
    """What waits for a line has it, now that its first client has gone: that would else clean what ends before."""
    fd = os.open(os.path.join(client.get("web").bundle, "init-stdin"), os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"\n")
    os.close(fd)


def test_it_goes_on_as_if_this_client_had_started_it(
    client: Client, leave: Callable[..., int], state_dir: str
) -> None:  # C22, C28
    pid = leave("echo one; read x; echo got $x; cat; echo last >&2; exit 9", 4)
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web")
    assert (container.pid, container.status) == (pid, "running")
    assert [(info.type, info.pid) for _, info in recorder.told] == [("restore", pid)]
    assert container.stdin is not None
    assert container.stdout is not None
    assert container.stderr is not None
    container.stdin.write(b"this\nand that\n")
    container.stdin.close()  # and the engine is told (C7): else cat would wait for ever
    assert container.wait(WAIT).code == 9
    assert container.stdout.read() == b"got this\nand that\n"
    assert container.stderr.read() == b"last\n"
    assert recorder.of("web") == ["restore", "exit"]
    assert not os.path.exists(container.bundle), "it is this client's to clean"
    close(container)
    nothing_left(state_dir)


def close(container: libctrd.Container) -> None:
    for stream in (container.stdout, container.stderr):
        if stream is not None:
            stream.close()


def test_nothing_of_what_it_prints_meanwhile_is_lost(
    client: Client, leave: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:  # C22, C28
    """containerd 11805: containers write while there is no client; they wait, lose nothing and die of nothing."""
    lines = 60_000
    leave(f"seq 1 {lines}; read x; exit 22", 100_000)
    everything = "".join(f"{number}\n" for number in range(1, lines + 1))
    container = client.restore("web", stdio=libctrd.Stdio(PIPE, 1, 2))
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 22
    assert capfd.readouterr().out == everything[100_000:]


def test_output_that_is_not_wanted_holds_up_nothing(
    client: Client, leave: Callable[..., int], state_dir: str
) -> None:  # C22, C28
    leave("echo x; yes | head -c 3000000; yes | head -c 3000000 >&2; exit 22", 2)
    container = client.restore("web", stdio=NULL)
    assert container.wait(WAIT).code == 22
    nothing_left(state_dir)


def test_the_callback_comes_before_the_report_and_a_missed_pause_after_it(
    client: Client, leave: Callable[..., int]
) -> None:  # C22
    leave("echo x; trap 'exit 3' TERM; sleep 1000 & wait", 2, paused=True)
    order: list[str] = []

    class Listener:
        def state_changed(self, id: str, info: StateInfo) -> None:
            order.append(info.type)

    client.subscribe(Listener())
    pipes: list[libctrd.IOPipe] = []

    def callback(pipe: libctrd.IOPipe) -> None:
        order.append("callback")
        pipes.append(pipe)

    container = client.restore("web", stdio=callback)
    assert order == ["callback", "restore", "pause"]
    assert container.status == "paused"
    container.resume(WAIT)
    container.signal("TERM")
    assert container.wait(WAIT).code == 3
    assert order == ["callback", "restore", "pause", "resume", "exit"]
    pipes[0].close()


def test_a_failing_callback_or_listener_leaves_it_as_it_was(
    client: Client, engine: Place, leave: Callable[..., int]
) -> None:  # C22
    leave("echo x; read x; exit 4", 2)

    def refuse(_: libctrd.IOPipe) -> None:
        raise RuntimeError("the callback's")

    with pytest.raises(RuntimeError, match="the callback's"):
        client.restore("web", stdio=refuse)

    class Refusing:
        def state_changed(self, id: str, info: StateInfo) -> None:
            raise RuntimeError("the listener's")

    unsubscribe = client.subscribe(Refusing())
    with pytest.raises(RuntimeError, match="the listener's"):
        client.restore("web")
    unsubscribe()
    with engine.connect() as other:
        container = other.restore("web")  # nobody owns it
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == 4
        close(container)


def test_of_two_clients_that_restore_it_one_is_first(
    client: Client, engine: Place, leave: Callable[..., int]
) -> None:  # C22
    leave("echo x; read x; exit 4", 2)
    other = engine.connect()
    container = other.restore("web")
    with pytest.raises(AlreadyExistsError, match="another client, which lives"):
        client.restore("web")
    with pytest.raises(AlreadyExistsError, match="active in this client"):
        other.restore("web")
    close(container)
    other.close()
    assert container.stdin is not None
    container.stdin.close()  # the descriptor; of it nobody is told any more
    container = client.restore("web")
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 4
    close(container)


def test_that_of_a_client_which_lives_is_refused(client: Client, engine: Place, spec: Make) -> None:  # C22
    container = client.create("web", spec("read x; exit 5"))
    with engine.connect() as other:
        with pytest.raises(InvalidArgumentError, match="not started"):
            other.restore("web")
        container.start(PIPE)
        with pytest.raises(AlreadyExistsError, match="lives"):
            other.restore("web")
    with pytest.raises(AlreadyExistsError, match="this client"):
        client.restore("web")
    container.clean(force=True)
    with pytest.raises(NotFoundError, match="'web'"):
        client.restore("web")
    close(container)


@pytest.mark.parametrize("live", [True, False])
def test_one_that_has_ended_meanwhile_is_reported_and_cleaned(
    client: Client, leave: Callable[..., int], state_dir: str, live: bool
) -> None:  # C22
    pid = leave("echo x; read x; exit 33", 2)
    go_on(client)
    until(lambda: client.get("web").status == "stopped", "its end")
    assert pid
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web", live=live)
    assert container.wait(WAIT).code == 33
    assert [(info.type, info.exit_code) for _, info in recorder.told] == [("exit", 33)]
    close(container)
    nothing_left(state_dir)


@pytest.mark.local("a shim of containerd lets go of a fifo that nobody reads when its process has ended")
def test_the_output_of_one_that_has_ended_meanwhile_is_read_first(
    client: Client, leave: Callable[..., int], state_dir: str
) -> None:  # C22, C28
    leave("echo x; read x; seq 1 5000; exit 33", 2)
    go_on(client)
    until(lambda: client.get("web").status == "stopped", "its end")
    container = client.restore("web")
    assert container.stdout is not None
    assert container.wait(WAIT).code == 33
    assert container.stdout.read() == "".join(f"{number}\n" for number in range(1, 5001)).encode()
    close(container)
    nothing_left(state_dir)


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_one_that_is_not_to_live_on_is_ended(
    client: Client, leave: Callable[..., int], state_dir: str, paused: bool
) -> None:  # C22, C12
    """moby 22914, projectatomic 311: it is blocked on its output, or frozen, and ends all the same."""
    leave("trap 'exit 7' TERM; echo x; yes | head -c 1000000 & wait; wait; sleep 1000 & wait", 2, paused=paused)
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web", live=False)
    assert container.wait(WAIT).code == 7
    assert recorder.of("web")[-1] == "exit"
    nothing_left(state_dir)


def test_one_that_does_not_end_on_sigterm_is_killed(
    client: Client, leave: Callable[..., int], state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # C22
    monkeypatch.setattr(restoring, "TERM_SECONDS", 0.3)
    leave("trap '' TERM; echo x; while :; do sleep 0.05; done", 2)
    container = client.restore("web", live=False)
    assert container.wait(WAIT).code == 128 + signal.SIGKILL
    nothing_left(state_dir)


def test_one_that_does_not_even_end_on_sigkill_is_given_up(
    client: Client, leave: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:  # C22
    monkeypatch.setattr(restoring, "TERM_SECONDS", 0.1)
    monkeypatch.setattr(restoring, "KILL_SECONDS", 0.1)
    leave("trap '' TERM; echo x; while :; do sleep 0.05; done", 2)
    sent: list[int] = []
    engine: Any = client._engine
    monkeypatch.setattr(engine, "signal", lambda id, process, number: sent.append(number))
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web", live=False)
    assert container.wait(WAIT).code == 255
    assert sent == [signal.SIGTERM, signal.SIGKILL]
    assert [(info.type, info.exit_code) for _, info in recorder.told] == [("exit", 255)]
    monkeypatch.undo()
    client.get("web").clean(force=True)


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([None], 255),
        (["pause", "pause", 42], 42),
        (["resume"], 255),
        ([41], 41),
    ],
    ids=str,
)
def test_where_an_engine_keeps_events_the_exit_is_waited_for(
    any_client: Client, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch, events: list[Any], code: int
) -> None:  # C22
    """If some other event is there: every 100 ms for up to 10 s, which are shorter here."""
    monkeypatch.setattr(restoring, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(restoring, "EXIT_SECONDS", 0.2)
    container = any_client.create("web", spec("exit 1"))
    container.start(DETACHED)
    container.wait(WAIT)
    engine: Any = any_client._engine
    left = list(events)

    def last_event(id: str) -> Event | None:
        event = left.pop(0) if len(left) > 1 else left[0]
        if event is None or isinstance(event, str):
            return event and Event(id, event)  # type: ignore[arg-type, return-value]
        return Event(id, "exit", status=ExitStatus(event))

    monkeypatch.setattr(engine, "last_event", last_event)
    monkeypatch.setattr(engine, "snapshot", lambda id: Snapshot("stopped", exit=ExitStatus(255, known=False)))
    restored = any_client.restore("web", live=False)
    assert restored.wait(WAIT).code == code
    monkeypatch.undo()
    nothing_left(state_dir)


def test_of_one_that_the_engine_has_forgotten_nobody_knows_the_code(
    any_client: Client, spec: Make, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # C22
    container = any_client.create("web", spec("exit 1"))
    container.start(DETACHED)
    container.wait(WAIT)
    engine: Any = any_client._engine

    def forgotten(id: str) -> Snapshot:
        raise NotFoundError(f"no such container: {id}")

    monkeypatch.setattr(engine, "snapshot", forgotten)
    monkeypatch.setattr(engine, "last_event", lambda id: None)
    restored = any_client.restore("web", live=False)
    assert restored.wait(WAIT).code == 255
    monkeypatch.undo()
    any_client._engine.delete("web", force=True)
    nothing_left(state_dir)


@pytest.fixture
def leave_with_others(client: Client, rootfs: str, runtime: str) -> Callable[[str], None]:
    """Starts a container and two further processes in a client that is killed; each waits for input."""

    def leave(script: str) -> None:
        process = python(OTHERS, client.address, runtime, rootfs, script)
        assert said(process) == "ready"
        killed(process)

    return leave


OTHERS = """
    import sys, signal, libctrd
    address, runtime, rootfs, script = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
    container.start()
    waits = container.exec(["sh", "-c", "read x; echo got $x; exit 7"], name="waits")
    container.exec(["sh", "-c", "read x; exit 8"], name="ends", stdio=libctrd.DETACHED)
    print("ready", flush=True)
    signal.pause()
"""


def test_further_processes_are_found_read_and_cleaned(
    client: Client, leave_with_others: Callable[[str], None], state_dir: str
) -> None:  # C3, C22
    leave_with_others("read x; exit 3")
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web")
    assert {name for name in os.listdir(container.bundle) if name.startswith(("waits-", "ends-"))}
    waits = container.attach(PIPE, process="waits")
    assert waits.stdin is not None
    assert waits.stdout is not None
    waits.stdin.write(b"it\n")
    assert waits.wait(WAIT).code == 7
    assert waits.stdout.read() == b"got it\n"
    ends = container.process("ends")
    ends.signal("KILL")
    assert ends.wait(WAIT).code == 137
    assert not [name for name in os.listdir(container.bundle) if name.startswith(("waits-", "ends-"))]
    with pytest.raises(NotFoundError):
        container.process("ends")
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 3
    told = [(info.type, info.process, info.exit_code) for _, info in recorder.told]
    assert told == [
        ("restore", "init", None),
        ("exit-process", "waits", 7),
        ("exit-process", "ends", 137),
        ("exit", "init", 3),
    ]
    for stream in (waits.stdout, waits.stderr):
        assert stream is not None
        stream.close()
    close(container)
    nothing_left(state_dir)


def test_what_has_ended_meanwhile_is_told_before_the_container(
    client: Client, engine: Place, leave_with_others: Callable[[str], None], state_dir: str
) -> None:  # C3, C22
    leave_with_others("read x; exit 3")
    with engine.connect() as other:
        other.get("web").signal("KILL", process="ends")
        other.get("web").signal("KILL")
        assert other.get("web").wait(WAIT).code == 137
    recorder = Recorder()
    client.subscribe(recorder)
    container = client.restore("web")
    assert container.wait(WAIT).code == 137
    told = [(info.type, info.process, info.exit_code) for _, info in recorder.told]
    assert told[-1] == ("exit", "init", 137)
    assert sorted(told[:-1]) == [("exit-process", "ends", 137), ("exit-process", "waits", 137)]
    close(container)
    nothing_left(state_dir)


def test_a_further_process_of_a_client_that_lives_stays_its_own(
    client: Client, engine: Place, leave: Callable[..., int], state_dir: str
) -> None:  # C3, C22
    leave("echo x; read x; exit 3", 2)
    with engine.connect() as other:
        theirs = other.get("web").exec(["sh", "-c", "read x; echo got $x; exit 7"])
        container = client.restore("web")
        with pytest.raises(AlreadyExistsError, match="lives"):
            container.attach(process=theirs.name)
        assert theirs.stdin is not None
        assert theirs.stdout is not None
        theirs.stdin.write(b"it\n")
        assert theirs.wait(WAIT).code == 7
        assert theirs.stdout.read() == b"got it\n"
        for stream in (theirs.stdout, theirs.stderr):
            assert stream is not None
            stream.close()
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 3
    close(container)
    nothing_left(state_dir)


def test_with_a_terminal_it_goes_on_too(client: Client, leave: Callable[..., int]) -> None:  # C22, C13
    leave("echo x; read line; echo $line; stty size; exit 6", 3, terminal=True)
    container = client.restore("web")
    assert container.stdin is not None
    assert container.stdout is not None
    container.resize(91, 17)
    container.stdin.write(b"typed\n")
    assert container.wait(WAIT).code == 6
    assert container.stdout.read() == b"typed\r\ntyped\r\n17 91\r\n"
    assert container.stderr is not None
    assert container.stderr.read() == b""
    close(container)


def test_what_was_detached_can_be_made_ones_own(client: Client, engine: Place, spec: Make, state_dir: str) -> None:
    with engine.connect() as starter:
        starter.create("web", spec("echo kept; exit 2")).start(DETACHED, unattended="hold")
        container = client.restore("web", stdio=PIPE)
        assert container.wait(WAIT).code == 2
        close(container)
    nothing_left(state_dir)


def test_a_state_directory_that_went_away_is_a_clear_error_and_the_rest_go_on(
    client: Client, engine: Place, spec: Make, state_dir: str
) -> None:
    """docker-library 250."""
    for id in ("gone", "stays"):
        client.create(id, spec("read x; exit 8")).start(DETACHED, unattended="hold")
    os.rename(os.path.join(state_dir, "gone"), state_dir + ".gone")
    with engine.connect() as other:
        if engine.kind == "local":
            with pytest.raises(NotFoundError, match="there is no container 'gone'"):
                other.restore("gone")
        elif engine.kind == "api":  # the daemon has it still, and whose it is is not known any more
            with pytest.raises(libctrd.UnsupportedError, match="attach to it instead"):
                other.restore("gone")
        else:  # containerd has the record; what is gone are the fifos
            assert other.restore("gone").stdout is None
        container = other.restore("stays")
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == 8
        close(container)
        os.rename(state_dir + ".gone", os.path.join(state_dir, "gone"))
        other.get("gone").clean(force=True)
