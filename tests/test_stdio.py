"""The standard streams of a process: which fifos there are, who moves them, and when their end has come."""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import pty
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Place
from field_kit import until

import libctrd
from libctrd import relay, stdio, unread
from libctrd.client import Client
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.fifo import Fifo, growing_is_free, open_fifo

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


# ---- opening (C13) ------------------------------------------------------------------------------------------------


def test_three_fifos_are_made_and_nothing_waits(tmp_path: Path, same_resources: None) -> None:  # C13
    old = os.umask(0)
    try:
        pipe = stdio.open_fifos(str(tmp_path / "web"), "init", terminal=False)
    finally:
        os.umask(old)
    assert (tmp_path / "web").stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in (tmp_path / "web").iterdir()) == ["init-stderr", "init-stdin", "init-stdout"]
    assert all(p.is_fifo() and p.stat().st_mode & 0o777 == 0o700 for p in (tmp_path / "web").iterdir())
    pipe.close()
    pipe.close()


def test_fifos_that_are_there_are_used(tmp_path: Path) -> None:  # C13
    for name in ("stdin", "stdout", "stderr"):
        os.mkfifo(tmp_path / f"web-{name}", 0o700)
    before = {p.name: p.stat().st_ino for p in tmp_path.iterdir()}
    stdio.open_fifos(str(tmp_path), "web", terminal=False).close()
    assert {p.name: p.stat().st_ino for p in tmp_path.iterdir()} == before


def test_with_a_terminal_stderr_reads_as_empty(tmp_path: Path) -> None:  # C13
    pipe = stdio.open_fifos(str(tmp_path), "init", terminal=True)
    assert not (tmp_path / "init-stderr").exists()
    assert pipe.stderr is not None
    assert pipe.stderr.read() == b""
    pipe.close()


def test_on_solaris_stderr_is_a_fifo_with_a_terminal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # C13
    monkeypatch.setattr(stdio, "STDERR_WITH_TERMINAL", True)
    pipe = stdio.open_fifos(str(tmp_path), "init", terminal=True)
    assert isinstance(pipe.stderr, Fifo)
    assert (tmp_path / "init-stderr").is_fifo()
    pipe.close()


@pytest.mark.parametrize("which", ["stdin", "stdout", "stderr"])
def test_if_one_fails_the_others_are_closed_and_those_made_are_removed(
    tmp_path: Path, which: str, same_resources: None
) -> None:  # C13
    (tmp_path / f"init-{which}").write_text("no fifo")
    with pytest.raises(CtrdError, match=f"init-{which}"):
        stdio.open_fifos(str(tmp_path), "init", terminal=False)
    assert [p.name for p in tmp_path.iterdir()] == [f"init-{which}"]


# ---- discarding (C12) ---------------------------------------------------------------------------------------------


def test_a_process_that_is_blocked_on_writing_goes_on(tmp_path: Path) -> None:  # C12
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / f"init-{name}")
    done = threading.Event()

    def write() -> None:
        for name in ("stdout", "stderr"):  # blocks until somebody reads, and then for room
            with open(tmp_path / f"init-{name}", "wb") as file:
                file.write(b"x" * (4 << 20))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    pumps = unread.discard_fifos(str(tmp_path))
    assert done.wait(WAIT)
    thread.join()
    for pump in pumps:
        assert pump.wait(WAIT)
    assert [pump.bytes for pump in pumps] == [4 << 20] * 2


def test_the_other_side_has_three_seconds_to_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_resources: None
) -> None:  # C12
    assert unread.DISCARD_SECONDS == 3.0
    monkeypatch.setattr(unread, "DISCARD_SECONDS", 0.05)
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / f"init-{name}")
    with open_fifo(str(tmp_path / "init-stderr"), os.O_RDWR) as writer:
        pumps = unread.discard_fifos(str(tmp_path))
        assert pumps[0].wait(WAIT), "nobody came: given up"
        assert not pumps[1].done, "somebody is there: drained until the end"
        writer.write(b"late")
    assert pumps[1].wait(WAIT)
    assert [pump.bytes for pump in pumps] == [0, 4]


def test_a_fifo_that_cannot_be_opened_is_a_warning_and_the_other_is_drained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # C12
    os.mkfifo(tmp_path / "init-stderr")
    with open_fifo(str(tmp_path / "init-stderr"), os.O_RDWR) as writer:
        with caplog.at_level(logging.WARNING, "libctrd"):
            (pump,) = unread.discard_fifos(str(tmp_path))
        writer.write(b"x")
    assert pump.wait(WAIT)
    assert "init-stdout" in caplog.text
    assert not (tmp_path / "init-stdout").exists(), "it is not created"


# ---- choosing -----------------------------------------------------------------------------------------------------


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="stdout"):
        stdio.Stdio(stdout="a path")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="stdin"):
        stdio.Stdio(stdin=io.BytesIO())
    with pytest.raises(InvalidArgumentError, match="not known"):
        stdio.Streams("PIPE", terminal=False)  # type: ignore[arg-type]


def test_null_is_dev_null_in_the_container(client: Client, engine: Place, spec: Make) -> None:
    container = client.create("web", spec('cat; echo lost; is=$(ls -l /proc/1/fd/0 /proc/1/fd/1); echo "$is" >&2'))
    container.start(libctrd.Stdio(libctrd.NULL, libctrd.NULL, libctrd.PIPE))
    assert container.stdin is None
    assert container.stdout is None
    assert container.stderr is not None
    links = container.stderr.read()
    assert links.count(b"/dev/null") == 2 - engine.null_pipes, links
    assert container.wait(WAIT).code == 0


def test_a_terminal_without_anybody_at_it_goes_on(client: Client, spec: Make) -> None:
    container = client.create("web", spec("seq 1 100000; exit 4", terminal=True))
    container.start(libctrd.NULL, unattended="discard")
    assert container.wait(WAIT).code == 4


def test_files_and_descriptors_are_streams(client: Client, spec: Make, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file\n")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        container = client.create("web", spec("cat; echo err >&2"))
        container.start(libctrd.Stdio(source, sink, sink.fileno()))
        assert container.wait(WAIT).code == 0
    assert sorted((tmp_path / "out").read_bytes().splitlines()) == [b"err", b"from a file"]


def test_a_large_input_ends_at_its_end(client: Client, spec: Make, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 8
    (tmp_path / "in").write_bytes(data)
    with open(tmp_path / "in", "rb") as source:
        container = client.create("web", spec("sha256sum"))
        container.start(libctrd.Stdio(source, libctrd.PIPE, libctrd.NULL))
        assert container.stdout is not None
        assert container.stdout.read().split()[0].decode() == hashlib.sha256(data).hexdigest()
        container.wait(WAIT)


def test_a_stdin_that_never_ends_does_not_outlive_the_container(client: Client, spec: Make) -> None:
    reader, writer = os.pipe()
    container = client.create("web", spec("exit 3"))
    container.start(libctrd.Stdio(reader, libctrd.NULL, libctrd.NULL))
    assert container.wait(WAIT).code == 3
    os.close(reader)
    polled = select.poll()
    polled.register(writer, 0)
    assert polled.poll(WAIT * 1000) == [(writer, select.POLLERR)], "the duplicate that fed it is closed as well"
    os.close(writer)


# ---- the end of output (C28) --------------------------------------------------------------------------------------


def test_wait_returns_after_the_sink_has_it_all(client: Client, spec: Make) -> None:  # C28
    reader, writer = os.pipe()
    container = client.create("web", spec("dd if=/dev/zero bs=1024 count=3000 2>/dev/null"))
    container.start(libctrd.Stdio(libctrd.NULL, writer, libctrd.NULL))
    os.close(writer)
    with pytest.raises(libctrd.DeadlineError):
        container.wait(0.2)  # nobody reads: it is held back
    got = 0
    while chunk := os.read(reader, 1 << 16):
        got += len(chunk)
    assert got == 3000 * 1024
    assert container.wait(WAIT).code == 0
    os.close(reader)


def test_what_was_not_read_before_the_end_can_be_read_after_it(client: Client, spec: Make) -> None:  # C28
    container = client.create("web", spec("dd if=/dev/zero bs=1024 count=60 2>/dev/null; echo last >&2"))
    container.start()
    assert container.wait(WAIT).code == 0
    assert not os.path.exists(container.bundle), "cleaned, and yet nothing is lost"
    assert container.stdout is not None
    assert container.stderr is not None
    assert len(container.stdout.read()) == 60 * 1024
    assert container.stderr.read() == b"last\n"


def hold_output_open(container: libctrd.Container) -> int:
    """Opens the output for writing, as a process that was left behind would hold it; then lets the container end."""
    holder = os.open(os.path.join(container.bundle, "init-stdout"), os.O_WRONLY)
    assert isinstance(container.stdin, stdio.Stdin)
    container.stdin.close()
    return holder


def test_output_kept_open_is_waited_for_as_long_as_the_caller_says(any_client: Client, spec: Make) -> None:  # C28
    container = any_client.create("web", spec("read x; echo mine"))
    container.start(drain_timeout=0.3)
    holder = hold_output_open(container)
    assert container.wait(WAIT).code == 0
    os.write(holder, b"late\n")
    os.close(holder)
    assert container.stdout is not None
    assert container.stdout.read() == b"mine\nlate\n", "what the caller holds he can read to its own end"


def test_output_kept_open_is_waited_for_without_a_limit(any_client: Client, spec: Make) -> None:  # C28
    container = any_client.create("web", spec("read x; echo mine"))
    container.start(libctrd.Stdio(libctrd.PIPE, stdio.Choice.CAPTURE, libctrd.NULL))
    holder = hold_output_open(container)
    with pytest.raises(libctrd.DeadlineError):
        container.wait(0.3)
    os.write(holder, b"late\n")
    os.close(holder)
    container.wait(WAIT)
    assert container._captured()["stdout"].read() == b"mine\nlate\n"


def test_what_the_relay_has_by_the_drain_timeout_is_delivered(any_client: Client, spec: Make) -> None:  # C28
    container = any_client.create("web", spec("read x; echo mine"))
    container.start(libctrd.Stdio(libctrd.PIPE, stdio.Choice.CAPTURE, libctrd.NULL), drain_timeout=0.3)
    holder = hold_output_open(container)
    assert container.wait(WAIT).code == 0
    assert container._captured()["stdout"].read() == b"mine\n"
    os.close(holder)


def test_children_that_init_leaves_behind_end_with_it(client: Client, spec: Make) -> None:  # C28
    """Also without a pid namespace, where the kernel does not see to that."""
    wanted = spec("sleep 1000 & echo started; exit 3")
    wanted["linux"]["namespaces"] = [n for n in wanted["linux"]["namespaces"] if n["type"] != "pid"]
    container = client.create("web", wanted)
    container.start()
    assert container.wait(WAIT).code == 3
    assert container.stdout is not None
    assert container.stdout.read() == b"started\n"


def test_a_reader_that_went_away_holds_the_container_back_and_does_not_kill_it(client: Client, spec: Make) -> None:
    container = client.create("web", spec("read x; yes | head -c 3000000; exit 5"))
    container.start()
    assert container.stdout is not None
    assert container.stdin is not None
    container.stdout.close()
    container.stdin.close()
    # A shim still holds a reading end, so that the container is held back, as with a client that went away.
    with pytest.raises(libctrd.DeadlineError):
        container.wait(0.3)
    container.signal("KILL")
    assert container.wait(WAIT).code == 137


def test_pipes_that_the_caller_reads_are_grown_where_that_is_free(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("cat"))
    container.start()
    assert isinstance(container.stdout, Fifo)
    room = fcntl.fcntl(container.stdout.fileno(), fcntl.F_GETPIPE_SZ)
    assert room == (1 << 20 if growing_is_free() else 1 << 16)
    container.clean(force=True)


# ---- unattended output --------------------------------------------------------------------------------------------


def test_discarded_output_lets_the_container_go_on(client: Client, spec: Make) -> None:
    container = client.create("web", spec("yes | head -c 10000000; exit 6"))
    container.start(libctrd.DETACHED, unattended="discard")
    assert container.wait(WAIT).code == 6
    container.clean()


@pytest.mark.local("the next client gets the output from the shim")
def test_held_output_waits_for_the_next_client(client: Client, spec: Make) -> None:
    from libctrd.engine import shim

    container = client.create("web", spec("yes | head -c 1000000; exit 6"))
    container.start(libctrd.DETACHED, unattended="hold")
    with pytest.raises(libctrd.DeadlineError):
        container.wait(0.3)
    fds = shim.descriptors(container.bundle)
    got = 0
    os.set_blocking(fds["o"], True)
    while got < 1000000:
        got += len(os.read(fds["o"], 1 << 16))
    assert container.wait(WAIT).code == 6
    for fd in fds.values():
        os.close(fd)
    container.clean()


@pytest.mark.cannot("api", "log output", raises=UnsupportedError)
def test_logged_output_is_all_in_the_file(client: Client, spec: Make, tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("before\n")
    container = client.create("web", spec("seq 1 20000; exit 6"))
    container.start(libctrd.DETACHED, unattended="log", log=str(log))
    assert container.wait(WAIT).code == 6
    container.clean()
    assert log.read_text().split() == ["before", *(str(n) for n in range(1, 20001))]


@pytest.mark.cannot("containerd", "remove a container that has ended by itself", raises=UnsupportedError)
@pytest.mark.cannot("api", "remove a container that has ended by itself", raises=UnsupportedError)
def test_a_detached_container_can_remove_itself(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec("seq 1 100000; exit 6"))
    container.start(libctrd.DETACHED, unattended="discard", auto_remove=True)
    assert container.wait(WAIT).code == 6, "who waits in time gets the code"
    starter = client._engine._shims.get("web")  # type: ignore[attr-defined]
    assert starter is None or starter.gone.wait(WAIT)
    assert os.listdir(state_dir) == []
    with pytest.raises(InvalidArgumentError, match="auto_remove"):
        client.create("web", spec("true")).start(auto_remove=True)
    client.get("web").clean()


# ---- terminals ----------------------------------------------------------------------------------------------------


def test_a_terminal_carries_all_output_and_its_size(client: Client, spec: Make) -> None:
    container = client.create("web", spec("read x; stty size; echo err >&2; exit 3", terminal=True))
    container.start()
    container.resize(123, 45)
    assert container.stdin is not None
    assert container.stdout is not None
    container.stdin.write(b"go\n")
    output = container.stdout.read()
    assert b"45 123" in output
    assert b"err" in output
    assert container.wait(WAIT).code == 3
    for size in ((0, 5), (5, 0), (-1, 5), (70000, 5)):
        with pytest.raises(InvalidArgumentError, match="terminal"):
            container.resize(*size)


def test_a_large_output_of_a_terminal_is_complete(client: Client, spec: Make) -> None:  # C28
    container = client.create("web", spec("seq 1 50000", terminal=True))
    container.start()
    assert container.stdout is not None
    assert container.stdout.read().split() == [b"%d" % n for n in range(1, 50001)]
    container.wait(WAIT)


def test_our_own_terminal_can_be_the_sink(client: Client, spec: Make) -> None:
    leader, follower = pty.openpty()
    container = client.create("web", spec("seq 1 3000; exit 2"))
    container.start(libctrd.Stdio(libctrd.NULL, follower, libctrd.NULL))
    os.close(follower)
    got = b""
    while b"\n3000\r\n" not in got:
        assert select.select([leader], [], [], WAIT)[0]
        got += os.read(leader, 65536)
    assert got.split() == [b"%d" % n for n in range(1, 3001)]
    assert container.wait(WAIT).code == 2
    os.close(leader)


def test_resize_needs_a_terminal(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat"))
    container.start()
    with pytest.raises(InvalidArgumentError, match="no terminal"):
        container.resize(80, 24)
    container.clean(force=True)


# ---- run ----------------------------------------------------------------------------------------------------------


def test_run_hands_back_all_output_and_the_true_code(client: Client, rootfs: str) -> None:  # C28
    done = libctrd.run(
        ["sh", "-c", "echo out; echo err >&2; exit 7"], rootfs=rootfs, capture_output=True, client=client
    )
    assert (done.exit_code, done.stdout, done.stderr, done.oom_killed) == (7, b"out\n", b"err\n", False)


def test_run_checks_when_asked(client: Client, rootfs: str) -> None:
    with pytest.raises(libctrd.ExitError, match="exit code 3: no luck") as caught:
        libctrd.run(
            ["sh", "-c", "echo no luck >&2; exit 3"], rootfs=rootfs, capture_output=True, check=True, client=client
        )
    assert caught.value.exit_code == 3
    libctrd.run(["true"], rootfs=rootfs, check=True, client=client)


def test_run_kills_and_cleans_after_its_timeout(client: Client, rootfs: str, state_dir: str) -> None:
    with pytest.raises(libctrd.DeadlineError, match="killed"):
        libctrd.run(["sleep", "1000"], rootfs=rootfs, timeout=0.2, client=client)
    with pytest.raises(libctrd.DeadlineError, match="killed"):  # also while its input is not taken
        libctrd.run(["sleep", "1000"], rootfs=rootfs, timeout=0.2, input=b"x" * (4 << 20), client=client)
    assert os.listdir(state_dir) == []


def test_run_ends_after_its_timeout_though_nobody_takes_the_output(client: Client, rootfs: str, state_dir: str) -> None:
    reader, writer = os.pipe()
    for script in ("yes", "yes | head -c 300000"):  # it runs on; it has ended, and its output is stuck
        with pytest.raises(libctrd.DeadlineError, match="killed"):
            libctrd.run(["sh", "-c", script], rootfs=rootfs, timeout=0.3, stdout=writer, client=client)
    os.close(reader)
    os.close(writer)
    assert os.listdir(state_dir) == []


def test_input_that_is_not_read_to_its_end_does_no_harm(client: Client, rootfs: str) -> None:
    done = libctrd.run(
        ["head", "-c", "5"], rootfs=rootfs, input=b"hello" + b"x" * (4 << 20), capture_output=True, client=client
    )
    assert (done.exit_code, done.stdout) == (0, b"hello")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give one of: a spec"),
        ({"spec": {}, "rootfs": "/"}, "give one of: a spec"),
        ({"rootfs": "/"}, "args"),
        ({"args": ["true"], "rootfs": "/", "input": b"", "stdin": libctrd.NULL}, "input="),
        ({"args": ["true"], "rootfs": "/", "capture_output": True, "stdout": 1}, "capture_output="),
        ({"args": ["true"], "rootfs": "/", "stdout": libctrd.PIPE}, "PIPE"),
        ({"spec": {"ociVersion": "1.0.0"}, "args": ["true"]}, "belong into the spec"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        libctrd.run(**arguments)


def test_an_id_in_use_is_refused_by_run_and_lives_on(client: Client, spec: Make, rootfs: str) -> None:
    container = client.create("web", spec("cat"))
    container.start()
    with pytest.raises(AlreadyExistsError):
        libctrd.run(["true"], rootfs=rootfs, id="web", client=client)
    assert container.status == "running"
    container.clean(force=True)
    with pytest.raises(NotFoundError):
        client.get("web")


def test_the_relay_is_idle_when_nothing_runs(client: Client, rootfs: str) -> None:  # C17
    libctrd.run(["true"], rootfs=rootfs, client=client)
    until(lambda: relay.active() == 0)  # it tells of an end before it counts it
