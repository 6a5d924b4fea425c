"""For people who test their services in containers: fixtures for pytest.

In a ``conftest.py``::

    pytest_plugins = ["libctrd.testing"]

and in a test::

    def test_it_answers(containers):
        web = containers.run(["httpd", "-f", "-p", "8080"], rootfs="rootfs")
        web.wait_for_port(8080)
        ...

Each container of a test is killed and cleaned at its end, however that comes, and what it printed is in the report of a
test that failed. They run on an engine of their own: ``CTRD_TEST_ADDRESS`` names one, as for `libctrd.connect`; else it
is the local one, in a directory that goes with the session.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from libctrd import relay
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import connect
from libctrd.errors import CtrdError, DeadlineError, InvalidArgumentError, NotFoundError
from libctrd.process import Process
from libctrd.state import ExitStatus
from libctrd.stdio import NULL, PIPE, Stream

KEPT = 1 << 20
"""Bytes that are kept of what a container prints to each of stdout and stderr: the last ones."""
TIMEOUT = 30.0
"""Seconds that a wait takes at most when it is not told."""
_LOOK_SECONDS = 0.01  # nothing announces that a port is listened at
_LISTEN = "0A"  # in /proc/PID/net/tcp


class Running:
    """A container of a test, and all that it has printed. Made by `Containers.run`."""

    def __init__(self, container: Container) -> None:
        self.container = container
        """The container, for everything that is not here."""
        self._changed = threading.Condition()  # guards what follows; waited at by whoever wants a line or the end
        self._printed = {"stdout": bytearray(), "stderr": bytearray()}
        self._pumps = []
        for name, printed in self._printed.items():
            fifo = getattr(container, name)
            if fifo is not None:
                self._pumps.append(relay.call(fifo, lambda data, printed=printed: self._add(printed, data)))  # type: ignore[misc]
        container._notified.when_set(self._wake)
        for pump in self._pumps:
            pump.on_done(lambda _: self._wake())

    def __repr__(self) -> str:
        return f"<Running {self.container!r}>"

    def _add(self, printed: bytearray, data: bytes) -> None:
        with self._changed:
            printed += data
            del printed[:-KEPT]
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def id(self) -> str:
        """Its id."""
        return self.container.id

    @property
    def stdout(self) -> str:
        """What it has printed to stdout so far, the last `KEPT` bytes of it."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """What it has printed to stderr so far, the last `KEPT` bytes of it."""
        return self._text("stderr")

    def _text(self, name: str) -> str:
        with self._changed:
            return self._printed[name].decode("utf-8", "replace")

    def wait_for_line(self, pattern: str | re.Pattern[str], timeout: float = TIMEOUT) -> re.Match[str]:
        """Waits until a whole line of its output, of either stream, has *pattern* in it; returns the match.

        Lines that came before count. Raises `DeadlineError` after *timeout* seconds, `NotFoundError` when it has ended
        without such a line: both with the last that it printed.
        """
        wanted = re.compile(pattern)
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                over = self._over()  # before the look: nothing is added after the end
                for printed in self._printed.values():
                    whole = printed if over else printed[: printed.rfind(b"\n") + 1]
                    for line in whole.decode("utf-8", "replace").splitlines():
                        found = wanted.search(line)
                        if found is not None:
                            return found
                if over:
                    raise NotFoundError(f"container {self.id!r} ended and never said {wanted.pattern!r}{self._last()}")
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(
                        f"container {self.id!r} did not say {wanted.pattern!r} within {timeout:g} s{self._last()}"
                    )
                self._changed.wait(left)

    def wait_for_port(self, port: int, timeout: float = TIMEOUT) -> None:
        """Waits until something in its network listens at the TCP *port*, for IPv4 or IPv6. Nothing is connected to it.

        Raises `DeadlineError` after *timeout* seconds, `NotFoundError` when it has ended: both with the last that it
        printed.
        """
        if not isinstance(port, int) or not 0 < port < 65536:
            raise InvalidArgumentError(f"port={port!r} is no port: give a number from 1 to 65535")
        end = time.monotonic() + timeout
        while not self._listens(port):
            if self.container._exit is not None:
                raise NotFoundError(f"container {self.id!r} has ended and never listened at {port}{self._last()}")
            if time.monotonic() >= end:
                raise DeadlineError(
                    f"nothing in container {self.id!r} listened at port {port} within {timeout:g} s{self._last()}"
                )
            self.container._notified.wait(_LOOK_SECONDS)

    def _listens(self, port: int) -> bool:
        """As the network namespace of its init tells it."""
        for family in ("tcp", "tcp6"):
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),  # it has ended, or there is no IPv6
                open(f"/proc/{self.container.pid}/net/{family}", encoding="ascii") as table,
            ):
                rows = [line.split() for line in table.readlines()[1:]]
                if any(row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port for row in rows):
                    return True
        return False

    def _over(self) -> bool:
        return self.container._notified.is_set() and all(pump.done for pump in self._pumps)

    def _last(self) -> str:
        lines = [line for name in self._printed for line in self._text(name).splitlines()[-3:]]
        return f"; the last it printed: {' / '.join(lines)}" if lines else "; it has printed nothing"

    def exec(self, args: Sequence[str], **settings: Any) -> Process:
        """As `Container.exec`."""
        return self.container.exec(args, **settings)

    def check(self, args: Sequence[str], timeout: float = TIMEOUT, **settings: Any) -> str:
        """Runs a further process in it to its end and returns what it printed. Fails the test if its code is not 0."""
        process = self.container.exec(args, text=True, **settings)
        stdout, stderr = process.communicate(timeout=timeout)
        code = process.wait().code
        if code:
            pytest.fail(f"{args} in container {self.id!r} ended with {code}: {stderr or stdout}")
        return str(stdout)

    def wait(self, timeout: float = TIMEOUT) -> ExitStatus:
        """As `Container.wait`, and until all that it printed is here."""
        end = time.monotonic() + timeout
        status = self.container.wait(timeout)
        for pump in self._pumps:
            pump.wait(max(0.0, end - time.monotonic()))
        return status

    def stop(self) -> None:
        """Kills it if it still runs, and cleans it; what it printed stays. Idempotent."""
        self.container.clean(force=True)
        for pump in self._pumps:
            pump.wait(TIMEOUT)


class Containers:
    """What the fixture `containers` gives: it starts containers, which go with the test."""

    def __init__(self, client: Client) -> None:
        self.client = client
        """The client that they are of."""
        self.started: list[Running] = []

    def run(self, args: Sequence[str] | None = None, *, stdin: Stream = NULL, **options: Any) -> Running:
        """Starts a container; *options* are those of `Client.container`: ``rootfs=``, ``env=``, ``memory=`` …"""
        container = self.client.container(args, stdin=stdin, stdout=PIPE, stderr=PIPE, **options)
        running = Running(container)
        self.started.append(running)
        return running

    def stop(self) -> None:
        """Ends all of them, the last one first."""
        failed: list[CtrdError] = []
        for running in reversed(self.started):
            try:
                running.stop()
            except CtrdError as error:  # the others have to go all the same
                failed.append(error)
        if failed:
            raise failed[0]


@pytest.fixture(scope="session")
def containers_client() -> Iterator[Client]:
    """The client of all tests of a session: of ``CTRD_TEST_ADDRESS``, else of a local engine of its own."""
    address = os.environ.get("CTRD_TEST_ADDRESS")
    if address:
        with connect(address) as client:
            yield client
        return
    where = "/run" if os.access("/run", os.W_OK) else os.environ.get("XDG_RUNTIME_DIR")
    directory = tempfile.mkdtemp(prefix="ctrd-pytest-", dir=where)
    try:
        with connect(f"local:{directory}") as client:
            yield client
    finally:
        shutil.rmtree(directory)


_CONTAINERS = pytest.StashKey[Containers]()


@pytest.fixture
def containers(containers_client: Client, request: pytest.FixtureRequest) -> Iterator[Containers]:
    """Containers for one test: see `Containers.run`."""
    made = request.node.stash[_CONTAINERS] = Containers(containers_client)
    try:
        yield made
    finally:
        made.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """What the containers of a test that failed have printed goes into its report."""
    outcome = yield
    made = item.stash.get(_CONTAINERS, None)
    report = outcome.get_result()
    if made is None or call.when != "call" or not report.failed:
        return
    for running in made.started:
        for name in ("stdout", "stderr"):
            printed = getattr(running, name)
            if printed:
                report.sections.append((f"{name} of container {running.id}", printed))
