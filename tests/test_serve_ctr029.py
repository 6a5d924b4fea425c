"""The `ctr` of containerd 0.2.9 itself through `ctrd serve` (C25), where CTRD_TEST_CONTAINERD_029 says that it is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from engine_kit import OLD_CONTAINERD
from field_kit import until
from serve_kit import WAIT, Bundle, Served, script, served

from libctrd.engine import shim

__all__ = ["served"]  # the fixture

pytestmark = pytest.mark.skipif(
    not OLD_CONTAINERD, reason="the ctr of containerd 0.2.9 is missing: name its directory by CTRD_TEST_CONTAINERD_029"
)


class Ctr:
    """Its commands, to one server."""

    def __init__(self, served: Served) -> None:
        self._command = [os.path.join(OLD_CONTAINERD or "", "ctr"), "--address", f"unix://{served.socket}"]
        self._running: list[subprocess.Popen[str]] = []

    def run(self, *words: str) -> str:
        """Runs one that ends; returns what it said."""
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=WAIT)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def refused(self, *words: str) -> str:
        """Runs one that fails; returns why."""
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=WAIT)
        assert done.returncode != 0, (words, done.stdout)
        return done.stdout + done.stderr

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """Begins one. Without a terminal it fails on a stdin that ends: hence its is a pipe."""
        pipe = subprocess.PIPE
        process = subprocess.Popen([*self._command, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def ctr(served: Served) -> Iterator[Ctr]:
    made = Ctr(served)
    yield made
    made.close()


@pytest.fixture
def bundle(served: Served, rootfs: str) -> Callable[[str], Bundle]:
    """Makes the bundle of a container that runs a shell script."""
    return lambda text: served.bundle("b", script(text, rootfs), fifos=False)


def holds_stdin(served: Served) -> bool:
    """Does the shim of container ``web`` hold its stdin open?"""
    ends = shim.descriptors(os.path.join(served.state, "web"))
    for fd in ends.values():
        os.close(fd)
    return "i" in ends


def rows(table: str) -> dict[str, list[str]]:
    """The words of each line but the first, by the first of them."""
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}


# C25
def test_a_container_is_started_listed_and_asked_for(served: Served, ctr: Ctr, bundle: Callable[[str], Bundle]) -> None:
    where = bundle("trap 'exit 9' TERM; while :; do sleep 0.02; done").path
    assert "0.2.3" in ctr.run("version")
    assert rows(ctr.run("containers", "list")) == {}
    ctr.run("containers", "start", "--runtime", served.options[1], "--label", "a=b", "web", where)
    assert rows(ctr.run("containers", "list")) == {"web": [where, "running", "init"]}
    assert '"a=b"' in ctr.run("containers", "state", "web")
    assert '"web"' in ctr.run("state")
    assert '"pids_stats"' in ctr.run("containers", "stats", "web")
    assert "file exists" in ctr.refused("containers", "start", "--runtime", served.options[1], "web", where)
    ctr.run("containers", "kill", "web")
    until(lambda: served.stored("web")[-1] == ("exit", "web", "init", 9))
    assert rows(ctr.run("containers", "list")) == {}
    assert "container not found" in ctr.refused("containers", "kill", "web")


# C25, C28
def test_attached_all_of_its_output_comes_and_its_exit_code_is_ctrs(
    served: Served, ctr: Ctr, bundle: Callable[[str], Bundle]
) -> None:
    where = bundle("read x; echo got $x; seq 1 20000; echo err >&2; exit 7").path
    process = ctr.popen("containers", "start", "--attach", "--runtime", served.options[1], "web", where)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert "closing stdin now" in process.stderr.readline()
    until(lambda: not holds_stdin(served))  # it has been closed: after two seconds, and ctr fails when that is over
    process.stdin.write("it\n")
    process.stdin.flush()
    wanted = "got it\n" + "".join(f"{number}\n" for number in range(1, 20001))
    assert process.stdout.read(len(wanted)) == wanted
    assert process.wait(WAIT) == 7
    assert process.stderr.read() == "err\n"


# C25
def test_a_further_process_is_started_attached(served: Served, ctr: Ctr, bundle: Callable[[str], Bundle]) -> None:
    ctr.run("containers", "start", "--runtime", served.options[1], "web", bundle("sleep 1000").path)
    words = ["--id", "web", "--pid", "further", "--attach", "--env", "PATH=/bin", "--cwd", "/tmp", "sh", "-c"]
    process = ctr.popen("containers", "exec", *words, "pwd; read x; echo $x; exit 5")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "/tmp\n"
    assert rows(ctr.run("containers", "list"))["web"][2] == "init,further"
    process.stdin.write("typed\n")
    process.stdin.flush()
    assert process.stdout.readline() == "typed\n"
    assert process.wait(WAIT) == 5
    process = ctr.popen("containers", "exec", *words, "sleep 1000")
    until(lambda: "further" in ctr.run("containers", "list"))
    ctr.run("containers", "kill", "--pid", "further", "--signal", str(int(signal.SIGKILL)), "web")
    assert process.wait(WAIT) == 137
    ctr.run("containers", "kill", "--signal", "9", "web")
    until(lambda: served.stored("web")[-1][:3] == ("exit", "web", "init"))


# C11, C25
def test_it_is_paused_resumed_updated_and_watched(served: Served, ctr: Ctr, bundle: Callable[[str], Bundle]) -> None:
    events = ctr.popen("events")
    assert events.stdout is not None
    assert events.stdout.readline().split()[:2] == ["TIME", "TYPE"]
    ctr.run("containers", "start", "--runtime", served.options[1], "web", bundle("sleep 1000").path)
    watching = ctr.popen("containers", "watch", "web")
    changes = []
    while watching.poll() is None:  # it has seen one of them, which is what it ends with
        ctr.run("containers", "pause", "web")
        assert "paused already" in ctr.refused("containers", "pause", "web")
        ctr.run("containers", "resume", "web")
        assert "not paused" in ctr.refused("containers", "resume", "web")
        changes += ["pause", "resume"]
    assert watching.returncode == 0
    assert watching.stdout is not None
    assert 'Id:"web"' in watching.stdout.read()
    ctr.run("containers", "update", "--memory-limit", str(64 << 20), "web")
    assert served.call("Stats", id="web").cgroup_stats.memory_stats.usage.limit == 64 << 20
    ctr.run("containers", "kill", "--signal", "9", "web")
    told = [events.stdout.readline().split()[1] for _ in range(len(changes) + 2)]
    assert told == ["start-container", *changes, "exit"]
