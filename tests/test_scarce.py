"""What a host does not have just now is had later: nothing is written off, and nobody waits for ever (C28).

Each of these was found by `tools/chaos`.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_kit import Recorder
from container_kit import WAIT, kill_shim, nothing_left
from engine_kit import Place
from field_kit import killed, need_root, output_of, python, said
from fifo_kit import until

from libctrd import NULL, PIPE, process, reactor
from libctrd import Stdio as Choices
from libctrd.client import Client
from libctrd.engine import cgroups, remembered, shim
from libctrd.engine import runtime as runtimes
from libctrd.errors import NotFoundError, RuntimeFailedError, UnavailableError
from libctrd.events import Lanes

Make = Callable[..., dict[str, Any]]


# ---- runtimes -------------------------------------------------------------------------------------------------------


@pytest.mark.local("it chooses runtimes")
@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("could not start the shim: Resource temporarily unavailable"),
        RuntimeFailedError("it failed", output="fork: Resource temporarily unavailable", exit_code=1),
        RuntimeFailedError("it failed", output="", exit_code=137),
        OSError(28, "No space left on device"),
    ],
    ids=["no pids for a shim", "no pids for a runtime", "killed", "a full disk"],
)
def test_a_runtime_that_could_not_be_tried_is_not_written_off(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(remembered, "_path", lambda name: str(tmp_path / "memory.json"))
    monkeypatch.setattr(runtimes, "_known", {})

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as scarce:
        scarce.setattr(shim, "Shim", fail)
        with pytest.raises(UnavailableError):
            runtimes.find(runtime)
    assert runtimes.find(runtime).works


# ---- threads --------------------------------------------------------------------------------------------------------


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_events_are_handled_once_there_is_a_thread_again_though_no_other_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # C11
    reactor.shared().later(0, lambda: None)  # its own thread is there, as it is where events come from
    lanes = Lanes("test-scarce")
    done = threading.Event()
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", no_thread)
        lanes.submit("a", done.set)
        assert not done.wait(3 * Lanes.RETRY_SECONDS)
    assert done.wait(WAIT)
    lanes.close()


def test_with_no_thread_at_all_who_submits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, own = Lanes("test-scarce"), reactor.Reactor("test-none")
    monkeypatch.setattr(reactor, "shared", lambda: own)
    done = threading.Event()
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(UnavailableError, match="could not start the thread 'test-none'"):
            lanes.submit("a", done.set)
    assert lanes.drain(0), "it is not kept"
    lanes.submit("a", done.set)
    assert done.wait(WAIT)
    lanes.close()


def test_a_reactor_without_a_thread_gets_one_later(monkeypatch: pytest.MonkeyPatch) -> None:
    own = reactor.Reactor("test-scarce")
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(UnavailableError, match="could not start the thread 'test-scarce'"):
            own.later(0, lambda: None)
    done = threading.Event()
    own.later(0, done.set)
    assert done.wait(WAIT)


# ---- stdin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["init", "further"])
def test_an_engine_that_was_away_is_told_later_that_a_stdin_is_closed(
    any_client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:  # C7
    container = any_client.create("web", spec("read x; exit 3"))
    container.start(Choices(PIPE, NULL, NULL))
    further = container.exec(["sh", "-c", "read x; exit 4"], Choices(PIPE, NULL, NULL), name="further")
    engine: Any = any_client._engine
    really_close = engine.close_stdin
    away = [True, True]

    def close_stdin(id: str, name: str) -> None:
        if name == of and away:
            away.pop()
            raise UnavailableError("it is away")
        really_close(id, name)

    monkeypatch.setattr(process, "TELL_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(engine, "close_stdin", close_stdin)
    assert further.stdin is not None
    assert container.stdin is not None
    if of == "further":
        with pytest.raises(UnavailableError, match="it is away"):
            further.stdin.close()
    else:
        further.stdin.close()
    assert further.wait(WAIT).code == 4
    container.stdin.close()
    assert container.wait(WAIT).code == 3
    assert not away


@pytest.mark.containerd("a shim of containerd says so in its own way")
def test_to_close_the_stdin_of_a_further_process_that_has_just_gone_is_success(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C7
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)
    further = container.exec(["true"], Choices(PIPE, NULL, NULL))
    assert further.wait(WAIT).code == 0
    with pytest.raises(NotFoundError):
        client._engine.close_stdin("web", further.name)
    container.clean(force=True)


# ---- whose shim was killed ------------------------------------------------------------------------------------------


@pytest.mark.local("it is about the shim")
def test_a_paused_container_whose_shim_was_killed_can_be_resumed(
    client: Client, spec: Make, state_dir: str
) -> None:  # C20
    container = client.create("web", spec("read x; exit 3"))
    container.start(PIPE)
    container.pause(WAIT)
    pid = container.pid
    kill_shim(state_dir, "web")
    assert container.status == "paused"
    container.resume(WAIT)
    assert container.status == "running"
    assert not cgroups.frozen(pid)
    for stream in (container.stdin, container.stdout, container.stderr):
        assert stream is not None
        stream.close()
    assert not container.wait(WAIT).known


@pytest.mark.local("its cgroups")
def test_a_cgroup_goes_though_what_was_killed_in_it_is_reaped_late() -> None:
    """Who has ended is in it until then, and for orphans that is another process's business."""
    need_root()
    top = cgroups.TOP if cgroups.unified() else f"{cgroups.TOP}/pids"
    path = f"/ctrd-00000000-late{os.getpid()}"
    os.mkdir(top + path)
    script = 'echo $$ >"$0" && echo in && exec sleep 1000'
    with subprocess.Popen(["sh", "-c", script, f"{top}{path}/cgroup.procs"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        reaping = threading.Timer(0.2, child.wait)
        reaping.start()
        assert cgroups.is_alone(path, f"late{os.getpid()}")
        cgroups.clear(path)
        reaping.join()
    assert cgroups.directories(path) == []


@pytest.mark.local("it is about the shim")
def test_no_room_for_a_socket_to_a_shim_is_a_clear_error(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)

    def none(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as scarce:
        scarce.setattr(shim.socket, "socket", none)
        with pytest.raises(UnavailableError, match="make the socket to the shim"):
            container.signal("KILL")
    container.signal("KILL")
    assert container.wait(WAIT).code == 137


ONE_MORE = """
    import os, sys, libctrd
    from libctrd.engine import shim
    address, group = sys.argv[1:]
    engine = libctrd.connect(address)._engine
    arguments = engine._arguments(engine.record("web"), "x")
    with open(f"{group}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    with open(f"{group}/pids.current") as file:
        now = int(file.read())
    with open(f"{group}/pids.max", "w") as file:
        file.write(str(now + 1))
    try:
        shim.undo(os.path.join(engine.root, "web"), arguments)
    except libctrd.UnavailableError as error:
        print(error)
"""


@pytest.mark.local("it is about the shim")
def test_a_shim_that_cannot_start_a_runtime_to_undo_says_so_and_ends(
    client: Client, spec: Make, state_dir: str
) -> None:
    """There is room for it, and for nothing more; it waited for ever, and who cleans with it."""
    container = client.create("web", spec("sleep 1000"))
    container.start(NULL)
    kill_shim(state_dir, "web")
    group = f"{cgroups.TOP if cgroups.unified() else cgroups.TOP + '/pids'}/ctrd-test-{os.getpid()}"
    os.mkdir(group)
    try:
        assert "cannot be removed" in output_of(ONE_MORE, client.address, group)
    finally:
        os.rmdir(group)
    container.clean(force=True)


@pytest.mark.local("it watches the state directory")
def test_of_a_start_that_failed_nobody_else_is_told_an_end(client: Client, engine: Place, spec: Make) -> None:  # C10
    recorder = Recorder()
    with engine.connect() as other:
        other.watch_all()
        other.subscribe(recorder)
        refused = client.create("refused", spec(args=["/no-such-program"]))
        with pytest.raises(RuntimeFailedError):
            refused.start(NULL)
        container = client.create("web", spec("exit 3"))
        container.start(NULL)
        container.wait(WAIT)
        until(lambda: "exit" in recorder.of("web"), "the end of the one that ran")
        assert recorder.of("refused") == []


# ---- what was printed before a client was killed --------------------------------------------------------------------

LEAVER = """
    import sys, signal, libctrd
    address, runtime, rootfs = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime or None)
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", "read x; exit 3"], rootfs))
    container.start()
    client._lanes.submit(("event", "web"), signal.pause)  # it hears of nothing any more
    container.exec(["sh", "-c", "echo ended; exit 7"], name="ended")
    container.exec(["sh", "-c", "echo runs; read x; exit 8"], name="runs")
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.cannot("containerd", "keep the output of what has ended without a client: its shim lets go of it")
def test_a_restore_gives_the_streams_of_further_processes_too(
    client: Client, runtime: str, rootfs: str, state_dir: str
) -> None:  # C22, C28
    leaver = python(LEAVER, client.address, runtime, rootfs)
    assert said(leaver) == "ready"
    killed(leaver)

    def ended() -> set[str]:
        return {each.name for each in client.get("web").processes() if each.exit is not None}

    until(lambda: ended() == {"ended"}, "its end, which its client has not collected")
    container = client.restore("web", further=PIPE)
    found = container.taken_over
    assert set(found) == {"ended", "runs"}
    for name, text in (("ended", b"ended\n"), ("runs", b"runs\n")):
        one = found[name]
        if one.stdin is not None:
            one.stdin.close()
        assert one.stdout is not None
        assert one.stderr is not None
        assert one.stdout.read() == text
        one.stdout.close()
        one.stderr.close()
    assert (found["ended"].wait(WAIT).code, found["runs"].wait(WAIT).code) == (7, 8)
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 3
    for stream in (container.stdout, container.stderr):
        assert stream is not None
        stream.close()
    nothing_left(state_dir)


CUT_OFF = """
    import os, sys, signal, libctrd
    address, rootfs = sys.argv[1:]
    client = libctrd.connect(address)
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", "read x; exit 3"], rootfs))
    container.start(libctrd.DETACHED)
    call = client._engine._channel.call
    def cut(method, *arguments, **options):
        if method.endswith("/Start"):
            print("ready", flush=True)
            signal.pause()
        return call(method, *arguments, **options)
    client._engine._channel.call = cut
    container.exec(["true"], name="cut")
"""


@pytest.mark.containerd("there a further process is created first and started then")
def test_a_further_process_that_was_never_started_holds_up_no_end(
    client: Client, rootfs: str, state_dir: str
) -> None:  # C22
    leaver = python(CUT_OFF, client.address, rootfs)
    assert said(leaver) == "ready"
    killed(leaver)
    container = client.restore("web")
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 3
    for stream in (container.stdout, container.stderr):
        assert stream is not None
        stream.close()
    nothing_left(state_dir)
