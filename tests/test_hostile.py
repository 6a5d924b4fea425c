"""A container that turns on its own streams, and a user who tries what is not his: nobody hangs or gets in."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_kit import leftovers
from field_kit import until
from host_kit import PYTHON, host_root

import libctrd
from libctrd.client import Client

Make = Callable[..., dict[str, Any]]
WAIT = 60.0


@pytest.fixture
def python_spec(tmp_path: Path) -> Make:
    """The spec of a container that runs a script with this host's own Python."""
    host = host_root(tmp_path / "root")

    def make(script: str, **settings: Any) -> dict[str, Any]:
        words = [PYTHON, "-c", textwrap.dedent(script)]
        return libctrd.spec.default(words, host.rootfs, mounts=host.mounts, **settings)

    return make


def test_it_changes_the_size_of_its_pipes_while_it_writes(client: Client, python_spec: Make) -> None:  # C28
    """From a page to a mebibyte and back, for each piece: every byte arrives, in order."""
    spec = python_spec("""
        import fcntl, os
        sizes = (4096, 1 << 20, 65536)
        for n in range(600):
            try:
                fcntl.fcntl(1, 1031, sizes[n % 3])
            except OSError:
                pass  # there is more in it
            data = b"%06d\\n" % n * 100
            while data:
                data = data[os.write(1, data):]
    """)
    done = libctrd.run(spec=spec, client=client, capture_output=True, timeout=WAIT)
    assert (done.exit_code, done.stderr) == (0, b"")
    assert done.stdout == b"".join(b"%06d\n" % n * 100 for n in range(600))


def test_it_reads_its_own_output_and_writes_its_own_input(client: Client, python_spec: Make) -> None:
    """Through /proc/self/fd it opens the other ends. What it takes from itself is its loss; its end is told."""
    spec = python_spec("""
        import os
        out = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
        own = os.open("/proc/self/fd/0", os.O_WRONLY | os.O_NONBLOCK)
        os.write(own, b"to myself\\n")
        assert os.read(0, 100) == b"to myself\\n"
        for _ in range(2000):
            os.write(1, b"x" * 100)
            try:
                os.read(out, 60)
            except BlockingIOError:
                pass
        os.write(2, b"done\\n")
        os._exit(5)  # with all of it open
    """)
    container = client.create("narcissus", spec)
    container.start(libctrd.PIPE)
    container.stdin.close()
    out, err = container.stdout.read(), container.stderr.read()
    assert container.wait(WAIT).code == 5
    container.clean()
    assert err == b"done\n"
    assert set(out) <= {ord("x")}


def test_it_leaves_a_child_with_all_of_its_streams(client: Client, python_spec: Make, state_dir: str) -> None:
    """With a pid namespace of its own the child goes with it: neither the wait nor the clean waits for it."""
    spec = python_spec("""
        import os, time
        if os.fork() == 0:
            os.setsid()
            for fd in (0, 1, 2):
                for flags in (os.O_RDONLY, os.O_WRONLY):
                    os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK)
            time.sleep(1000)
        os.write(1, b"gone\\n")
    """)
    done = libctrd.run(spec=spec, client=client, capture_output=True, timeout=WAIT)
    assert (done.exit_code, done.stdout) == (0, b"gone\n")
    assert not any(leftovers(state_dir).values())


def test_it_forks_as_much_as_its_limit_lets_it(client: Client, spec: Make, state_dir: str) -> None:
    """It cannot do more, and it goes at once when it is cleaned."""
    bomb = "bomb() { bomb | bomb & }; echo begun; bomb; while :; do bomb; done"
    container = client.create("bomb", spec(bomb, pids_limit=40))
    container.start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.NULL))
    assert container.stdout.read(6) == b"begun\n"
    container.clean(force=True)
    assert client.containers() == []


def test_it_fills_its_pipes_grown_as_far_as_they_go(client: Client, python_spec: Make, state_dir: str) -> None:  # C28
    """Nobody reads, and it goes on when somebody does; or is cleaned by force, full as they are."""
    spec = python_spec("""
        import fcntl, os
        os.write(2, b"begun\\n")
        for fd in (0, 1):
            try:
                fcntl.fcntl(fd, 1031, 1 << 20)
            except OSError:
                pass  # so much is not for everybody
        os.set_blocking(1, False)
        total = 0
        try:
            while True:
                total += os.write(1, b"x" * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(1, True)
        os.write(2, b"%d\\n" % total)
        os.write(1, b"y" * 3_000_000)
        os.write(2, b"done\\n")
    """)
    container = client.create("full", spec)
    container.start(libctrd.PIPE)
    assert container.stderr is not None
    assert container.stdout is not None
    text = b""
    while text.count(b"\n") < 2:
        text += container.stderr.read(100)
    total = int(text.split()[1])
    assert total >= 65536
    assert container.stdout.read() == b"x" * total + b"y" * 3_000_000
    assert container.stderr.read() == b"done\n"
    assert container.wait(WAIT).code == 0
    container.stdout.close()
    again = client.create("full", spec)
    again.start(libctrd.PIPE)
    assert again.stderr is not None
    text = b""
    while text.count(b"\n") < 2:
        text += again.stderr.read(100)
    again.clean(force=True)
    assert not any(leftovers(state_dir).values())


@pytest.mark.local("it looks at the memory of the shim")
@pytest.mark.parametrize("how", ["kept by nobody", "discarded"])
def test_it_floods_its_output(client: Client, spec: Make, state_dir: str, how: str) -> None:  # C28
    """Whether somebody is slow to read or nobody reads: neither client nor shim grows, and others run on meanwhile."""
    container = client.create("flood", spec("exec yes 0123456789abcdef"))
    if how == "discarded":
        container.start(libctrd.DETACHED, unattended="discard")
    else:
        container.start(libctrd.PIPE)
    (shim,) = (int(pid) for pid in leftovers(state_dir)["processes"] if _runs(pid, "ctrd-shim"))
    before = _memory(os.getpid()), _memory(shim)
    for code in range(5):
        done = libctrd.run(spec=spec(f"echo {code}; exit {code}"), client=client, capture_output=True, timeout=WAIT)
        assert (done.exit_code, done.stdout) == (code, b"%d\n" % code)
    after = _memory(os.getpid()), _memory(shim)
    assert after[0] - before[0] < 16 << 20
    assert after[1] - before[1] < 1 << 20
    container.clean(force=True)
    assert not any(leftovers(state_dir).values())


@pytest.mark.local("it is the shim that removes it")
def test_one_that_logs_and_removes_itself_leaves_its_log_alone(
    client: Client, spec: Make, tmp_path: Path, state_dir: str
) -> None:
    log = tmp_path / "log"
    container = client.create("web", spec("echo kept"))
    container.start(libctrd.DETACHED, unattended="log", log=str(log), auto_remove=True)
    until(lambda: not any(leftovers(state_dir).values()))
    assert log.read_text() == "kept\n"


@pytest.mark.local("it is the shim that writes a log")
def test_a_log_that_nobody_reads_holds_nothing_up(client: Client, spec: Make, tmp_path: Path) -> None:
    """A fifo at that path, without a reader, or with one that does not read: a clear error, and lines that are lost."""
    log = tmp_path / "log"
    os.mkfifo(log)
    options: dict[str, Any] = {"unattended": "log", "log": str(log)}
    with pytest.raises(libctrd.CtrdError, match=str(log)):
        client.create("web", spec("true")).start(libctrd.DETACHED, **options)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    container = client.create("web", spec("yes | head -c 3000000; exit 4"))
    container.start(libctrd.DETACHED, **options)
    assert container.wait(WAIT).code == 4
    container.clean()
    os.close(reader)


def _runs(pid: str, program: str) -> bool:
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")) == program


def _memory(pid: int) -> int:
    """Bytes that it has had at most."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


def test_it_floods_events(client: Client, spec: Make, state_dir: str) -> None:  # C10
    """It runs out of memory again and again, a child at a time. Others' events come through, and it can be removed."""
    told: list[tuple[str, str]] = []

    class Listener:
        def state_changed(self, id: str, info: libctrd.StateInfo) -> None:
            told.append((id, info.type))

    client.subscribe(Listener())
    container = client.create("hungry", spec("while :; do tail /dev/zero; done", memory=8 << 20))
    container.start(libctrd.NULL)
    until(lambda: ("hungry", "oom") in told, WAIT)
    for number in range(10):
        assert libctrd.run(spec=spec("exit 3"), id=f"other{number}", client=client, timeout=WAIT).exit_code == 3
        assert (f"other{number}", "exit") in told
    assert container.status == "running"
    container.clean(force=True)
    assert told[-1] == ("hungry", "exit")
    assert not any(leftovers(state_dir).values())


@pytest.mark.local("its sockets are the shim's")
def test_another_user_reaches_no_socket_and_no_fifo(client: Client, spec: Make) -> None:
    """Nor the record: whoever may not enter the directory gets nothing of it."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "util-linux has it"
    container = client.create("private", spec("sleep 100"))
    container.start(libctrd.PIPE)
    names = sorted(os.listdir(container.bundle))
    assert {"shim.sock", "init-stdout", "state.json", "config.json"} <= set(names)
    script = """
        import os, socket, sys
        bundle, *names = sys.argv[1:]
        for name in names:
            path = f"{bundle}/{name}"
            tries = [lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK), lambda: os.stat(path), lambda: os.unlink(path)]
            if name.endswith(".sock"):
                tries.append(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(path))
            for attempt in tries:
                try:
                    attempt()
                except PermissionError:
                    continue
                sys.exit(f"{path} was reached")
        for gone in (lambda: os.rename(bundle, bundle + "x"), lambda: os.symlink("/", bundle + "y")):
            try:
                gone()
            except PermissionError:
                continue
            sys.exit(f"{bundle} was moved")
    """
    python = shutil.which("python3", path="/usr/bin:/bin") or PYTHON
    nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*nobody, python, "-c", textwrap.dedent(script), container.bundle, *names],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    container.clean(force=True)
