"""Shims are asked while containerd is away: each end is learned, at once, and with its true code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest
from containerd_kit import Containerd, new_namespace, until

from libctrd import protos
from libctrd.engine import taskshim
from libctrd.engine.taskshim import TASKS, Address, Watch
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnavailableError, UnsupportedError
from libctrd.reactor import Reactor
from libctrd.state import ExitStatus

# It runs until there is a file in its root file system's tmp, and ends with the code that is in it.
WAITS = "while ! test -s /tmp/$0; do usleep 5000; done; read code < /tmp/$0; exit $code"


class Waiting:
    """A container that ends with the code that it is told, when it is told."""

    def __init__(self, daemon: Containerd, namespace: str, id: str, rootfs: str) -> None:
        self.daemon, self.namespace, self.id = daemon, namespace, id
        self._file = Path(rootfs, "tmp", f"{namespace}-{id}")
        self.pid = daemon.run(namespace, id, rootfs, "/bin/sh", "-c", WAITS, self._file.name)
        self.address = taskshim.find(daemon.state, namespace, id)

    def end(self, code: int) -> None:
        self._file.write_text(f"{code}\n")

    def exec(self, exec_id: str, *command: str) -> subprocess.Popen[bytes]:
        """A further process; ctr stays for it, until it has ended or ctr is killed."""
        words = ("tasks", "exec", "--exec-id", exec_id, "--fifo-dir", self.daemon.directory, self.id, *command)
        return subprocess.Popen(
            [self.daemon.ctr_binary, "-a", self.daemon.socket, "-n", self.namespace, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def remove(self) -> None:
        self.daemon.ctr("tasks", "rm", "--force", self.id, namespace=self.namespace)
        self.daemon.ctr("containers", "rm", self.id, namespace=self.namespace)
        self._file.unlink(missing_ok=True)


@pytest.fixture
def one(containerd: Containerd, rootfs: str) -> Iterator[Waiting]:
    container = Waiting(containerd, new_namespace(), "one", rootfs)
    yield container
    container.remove()


def readable(watch: Watch, seconds: float = 10) -> bool:
    look = select.poll()
    look.register(watch.fileno(), select.POLLIN)
    return bool(look.poll(seconds * 1000))


def heard(watch: Watch) -> ExitStatus:
    while readable(watch):
        status = watch.on_readable()
        if status is not None:
            return status
    raise AssertionError("the shim told nothing")


def stop(process: psutil.Process) -> None:
    """Returns when each of its threads has stopped: one that has not may answer still."""
    process.suspend()
    tasks = Path(f"/proc/{process.pid}/task")
    until(lambda: all(" T " in (task / "stat").read_text() for task in tasks.iterdir()), "a stop of all threads")


# ---- where the shim is -----------------------------------------------------------------------------------------------


# C26
def test_a_running_process_leads_to_the_daemons_state_directory(one: Waiting) -> None:
    assert taskshim.state_dir_of(one.pid) == one.daemon.state


def test_a_process_of_no_container_leads_nowhere() -> None:
    assert taskshim.state_dir_of(os.getpid()) is None
    assert taskshim.state_dir_of(1) is None
    assert taskshim.state_dir_of(2**22 + 1) is None


# C26
def test_the_bundle_says_where_the_shim_listens_and_what_it_speaks(one: Waiting) -> None:
    address = taskshim.find(one.daemon.state, one.namespace, "one")
    assert address.socket == str(one.daemon.shim_socket(one.namespace, "one"))
    assert address.service == f"containerd.task.v{3 if one.daemon.version >= (2,) else 2}.Task"
    with pytest.raises(NotFoundError, match="'two' has no shim"):
        taskshim.find(one.daemon.state, one.namespace, "two")
    with pytest.raises(NotFoundError, match="has no shim"):
        taskshim.find("/nowhere", one.namespace, "one")
    with pytest.raises(InvalidArgumentError, match="container id"):
        taskshim.find(one.daemon.state, one.namespace, "../one")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / TASKS / "default" / "one"
    path.mkdir(parents=True)
    return path


# C26
@pytest.mark.parametrize(
    ("name", "text", "socket_path", "version"),
    [
        ("address", "unix:///run/s/1", "/run/s/1", 2),
        ("address", "/containerd-shim/1.sock\n", "\0/containerd-shim/1.sock", 2),
        ("bootstrap.json", '{"version":3,"address":"unix:///1","protocol":"ttrpc","more":1}', "/1", 3),
        ("bootstrap.json", '{"version":2,"address":"unix:///1","protocol":"ttrpc"}', "/1", 2),
    ],
)
def test_every_generation_of_bundles_is_understood(
    tmp_path: Path, bundle: Path, name: str, text: str, socket_path: str, version: int
) -> None:
    (bundle / name).write_text(text)
    expected = Address(socket_path, f"containerd.task.v{version}.Task", "default")
    assert taskshim.find(str(tmp_path), "default", "one") == expected


# C26
@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("bootstrap.json", "{", UnavailableError),
        ("bootstrap.json", "[]", UnavailableError),
        ("bootstrap.json", '{"version":3}', UnavailableError),
        ("bootstrap.json", '{"version":9,"address":"unix:///1"}', UnsupportedError),
        ("bootstrap.json", '{"version":3,"address":"unix:///1","protocol":"grpc"}', UnsupportedError),
        ("bootstrap.json", '{"version":3,"address":"vsock://2:3","protocol":"ttrpc"}', UnsupportedError),
        ("address", "", UnsupportedError),
    ],
)
def test_a_bundle_that_cannot_be_understood_is_a_clear_error(
    tmp_path: Path, bundle: Path, name: str, text: str, kind: type[CtrdError]
) -> None:
    (bundle / name).write_text(text)
    with pytest.raises(kind):
        taskshim.find(str(tmp_path), "default", "one")


# C26
def test_who_is_not_root_is_told_that_only_root_may_ask(one: Waiting) -> None:
    script = f"""
import os
from libctrd import protos
from libctrd.engine import taskshim
from libctrd.engine.taskshim import Address
from libctrd.errors import UnavailableError
os.setuid(65534)
asks = [
    lambda: taskshim.find({one.daemon.state!r}, {one.namespace!r}, "one"),
    lambda: taskshim.status(Address(*{tuple(one.address)!r}), "one"),
    lambda: taskshim.ended({one.daemon.state!r}),
]
for ask in asks:
    try:
        print(ask())
    except UnavailableError as error:
        print(error)
print(taskshim.state_dir_of({one.pid}))
"""
    # As a module's code and not from a file: nobody else may read where this suite is.
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "is not allowed" in said[0]
    assert "is not allowed" in said[1]
    assert "only root may" in said[2]
    assert said[3] == "None"


# ---- what it says ----------------------------------------------------------------------------------------------------


# C26
@pytest.mark.parametrize("code", [0, 1, 137, 255])
def test_a_shim_tells_the_true_code_of_an_end(one: Waiting, code: int) -> None:
    assert taskshim.status(one.address, "one") is None
    before = datetime.now(timezone.utc)
    one.end(code)
    until(lambda: taskshim.status(one.address, "one") is not None, "the end")
    status = taskshim.status(one.address, "one")
    assert status is not None
    assert (status.code, status.known) == (code, True)
    assert status.exited_at is not None
    assert before <= status.exited_at <= datetime.now(timezone.utc)


# C26
def test_asking_a_shim_takes_milliseconds(one: Waiting) -> None:
    taken = []
    for _ in range(20):
        begin = time.perf_counter()
        assert taskshim.status(one.address, "one") is None
        taken.append(time.perf_counter() - begin)
    assert min(taken) < 0.005


def test_a_paused_container_has_not_ended(one: Waiting) -> None:
    one.daemon.ctr("tasks", "pause", "one", namespace=one.namespace)
    assert taskshim.status(one.address, "one") is None
    one.daemon.ctr("tasks", "resume", "one", namespace=one.namespace)


# C26
def test_what_the_shim_does_not_know_is_not_found(one: Waiting) -> None:
    with pytest.raises(NotFoundError, match="container 'two'"):
        taskshim.status(one.address, "two")
    with pytest.raises(NotFoundError, match="process 'more' of container 'one'"):
        taskshim.status(one.address, "one", "more")
    watch = Watch(one.address, "one", "more")
    assert readable(watch)
    with pytest.raises(NotFoundError, match="process 'more'"):
        watch.on_readable()
    watch.close()


# C26
def test_a_stopped_shim_costs_the_time_that_was_given(one: Waiting) -> None:
    (shim,) = one.daemon.shims(one.namespace)
    stop(shim)
    try:
        with pytest.raises(CtrdError, match="in time"):
            taskshim.status(one.address, "one", timeout=0.1)
    finally:
        shim.resume()


# C26
def test_further_processes_are_asked_for_by_their_name(one: Waiting) -> None:
    ctr = one.exec("more", "/bin/sh", "-c", "sleep 1000 & wait")
    try:
        pid_file = Path(one.daemon.state, TASKS, one.namespace, "one", "more.pid")
        until(lambda: pid_file.exists() and pid_file.read_text(), "the further process")
        watch = Watch(one.address, "one", "more")
        until(lambda: running(one.address, "more"), "its start")
        assert watch.on_readable() is None
        # ctr would ask for its removal as soon as it hears of the end.
        ctr.kill()
        ctr.wait()
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        assert heard(watch).code == 137
        status = taskshim.status(one.address, "one", "more")
        assert status is not None
        assert status.code == 137
        assert taskshim.status(one.address, "one") is None
        assert [(e.namespace, e.id, e.exec_id, e.status.code) for e in taskshim.ended(one.daemon.state)
                if e.namespace == one.namespace] == [(one.namespace, "one", "more", 137)]  # fmt: skip
        watch.close()
    finally:
        ctr.kill()
        ctr.wait()


def running(address: Address, exec_id: str) -> bool:
    with contextlib.suppress(NotFoundError):
        return taskshim.status(address, "one", exec_id) is None
    return False


# ---- a daemon that is away -------------------------------------------------------------------------------------------


# C26
def test_an_end_while_containerd_is_away_is_heard_at_once(
    new_containerd: Callable[[], Containerd], rootfs: str
) -> None:
    daemon, namespace = new_containerd(), new_namespace()
    containers = [Waiting(daemon, namespace, f"c{number}", rootfs) for number in range(6)]
    daemon.kill()
    told: dict[str, ExitStatus] = {}
    all_told = threading.Event()
    reactor = Reactor("test-reactor")
    watches = {one.id: Watch(one.address, one.id) for one in containers}

    def listen(id: str, watch: Watch) -> None:
        def on_readable(_: int) -> None:
            status = watch.on_readable()
            if status is not None:
                reactor.unwatch(watch.fileno())
                watch.close()
                told[id] = status
                if len(told) == len(watches):
                    all_told.set()

        reactor.watch(watch.fileno(), on_readable)

    for id, watch in watches.items():
        listen(id, watch)
    for number, one in enumerate(containers):
        one.end(number * 40)
    assert all_told.wait(10)
    assert {id: status.code for id, status in told.items()} == {f"c{number}": number * 40 for number in range(6)}
    found = {(end.namespace, end.id, end.exec_id): end.status for end in taskshim.ended(daemon.state)}
    assert found == {(namespace, id, ""): status for id, status in told.items()}


# C26
def test_an_end_is_heard_though_the_daemon_deletes_it_in_the_moment_it_starts(
    new_containerd: Callable[[], Containerd], rootfs: str
) -> None:
    daemon, namespace = new_containerd(), new_namespace()
    one = Waiting(daemon, namespace, "one", rootfs)
    watch = Watch(one.address, "one")
    daemon.kill()
    one.end(7)
    until(lambda: taskshim.status(one.address, "one"), "the end")
    daemon.start()
    assert heard(watch).code == 7
    watch.close()


# C26
def test_a_killed_shim_has_gone_and_tells_nothing(new_containerd: Callable[[], Containerd], rootfs: str) -> None:
    daemon, namespace = new_containerd(), new_namespace()
    one = Waiting(daemon, namespace, "one", rootfs)
    daemon.kill()
    watch = Watch(one.address, "one")
    (shim,) = daemon.shims(namespace)
    os.kill(one.pid, signal.SIGSTOP)
    shim.kill()
    until(lambda: not daemon.shims(namespace), "the end of the shim")
    assert readable(watch)
    # The latter where it was killed before it had read the question.
    with pytest.raises(NotFoundError, match=r"has gone|nobody listens at .* any more"):
        watch.on_readable()
    watch.close()
    with pytest.raises(NotFoundError, match="nobody listens"):
        Watch(one.address, "one")
    assert taskshim.ended(daemon.state) == []
    os.kill(one.pid, signal.SIGKILL)
    one.daemon.shim_socket(namespace, "one").unlink()
    with pytest.raises(NotFoundError, match="nobody listens"):
        taskshim.status(one.address, "one")


# C26
def test_one_shim_that_hangs_keeps_no_other_from_being_heard(
    new_containerd: Callable[[], Containerd], rootfs: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon, namespace = new_containerd(), new_namespace()
    containers = [Waiting(daemon, namespace, f"c{number}", rootfs) for number in range(3)]
    daemon.kill()
    for one in containers:
        one.end(3)
    until(lambda: len(taskshim.ended(daemon.state)) == 3, "three ends")
    hanging = next(shim for shim in daemon.shims() if "c1" in shim.cmdline())
    stop(hanging)
    begin = time.monotonic()
    found = taskshim.ended(daemon.state, timeout=0.3)
    assert time.monotonic() - begin < 5
    assert sorted(end.id for end in found) == ["c0", "c2"]
    assert f"{namespace}/c1" in caplog.text
    hanging.resume()


def test_where_there_is_nothing_nothing_has_ended(tmp_path: Path) -> None:
    assert taskshim.ended(str(tmp_path)) == []
    (tmp_path / TASKS / "default" / "one").mkdir(parents=True)
    (tmp_path / TASKS / "not..a..name" / "one").mkdir(parents=True)
    (tmp_path / TASKS / "stray").write_text("")
    assert taskshim.ended(str(tmp_path)) == []


# ---- shims that are none ---------------------------------------------------------------------------------------------


# C26
@pytest.mark.parametrize(
    "answer",
    [b"\xff" * 64, b"\0\0\0\3\0\0\0\1\2\0abc", b"\0\0\0\4\0\0\0\1\2\0\x12\2\xff\xff"],
    ids=["too large", "no response", "no reply"],
)
def test_who_answers_nonsense_is_a_clear_error_and_stops_nobody(tmp_path: Path, bundle: Path, answer: bytes) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    path = f"/proc/self/fd/{directory}/s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        for _ in range(3):
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.sendall(answer)
            peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    (bundle / "bootstrap.json").write_text(json.dumps({"version": 3, "address": f"unix://{path}"}))
    address = taskshim.find(str(tmp_path), "default", "one")
    with pytest.raises(UnavailableError):
        taskshim.status(address, "one")
    watch = Watch(address, "one")
    assert readable(watch)
    with pytest.raises(UnavailableError):
        watch.on_readable()
    watch.close()
    assert taskshim.ended(str(tmp_path)) == []
    thread.join()
    listener.close()
    os.close(directory)


# C26
@pytest.mark.parametrize("code", [0, 137])
def test_an_end_that_the_shim_has_not_reaped_yet_is_waited_for(tmp_path: Path, bundle: Path, code: int) -> None:
    """It asks the OCI runtime for a process's state, and that calls stopped what is a zombie."""
    directory = os.open(tmp_path, os.O_PATH)
    path = f"/proc/self/fd/{directory}/s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    package = protos.package("containerd.task.v3")
    ended = package.WaitResponse(exit_status=code)
    ended.exited_at.FromSeconds(1_700_000_000)
    stopped = package.StateResponse(id="one", status=3)

    def serve() -> None:
        for _ in range(2):
            for answer in (stopped, ended):
                peer, _ = listener.accept()
                wanted = peer.recv(4096)
                assert (b"State" in wanted) == (answer is stopped)
                payload = answer.SerializeToString()
                reply = b"\x12" + bytes([len(payload)]) + payload
                peer.sendall(struct.pack(">IIBB", len(reply), 1, 2, 0) + reply)
                peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    (bundle / "bootstrap.json").write_text(json.dumps({"version": 3, "address": f"unix://{path}"}))
    status = taskshim.status(taskshim.find(str(tmp_path), "default", "one"), "one")
    assert status is not None
    assert (status.code, status.known) == (code, True)
    assert [end.status for end in taskshim.ended(str(tmp_path))] == [status]
    thread.join()
    listener.close()
    os.close(directory)
