"""What every test shares: a root file system, specs, a place in each engine in which nothing may be left.

Everything is real: busybox from Debian in the root file system, runc and crun as they are installed.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator

import hypothesis
import portable_kit
import pytest
from client_kit import Recorder
from containerd_kit import containerd, new_containerd
from engine_kit import any_client, client, engine, need, pytest_generate_tests, runtime, state_dir

import libctrd
from libctrd.client import Client
from libctrd.engine import sealed

# Fixtures of other files, and what chooses the engines of a test.
__all__ = [
    "any_client",
    "client",
    "containerd",
    "engine",
    "new_containerd",
    "pytest_generate_tests",
    "runtime",
    "state_dir",
]

# How long the host takes for an example says nothing about the code: it may be busy, or emulated.
hypothesis.settings.register_profile("any host", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any host")

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
        "nc",
    ),
)
BUSYBOX = "/bin/busybox"


# Here and not in pyproject.toml, which is not there where only the tests and the installed package are.
MARKERS = (
    "bar: runs for minutes; CTRD_BAR_RUNS says how many runs it makes",
    "containerd(why): it is about what the local engine does not have, and runs on containerd alone",
    "linux(why): it is about what the portable build has not",
    "local(why): it is about the local engine's own mechanism, and runs there alone",
    "cannot(engine, why, raises=None): that engine cannot do it; tried there all the same, and has to fail",
)


def pytest_configure(config: pytest.Config) -> None:
    """Tells pytest of the marks."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What chooses among the tests."""
    portable_kit.add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that count the threads and descriptors of this process come first: others leave idle threads behind."""
    portable_kit.choose(config, items)
    items.sort(key=lambda item: not item.path.name.startswith(("test_fifo", "test_relay")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the portable build leaves out."""
    portable_kit.tell_skipped(terminalreporter)


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


@pytest.fixture(scope="session", autouse=True)
def sealed_runtime() -> None:
    """The one copy of a runtime that a process keeps is there before any test counts what it has open."""
    if (crun := shutil.which("crun")) is not None:
        sealed.copy(crun)


@pytest.fixture
def recorder(client: Client) -> Recorder:
    """One that is told of every container of *client*."""
    recorder = Recorder()
    client.subscribe(recorder)
    return recorder


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
