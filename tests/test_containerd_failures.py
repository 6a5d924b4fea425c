"""A containerd that dies or hangs in each step of a container's life: a clear error in time, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd_kit import Containerd, left_behind, new_namespace, nothing_left, stop_still
from field_kit import Make, until

import libctrd
from libctrd import NULL, PIPE, engine, reactor
from libctrd.engine.channel import Channel
from libctrd.engine.exits import CONFIRM_SECONDS
from libctrd.errors import DeadlineError, UnavailableError

SECONDS = 1.0
CREATE = "containerd.services.containers.v1.Containers/Create"
CREATE_TASK = "containerd.services.tasks.v1.Tasks/Create"
WAIT = "containerd.services.tasks.v1.Tasks/Wait"
START = "containerd.services.tasks.v1.Tasks/Start"
DELETE_TASK = "containerd.services.tasks.v1.Tasks/Delete"
DELETE = "containerd.services.containers.v1.Containers/Delete"
PUBLISH = "containerd.services.events.v1.Events/Publish"


class Fault:
    """What befalls *daemon* at the first call of *method*, once it is `armed`.

    ``killed``: it dies before it gets the call. ``lost``: it does what was asked and dies, and the answer is lost.
    ``stopped``: it gets the call and does nothing.
    """

    def __init__(self, daemon: Containerd, kind: str, method: str) -> None:
        self._daemon, self._kind, self._method = daemon, kind, method
        self.armed = True
        self._call, self._future = Channel.call, Channel.future

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def call(channel: Channel, method: str, request: Any, **how: Any) -> Any:
            if method == self._method:
                self._strike(lambda: self._call(channel, method, request, **how))
            how["timeout"] = min(how.get("timeout") or 10.0, SECONDS) if self._struck else how.get("timeout", 10.0)
            return self._call(channel, method, request, **how)

        def future(channel: Channel, method: str, request: Any, **how: Any) -> Any:
            if method == self._method:
                self._strike(lambda: self._future(channel, method, request, **how))
            return self._future(channel, method, request, **how)

        monkeypatch.setattr(Channel, "call", call)
        monkeypatch.setattr(Channel, "future", future)

    _struck = False

    def _strike(self, do: Callable[[], Any]) -> None:
        if not self.armed:
            return
        self.armed, self._struck = False, True
        if self._kind == "stopped":
            stop_still(self._daemon.pid)
        else:
            if self._kind == "lost":
                do()
            self._daemon.kill()

    def repair(self) -> None:
        """The daemon is back."""
        assert self._struck, "it was never called"
        self._struck = False
        if self._kind == "stopped":
            os.kill(self._daemon.pid, signal.SIGCONT)
        else:
            self._daemon.start()


@pytest.fixture
def daemon(new_containerd: Callable[[], Containerd], monkeypatch: pytest.MonkeyPatch) -> Iterator[Containerd]:
    """A daemon whose client keeps its directories in one of the test's own."""
    place = tempfile.mkdtemp(prefix="ctrd-test-")
    monkeypatch.setattr(engine, "default_state_dir", lambda: f"{place}/ctrd")
    yield new_containerd()
    left = [str(path) for path in Path(place).rglob("*") if not path.is_dir() or path.name == "one"]

    shutil.rmtree(place)
    assert left == []


def threads() -> set[str]:
    """Those of this process that a client has; the shared ones are there from the first client on."""
    return {thread.name for thread in threading.enumerate() if thread.name in ("ctrd-late", "ctrd-containerd")}


KINDS = ("killed", "lost", "stopped")


# C26
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [CREATE, CREATE_TASK, WAIT, START], ids=lambda method: method.rsplit(".")[-1])
def test_a_start_in_which_the_daemon_fails(
    daemon: Containerd, spec: Make, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    namespace, before = new_namespace(), threads()
    with libctrd.connect(daemon.address, namespace=namespace) as client:
        fault = Fault(daemon, kind, method)
        fault.install(monkeypatch)
        began = time.monotonic()
        with pytest.raises((UnavailableError, DeadlineError)) as caught:
            client.create("one", spec("sleep 1000")).start(PIPE)
        assert time.monotonic() - began < 8 * SECONDS
        assert "\n" not in str(caught.value)
        assert daemon.socket in str(caught.value)
        fault.repair()
        until(lambda: not left_behind(daemon, namespace), 20)
        container = client.create("one", spec("exit 7"))
        container.start(NULL)
        assert container.wait(30).code == 7, "the id is free again"
    nothing_left(daemon, namespace)
    until(lambda: threads() <= before, 20)


# C26
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [DELETE_TASK, DELETE], ids=lambda method: method.rsplit(".")[-1])
def test_an_end_in_which_the_daemon_fails(
    daemon: Containerd, spec: Make, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    namespace, before = new_namespace(), threads()
    with libctrd.connect(daemon.address, namespace=namespace) as client:
        fault = Fault(daemon, kind, method)
        fault.install(monkeypatch)
        container = client.create("one", spec("exit 7"))
        container.start(NULL)
        assert container.wait(30).code == 7
        fault.repair()
        until(lambda: not left_behind(daemon, namespace), 20)
    nothing_left(daemon, namespace)
    until(lambda: threads() <= before, 20)


# C26
def test_a_daemon_that_is_stopped_gets_few_messages(daemon: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its socket is full gRPC would end no call any more, whatever the limit for that is."""
    sent, enough = [], threading.Event()
    future = Channel.future

    def counted(channel: Channel, method: str, request: Any, **how: Any) -> Any:
        if method == PUBLISH:
            sent.append(method)
            reactor.shared().later(20 * CONFIRM_SECONDS, enough.set)
        return future(channel, method, request, **how)

    monkeypatch.setattr(Channel, "future", counted)
    with libctrd.connect(daemon.address, namespace=new_namespace()) as client:
        stop_still(daemon.pid)
        client._engine._exits.start()  # type: ignore[attr-defined]
        assert enough.wait(10)
        while_stopped = len(sent)
        os.kill(daemon.pid, signal.SIGCONT)
    assert while_stopped == 1
