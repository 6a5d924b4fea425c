"""What meets in time: an end and a pause, two cleans, a clean and events, an end and a restore, a close and a start.

Each round moves the moment a little. Whoever comes too late hears one clear error; nobody hangs; each end is told once,
with its code. RELIABILITY.md names these tests, and those elsewhere, by the race that they hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading

import pytest
from engine_kit import Place
from exec_kit import output
from field_kit import WAIT, Make, killed, nothing_in, python, said, side_by_side, until

import libctrd
from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnavailableError

ROUNDS = 12


class Told:
    """What the listeners of a client are told, by container."""

    def __init__(self) -> None:
        self.types: dict[str, list[str]] = {}
        self.codes: dict[str, list[int | None]] = {}

    def state_changed(self, id: str, info: libctrd.StateInfo) -> None:
        self.types.setdefault(id, []).append(info.type)
        if info.type == "exit":
            self.codes.setdefault(id, []).append(info.exit_code)


def test_a_pause_beside_the_exit(client: Client, spec: Make, state_dir: str) -> None:  # C11, C20
    """It is paused, and then ends once it is resumed; or it has ended, and whoever pauses hears that. The naive pause
    waits for an event that never comes, and the naive clean for the end of what is frozen.
    """
    told, moments = Told(), random.Random(1)
    client.subscribe(told)
    for round in range(ROUNDS):
        id = f"r{round}"
        container = client.create(id, spec("read x; exit 6"))
        container.start(Stdio(PIPE, NULL, NULL))
        assert container.stdin is not None
        container.stdin.write(b"go\n")
        threading.Event().wait(moments.uniform(0, 0.01))
        with contextlib.suppress(NotFoundError, InvalidArgumentError):
            container.pause(WAIT)
            container.resume(WAIT)
        assert container.wait(WAIT).code == 6
        assert told.codes[id] == [6]
        pauses = [word for word in told.types[id] if word in ("pause", "resume")]
        assert pauses in ([], ["pause"], ["pause", "resume"])
    assert nothing_in(state_dir)


def test_many_who_clean_the_same_at_once(client: Client, spec: Make, state_dir: str) -> None:  # C2, C18
    """By force, from clients of their own, one that is just ending: all succeed, each end is told once, and the next of
    that name is left alone by those who come late. The naive second clean fails, or removes the next one.
    """
    told = Told()
    client.subscribe(told)
    for round in range(ROUNDS):
        container = client.create("web", spec("exit 7" if round % 2 else "sleep 1000"))
        container.start(NULL)
        others = [libctrd.connect(client.address) for _ in range(4)]
        objects = [container, container]
        for other in others:
            with contextlib.suppress(NotFoundError):  # cleaned by then
                objects.append(other.get("web"))
        side_by_side(len(objects), lambda number, objects=objects: objects[number].clean(force=True))  # type: ignore[misc]
        assert container.wait(WAIT).code in (7, 137)
        later = client.create("web", spec("sleep 1000"))
        later.start(NULL)
        for late in objects:
            late.clean(force=True)
        assert later.status == "running"
        later.clean(force=True)
        for other in others:
            other.close()
    assert len(told.codes["web"]) == 2 * ROUNDS
    assert nothing_in(state_dir)


def test_a_clean_while_events_arrive(client: Client, spec: Make, state_dir: str) -> None:  # C10, C11
    """Of pauses, of further processes that end, of its own end: all that comes after the clean is of no concern, and
    nothing comes after the exit. The naive one handles an event of what has gone, and fails or makes it anew.
    """
    told = Told()
    client.subscribe(told)
    for round in range(ROUNDS):
        id = f"r{round}"
        container = client.create(id, spec("sleep 1000"))
        container.start(NULL)
        for number in range(3):
            with contextlib.suppress(NotFoundError):
                container.exec(["sh", "-c", f"exit {number}"], NULL)

        def busy(number: int, container: libctrd.Container = container) -> None:
            if number == 0:
                container.clean(force=True)
                return
            with contextlib.suppress(CtrdError):  # it is paused, about to end, or has ended
                if number == 1:
                    container.pause(WAIT)
                    container.resume(WAIT)
                else:
                    container.exec(["true"], NULL).wait(WAIT)

        side_by_side(5, busy)
        assert container.wait(WAIT).code == 137
        until(lambda id=id: told.types[id][-1] == "exit")  # type: ignore[misc]
        assert told.codes[id] == [137]
    client._lanes.drain(WAIT)
    assert all(types[-1] == "exit" for types in told.types.values())
    assert nothing_in(state_dir)


STARTER = """
    import signal, sys
    import libctrd
    address, runtime, rootfs = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    script = "while [ ! -e /dev/shm/go ]; do usleep 1000; done; echo last; exit 8"
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
    container.start()
    print("started", flush=True)
    signal.pause()
"""


def test_a_restore_beside_the_exit(client: Client, engine: Place, rootfs: str, state_dir: str) -> None:  # C22
    """Its client was killed, and it ends while the next one takes it over: the code and the last line are there, told
    once. The naive restore asks whether it runs, hears yes, and waits for an end that has been told already.
    """
    moments = random.Random(2)
    for _ in range(ROUNDS):
        process = python(STARTER, client.address, engine.runtime or "", rootfs)
        assert said(process) == "started"
        killed(process)
        with engine.connect() as next_one:
            told = Told()
            next_one.subscribe(told)
            with open(f"/proc/{next_one.get('web').pid}/root/dev/shm/go", "wb"):
                pass
            threading.Event().wait(moments.uniform(0, 0.01))
            container = next_one.restore("web")
            got = container.stdout.read() if container.stdout is not None else None
            assert container.wait(WAIT).code == 8
            # A shim of containerd lets go of a fifo that nobody reads when its process has ended.
            assert got == b"last\n" or (got in (b"", None) and engine.kind != "local")
            assert told.codes["web"] == [8]
            # containerd 0.2 tells the end of a container a moment before it has forgotten it.
            until(lambda: not next_one.containers(), WAIT if engine.kind == "api" else 0.0)
    assert nothing_in(state_dir)


def test_stdin_closed_while_it_is_being_started(client: Client, spec: Make, state_dir: str) -> None:  # C7
    """At any moment of the start: the word is kept until there is somebody to tell. The naive one tells it to a
    container that is not there yet, and that one then waits for its input for ever.
    """
    moments = random.Random(3)
    for code in range(1, ROUNDS + 1):
        container = client.create("web", spec(f"cat; exit {code}"))
        delay = moments.uniform(0, 0.06)
        container.start(lambda pipe, delay=delay: threading.Timer(delay, pipe.stdin.close).start())  # type: ignore[misc]
        assert container.wait(WAIT).code == code
    assert nothing_in(state_dir)


def test_output_of_a_further_process_that_exits_at_once(client: Client, spec: Make) -> None:  # C21, C28
    """Every byte of it, however soon it ends and however late it is read."""
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)

    def run(thread: int) -> None:
        for number in range(6):
            text = f"{thread}.{number}"
            process = container.exec(["sh", "-c", f"echo {text}; exit {thread}"], Stdio(NULL, PIPE, NULL))
            if number % 2:
                assert process.wait(WAIT).code == thread
            assert output(process) == f"{text}\n".encode()
            assert process.wait(WAIT).code == thread

    side_by_side(4, run)
    container.clean(force=True)


@pytest.mark.parametrize("speed", ["fast", "slow", "none"])
def test_the_output_of_a_further_process_and_its_reader(client: Client, spec: Make, speed: str) -> None:  # C28
    """A slow reader gets all of it, a fast one too; where nobody reads it is held back, and ends when somebody does."""
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)
    size = 3_000_000
    process = container.exec(["sh", "-c", f"yes | head -c {size}; exit 9"], Stdio(NULL, PIPE, NULL))
    assert process.stdout is not None
    if speed == "none":
        with pytest.raises(libctrd.DeadlineError):
            process.wait(0.3)
    got = 0
    while block := process.stdout.read(65536 if speed != "slow" else 40_000):
        got += len(block)
        if speed == "slow":
            threading.Event().wait(0.001)
    assert got == size
    assert process.wait(WAIT).code == 9
    process.stdout.close()
    container.clean(force=True)


def test_an_end_before_the_output_is_delivered(
    client: Client, engine: Place, spec: Make, state_dir: str
) -> None:  # C28
    """It has ended with its output in the fifo, and where that goes is full. The naive wait is over with the process,
    and who ends after it loses what is still on its way.
    """
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ: much smaller than the fifo
    size = 60_000
    container = client.create("web", spec(f"yes | head -c {size}; exit 9"))
    container.start(Stdio(NULL, writer, NULL))
    os.close(writer)
    if engine.kind != "api":  # containerd 0.2 tells of the end once all of the output was taken
        until(lambda: container.status == "stopped")
    with pytest.raises(libctrd.DeadlineError):
        container.wait(1.0)
    assert os.path.exists(container.bundle)
    got = 0
    while block := os.read(reader, 1 << 16):
        got += len(block)
    assert got == size
    assert container.wait(WAIT).code == 9
    os.close(reader)
    assert nothing_in(state_dir)


def test_a_start_whose_fifos_nobody_opens(any_client: Client, spec: Make, state_dir: str) -> None:  # C6, C17
    """It is begun all the same, and the container is held where its output is full. The naive start opens a fifo for
    writing, which waits for a reader.
    """
    threads = threading.active_count()
    containers = [any_client.create(f"r{number}", spec("yes")) for number in range(4)]
    for container in containers:
        container.start(DETACHED)
    assert threading.active_count() - threads < len(containers)
    for container in containers:
        assert container.status == "running"
        container.clean(force=True)
    assert nothing_in(state_dir)


@pytest.mark.local("it makes the pid of a container that of a stranger")
def test_a_pid_that_is_a_strangers_by_now(client: Client, spec: Make) -> None:
    """The shim was killed, init has ended, and its number is another process's: that one is neither taken for it nor
    sent a signal. The naive way believes the number in the file ``pid``.
    """
    container = client.create("web", spec("sleep 1000"))
    container.start(DETACHED)
    init = container.pid
    shim = next(int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _is_shim(pid, container.bundle))
    os.kill(shim, 9)
    os.kill(init, 9)
    stranger = python("import time; print('here', flush=True); time.sleep(1000)")
    assert said(stranger) == "here"
    with open(os.path.join(container.bundle, "pid"), "w", encoding="ascii") as file:
        file.write(str(stranger.pid))
    try:
        with libctrd.connect(client.address) as other:
            late = other.get("web")
            until(lambda: late.status == "stopped", 5)
            for call in (lambda: late.signal("KILL"), lambda: late.pause(1), late.pids):
                with pytest.raises((NotFoundError, UnavailableError, InvalidArgumentError)):
                    call()
            late.clean(force=True)
            assert other.containers() == []
        assert stranger.poll() is None
    finally:
        killed(stranger)


def _is_shim(pid: str, bundle: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"ctrd-shim") and bundle.encode() in words
