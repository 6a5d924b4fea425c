"""What the tests of further processes share: a container that runs, and looks at a process's fifos and output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from libctrd import NULL
from libctrd.client import Client
from libctrd.container import Container
from libctrd.process import Process

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def web(client: Client, spec: Make) -> Iterator[Container]:
    """A container that runs until it is ended."""
    container = client.create("web", spec("trap 'exit 0' TERM; sleep 1000 & wait", env=["FROM=container"]))
    container.start(NULL)
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
