"""Private containerd daemons for tests: each in a directory of its own, never the system's.

`CTRD_TEST_CONTAINERD` may name a directory with another containerd (and its shim and ctr) than the installed one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from libctrd.engine import cgroups, default_daemon_dir

PATH = os.pathsep.join(filter(None, [os.environ.get("CTRD_TEST_CONTAINERD"), os.environ["PATH"], "/usr/sbin:/sbin"]))
START_SECONDS = 30.0
STOP_SECONDS = 20.0
SOCKETS = Path("/run/containerd/s")
TASKS = "io.containerd.runtime.v2.task"
# What no test of ours needs and what would reach outside of the daemon's directory (opt, cri, nri). Never
# runtime.v1.linux nor sandbox.controller.v1.shim: without them tasks are missing, and nothing says so.
DISABLED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)
SNAPSHOTTERS = ("overlayfs", "native")
# How a shim introduces itself in the daemon's log: 1.x tells its bundle, 2.x its id and namespace.
_SEEN_1 = re.compile(rf"{re.escape(TASKS)}/([\w.-]+)/([\w.-]+)")
_SEEN_2 = re.compile(r'msg="connecting to shim ([\w.-]+)".* namespace=([\w.-]+)')


def program(name: str) -> str:
    """The path of *name* (containerd, ctr, the shim), or a skip that names the package."""
    if os.geteuid() != 0:
        pytest.skip("containerd needs root: run the suite as root")
    path = shutil.which(name, path=PATH)
    if path is None:
        pytest.skip(f"{name} is missing on this host: apt-get install containerd")
    return path


def until(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = START_SECONDS) -> None:
    """Looks until *condition* is true: for what nothing announces. Fails after *seconds* and says what never came:
    *what*, or what that returns by then.
    """
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"this never came: {what if isinstance(what, str) else what()}"
        pause.wait(0.005)


def stop_still(pid: int) -> None:
    """Stops that process; returns when none of its threads runs any more, so that it answers nothing from then on."""
    os.kill(pid, signal.SIGSTOP)

    def stands() -> bool:
        tasks = [Path(task, "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return all(text.rpartition(")")[2].split()[0] == "T" for text in tasks)

    until(stands, f"process {pid} stopped")


class Containerd:
    """A daemon in a directory of its own. It is killed when this process ends, its containers are not: see `remove`."""

    def __init__(self) -> None:
        self.binary = program("containerd")
        self.ctr_binary = program("ctr")
        # Short, since a socket's path must be; and 0700, since containerd's socket is open to a group.
        self.directory = tempfile.mkdtemp(prefix="cd-", dir="/run" if os.access("/run", os.W_OK) else "/tmp")
        self.root = f"{self.directory}/root"
        self.state = f"{self.directory}/state"
        self.socket = f"{self.directory}/c.sock"
        self.address = f"unix://{self.socket}"
        self.config = f"{self.directory}/config.toml"
        self.log_file = f"{self.directory}/log"
        self.runc_root = f"{self.directory}/runc"
        """For tests that make containers by hand: the default one is shared by every daemon of the host."""
        self._process: subprocess.Popen[bytes] | None = None
        assert len(self.socket) < 100, f"{self.socket} is too long for a socket"
        Path(self.config).write_text(
            "version = 2\n"
            f'root = "{self.root}"\nstate = "{self.state}"\n'
            f"disabled_plugins = [{', '.join(f'{name!r}' for name in DISABLED)}]\n".replace("'", '"')
            + f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )

    # ---- the daemon itself ----

    @property
    def pid(self) -> int:
        """The daemon's, while it runs."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def launch(self) -> None:
        """Starts it and does not wait until it answers."""
        assert self._process is None, "it is running"
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                # It goes when this process is killed: setpriv (util-linux) asks for that and then becomes containerd.
                ["setpriv", "--pdeathsig", "KILL", self.binary, "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": PATH},
            )

    def start(self) -> None:
        """Starts it; returns when its tasks service answers."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Returns when it answers. Fails with its log when it has ended instead."""

        def listens() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"containerd ended at once: {self.log()[-2000:]}"
            with socket.socket(socket.AF_UNIX) as peer:
                return peer.connect_ex(self.socket) == 0

        until(listens, lambda: f"containerd's socket; its log: {self.log()[-2000:]}")
        until(lambda: self._ctr("tasks", "ls").returncode == 0, "an answer of containerd's tasks service")

    def kill(self) -> None:
        """SIGKILL to the daemon, and to nothing else. Its containers run on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def stop(self) -> None:
        """SIGTERM to the daemon; SIGKILL when it does not heed that. Stopped already is fine."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # in case that a test has stopped it
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def restart(self) -> None:
        """Kills it and starts it again; returns when it answers."""
        self.kill()
        self.start()

    def log(self) -> str:
        """All that it and its shims have logged."""
        try:
            return Path(self.log_file).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def version(self) -> tuple[int, ...]:
        """Its version, such as ``(1, 6, 20)``."""
        said = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", said)
        assert found, said
        return tuple(map(int, found.groups()))

    @property
    def uuid(self) -> str:
        """The name that it has given itself once somebody asked: that of libctrd's directory for it. "" before."""
        for file in Path(self.root).glob("*introspection*/uuid"):
            return file.read_text(encoding="ascii").strip()
        return ""

    # ---- by ctr, for what must not depend on the code under test ----

    def _ctr(self, *args: str, namespace: str = "default") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.ctr_binary, "--address", self.socket, "--namespace", namespace, *args],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def ctr(self, *args: str, namespace: str) -> str:
        """What ``ctr ARGS`` printed. Fails when it failed."""
        done = self._ctr(*args, namespace=namespace)
        assert done.returncode == 0, f"ctr {' '.join(args)}: {done.stderr}"
        return done.stdout

    def run(self, namespace: str, id: str, rootfs: str, *command: str) -> int:
        """Starts a container without output by ctr; returns the pid of its first process (0 if it ended at once)."""
        self.ctr(
            *("run", "--detach", "--null-io", "--rootfs", "--runc-root", self.runc_root),
            *("--cgroup", f"/{os.path.basename(self.directory)}/{namespace}/{id}", rootfs, id, *command),
            namespace=namespace,
        )
        for line in self.ctr("tasks", "ls", namespace=namespace).splitlines()[1:]:
            name, pid, status = line.split()
            if name == id and status == "RUNNING":
                return int(pid)
        return 0

    # ---- what is there ----

    def seen(self) -> set[tuple[str, str]]:
        """Namespace and id of every container that has ever had a shim here."""
        log = self.log()
        found = {(namespace, id) for namespace, id in _SEEN_1.findall(log)}
        found |= {(namespace, id) for id, namespace in _SEEN_2.findall(log)}
        tasks = Path(self.state, TASKS)
        return found | {(bundle.parent.name, bundle.name) for bundle in tasks.glob("*/*")}

    def shims(self, namespace: str | None = None) -> list[psutil.Process]:
        """The shims of this daemon, in one namespace or in all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if (
                    words
                    and "containerd-shim" in words[0]
                    and _after(words, "-address") == self.socket
                    and namespace in (None, _after(words, "-namespace"))
                ):
                    found.append(process)
        return found

    def shim_socket(self, namespace: str, id: str) -> Path:
        """Where the shim of a container listens: a directory that all daemons of the host share, hence a hash."""
        return SOCKETS / hashlib.sha256(f"{self.socket}/{namespace}/{id}".encode()).hexdigest()

    def remove(self) -> None:
        """Ends it and all that is left of it and of its containers."""
        for shim in self.shims():
            with contextlib.suppress(psutil.Error):
                for child in shim.children(recursive=True):
                    child.kill()
                    cgroups.thaw(child.pid)
                shim.kill()
        self.stop()
        until(lambda: not self.shims(), "the end of the shims")
        for where in _mounts(self.directory):
            subprocess.run(["umount", "--lazy", where], check=False, capture_output=True)
        for namespace, id in self.seen():
            self.shim_socket(namespace, id).unlink(missing_ok=True)
        for group in _groups(os.path.basename(self.directory)):
            for path in [group, *_below(group)]:
                for pid in Path(path, "cgroup.procs").read_text().split():  # of a container whose shim was killed
                    os.kill(int(pid), signal.SIGKILL)
                    cgroups.thaw(int(pid))
            until(lambda group=group: _removed(group), f"an empty {group}")
        if self.uuid:
            shutil.rmtree(os.path.join(default_daemon_dir(), self.uuid), ignore_errors=True)
        shutil.rmtree(self.directory)


def left_behind(daemon: Containerd, namespace: str) -> dict[str, list[str]]:
    """All that there still is of containers of *daemon* in *namespace*; kinds of which nothing is left are left out.

    *namespace* should be one that nobody else on this host uses (`new_namespace`): cgroups and runc's default root are
    shared by all daemons.
    """
    listed = {
        "tasks": ("tasks", "ls", "-q"),
        "containers": ("containers", "ls", "-q"),
        "leases": ("leases", "ls", "-q"),
        **{f"snapshots {name}": ("snapshots", f"--snapshotter={name}", "ls") for name in SNAPSHOTTERS},
        "ingests": ("content", "active"),
    }
    found = {}
    for what, command in listed.items():
        lines = daemon.ctr(*command, namespace=namespace).splitlines()
        found[what] = lines if "-q" in command else [line for line in lines[1:] if line.strip()]
    return {**{what: things for what, things in found.items() if things}, **left_on_host(daemon, namespace)}


def left_on_host(daemon: Containerd, namespace: str) -> dict[str, list[str]]:
    """That part of it which is seen without asking the daemon."""
    seen = sorted(id for where, id in daemon.seen() if where == namespace)
    bundles = (Path(top, TASKS, namespace) for top in (daemon.state, daemon.root))
    found = {"bundles": [str(path) for top in bundles for path in top.glob("*")]}
    roots = (f"{daemon.runc_root}/{namespace}", f"/run/containerd/runc/{namespace}")
    found["runc roots"] = [str(path) for root in roots for path in Path(root).glob("*")]
    found["cgroups"] = [path for top in _groups(namespace) for path in _below(top)]
    found["cgroups"] += [path for id in seen for path in cgroups.directories(id)]
    found["shim sockets"] = [str(path) for id in seen if (path := daemon.shim_socket(namespace, id)).exists()]
    found["shims"] = [str(shim.pid) for shim in daemon.shims(namespace)]
    found["mounts"] = [path for path in _mounts(daemon.directory) if f"/{namespace}/" in path]
    return {what: things for what, things in found.items() if things}


def nothing_left(daemon: Containerd, namespace: str) -> None:
    """Fails when there still is anything; what ends by itself (shims, cgroups) has a moment for it."""
    until(lambda: not left_behind(daemon, namespace), lambda: f"nothing left, but {left_behind(daemon, namespace)}", 10)


def new_namespace() -> str:
    """A namespace that nobody has used before."""
    return f"test-{uuid.uuid4().hex[:12]}"


def _after(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words[:-1] else None


def _groups(name: str) -> list[str]:
    """Every cgroup called *name*, wherever it is."""
    return [path for path in _below(cgroups.TOP) if os.path.basename(path) == name]


def _below(top: str) -> list[str]:
    return [os.path.join(path, name) for path, names, _ in os.walk(top) for name in names]


def _removed(top: str) -> bool:
    """Whether a cgroup and those below it could be removed."""
    for path in [*reversed(_below(top)), top]:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            return False  # its last process is about to be gone
    return True


def _mounts(directory: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        places = [line.split()[4] for line in file]
    return [place for place in places if place.startswith(f"{directory}/")]


# conftest.py takes both, so that there is one of the first for all modules.
@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """A running daemon for the whole suite. Whoever would end it takes `new_containerd`."""
    daemon = Containerd()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


@pytest.fixture
def new_containerd() -> Iterator[Callable[[], Containerd]]:
    """Makes running daemons that are the test's own: to kill, to stop, to start again."""
    made: list[Containerd] = []

    def make() -> Containerd:
        daemon = Containerd()
        made.append(daemon)
        daemon.start()
        return daemon

    yield make
    for daemon in made:
        daemon.remove()
