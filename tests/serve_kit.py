"""What the tests of `ctrd serve` share: a server in a process of its own, and the calls of its wire, bare."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from field_kit import until
from portable_kit import LINUX_PYTHON

from libctrd import protos
from libctrd import spec as specs

API = protos.package("types")
WAIT = 60.0
DAWN = {"seconds": 1}
"""A time before every event."""


def reach(socket: str) -> grpc.Channel:
    """A channel that connects by itself: else all to one socket share how the last attempt of any of them went."""
    return grpc.insecure_channel(f"unix://{socket}", options=[("grpc.use_local_subchannel_pool", 1)])


class Served:
    """A server, and a channel to it. *options* are global ones of ctrd."""

    def __init__(self, *options: str) -> None:
        self.top = tempfile.mkdtemp(prefix="ctrd-serve-", dir="/run")
        self.state = os.path.join(self.top, "state")
        self.socket = os.path.join(self.top, "s")
        self.options = options
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.channel = reach(self.socket)
        self.made: list[Bundle] = []

    def start(self, *arguments: str) -> None:
        """Starts it, and returns once it serves."""
        self.process = self.popen(*arguments)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(b"ctrd serves"), line
        self.channel.close()  # gRPC would try again only after a while
        self.channel = reach(self.socket)
        self.call("GetServerVersion")  # its socket is there before a test counts those that there are

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [LINUX_PYTHON, "-m", "libctrd.cli", "--state-dir", self.state, *self.options, "serve"]
        return subprocess.Popen(
            [*command, "--address", f"unix://{self.socket}", *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it with a signal; returns its exit code."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        code = process.wait(WAIT)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def call(self, name: str, /, timeout: float = WAIT, **fields: Any) -> Any:
        """Calls it; returns the reply, or the stream of replies."""
        method = protos.method(f"types.API/{name}")
        make = self.channel.unary_stream if method.receives_many else self.channel.unary_unary
        call = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        return call(method.request(**fields), timeout=timeout)

    def refused(self, name: str, /, **fields: Any) -> grpc.RpcError:
        """The error that a call ends with."""
        try:
            reply = self.call(name, **fields)
            list(reply) if name == "Events" else None
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{name} went well")

    def stored(self, id: str = "") -> list[tuple[str, str, str, int]]:
        """All that is in the log: type, id, process, status."""
        events = self.call("Events", timestamp=DAWN, storedOnly=True, id=id)
        return [(event.type, event.id, event.pid, event.status) for event in events]

    def bundle(self, name: str, spec: dict[str, Any], fifos: bool = True) -> Bundle:
        self.made.append(Bundle(os.path.join(self.top, name), spec, fifos))
        return self.made[-1]

    def take_away_fifos(self) -> None:
        """As a client does in the end: what is still unread in them nobody will ever read, and nobody keeps it then."""
        for bundle in self.made:
            for fifo in bundle.fifos.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fifo)
        until(lambda: not keepers(self.state))

    def remove(self) -> None:
        self.channel.close()
        if self.process is not None:
            self.stop(signal.SIGKILL)
        shutil.rmtree(self.top)


class Bundle:
    """A bundle as a client of that API makes one, with the fifos that it names as it likes."""

    def __init__(self, path: str, spec: dict[str, Any], fifos: bool) -> None:
        self.path = path
        self.root = (spec.get("root") or {}).get("path", "")
        os.makedirs(path)
        with open(os.path.join(path, "config.json"), "w") as file:
            json.dump(spec, file)
        self.fifos = {name: os.path.join(path, f"a-{name}") for name in ("stdin", "stdout", "stderr")} if fifos else {}
        for fifo in self.fifos.values():
            os.mkfifo(fifo)

    @property
    def create(self) -> dict[str, Any]:
        """The fields of its CreateContainer, but for the id."""
        return {"bundlePath": self.path, **self.fifos}

    def read(self, name: str) -> int:
        """Our end of a fifo that the container writes, before or after it has one."""
        return os.open(self.fifos[name], os.O_RDONLY | os.O_NONBLOCK)


def keepers(state: str) -> list[int]:
    """The pids of the processes that keep what is unread of containers of a state directory that are gone."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().split(b"\0")[1:4] == [b"--state", os.fsencode(state), b"--keep"]:
                found.append(int(pid))
    return found


class Events:
    """A stream of events that is read all the time by a thread."""

    def __init__(self, served: Served, **fields: Any) -> None:
        self.seen: list[tuple[str, str, str, int]] = []
        self.error: grpc.RpcError | None = None
        self._call = served.call("Events", timeout=None, **fields)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.seen.append((event.type, event.id, event.pid, event.status))
        except grpc.RpcError as error:
            self.error = error

    def until(self, *event: Any) -> None:
        """Returns once an event that begins so was seen."""
        until(lambda: any(seen[: len(event)] == event for seen in list(self.seen)))

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(WAIT)


def script(text: str, rootfs: str, **settings: Any) -> dict[str, Any]:
    return specs.default(["sh", "-c", text], rootfs, **settings)


@pytest.fixture(params=["crun", "runc"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server that runs; in the end nothing of its containers may be left."""
    from engine_kit import need_runtime, on_host

    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    need_runtime(request.param)
    server = Served("--runtime", request.param)
    server.start()
    yield server
    if server.process is not None:
        server.stop()
    server.take_away_fifos()
    left = {what: found for what, found in on_host(server.state).items() if found}
    left.pop("files", None)
    names = [name for name in os.listdir(server.state) if name != ".serve"] if os.path.isdir(server.state) else []
    server.remove()
    assert not left and not names, (left, names)  # noqa: PT018 - both are told


Make = Callable[..., dict[str, Any]]
