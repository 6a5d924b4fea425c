"""Where the containers of a test run: a place of its own in each engine, in which nothing may be left at its end.

The suite is written once. A test that takes a client (or `engine`, `state_dir`) runs in every engine; it says by a mark
what does not concern one: ``local`` for the local engine's own mechanism (its shim, its records), ``containerd`` for
what that engine has and the local one has not, ``cannot`` for what an engine cannot do, with the reason. The last is
tried all the same, and has to fail, unless it says ``strict=False``: then it is a race that it may win. What ``api``
cannot, ``api029`` cannot either.

The `api` engine runs against `ctrd serve`. With CTRD_TEST_CONTAINERD_029 in the environment, a directory with
containerd, containerd-shim and ctr of release 0.2.9, there is an engine `api029` too, against that daemon.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from containerd_kit import Containerd, left_on_host, new_namespace, until

import libctrd
from libctrd import protos
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import cgroups, default_daemon_dir, shim, store
from libctrd.engine.channel import Channel

OLD_CONTAINERD = os.environ.get("CTRD_TEST_CONTAINERD_029")
_APIS = ("api", *(("api029",) if OLD_CONTAINERD else ()))
EACH_RUNTIME = ("crun", "runc", "containerd", *_APIS)
"""For what an OCI runtime may do in its own way. Under containerd it is runc alone: its shim sets up the cgroups of the
host for runc, and a crun that refuses a hybrid of cgroup v1 and v2 could be run only where the v2 part is out of sight.
"""
EACH_ENGINE = ("local", "containerd", *_APIS)
"""For the rest: each engine with the runtime that it chooses itself."""
MOMENT = 5.0
"""Seconds for what ends by itself, after the call that ends it: a shim of containerd."""

_places: dict[str, ContainerdPlace] = {}


class Place:
    """A place of the local engine: a state directory."""

    kind = "local"

    def __init__(self, runtime: str | None) -> None:
        self.runtime = runtime
        """What clients here are given; ``None`` for the engine's own choice."""
        self.runtime_name = runtime or ""
        self.namespace: str | None = None
        self._top = tempfile.mkdtemp(prefix="ctrd-test-", dir="/run" if os.access("/run", os.W_OK) else None)
        self.root = os.path.join(self._top, "state")
        """The directory with those of the containers."""
        self.address = f"local:{self.root}"
        self.options = ["--state-dir", self.root, *(["--runtime", runtime] if runtime else [])]
        """The global options of ctrd."""
        self.argument = self.argument_as_passed = "--debug"
        """One that the runtime takes (C1), and how its command line begins then."""
        self.null_pipes = 0
        """For how many of stdin and stdout a shim has a pipe where they are `NULL` and stderr is not."""

    def connect(self) -> Client:
        """A client of this place."""
        return libctrd.connect(self.address, runtime=self.runtime, namespace=self.namespace)

    def watches(self, client: Client, id: str) -> bool:
        """Will *client*, which has not started it, hear of the end of that container?"""
        return id in client._engine._watches  # type: ignore[attr-defined]

    def descriptors(self, container: Container) -> dict[str, int]:
        """The ends of the fifos of a container whose client has gone: ``i`` to write, ``o`` and ``e`` to read."""
        return shim.descriptors(container.bundle)

    def leftovers(self) -> dict[str, list[str]]:
        """All that there still is of containers of this place."""
        return on_host(self.root)

    def remove(self) -> None:
        """Ends whatever a failed test has left running, and removes the place."""
        remove(self.root)
        shutil.rmtree(self._top)
        for sibling in Path(self._top).parent.glob(f"{os.path.basename(self._top)}.*"):
            shutil.rmtree(sibling)  # where the directories of mapped roots lay (C19); empty ones stay


class ContainerdPlace(Place):
    """A place of the containerd engine: a namespace that nobody has used before, in the daemon of the whole suite."""

    kind = "containerd"

    def __init__(self, daemon: Containerd) -> None:
        self.daemon = daemon
        self.runtime = None
        self.runtime_name = "runc"
        self.namespace = new_namespace()
        self.address = daemon.address
        self.options = ["--address", self.address, "--namespace", self.namespace]
        self._channel = Channel(self.address, self.namespace)
        self._base = os.path.join(default_daemon_dir(), store.identity(self._channel))
        self.root = os.path.join(self._base, self.namespace)
        _places[self.root] = self
        self.argument = f"--root={self._runc_root}/own"
        self.argument_as_passed = f"--root {self._runc_root}/own/{self.namespace} "
        self.null_pipes = 1

    def watches(self, client: Client, id: str) -> bool:
        """See `Place.watches`."""
        return bool(client._engine._exits.known(id))  # type: ignore[attr-defined]

    def descriptors(self, container: Container) -> dict[str, int]:
        """See `Place.descriptors`. Nothing waits for the shim, which may have gone."""
        ways = {"i": ("stdin", os.O_RDWR), "o": ("stdout", os.O_RDONLY | os.O_NONBLOCK)}
        ways["e"] = ("stderr", os.O_RDONLY | os.O_NONBLOCK)
        return {key: os.open(f"{container.bundle}/init-{name}", flags) for key, (name, flags) in ways.items()}

    def leftovers(self) -> dict[str, list[str]]:
        """See `Place.leftovers`. A shim, which ends by itself, has a moment for it."""
        found: dict[str, list[str]] = {}

        def settled() -> bool:
            found.clear()
            found.update({**left_on_host(self.daemon, self.namespace or ""), **on_host(self.root), **self._listed()})
            found["runc roots"] = [path for path, _, names in os.walk(self._runc_root) if "state.json" in names]
            return not found.get("shims") or any(found.get(what) for what in ("files", "tasks", "containers"))

        until(
            settled, lambda: f"the end of what stayed: { {what: left for what, left in found.items() if left} }", MOMENT
        )
        return found

    @property
    def _runc_root(self) -> str:
        return os.path.join(self._base, ".runc", self.namespace or "")

    def _listed(self) -> dict[str, list[str]]:
        """What the daemon itself says."""
        ask = self._channel.call
        services = "containerd.services"

        def message(name: str) -> object:
            return protos.message(f"{services}.{name}")()

        tasks = ask(f"{services}.tasks.v1.Tasks/List", message("tasks.v1.ListTasksRequest"), doing="list tasks").tasks
        made = ask(
            f"{services}.containers.v1.Containers/List", message("containers.v1.ListContainersRequest"), doing="list"
        ).containers
        leases = ask(f"{services}.leases.v1.Leases/List", message("leases.v1.ListRequest"), doing="list leases").leases
        ingests = ask(
            f"{services}.content.v1.Content/ListStatuses", message("content.v1.ListStatusesRequest"), doing="list"
        ).statuses
        return {
            "tasks": [task.id for task in tasks],
            "containers": [container.id for container in made],
            "leases": [lease.id for lease in leases],
            "ingests": [ingest.ref for ingest in ingests],
        }

    def remove(self) -> None:
        """See `Place.remove`. That the namespace can be deleted says that there is nothing else in it."""
        try:
            with self.connect() as client:
                for container in client.containers():
                    container.clean(force=True)
            request = protos.message("containerd.services.namespaces.v1.DeleteNamespaceRequest")(name=self.namespace)
            doing = "delete the namespace of a test"
            self._channel.call("containerd.services.namespaces.v1.Namespaces/Delete", request, doing=doing)
        except libctrd.NotFoundError:
            pass  # nothing was ever made in it
        finally:
            self._channel.close()
            del _places[self.root]
            shutil.rmtree(self._runc_root, ignore_errors=True)
            for place in Path(self._base).glob(f"{self.namespace}*"):  # also where the directories of mapped roots lay
                shutil.rmtree(place)


def need(path: str | None, what: str) -> str:
    """*path*, or a skip that names what is missing."""
    if path is None or not os.path.exists(path):
        pytest.skip(f"{what} is missing on this host: apt-get install {what}")
    return path


def need_runtime(name: str) -> str:
    """The path of an OCI runtime, or a skip: also when containers cannot be run at all."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    return need(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"), name)


def remove(root: str) -> None:
    """Ends whatever a failed test has left running in a state directory."""
    if not os.path.isdir(root) or os.path.islink(root) or not os.listdir(root):
        return
    with libctrd.connect(f"local:{root}") as client:
        for container in client.containers():
            container.clean(force=True)


def leftovers(root: str) -> dict[str, list[str]]:
    """All that there still is of containers of the directory *root*, whichever engine it is of."""
    return _places[root].leftovers() if root in _places else on_host(root)


def on_host(root: str) -> dict[str, list[str]]:
    """What can be seen on the host of containers of *root*, whichever engine it is of."""
    mark = cgroups.mark(root)
    processes = [pid for pid in os.listdir("/proc") if pid.isdigit() and root in _read(f"/proc/{pid}/cmdline")]
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        mounted = [line for line in mounts if root in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/ctrd-{mark}-*")]
    groups += [str(path) for path in Path("/sys/fs/cgroup").glob(f"ctrd-{mark}-*")]
    files = os.listdir(root) if os.path.isdir(root) else []
    return {"files": files, "processes": processes, "mounts": mounted, "cgroups": groups}


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""  # it has ended


# ---- which engines a test runs in ------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with containers runs in every engine, but for what its marks say."""
    if "engine" not in metafunc.fixturenames:
        return
    names = EACH_RUNTIME if "runtime" in metafunc.fixturenames else EACH_ENGINE
    only = next(
        (mark.name for mark in metafunc.definition.iter_markers() if mark.name in ("local", "containerd")), None
    )
    if only is not None:  # the mark that is closest to the test
        locals = ("local", "crun", "runc")
        names = tuple(name for name in names if (name == "containerd" if only == "containerd" else name in locals))
    cannot = {mark.args[0]: mark for mark in metafunc.definition.iter_markers("cannot")}
    metafunc.parametrize(
        "engine",
        [_parameter(name, cannot.get(name, cannot.get(name.removesuffix("029")))) for name in names],
        indirect=True,
    )


def _parameter(name: str, cannot: pytest.Mark | None) -> object:
    if cannot is None:
        return pytest.param(name, id=name)
    (_, why) = cannot.args
    options = {"strict": True, **cannot.kwargs}
    mark = pytest.mark.xfail(reason=f"the {name} engine cannot: {why}", **options)
    return pytest.param(name, id=name, marks=mark)


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place of the test's own. At its end nothing may be left of containers: files, processes, mounts, cgroups, and
    whatever the engine keeps.
    """
    name: str = request.param
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    place: Place
    if name == "containerd":
        need_runtime("runc")
        place = ContainerdPlace(request.getfixturevalue("containerd"))
        # So that clients that are given an address alone, in processes of their own too, meet in this place.
        monkeypatch.setenv("CONTAINERD_NAMESPACE", place.namespace or "")
    elif name in _APIS:
        need_runtime("runc" if name == "api029" else "crun")
        from api_kit import ApiPlace  # which needs what is here

        place = ApiPlace(old=name == "api029")
    else:
        if name != "local":
            need_runtime(name)
        place = Place(None if name == "local" else name)
    yield place
    left = {what: found for what, found in place.leftovers().items() if found}
    place.remove()
    assert not left, left


@pytest.fixture
def runtime(engine: Place) -> str:
    """The OCI runtime's name. A test that asks for it, or for `client`, runs with each runtime in turn."""
    return engine.runtime_name


@pytest.fixture
def state_dir(engine: Place) -> str:
    """The directory of ours in which those of the containers lie."""
    return engine.root


@pytest.fixture
def client(engine: Place, runtime: str) -> Iterator[Client]:
    """A client of every engine, with each runtime in turn."""
    with engine.connect() as connected:
        yield connected


@pytest.fixture
def any_client(engine: Place) -> Iterator[Client]:
    """A client of every engine with the runtime that it chooses itself, for tests that no runtime changes."""
    with engine.connect() as connected:
        yield connected
