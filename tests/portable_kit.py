"""Which tests the portable build passes: all of its areas, and no others, with what it leaves out by name.

The areas: fifos, the relay, streams, events, and the engines over a socket. A suite that runs with the portable build
keeps to them by itself; ``--areas`` does the same with Linux's own, to compare the two. `ctrd serve`, which
the api engine speaks to, takes Linux's own build: CTRD_TEST_LINUX_PYTHON names the Python that has it.
"""

from __future__ import annotations

import os
import sys

import pytest

from libctrd.fifo import PORTABLE

FILES = (
    *("test_fifo", "test_relay", "test_reactor", "test_stdio", "test_events", "test_client_events", "test_portable"),
    *("test_api", "test_channel", "test_connect", "test_containerd_", "test_details"),
    *("test_owning", "test_taskio", "test_taskshim", "test_ttrpc"),
)
"""Those of which every test counts, but for what is the local engine's. Of the others: what runs in an engine over a
socket."""

LINUX_PYTHON = os.environ.get("CTRD_TEST_LINUX_PYTHON", sys.executable)
"""The Python of what only Linux's own build can do: the server."""


def in_areas(item: pytest.Item) -> bool:
    """Is that test of an area of the portable build?"""
    if any(item.get_closest_marker(name) for name in ("bar", "local")):
        return False
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "engine" in parameters:
        return parameters["engine"] in ("containerd", "api")
    return item.path.name.startswith(FILES)


def keep_to_areas(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the rest, where only the areas are wanted, and skips what needs Linux, where it is not to be had."""
    if PORTABLE or config.getoption("--areas"):
        kept = [item for item in items if in_areas(item)]
        config.hook.pytest_deselected(items=[item for item in items if not in_areas(item)])
        items[:] = kept
    if PORTABLE:
        for item in items:
            mark = item.get_closest_marker("linux")
            if mark is not None:
                item.add_marker(pytest.mark.skip(reason=f"not in the portable build: {mark.args[0]}"))
