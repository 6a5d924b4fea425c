"""The field's situations of a start and of a stream, each named after what people saw. (The end: test_field_wait.)"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from engine_kit import Place, leftovers
from field_kit import (
    WAIT,
    Make,
    census,
    killed,
    more_than,
    nothing_in,
    output_of,
    python,
    refused,
    said,
    side_by_side,
    small_disk,
    until,
)

import libctrd
from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import CtrdError, NotFoundError, RuntimeFailedError

# ---- output ----------------------------------------------------------------------------------------------------------


@pytest.mark.cannot(
    "api029", "know the end of what has ended and is deleted before runc has come back from its start", strict=False
)
@pytest.mark.parametrize("how", ["read by the caller", "captured"])
def test_the_last_line_of_a_container_that_exits_at_once_is_there(
    client: Client, spec: Make, state_dir: str, how: str
) -> None:  # C28
    def work(thread: int) -> None:
        for round in range(13):
            name = f"{thread}x{round}"
            wanted = spec(f"echo first {name}; printf 'only {name}' >&2; printf 'last {name}'; exit {thread + 1}")
            if how == "captured":
                done = libctrd.run(spec=wanted, id=name, capture_output=True, client=client)
                out, err, code = done.stdout, done.stderr, done.exit_code
            else:
                container = client.create(name, wanted)
                container.start(PIPE)
                assert container.stdout is not None
                assert container.stderr is not None
                if round % 2:  # half of them are read only when all is over and cleaned
                    code = container.wait(WAIT).code
                out, err = container.stdout.read(), container.stderr.read()
                code = container.wait(WAIT).code
                container.stdout.close()
                container.stderr.close()
            assert out == f"first {name}\nlast {name}".encode()
            assert err == f"only {name}".encode()
            assert code == thread + 1

    side_by_side(8, work)
    assert nothing_in(state_dir)


SLOW = """
    import os, sys, libctrd
    done = libctrd.run(["/bin/sh", "-c", sys.argv[2]], rootfs=sys.argv[1], stderr=libctrd.NULL)
    os._exit(done.exit_code)  # at once: what has not been delivered by now never will be
"""


@pytest.mark.parametrize("nonblocking", [False, True], ids=["blocking", "nonblocking"])
def test_our_own_standard_output_is_read_slowly_and_nothing_is_missing(
    engine: Place, rootfs: str, state_dir: str, nonblocking: bool
) -> None:  # C28
    size = 600_000
    reader, writer = os.pipe()
    os.set_blocking(writer, not nonblocking)
    env = {**os.environ, "CTRD_ADDRESS": engine.address}
    script = f"yes 0123456789abcdef | head -c {size}; printf THE-END; exit 21"
    process = python(SLOW, rootfs, script, env=env, stdout=writer)
    os.close(writer)
    got = b""
    with open(reader, "rb", buffering=0) as file:
        until(lambda: leftovers(state_dir)["files"])
        # The container fills the pipe and is held back there. Small bites, and some of them late.
        while block := file.read(1 + len(got) % 8191):
            got += block
            if len(got) % 5 == 0:
                threading.Event().wait(0.002)
    assert process.wait(WAIT) == 21
    assert len(got) == size + len("THE-END")
    assert got.endswith(b"THE-END")
    assert hashlib.sha256(got[:-7]).digest() == hashlib.sha256((b"0123456789abcdef\n" * size)[:size]).digest()
    assert nothing_in(state_dir)


WRITER = """
    import os, sys, libctrd
    address, runtime, rootfs, script, take = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime)
    container = client.create("web", libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
    container.start()
    taken = b""
    while len(taken) < int(take):
        taken += container.stdout.read(int(take) - len(taken))
    print(len(taken), flush=True)
    import signal
    signal.pause()
"""


def test_the_client_is_killed_while_the_container_writes_and_nothing_is_lost(
    client: Client, engine: Place, rootfs: str, runtime: str, state_dir: str
) -> None:  # C28
    lines = 60_000
    process = python(WRITER, client.address, runtime, rootfs, f"seq 1 {lines}; read x; echo $x; exit 22", "100000")
    assert said(process) == "100000"
    killed(process)
    container = client.get("web")
    assert container.status == "running", "it waits; it did not die of SIGPIPE"
    fds = engine.descriptors(container)
    assert set(fds) == {"i", "o", "e"}
    everything = "".join(f"{number}\n" for number in range(1, lines + 1)).encode()
    rest = b""
    while len(rest) < len(everything) - 100_000:
        rest += _read(fds["o"])
    assert everything[100_000:] == rest
    os.write(fds["i"], b"hello\n")  # its stdin has not ended either
    assert container.wait(WAIT).code == 22
    assert _read(fds["o"]) == b"hello\n"
    for fd in fds.values():
        os.close(fd)
    container.clean()
    assert nothing_in(state_dir)


def test_output_of_a_container_that_ended_after_its_client_was_killed_is_still_there(
    client: Client, engine: Place, rootfs: str, runtime: str
) -> None:  # C28
    process = python(WRITER, client.address, runtime, rootfs, "echo x; read x; echo last words; exit 23", "2")
    assert said(process) == "2"
    killed(process)
    container = client.get("web")
    fds = engine.descriptors(container)
    os.write(fds["i"], b"\n")
    assert container.wait(WAIT).code == 23
    again = engine.descriptors(container)  # by one who comes only now
    assert _read(again["o"]) == b"last words\n"
    for fd in (*fds.values(), *again.values()):
        os.close(fd)
    container.clean()


def _read(fd: int) -> bytes:
    os.set_blocking(fd, True)
    return os.read(fd, 65536)


# ---- stdin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["/dev/null", "no input", "closed in the callback", "a pipe at its end"])
def test_stdin_is_at_its_end_before_the_container_exists(client: Client, spec: Make, state_dir: str, how: str) -> None:
    for code in range(1, 11):  # C7
        wanted = spec(f"cat; exit {code}")
        if how == "closed in the callback":
            container = client.create("web", wanted)
            container.start(lambda pipe: pipe.stdin.close())  # type: ignore[union-attr]
            assert container.wait(WAIT).code == code
            continue
        reader = os.open("/dev/null", os.O_RDONLY)
        if how == "a pipe at its end":
            os.close(reader)
            reader, writer = os.pipe()
            os.write(writer, b"x")
            os.close(writer)
        given = {"input": b""} if how == "no input" else {"stdin": reader}
        done = libctrd.run(spec=wanted, client=client, stdout=NULL, stderr=NULL, timeout=WAIT, **given)  # type: ignore[arg-type]
        os.close(reader)
        assert done.exit_code == code
    assert nothing_in(state_dir)


def test_two_sides_close_stdin_at_the_same_time(
    client: Client, spec: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:  # C7
    told: list[str] = []
    close_stdin = client._engine.close_stdin
    monkeypatch.setattr(client._engine, "close_stdin", lambda id, name: (told.append(id), close_stdin(id, name)))
    for round in range(15):
        container = client.create(f"r{round}", spec("cat >/dev/null; exit 24"))
        container.start()
        stdin = container.stdin
        assert stdin is not None
        stdin.write(b"x" * 1000)
        barrier = threading.Barrier(7)

        def close(number: int, stdin: libctrd.stdio.Stdin = stdin, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(WAIT)
            if number == 0:
                with contextlib.suppress(NotFoundError):  # it has ended by itself
                    client.get(f"r{round}").signal("KILL")  # noqa: B023 - joined within the round
            else:
                stdin.close()

        side_by_side(7, close) if round % 2 else [side_by_side_close(stdin, 7)]
        assert container.wait(WAIT).code in (24, 137)
    client._lanes.drain(WAIT)
    assert len(told) == len(set(told)), "the first counts, and it alone"
    assert not caplog.records


def side_by_side_close(stdin: libctrd.stdio.Stdin, count: int) -> None:
    barrier = threading.Barrier(count)

    def close(_: int) -> None:
        barrier.wait(WAIT)
        stdin.close()

    side_by_side(count, close)
    assert stdin.closed


# ---- starts that fail, starts that are quick -------------------------------------------------------------------------


def test_a_create_that_fails_over_and_over_leaves_threads_and_files_as_before(
    client: Client, spec: Make, state_dir: str
) -> None:
    wanted = spec("true")
    wanted["process"]["args"] = ["/no/such/program"]

    def fail(number: int) -> None:
        for round in range(25):
            container = client.create(f"t{number}-{round}", wanted)
            with pytest.raises(RuntimeFailedError, match="/no/such/program"):
                container.start()

    side_by_side(4, lambda number: fail(number) if number == 0 else None)  # what is made once a process is there now
    libctrd.run(spec=spec("true"), client=client)  # and what is made once a client, for its first container that runs
    before = census()
    side_by_side(8, fail)
    assert more_than(before) == {}
    assert nothing_in(state_dir)


FIRST = """
    import sys, threading
    import libctrd
    from libctrd.spec import validate
    client = libctrd.connect(sys.argv[1])
    spec = {"ociVersion": "1.0.2", "process": {"args": ["/bin/true"], "cwd": "/"}, "root": {"path": sys.argv[2]}}
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(8)
    def first(number):
        barrier.wait()
        validate(spec)
        try:
            client.get("nobody")
        except libctrd.NotFoundError:
            client.create(f"c{number}", spec).clean()
    threads = [threading.Thread(target=first, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(client.containers())
"""


def test_the_first_containers_of_a_process_are_made_by_many_threads_at_once(engine: Place, rootfs: str) -> None:
    for _ in range(3):
        assert output_of(FIRST, engine.address, rootfs) == "[]\n"


def test_a_fifo_whose_peer_never_comes_costs_no_thread(tmp_path: Path) -> None:  # C17
    libctrd.open_fifo(tmp_path / "warm", os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT).close()
    before = census()
    fifos = [
        libctrd.open_fifo(tmp_path / str(number), flags | os.O_NONBLOCK | os.O_CREAT)
        for number in range(100)
        for flags in (os.O_RDONLY, os.O_WRONLY)
        if number % 2 == (flags == os.O_WRONLY)
    ]
    assert "threads" not in more_than(before)
    assert len(more_than(before)["fds"]) <= len(fifos)
    for fifo in fifos:
        assert not fifo.connected
        fifo.close()
    assert more_than(before) == {}


def test_discarding_fifos_whose_peers_never_come_costs_no_thread_each(tmp_path: Path) -> None:  # C12
    for number in range(30):
        (tmp_path / str(number)).mkdir()
        for stream in ("stdout", "stderr"):
            os.mkfifo(tmp_path / str(number) / f"init-{stream}")
    for pump in libctrd.discard_fifos(str(tmp_path / "0")):
        assert pump.wait(WAIT), "3 seconds in all, then it is over"
    before = census()
    pumps = [pump for number in range(30) for pump in libctrd.discard_fifos(str(tmp_path / str(number)))]
    assert len(pumps) == 60
    assert "threads" not in more_than(before)
    for pump in pumps:
        assert pump.wait(WAIT)
    until(lambda: more_than(before) == {})


def test_with_a_terminal_there_is_no_stderr_fifo_that_nobody_closes(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec("echo err >&2; cat; exit 25", terminal=True))  # C13
    container.start()
    assert sorted(name for name in os.listdir(container.bundle) if name.startswith("init-")) == [
        "init-stdin",
        "init-stdout",
    ]
    assert container.stderr is not None
    assert container.stdout is not None
    assert container.stdin is not None
    assert container.stderr.read() == b""
    container.stdin.write(b"\x04")  # end of file as a terminal knows it
    assert container.wait(WAIT).code == 25
    assert b"err\r\n" in container.stdout.read()
    container.stdout.close()
    assert nothing_in(state_dir)


@pytest.mark.local("a shim of containerd has the runtime create it first, and start it then")
def test_a_container_that_ends_before_its_start_has_returned_is_a_normal_start(
    client: Client, spec: Make, state_dir: str, tmp_path: Path
) -> None:
    """The runtime returns only when init has long ended: the shim must still get its code, and its output is there."""
    wrapper = tmp_path / "slow-runtime"
    wrapper.write_text(
        f'#!/bin/sh\n{client.info().runtime} "$@"; code=$?\n'
        'while [ "$1" != --version ] && [ $# -gt 1 ]; do [ "$1" = --pid-file ] && pid=$(cat "$2"); shift; done\n'
        'while [ -n "$pid" ] && [ -e /proc/$pid ] && ! grep -q "^State:.Z" /proc/$pid/status 2>/dev/null; do :; done\n'
        "exit $code\n"
    )
    wrapper.chmod(0o755)
    for code in (0, 26, 255):
        container = client.create("web", spec(f"echo hello; exit {code}"), runtime=str(wrapper))
        assert container.start() > 0
        assert container.stdout is not None
        assert container.stdout.read() == b"hello\n"
        assert container.wait(WAIT).code == code
        container.stdout.close()
    assert nothing_in(state_dir)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_hundreds_of_containers_made_and_removed_leave_as_many_files_as_before(rootfs: str, tmp_path: Path) -> None:
    """On a disk with room for the inodes of three containers: one left behind by each would soon be too many."""
    watched = [path for path in ("/run", "/run/crun", "/run/runc", "/tmp", "/dev/shm") if os.path.isdir(path)]
    with small_disk(tmp_path / "disk", "size=4m,nr_inodes=60") as disk:
        with libctrd.connect(f"local:{disk}/state") as client:
            libctrd.run(["/bin/true"], rootfs=rootfs, client=client, stdout=NULL, stderr=NULL)
            free = os.statvfs(disk).f_ffree
            files = {path: set(os.listdir(path)) for path in watched}

            def work(thread: int) -> None:
                for round in range(100):
                    how = {"stdout": NULL, "stderr": NULL} if round % 2 else {"capture_output": True}
                    done = libctrd.run(
                        ["/bin/sh", "-c", f"exit {thread}"],
                        rootfs=rootfs,
                        id=f"t{thread}-{round}",
                        client=client,
                        **how,
                    )
                    assert done.exit_code == thread

            side_by_side(3, work)
            assert os.statvfs(disk).f_ffree == free
            for path in watched:
                left = [name for name in set(os.listdir(path)) - files[path] if "t0-" in name or "t1-" in name]
                assert not left, path
        assert os.statvfs(disk).f_ffree == free


@pytest.mark.local("the directory of the others is not the caller's to choose")
@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_state_directory_deeper_than_a_sockets_path_may_be_works(
    state_dir: str, runtime: str, spec: Make, terminal: bool
) -> None:
    deep = os.path.join(state_dir, *["d" * 60] * 4)
    assert len(deep) > 250
    with libctrd.connect(f"local:{deep}", runtime=runtime) as client:
        container = client.create("a" * 76, spec("read x; echo got $x; exit 27", terminal=terminal))
        container.start()
        assert container.stdin is not None
        assert container.stdout is not None
        if terminal:
            container.resize(100, 40)
        with libctrd.connect(f"local:{deep}") as other:
            late = other.get("a" * 76)
            with contextlib.suppress(libctrd.DeadlineError):
                late.wait(0)  # from here on it is being told of the end
            container.stdin.write(b"it\n")
            assert late.wait(WAIT).code == 27
        assert container.wait(WAIT).code == 27
        assert b"got it" in container.stdout.read()
        container.stdout.close()
    until(lambda: not os.listdir(deep))
    subprocess.run(["rm", "-r", os.path.join(state_dir, "d" * 60)], check=True)


def test_the_state_directory_goes_away_under_us_and_the_rest_go_on(
    client: Client, engine: Place, spec: Make, state_dir: str
) -> None:
    first, second = client.create("first", spec("cat; exit 28")), client.create("second", spec("cat; exit 29"))
    idle = client.create("idle", spec("true"))
    first.start(Stdio(PIPE, NULL, NULL))
    second.start(Stdio(PIPE, NULL, NULL))
    os.rename(os.path.join(state_dir, "first"), state_dir + ".taken")
    subprocess.run(["rm", "-r", os.path.join(state_dir, "idle")], check=True)
    try:
        with libctrd.connect(client.address) as other:
            calls = [("first", first.spec)]
            if engine.kind == "local":  # else the records are not in it, and all of this goes on
                calls += [("first", first.info), ("first", lambda: first.signal("TERM"))]
                calls += [("first", lambda: other.get("first")), ("idle", idle.info), ("idle", idle.start)]
            for id, call in calls:
                with refused(CtrdError, id):
                    call()
        assert "second" in [container.id for container in client.containers()]
        assert second.stdin is not None
        second.stdin.close()
        assert second.wait(WAIT).code == 29
        client.create("third", spec("true")).clean()
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait(WAIT).code == 137, "its end is told all the same"
    finally:
        os.rename(state_dir + ".taken", os.path.join(state_dir, "first"))
    with libctrd.connect(client.address) as other:
        for container in other.containers():
            container.clean(force=True)
    idle.clean()
    if engine.kind == "containerd":  # which needs no directory to remove the container, and so left this one
        subprocess.run(["rm", "-r", os.path.join(state_dir, "first")], check=True)
    assert nothing_in(state_dir)


def test_a_client_that_goes_lets_its_detached_containers_run_on(client: Client, spec: Make, state_dir: str) -> None:
    with libctrd.connect(client.address) as starter:
        starter.create("web", spec("yes | head -c 1000000; exit 30")).start(DETACHED, unattended="discard")
    container = client.get("web")
    assert container.wait(WAIT).code == 30
    container.clean()
    assert nothing_in(state_dir)
