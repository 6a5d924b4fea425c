"""`ctrd serve`: the calls of `types.API`, made as the clients of containerd 0.2 make them (C25)."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from field_kit import until
from serve_kit import API, WAIT, Events, Served, reach, script, served

from libctrd import protos

__all__ = ["served"]  # the fixture

UNKNOWN = grpc.StatusCode.UNKNOWN
CTRD = (sys.executable, "-m", "libctrd.cli")
LOOP = "trap 'exit 9' TERM; while :; do sleep 0.05; done"


# ---- a life ----------------------------------------------------------------------------------------------------------


# C25, C28
def test_a_container_from_start_to_end(served: Served, rootfs: str) -> None:
    bundle = served.bundle("b", script("read x; echo got $x; echo bad >&2; exit 7", rootfs))
    out, err = bundle.read("stdout"), bundle.read("stderr")
    reply = served.call("CreateContainer", id="c", labels=["a=b"], **bundle.create).container
    assert (reply.id, reply.bundlePath, reply.status, list(reply.labels)) == ("c", bundle.path, "running", ["a=b"])
    assert list(reply.pids) == [], "empty in the reply of a create"
    (process,) = reply.processes
    assert (process.pid, process.args[:2], process.stdin) == ("init", ["sh", "-c"], bundle.fifos["stdin"])
    assert os.path.exists(f"/proc/{process.systemPid}")
    state = served.call("State", id="c")
    assert (state.containers[0].status, list(state.containers[0].pids)) == ("running", [process.systemPid])
    assert state.machine.cpus == os.cpu_count()
    assert state.machine.memory > 64, "in MiB"
    with open(bundle.fifos["stdin"], "wb", buffering=0) as stdin:
        stdin.write(b"it\n")
    until(lambda: served.stored()[-1][0] == "exit")
    assert served.stored() == [("start-container", "c", "", 0), ("exit", "c", "init", 7)]
    assert (os.read(out, 100), os.read(err, 100)) == (b"got it\n", b"bad\n")
    assert os.read(out, 100) == b""
    os.close(out)
    os.close(err)
    assert list(served.call("State").containers) == []
    assert served.refused("State", id="c").details() == "containerd: container not found"
    again = served.bundle("again", script("exit 3", rootfs))
    served.call("CreateContainer", id="c", bundlePath=again.path)  # the id is free as soon as the exit was told
    until(lambda: served.stored()[-1] == ("exit", "c", "init", 3))


def test_the_version_is_that_of_the_tag(served: Served) -> None:
    version = served.call("GetServerVersion")
    assert (version.major, version.minor, version.patch) == (0, 2, 3)
    assert version.revision.startswith("libctrd ")


def test_health_is_answered(served: Served) -> None:
    method = protos.method("grpc.health.v1.Health/Check")
    check = served.channel.unary_unary(
        method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.reply.FromString
    )
    assert check(method.request(), timeout=WAIT).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        check(method.request(service="nobody"), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_what_is_asked_of_a_container_that_runs(served: Served, rootfs: str) -> None:  # C20
    events = Events(served)
    bundle = served.bundle("b", script(LOOP, rootfs, memory="64m"), fifos=False)
    served.call("CreateContainer", id="c", **bundle.create)
    added = served.call(
        "AddProcess", id="c", pid="p", args=["sh", "-c", "exit 4"], env=["PATH=/bin"], cwd="/", user={"uid": 1000}
    )
    assert added.systemPid > 0
    events.until("exit", "c", "p")
    before = served.call("Stats", id="c").cgroup_stats
    assert before.memory_stats.usage.limit == 64 << 20
    assert len(before.cpu_stats.cpu_usage.percpu_usage) >= (os.cpu_count() or 1), "clients count the processors by it"
    assert sum(before.cpu_stats.cpu_usage.percpu_usage) > 0
    assert {"cache", "file"} & set(before.memory_stats.stats)
    served.call("UpdateProcess", id="c", pid="init", width=80, height=24)  # without a terminal it does nothing
    assert served.call("State", id="c").containers[0].runtime.endswith(served.options[1])
    served.call("UpdateContainer", id="c", resources={"pidsLimit": 17, "memoryLimit": 32 << 20})
    stats = served.call("Stats", id="c").cgroup_stats
    assert (stats.pids_stats.limit, stats.memory_stats.usage.limit) == (17, 32 << 20)
    for status, kind in (("paused", "pause"), ("running", "resume")):
        served.call("UpdateContainer", id="c", status=status)
        assert served.stored()[-1][0] == kind, "told before the reply"
        assert served.call("State", id="c").containers[0].status == "running", "never paused"
    served.call("UpdateContainer", id="c")  # neither a status nor resources
    served.call("Signal", id="c", pid="init", signal=signal.SIGTERM)
    events.until("exit", "c", "init", 9)
    events.close()
    kinds = [(kind, pid, status) for kind, _, pid, status in events.seen]
    assert kinds == [
        ("start-container", "", 0),
        ("start-process", "p", 0),
        ("exit", "p", 4),
        ("pause", "", 0),
        ("resume", "", 0),
        ("exit", "init", 9),
    ]


def test_a_resume_that_is_the_end_is_answered_at_once(served: Served, rootfs: str) -> None:  # C25
    """What was sent SIGKILL while it was frozen ends in the moment in which it is thawed."""
    bundle = served.bundle("b", script("sleep 1000", rootfs), fifos=False)
    for number in range(12):
        id = f"c{number}"
        served.call("CreateContainer", id=id, **bundle.create)
        for status in ("paused", "running", "paused"):
            served.call("UpdateContainer", id=id, status=status)
        served.call("Signal", id=id, pid="init", signal=9)
        served.call("UpdateContainer", id=id, status="running", timeout=5)
        until(lambda id=id: served.stored(id)[-1] == ("exit", id, "init", 137))  # type: ignore[misc]
        kinds = [kind for kind, *_ in served.stored(id) if kind != "resume"]  # the last one may come too late
        assert kinds == ["start-container", "pause", "pause", "exit"]


def test_every_further_process_ends_before_init(served: Served, rootfs: str) -> None:
    bundle = served.bundle("b", script(LOOP, rootfs), fifos=False)
    served.call("CreateContainer", id="c", **bundle.create)
    for name in ("one", "two"):
        served.call("AddProcess", id="c", pid=name, args=["sleep", "1000"], env=["PATH=/bin"], cwd="/")
    listed = served.call("State", id="c").containers[0]
    assert [process.pid for process in listed.processes] == ["init", "one", "two"]
    served.call("Signal", id="c", pid="init", signal=signal.SIGKILL)
    until(lambda: ("exit", "c", "init", 137) in served.stored())
    assert {event[2:] for event in served.stored()[-3:-1]} == {("one", 137), ("two", 137)}


def test_a_terminal_has_a_size_and_its_input_an_end(served: Served, rootfs: str) -> None:
    bundle = served.bundle("b", script("read x; stty size; read y; exit 5", rootfs, terminal=True))
    out = bundle.read("stdout")
    served.call("CreateContainer", id="c", **bundle.create)
    served.call("UpdateProcess", id="c", pid="init", width=81, height=24)
    served.call("UpdateProcess", id="c", pid="init")  # 0 x 0 is no resize
    with open(bundle.fifos["stdin"], "wb", buffering=0) as stdin:
        stdin.write(b"go\n")
        seen = b""

        def size_seen() -> bool:
            nonlocal seen
            try:
                seen += os.read(out, 1000)
            except BlockingIOError:
                return False
            return b"24 81" in seen

        until(size_seen)
        stdin.write(b"end\n")
    until(lambda: served.stored()[-1] == ("exit", "c", "init", 5))
    os.close(out)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("Signal", {"pid": "init", "signal": 9}),
        ("UpdateProcess", {"pid": "init", "closeStdin": True}),
        ("UpdateContainer", {"status": "paused"}),
        ("State", {}),
        ("Stats", {}),
        ("AddProcess", {"pid": "p", "args": ["true"]}),
        ("CreateCheckpoint", {"checkpoint": {"name": "c"}}),
        ("DeleteCheckpoint", {"name": "c"}),
    ],
)
@pytest.mark.parametrize("id", ["nope", "..", "a/b"])
def test_an_unknown_id(served: Served, call: str, fields: dict[str, object], id: str) -> None:
    error = served.refused(call, id=id, **fields)
    assert (error.code(), error.details()) == (UNKNOWN, "containerd: container not found")


def test_refusals_have_the_texts_that_clients_look_for(served: Served, rootfs: str) -> None:
    bundle = served.bundle("b", script(LOOP, rootfs), fifos=False)
    served.call("CreateContainer", id="c", **bundle.create)

    def text(call: str, **fields: object) -> str:
        error = served.refused(call, **fields)
        assert error.code() is UNKNOWN
        return str(error.details())

    assert text("Signal", id="c", pid="x", signal=9) == "containerd: process not found for container"
    assert text("UpdateProcess", id="c", pid="x", closeStdin=True) == "containerd: process not found for container"
    assert "no signal 65" in text("Signal", id="c", pid="init", signal=65)
    assert text("UpdateContainer", id="c", status="gone") == "containerd: unknown container status "
    assert text("AddProcess", pid="x") == "container id cannot be empty"
    assert text("AddProcess", id="c") == "process id cannot be empty"
    assert text("CreateContainer", id="d") == "empty bundle path"
    assert "not absolute" in text("CreateContainer", id="d", bundlePath="b")
    assert "no such file or directory" in text("CreateContainer", id="d", bundlePath="/no/such/place")
    assert text("CreateContainer", id="c", bundlePath=bundle.path).endswith("file exists")
    assert "executable file not found" in text("AddProcess", id="c", pid="x", args=["nosuch"], env=["PATH=/bin"])
    served.call("AddProcess", id="c", pid="twice", args=["sleep", "1000"], env=["PATH=/bin"])
    assert text("AddProcess", id="c", pid="twice", args=["true"], env=["PATH=/bin"]).endswith("file exists")
    assert text("CreateCheckpoint", id="c") == "checkpoint name cannot be empty"
    assert text("DeleteCheckpoint", id="c") == "checkpoint name cannot be empty"
    assert "no such file or directory" in text("ListCheckpoint", id="c").lower()
    served.call("DeleteCheckpoint", id="c", name="never")
    lost = served.refused("ListCheckpoint", id="nope")
    assert (lost.code(), lost.details()) == (grpc.StatusCode.NOT_FOUND, "no such containers")
    assert "StoredOnly cannot be specified without" in text("Events", storedOnly=True)
    missing = served.bundle("m", script("exec /no/such/program", rootfs), fifos=False)
    assert served.call("State").containers[0].id == "c"
    os.unlink(os.path.join(missing.path, "config.json"))
    assert "no such file or directory" in text("CreateContainer", id="d", bundlePath=missing.path).lower()
    assert [container.id for container in served.call("State").containers] == ["c"]
    served.call("Signal", id="c", pid="init", signal=9)
    until(lambda: served.stored()[-1] == ("exit", "c", "init", 137))


def test_a_start_that_fails_tells_no_event_and_leaves_the_id_free(served: Served, rootfs: str) -> None:
    spec = script("true", rootfs)
    spec["process"]["args"] = ["/no/such/program"]
    bundle = served.bundle("b", spec)
    for _ in range(3):
        error = served.refused("CreateContainer", id="c", **bundle.create)
        assert "no such file or directory" in error.details()
        assert error.details().startswith("oci runtime error: ")
    missing = {**bundle.create, "stdout": os.path.join(bundle.path, "nothing")}
    assert "no such file or directory" in served.refused("CreateContainer", id="c", **missing).details().lower()
    Path(bundle.path, "file").write_text("x")
    wrong = {**bundle.create, "stdout": os.path.join(bundle.path, "file")}
    assert os.path.join(bundle.path, "file") in served.refused("CreateContainer", id="c", **wrong).details()
    assert served.stored() == []


# ---- the stream of events --------------------------------------------------------------------------------------------


def test_what_was_stored_after_a_time_comes_first(served: Served, rootfs: str) -> None:  # C24
    bundle = served.bundle("b", script("exit 1", rootfs), fifos=False)
    for id in ("a", "b"):
        served.call("CreateContainer", id=id, **bundle.create)
        until(lambda id=id: ("exit", id, "init", 1) in served.stored())  # type: ignore[misc]
    stored = list(served.call("Events", timestamp={"seconds": 1}, storedOnly=True))
    times = [event.timestamp.seconds * 10**9 + event.timestamp.nanos for event in stored]
    assert times == sorted(set(times))
    later = list(served.call("Events", timestamp=stored[1].timestamp, storedOnly=True))
    assert later == stored[2:], "strictly after"
    assert [event.id for event in served.call("Events", timestamp={"seconds": 1}, storedOnly=True, id="b")] == [
        "b",
        "b",
    ]
    assert list(served.call("Events", timestamp={"seconds": 1}, storedOnly=True, id="nobody")) == []
    events = Events(served, timestamp=stored[2].timestamp)
    events.until("exit", "b")
    served.call("CreateContainer", id="a", **bundle.create)
    events.until("exit", "a")
    events.close()
    assert [event[:2] for event in events.seen] == [("exit", "b"), ("start-container", "a"), ("exit", "a")]


_FLOOD = """
import asyncio, sys, threading
from libctrd.serve.server import Server

server = Server(sys.argv[1], sys.argv[2])

def flood():
    for _ in sys.stdin:
        for number in range(20000):
            server._publish(server._events.append("oom", f"c{number % 7}"))
        print("flooded", flush=True)

threading.Thread(target=flood, daemon=True).start()
asyncio.run(server.run(lambda: print("ready", flush=True)))
"""


def test_one_that_is_not_read_is_ended_with_a_clear_status_and_costs_little(served: Served) -> None:
    served.stop()
    with subprocess.Popen(
        [sys.executable, "-c", _FLOOD, f"unix://{served.socket}", served.state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        served.channel.close()
        served.channel = reach(served.socket)
        lazy = served.call("Events", timeout=None)  # type: ignore[arg-type]
        eager = Events(served)
        served.call("GetServerVersion")
        before = psutil.Process(process.pid).memory_info().rss
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stdout.readline() == b"flooded\n"
        until(lambda: len(eager.seen) == 20000 or eager.error is not None)
        with pytest.raises(grpc.RpcError) as caught:
            list(lazy)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "were not read" in caught.value.details()
        assert psutil.Process(process.pid).memory_info().rss - before < 32 << 20
        eager.close()
        process.terminate()
        assert process.wait(WAIT) == 0


# ---- the server itself -----------------------------------------------------------------------------------------------


# C25, C28
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_run_on_and_the_next_server_tells_what_was_missed(
    served: Served, rootfs: str, number: signal.Signals
) -> None:
    trapping = "trap 'exit 9' TERM; while :; do sleep 0.02; done"
    for id in ("stays", "ends"):
        served.call("CreateContainer", id=id, **served.bundle(id, script(trapping, rootfs), fifos=False).create)
    served.call("AddProcess", id="stays", pid="p", args=["sh", "-c", "sleep 0.5; exit 6"], env=["PATH=/bin"])
    pid = served.call("State", id="ends").containers[0].processes[0].systemPid
    code = served.stop(number)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    served.start()
    until(lambda: {("exit", "ends", "init", 9), ("exit", "stays", "p", 6)} <= set(served.stored()))
    assert [container.id for container in served.call("State").containers] == ["stays"]
    served.call("Signal", id="stays", pid="init", signal=signal.SIGTERM)
    until(lambda: ("exit", "stays", "init", 9) in served.stored())
    exits = [event for event in served.stored() if event[0] == "exit"]
    assert len(exits) == len(set(exits)) == 3, "each once"


def test_its_socket_is_for_its_user_alone_and_goes_with_it(served: Served) -> None:
    assert stat.S_IMODE(os.stat(served.socket).st_mode) == 0o600
    assert served.stop() == 0
    assert not os.path.exists(served.socket)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(served: Served) -> None:
    second = subprocess.run(
        [*CTRD, "--state-dir", f"{served.top}/other", "serve", "--address", f"unix://{served.socket}"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert second.returncode == 125
    assert "somebody listens" in second.stderr
    assert second.stderr.count("\n") == 1
    assert served.call("GetServerVersion").minor == 2
    assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    assert os.path.exists(served.socket)
    served.start()
    assert served.call("GetServerVersion").minor == 2


def test_a_state_directory_has_one_server(served: Served) -> None:
    second = subprocess.run(
        [*CTRD, "--state-dir", served.state, "serve", "--address", f"unix://{served.top}/other"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (second.returncode, "is served already" in second.stderr) == (125, True)


@pytest.mark.parametrize(
    ("address", "said"),
    [("tcp://1.2.3.4:5", "unix:///"), ("unix://relative", "unix:///"), ("unix:///run/" + "x" * 200, "bytes")],
)
def test_an_address_that_cannot_be(address: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "libctrd.cli", "--state-dir", str(tmp_path / "s"), "serve", "--address", address],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (125, True, 1)
    assert not (tmp_path / "s").exists()


def test_systemd_is_told_and_hands_over_a_socket(served: Served, tmp_path: Path) -> None:
    served.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        served.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        served.start()
        assert manager.recv(100) == b"READY=1"
        served.stop()
        assert manager.recv(100) == b"STOPPING=1"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(served.socket)
            listener.listen()
            # As systemd does it: the descriptor is 3, and the pid is that of the process that finds it.
            code = (
                "import os, sys\n"
                f"os.dup2({listener.fileno()}, 3)\n"
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
                "from libctrd.cli import main\n"
                "sys.exit(main())\n"
            )
            arguments = ["--state-dir", served.state, "serve", "--address", f"unix://{served.socket}"]
            with subprocess.Popen(
                [sys.executable, "-c", code, *arguments], pass_fds=[listener.fileno()], env={**os.environ}
            ) as process:
                served.channel.close()
                served.channel = reach(served.socket)
                method = protos.method("types.API/GetServerVersion")
                ask = served.channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
                assert ask(API.GetServerVersionRequest(), timeout=WAIT, wait_for_ready=True).minor == 2
                process.terminate()
                assert process.wait(WAIT) == 0
        assert os.path.exists(served.socket), "it is systemd's"
