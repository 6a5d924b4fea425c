"""The bars that libctrd is measured by: many runs, much data, little memory, on real engines.

``CTRD_BAR_RUNS`` says how many runs each of the two long tests makes.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from container_kit import WAIT, as_before, descriptors, shims, spec_of
from engine_kit import leftovers, need
from fifo_kit import until

import libctrd
from libctrd import DETACHED, PIPE, Stdio
from libctrd.client import Client
from libctrd.engine import shim

RUNS = int(os.environ.get("CTRD_BAR_RUNS", "1000"))
MIB = 1 << 20
Make = Callable[..., dict[str, Any]]


def threads() -> int:
    """Threads of this process, those that Python does not know of included."""
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def nothing_more(any_client: Client, state_dir: str) -> Iterator[None]:
    """Of descriptors, threads, children and files there are no more after the test than there were before."""
    before, threads_before = descriptors(), threads()
    yield
    as_before(before)
    until(lambda: threads() <= threads_before, f"no more than {threads_before} threads")
    assert not any(leftovers(state_dir).values())


# ---- many runs -------------------------------------------------------------------------------------------------------


def run_and_check(client: Client, rootfs: str, n: int) -> None:
    done = libctrd.run(
        ["sh", "-c", f"echo {n}; echo err {n} >&2; exit {n % 256}"], rootfs=rootfs, capture_output=True, client=client
    )
    assert (done.stdout, done.stderr, done.exit_code) == (b"%d\n" % n, b"err %d\n" % n, n % 256)


@pytest.mark.local("containerd has its own bar of many lives")
@pytest.mark.bar
@pytest.mark.timeout(900)
def test_runs_one_after_another_lose_nothing(
    any_client: Client, rootfs: str, warm: None, nothing_more: None
) -> None:  # C28
    for n in range(RUNS):
        run_and_check(any_client, rootfs, n)


@pytest.mark.local("containerd has its own bar of many lives")
@pytest.mark.bar
@pytest.mark.timeout(900)
def test_runs_eight_at_a_time_lose_nothing(
    any_client: Client, rootfs: str, warm: None, nothing_more: None
) -> None:  # C28
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: run_and_check(any_client, rootfs, n), range(RUNS)):
            pass


@pytest.fixture
def warm(any_client: Client, rootfs: str) -> None:
    """The relay and the reactor are made once, by the first run; they are there before anything is counted."""
    run_and_check(any_client, rootfs, 0)
    until(lambda: not any(t.name == "ctrd-lane" for t in threading.enumerate()), "no idle thread")


@pytest.mark.local("it is about the shim")
def test_three_hundred_starts_on_crun_tell_the_true_exit(state_dir: str, spec: Make) -> None:
    """crun's own helper may end after crun: the shim never takes that for the container's end, and reaps it."""
    need(shutil.which("crun"), "crun")
    with libctrd.connect(f"local:{state_dir}", runtime="crun") as client:
        for n in range(300):
            container = client.create("again", spec(f"exit {n % 256}"))
            container.start(DETACHED, unattended="discard")
            status = container.wait(WAIT)
            assert (status.code, status.known) == (n % 256, True)
            (pid,) = shims(state_dir)
            children = Path(f"/proc/{pid}/task/{pid}/children")
            until(lambda children=children: children.read_text() == "", "no stray child")
            container.clean()


# ---- much data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MiB of which no two blocks are the same."""
    path = tmp_path_factory.mktemp("bars") / "data"
    noise = random.Random(7)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(noise.randbytes(MIB))
    return path


@pytest.fixture(scope="module")
def sha256(data: Path) -> str:
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(MIB):
        digest.update(block)
    return digest.hexdigest()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The memory of this process stays under 64 MiB over what it is when the test begins: its high-water mark does."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < 64 * MIB


def memory(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"the kernel does not tell {what}"
    return int(found[1]) * 1024


def with_data(make: Make, script: str, data: Path) -> dict[str, Any]:
    mount = {"destination": "/data", "type": "bind", "source": str(data), "options": ["bind", "ro"]}
    return make(script, mounts=[mount])


def test_much_output_reaches_a_program_of_ours(
    any_client: Client, spec: Make, data: Path, sha256: str, little_memory: None
) -> None:  # C28
    with subprocess.Popen(["sha256sum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ours:
        assert ours.stdin is not None
        assert ours.stdout is not None
        container = any_client.create("out", with_data(spec, "cat /data", data))
        container.start(Stdio(stdout=ours.stdin, stderr=ours.stdin))
        assert container.wait(WAIT).code == 0
        ours.stdin.close()
        assert ours.stdout.read().split()[0].decode() == sha256


def test_much_output_waits_for_a_reader_that_sleeps(
    any_client: Client, spec: Make, data: Path, sha256: str, little_memory: None
) -> None:  # C28
    digest, pause, size = hashlib.sha256(), threading.Event(), 0
    container = any_client.create("out", with_data(spec, "cat /data; exit 5", data))
    container.start(PIPE)
    assert container.stdout is not None
    with container.stdout as stdout:
        while block := stdout.read(3 * MIB):
            digest.update(block)
            size += len(block)
            if size // (4 * MIB) != (size - len(block)) // (4 * MIB):
                pause.wait(0.05)
    assert container.wait(WAIT).code == 5
    assert (size, digest.hexdigest()) == (64 * MIB, sha256)


def test_much_output_waits_for_a_program_that_sleeps(
    any_client: Client, spec: Make, data: Path, sha256: str, little_memory: None
) -> None:  # C28
    """The relay holds what it cannot deliver back in the container, not in our memory."""
    slow = "for i in 1 2 3 4 5 6; do dd bs=65536 count=64 iflag=fullblock 2>/dev/null; sleep 0.05; done; cat"
    with subprocess.Popen(
        ["sh", "-c", f"{{ {slow}; }} | sha256sum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as ours:
        assert ours.stdin is not None
        assert ours.stdout is not None
        container = any_client.create("out", with_data(spec, "cat /data", data))
        container.start(Stdio(stdout=ours.stdin, stderr=ours.stdin))
        assert container.wait(WAIT).code == 0
        ours.stdin.close()
        assert ours.stdout.read().split()[0].decode() == sha256


def test_much_input_reaches_the_container(
    any_client: Client, spec: Make, data: Path, sha256: str, little_memory: None
) -> None:  # C28
    container = any_client.create("in", spec("sha256sum"))
    container.start(PIPE)
    assert container.stdin is not None
    assert container.stdout is not None
    with data.open("rb") as file:
        while block := file.read(MIB):
            container.stdin.write(block)
    container.stdin.close()
    assert container.stdout.read().split()[0].decode() == sha256
    assert container.wait(WAIT).code == 0
    container.stdout.close()


def test_much_input_waits_for_a_container_that_sleeps(
    any_client: Client, spec: Make, data: Path, sha256: str, little_memory: None
) -> None:  # C28
    slow = "for i in 1 2 3 4 5 6; do dd bs=65536 count=64 iflag=fullblock 2>/dev/null; usleep 50000; done; cat"
    reader, writer = os.pipe()
    with data.open("rb") as file, os.fdopen(reader, "rb") as output:
        container = any_client.create("in", spec(f"{{ {slow}; }} | sha256sum"))
        container.start(Stdio(stdin=file, stdout=writer, stderr=writer))
        assert container.wait(WAIT).code == 0
        os.close(writer)
        assert output.read().split()[0].decode() == sha256


# ---- a start, and the shim -------------------------------------------------------------------------------------------


def client_script(state_dir: str, rootfs: str, rest: str) -> list[str]:
    """A Python program of its own that makes the container ``web``, which ends with 7 on SIGTERM."""
    script = "trap 'echo bye; exit 7' TERM; echo ready; sleep 1000 & wait"
    return [
        sys.executable,
        "-c",
        "import libctrd, os, sys, time\n"
        f"client = libctrd.connect({f'local:{state_dir}'!r})\n"
        f"spec = libctrd.spec.default(['/bin/sh', '-c', {script!r}], {rootfs!r})\n" + rest,
    ]


@pytest.mark.local("it traces the shim")
def test_a_start_writes_its_config_once_and_reads_it_never(state_dir: str, rootfs: str, tmp_path: Path) -> None:  # C5
    strace = need(shutil.which("strace"), "strace")
    trace = tmp_path / "trace"
    whole_life = (
        "container = client.create('web', spec); container.start()\n"
        "container.stdout.read(6); container.signal('TERM'); assert container.wait().code == 7\n"
    )
    calls = "trace=openat,openat2,open,creat,execve"
    traced = [strace, "-f", "-Y", "-s", "4096", "-e", calls, "-o", str(trace)]
    subprocess.run([*traced, *client_script(state_dir, rootfs, whole_life)], check=True, timeout=WAIT)
    lines = trace.read_text().splitlines()
    started = [line for line in lines if "execve(" in line]
    assert any("ctrd-shim" in line for line in started), "the trace has seen the shim"
    opened = [line for line in lines if "config.json" in line and "execve(" not in line]
    who = re.compile(r"^\d+<(.+?)>\s")
    by: dict[str, list[str]] = {}
    for line in opened:
        found = who.match(line)
        assert found, f"strace does not name the process: {line}"
        by.setdefault(found[1], []).append(line)
    # The sealed copy, which is executed by its descriptor, is called by that before Linux 6.14.
    runtimes = {name for name in by if name == "5" or name.removeprefix("memfd:").startswith(("crun", "runc"))}
    assert runtimes, "the runtime has read it"
    (ours,) = set(by) - runtimes
    assert ours.startswith("python")
    (line,) = by[ours]
    assert "O_WRONLY|O_CREAT|O_EXCL" in line


@pytest.mark.local("it is about the shim")
def test_a_shim_is_one_thread_and_less_than_400_kib(any_client: Client, state_dir: str, spec: Make) -> None:
    others = [pid for pid in os.listdir("/proc") if pid.isdigit() and comm(int(pid)) == "ctrd-shim"]
    container = any_client.create("one", spec("read x; exit 4"))
    container.start(PIPE)
    (pid,) = shims(state_dir)
    private = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1])
    assert 0 < private < 400, f"{private} KiB, with {len(others)} other shims on this host"
    assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    container.clean(force=True)


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.local("the next client gets the output from the shim")
def test_a_container_outlives_its_client_and_a_new_one_learns_its_exit(state_dir: str, rootfs: str) -> None:  # C28
    starts = "client.create('web', spec).start(); print('started', flush=True); time.sleep(1000)"
    with subprocess.Popen(client_script(state_dir, rootfs, starts), stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        first.send_signal(signal.SIGKILL)
    waits = "print(client.get('web').status, flush=True); print(client.get('web').wait().code)"
    with (
        libctrd.connect(f"local:{state_dir}") as client,
        subprocess.Popen(client_script(state_dir, rootfs, waits), stdout=subprocess.PIPE) as new,
    ):
        assert new.stdout is not None
        assert new.stdout.readline() == b"running\n"
        container = client.get("web")
        held = shim.descriptors(os.path.join(state_dir, "web"))
        assert os.read(held["o"], 100) == b"ready\n"
        container.signal("TERM")
        assert new.stdout.read() == b"7\n"
        assert os.read(held["o"], 100) == b"bye\n", "what it wrote after its client was killed is not lost"
        for fd in held.values():
            os.close(fd)
        container.clean()


@pytest.mark.timeout(300)
def test_the_threads_of_a_client_are_as_many_with_fifty_containers_as_with_one(
    any_client: Client, rootfs: str
) -> None:  # C17
    nowhere = os.open("/dev/null", os.O_WRONLY)
    running = []
    peak = 0
    for n in range(50):
        stdio = PIPE if n % 2 else Stdio(PIPE, nowhere, nowhere)
        container = any_client.create(f"c{n}", spec_of(f"echo {n}; read x; exit {n}", rootfs))
        container.start(stdio)
        running.append(container)
        if n == 1:
            peak = threads()
        assert peak == 0 or threads() <= peak
    for n, container in enumerate(running):
        assert container.stdin is not None
        container.stdin.close()
        if n % 2:
            assert container.stdout is not None
            assert container.stdout.read() == b"%d\n" % n
            container.stdout.close()
        assert container.wait(WAIT).code == n
    os.close(nowhere)
