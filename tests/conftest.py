"""What every test shares: a root file system, the runtimes of this host, a state directory that must end up empty.

Everything is real: busybox from Debian in the root file system, runc and crun as they are installed.
"""

from __future__ import annotations

import gc
import glob
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_kit import Recorder
from containerd_kit import containerd, new_containerd

import libctrd
from libctrd.client import Client
from libctrd.engine import cgroups

__all__ = ["containerd", "new_containerd"]  # fixtures of another file

APPLETS = (
    *(
        "sh",
        "true",
        "false",
        "echo",
        "cat",
        "sleep",
        "sha256sum",
        "dd",
        "head",
        "id",
        "ls",
        "env",
        "pwd",
        "mount",
    ),
    *(
        "kill",
        "test",
        "mkdir",
        "rm",
        "stty",
        "hostname",
        "tr",
        "wc",
        "printf",
        "seq",
        "yes",
        "tail",
        "nproc",
        "ps",
    ),
    *(
        "chmod",
        "ln",
        "umount",
        "mkfifo",
        "touch",
        "grep",
        "setsid",
        "nohup",
        "usleep",
        "tty",
        "trap",
        "whoami",
    ),
)
BUSYBOX = "/bin/busybox"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that count the threads and descriptors of this process come first: others leave idle threads behind."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_fifo", "test_relay")))


def need(path: str | None, what: str) -> str:
    """*path*, or a skip that names what is missing."""
    if path is None or not os.path.exists(path):
        pytest.skip(f"{what} is missing on this host: apt-get install {what}")
    return path


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root file system of busybox and its applets, shared by all tests."""
    busybox = need(BUSYBOX if os.path.exists(BUSYBOX) else shutil.which("busybox"), "busybox-static")
    top = tmp_path_factory.mktemp("rootfs")
    for directory in ("bin", "proc", "sys", "dev", "tmp", "etc", "root", "run"):
        (top / directory).mkdir()
    shutil.copy(busybox, top / "bin/busybox")
    for applet in APPLETS:
        (top / "bin" / applet).symlink_to("busybox")
    (top / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n")
    top.chmod(0o755)
    return str(top)


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Each OCI runtime in turn."""
    name: str = request.param
    need(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"), name)
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    return name


@pytest.fixture
def state_dir() -> Iterator[str]:
    """A state directory of the test's own. At the end nothing may be left: in it, of processes, mounts or cgroups."""
    top = tempfile.mkdtemp(prefix="ctrd-test-", dir="/run" if os.access("/run", os.W_OK) else None)
    state = os.path.join(top, "state")
    yield state
    left = {what: found for what, found in leftovers(state).items() if found}
    remove(state)
    shutil.rmtree(top)
    for sibling in glob.glob(f"{top}.*"):  # where the directories of mapped roots lay (C19); empty ones stay
        shutil.rmtree(sibling)
    assert not left


def leftovers(state: str) -> dict[str, list[str]]:
    """All that there still is of containers of the state directory *state*."""
    mark = cgroups.mark(state)
    processes = [pid for pid in os.listdir("/proc") if pid.isdigit() and state in _read(f"/proc/{pid}/cmdline")]
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        mounted = [line for line in mounts if state in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/ctrd-{mark}-*")]
    groups += [str(path) for path in Path("/sys/fs/cgroup").glob(f"ctrd-{mark}-*")]
    files = os.listdir(state) if os.path.isdir(state) else []
    return {"files": files, "processes": processes, "mounts": mounted, "cgroups": groups}


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""  # it has ended


def remove(state: str) -> None:
    """Ends whatever a failed test has left running."""
    if not os.path.isdir(state) or os.path.islink(state) or not os.listdir(state):
        return
    with libctrd.connect(f"local:{state}") as client:
        for container in client.containers():
            container.clean(force=True)


@pytest.fixture
def client(state_dir: str, runtime: str) -> Iterator[Client]:
    """A client of the local engine with each runtime in turn."""
    with libctrd.connect(f"local:{state_dir}", runtime=runtime) as connected:
        yield connected


@pytest.fixture
def recorder(client: Client) -> Recorder:
    """One that is told of every container of *client*."""
    recorder = Recorder()
    client.subscribe(recorder)
    return recorder


@pytest.fixture
def crun_client(state_dir: str) -> Iterator[Client]:
    """A client of the local engine with the runtime that it chooses itself, for tests that no runtime changes."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    with libctrd.connect(f"local:{state_dir}") as connected:
        yield connected


@pytest.fixture
def spec(rootfs: str) -> Callable[..., dict]:
    """Makes the spec of a container that runs a shell script, or the given args."""

    def make(script: str = "", *, args: list[str] | None = None, **settings: object) -> dict:
        return libctrd.spec.default(args or ["/bin/sh", "-c", script], rootfs, **settings)

    return make


@pytest.fixture
def same_resources() -> Iterator[None]:
    """The test may leave no descriptor, thread or child behind in this process."""
    before = resources()
    yield
    gc.collect()
    after = resources()
    assert after["fds"] <= before["fds"], "descriptors were left"
    assert after["threads"] <= before["threads"], "threads were left"
    assert after["children"] <= before["children"], "children were left"


def resources() -> dict[str, int]:
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid="], capture_output=True, text=True)
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children.stdout.split()) - 1,  # ps itself
    }
