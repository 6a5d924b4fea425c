"""What the tests of further processes share: a container to run them in, and looks at one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from field_kit import until

from libctrd import NULL
from libctrd.client import Client
from libctrd.container import Container
from libctrd.process import Process

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def web(client: Client, spec: Make) -> Iterator[Container]:
    """A container that runs until it is ended."""
    container = client.create("web", spec("trap 'exit 0' TERM; sleep 1000 & wait", env=["FROM=container"]))
    container.start(NULL)
    until(lambda: len(container.pids()) == 2)  # its shell, and what that waits for
    yield container
    container.clean(force=True)


def fifos(container: Container) -> list[str]:
    return sorted(name for name in os.listdir(container.bundle) if "-std" in name and not name.startswith("init-"))


def output(process: Process) -> bytes:
    """All that it prints to its stdout."""
    assert process.stdout is not None
    with process.stdout as stream:
        return stream.read()


def close(process: Process) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
