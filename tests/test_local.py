"""The local engine and its shim: what outlives whom, what is left when one is killed, what a container inherits."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from container_kit import until, zombies

import libctrd
from libctrd import proc
from libctrd.client import Client
from libctrd.engine import cgroups, launch, remembered, shim
from libctrd.engine import runtime as runtimes
from libctrd.errors import NotFoundError, UnavailableError
from libctrd.state import Event

pytestmark = pytest.mark.local("the shim, its records and its runtimes")

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


def shim_pid(container: libctrd.Container) -> int:
    return container._client._engine._shims[container.id].pid  # type: ignore[attr-defined, no-any-return]


def wait_until_gone(pid: int) -> None:
    """Waits, on its pidfd, until a process that is not our child has ended."""
    try:
        pidfd = proc.pidfd_open(pid)
    except NotFoundError:
        return
    proc.wait_pidfd(pidfd, WAIT)
    os.close(pidfd)


# ---- the shim -------------------------------------------------------------------------------------------------------


def test_the_exit_record_is_there_before_the_exit_is_announced(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    sink = client._engine._sink  # type: ignore[attr-defined]

    def look(event: Event) -> None:
        if event.type == "exit":
            seen.append(shim.read_exit(container.bundle))
        sink(event)

    client._engine.subscribe(look)
    container = client.create("web", spec("exit 12"))
    container.start()
    assert seen == [] or container._exit is not None
    status = container.wait(WAIT)
    assert seen == [status]


def test_the_room_for_the_exit_record_is_taken_before_the_start(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat"))
    container.start()
    status = os.stat(os.path.join(container.bundle, "exit.tmp"))
    assert status.st_size == 240
    assert status.st_blocks > 0
    container.clean(force=True)


def test_more_watchers_than_the_shim_has_places_all_hear_of_the_exit(any_client: Client, spec: Make) -> None:  # C28
    container = any_client.create("web", spec("read x; exit 17"))
    container.start(libctrd.Stdio(libctrd.PIPE, libctrd.DETACHED, libctrd.DETACHED))
    peers = [shim.connect(container.bundle) for _ in range(100)]
    for peer in peers:
        peer.sendall(b"watch")
    assert container.stdin is not None
    container.stdin.close()
    for peer in peers:
        packets = []
        while packet := peer.recv(4096):
            packets.append(packet.decode())
            if packet.startswith(b"exit"):
                break
        assert packets[-1].startswith("exit 17 0 "), packets
        peer.close()
    container.wait(WAIT)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        ("nonsense", f"error {22}"),
        ("kill", f"error {22}"),
        ("resize 80 24", f"error {25}"),
        ("delete", f"error {16}"),
        ("end", f"error {16}"),
        ("kill 0", "ok"),
        ("x" * 500, f"error {22}"),
    ],
)
def test_a_request_that_cannot_be_has_a_reply(any_client: Client, spec: Make, request_: str, reply: str) -> None:
    container = any_client.create("web", spec("cat"))
    container.start()
    with shim.connection(container.bundle) as peer:
        peer.sendall(request_.encode())
        assert peer.recv(4096).decode() == reply
    container.clean(force=True)


def test_a_peer_that_never_reads_is_dropped_and_disturbs_nobody(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("sleep 1000"))
    container.start()
    with shim.connection(container.bundle) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.setblocking(False)
        with pytest.raises((BlockingIOError, BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            while True:
                deaf.send(b"nonsense")
        container.pause()
        container.resume()
    container.clean(force=True)


def test_a_container_gets_three_descriptors_and_no_ignored_or_blocked_signal(client: Client, spec: Make) -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    look = "ls /proc/self/fd; exec grep -E 'Sig(Blk|Ign)' /proc/self/status"
    container = client.create("web", spec(args=["sh", "-c", look]))
    container.start()
    os.close(leaked)
    assert container.stdout is not None
    words = container.stdout.read().decode().split()
    assert words[:4] == ["0", "1", "2", "3"], "three, and the one that ls itself has open"
    assert words[4:] == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]
    container.wait(WAIT)


def test_the_runtime_hears_nothing_of_our_service_manager(
    client: Client, spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "runtime"
    wrapper.write_text(f'#!/bin/sh\nenv >> {tmp_path}/env\nexec {client.info().runtime} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("MINE", "yes")
    container = client.create("web", spec("true"), runtime=str(wrapper))
    container.start()
    container.wait(WAIT)
    environment = (tmp_path / "env").read_text()
    assert "MINE=yes" in environment
    assert "NOTIFY_SOCKET" not in environment
    assert "LISTEN_FDS" not in environment


def test_a_shim_that_is_killed_costs_the_exit_code_and_nothing_else(
    client: Client, spec: Make, state_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    container = client.create("web", spec("echo one; read x; echo two; exit 3"))
    container.start()
    assert container.stdout is not None
    assert container.stdin is not None
    assert container.stdout.read(4) == b"one\n"
    killed = shim_pid(container)
    init = container.pid
    os.kill(killed, signal.SIGKILL)
    gone = client._engine._shims.get("web")  # type: ignore[attr-defined]
    assert gone is None or gone.gone.wait(WAIT)
    os.kill(init, 0)
    container.stdin.close()
    status = container.wait(WAIT)
    assert (status.code, status.known) == (255, False), "unknown is said to be unknown, and is never 0"
    assert container.stdout.read() == b"two\n", "the client held its end of the output"
    assert "web" in caplog.text
    assert os.listdir(state_dir) == []


def test_an_orphan_that_nobody_has_reaped_is_not_taken_for_running(client: Client, spec: Make) -> None:
    proc.set_child_subreaper(True)  # it becomes ours when its shim is killed, and stays a zombie until we reap it
    try:
        container = client.create("web", spec("sleep 1000"))
        container.start(libctrd.DETACHED)
        init = container.pid
        os.kill(shim_pid(container), signal.SIGKILL)
        gone = client._engine._shims.get("web")  # type: ignore[attr-defined]
        assert gone is None or gone.gone.wait(WAIT)
        # Until then it may be the child of a helper of crun, which ends after crun itself.
        until(lambda: psutil.Process(init).ppid() == os.getpid(), "that init is our child")
        os.kill(init, signal.SIGKILL)
        os.waitid(os.P_PID, init, os.WEXITED | os.WNOWAIT)
        with libctrd.connect(client.address) as other:
            assert other.get("web").status == "stopped"
        os.waitpid(init, 0)
        container.clean()
    finally:
        proc.set_child_subreaper(False)
        for child in zombies():  # a helper of the runtime that its shim had not reaped yet came to us as well
            os.waitpid(child.pid, 0)


def test_leftovers_of_a_shim_that_was_killed_are_cleaned_by_the_next_create(
    client: Client, spec: Make, state_dir: str
) -> None:  # C19
    with libctrd.connect(client.address) as first:
        container = first.create("web", spec("sleep 1000"))
        container.start(libctrd.DETACHED)
        init, killed = container.pid, shim_pid(container)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    with pytest.raises(libctrd.AlreadyExistsError, match="running"):
        client.create("web", spec("true"))
    os.kill(init, signal.SIGKILL)
    wait_until_gone(init)
    again = client.create("web", spec("exit 6"))
    again.start()
    assert again.wait(WAIT).code == 6


def test_a_shim_that_goes_on_after_its_client_was_closed_is_reaped(client: Client, spec: Make) -> None:
    with libctrd.connect(client.address) as first:
        container = first.create("web", spec("cat"))
        container.start()
        pid = shim_pid(container)
        pidfd = proc.pidfd_open(pid)
    client.get("web").clean(force=True)
    assert launch.readable(pidfd, WAIT), "it ends once it has let go of its socket"
    os.close(pidfd)
    other = client.create("other", spec("true"))
    other.start()
    other.wait(WAIT)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# ---- what is left with the runtime ----------------------------------------------------------------------------------


@pytest.fixture
def calls(client: Client, tmp_path: Path) -> tuple[str, Path]:
    """A runtime that notes how it is called, and where."""
    wrapper = tmp_path / "runtime"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {client.info().runtime} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper), tmp_path / "calls"


def verbs(log: Path) -> list[str]:
    """The verbs of the calls that concern the container ``web``."""
    calls = [line.split() for line in log.read_text().splitlines() if line.endswith(" web")]
    return [next(word for word in call if word in ("run", "delete", "pause", "resume", "kill")) for call in calls]


def test_the_runtime_is_called_once_in_a_plain_life(client: Client, spec: Make, calls: tuple[str, Path]) -> None:
    container = client.create("web", spec("true"), runtime=calls[0])
    container.start()
    container.wait(WAIT)
    assert verbs(calls[1]) == ["run"]
    assert cgroups.directories(container._record.cgroup) == []


def test_a_spec_with_a_hook_is_deleted_by_the_runtime(
    client: Client, spec: Make, calls: tuple[str, Path], tmp_path: Path
) -> None:
    wanted = spec("true")
    # It reads what it is given: crun is ended by SIGPIPE when a hook has ended before that was written.
    wanted["hooks"] = {
        "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >/dev/null; echo stopped > {tmp_path}/hook"]}]
    }
    container = client.create("web", wanted, runtime=calls[0])
    container.start()
    container.wait(WAIT)
    assert verbs(calls[1]) == ["run", "delete"]
    assert (tmp_path / "hook").read_text() == "stopped\n"


def test_cgroups_of_a_runtime_that_was_killed_half_way_go_too(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec("true"))
    path = container._record.cgroup
    top = "/sys/fs/cgroup" if cgroups.unified() else "/sys/fs/cgroup/pids"
    os.mkdir(top + path)
    sleeper = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    with open(f"{top}{path}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(sleeper))
    container.clean(force=True)  # the runtime has never heard of it
    assert not os.path.exists(top + path)
    with pytest.raises(ChildProcessError):  # killed, and reaped by who waited for it
        os.waitpid(sleeper, 0)


def test_equal_ids_in_two_state_directories_do_not_meet(client: Client, spec: Make, state_dir: str) -> None:
    other_dir = state_dir + "-2"
    with libctrd.connect(f"local:{other_dir}", runtime=client.info().runtime) as other:
        one = client.create("web", spec("cat; exit 1"))
        two = other.create("web", spec("cat; exit 2"))
        one.start()
        two.start()
        one.clean(force=True)
        assert two.status == "running"
        assert two.stdin is not None
        two.stdin.close()
        assert (one.wait(WAIT).code, two.wait(WAIT).code) == (137, 2)
    os.rmdir(other_dir)


def test_a_cgroup_path_of_the_callers_is_used(client: Client, spec: Make) -> None:
    wanted = spec("cat /proc/self/cgroup")
    wanted["linux"]["namespaces"] = [n for n in wanted["linux"]["namespaces"] if n["type"] != "cgroup"]
    wanted["linux"]["cgroupsPath"] = "/ctrd-test-own/web"
    container = client.create("web", wanted)
    container.start()
    assert container.stdout is not None
    assert b":/ctrd-test-own/web\n" in container.stdout.read()
    container.wait(WAIT)
    assert cgroups.directories("/ctrd-test-own/web") == []
    for parent in cgroups.directories("/ctrd-test-own"):
        os.rmdir(parent)


# ---- finding a runtime ----------------------------------------------------------------------------------------------


def test_what_was_found_out_about_a_runtime_is_remembered(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    really_try = runtimes._try
    monkeypatch.setattr(remembered, "_path", lambda name: str(tmp_path / "memory.json"))
    monkeypatch.setattr(runtimes, "_known", {})
    monkeypatch.setattr(runtimes, "_try", lambda path: tried.append(path) or really_try(path))
    found = runtimes.find(runtime)
    assert found.works
    assert f"{runtime} version 1." in found.version
    runtimes._known.clear()  # as a new process has it
    assert runtimes.find(runtime) == found
    (tmp_path / "memory.json").write_text("damaged")
    runtimes._known.clear()
    assert runtimes.find(runtime) == found
    assert len(tried) == 2, "tried once, and once more when the memory was damaged"
    monkeypatch.setattr(proc, "boot_id", lambda: "another boot")
    runtimes._known.clear()
    runtimes.find(runtime)
    assert len(tried) == 3


def test_without_any_runtime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_SEARCH", "")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotFoundError, match="install crun or runc"):
        runtimes.find(None)


def test_a_runtime_that_does_not_work_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {
        "/x/crun": runtimes.Runtime("/x/crun", False, why_not="no cgroups"),
        "/x/runc": runtimes.Runtime("/x/runc", True),
    }
    monkeypatch.setattr(runtimes, "_places", {})
    monkeypatch.setattr(runtimes, "locate", lambda name: f"/x/{name}")
    monkeypatch.setattr(runtimes, "_tried", lambda path: verdicts[path])
    assert runtimes.find(None).path == "/x/runc"
    verdicts["/x/runc"] = runtimes.Runtime("/x/runc", False, why_not="no luck")
    with pytest.raises(NotFoundError, match=r"no cgroups.*no luck"):
        runtimes.find(None)


def test_info_names_the_runtime_and_its_version(client: Client, runtime: str) -> None:
    info = client.info()
    assert info.name == "local"
    assert info.runtime.endswith(runtime)
    assert runtime in info.runtime_version
    assert info.cgroups in ("v1", "v2")


# ---- others' containers ---------------------------------------------------------------------------------------------


def test_a_container_of_another_client_can_be_paused_and_resumed(client: Client, spec: Make) -> None:
    container = client.create("web", spec("sleep 1000"))
    container.start()
    with libctrd.connect(client.address) as other:
        again = other.get("web")
        again.pause()
        assert container.status == again.status == "paused"
        again.resume()
        assert container.status == again.status == "running"
        waiter: list[int] = []
        thread = threading.Thread(target=lambda: waiter.append(again.wait(WAIT).code))
        thread.start()
        again.signal("KILL")
        thread.join(WAIT)
        assert waiter == [137]
    assert container.wait(WAIT).code == 137


def test_a_damaged_record_is_left_out_and_said(
    client: Client, spec: Make, state_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    container = client.create("web", spec("true"))
    client.create("good", spec("true"))
    path = os.path.join(state_dir, "web/state.json")
    good = Path(path).read_bytes()
    Path(path).write_text("{")
    with libctrd.connect(client.address) as other:
        assert [c.id for c in other.containers()] == ["good"]
        with pytest.raises(UnavailableError, match="damaged"):
            other.get("web")
    assert "web" in caplog.text
    Path(path).write_bytes(good)
    container.clean()
    client.get("good").clean()


def test_a_client_does_not_work_in_the_child_of_a_fork(any_client: Client, spec: Make) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            any_client.containers()
        except libctrd.ClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_child_of_a_fork_can_run_containers_of_its_own(any_client: Client, rootfs: str) -> None:
    assert libctrd.run(["true"], rootfs=rootfs, capture_output=True, client=any_client).exit_code == 0
    pid = os.fork()
    if pid == 0:
        with libctrd.connect(any_client.address) as mine:
            done = libctrd.run(["sh", "-c", "echo x; exit 5"], rootfs=rootfs, capture_output=True, client=mine)
            os._exit(done.exit_code if done.stdout == b"x\n" else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert libctrd.run(["true"], rootfs=rootfs, capture_output=True, client=any_client).exit_code == 0
