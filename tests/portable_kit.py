"""Which tests the portable build passes: all of its areas, and no others, with what it leaves out by name.

The areas: fifos, the relay, streams, events, and the engines over a socket. A suite that runs with the portable build
keeps to them by itself; ``--areas`` does the same with Linux's own, to compare the two. `ctrd serve`, which
the api engine speaks to, takes Linux's own build: CTRD_TEST_LINUX_PYTHON names the Python that has it.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from libctrd.fifo import PORTABLE

FILES = (
    *("test_fifo", "test_relay", "test_reactor", "test_stdio", "test_events", "test_client_events", "test_portable"),
    *("test_api", "test_channel", "test_connect", "test_containerd_", "test_details"),
    *("test_owning", "test_taskio", "test_taskshim", "test_ttrpc"),
)
"""Those of which every test counts, but for what is the local engine's. Of the others: what runs in an engine over a
socket."""

ABOVE = ("test_cli_", "test_doctor", "test_hostile", "test_logs", "test_races", "test_scarce", "test_testing")
"""Of what is above all of these, or about the host, and would take as long again."""

FIRST_HALF = ("test_containerd_", "test_connect", "test_channel", "test_task", "test_ttrpc", "test_details")

LINUX_PYTHON = os.environ.get("CTRD_TEST_LINUX_PYTHON", sys.executable)
"""The Python of what only Linux's own build can do: the server."""


def in_areas(item: pytest.Item) -> bool:
    """Is that test of an area of the portable build?"""
    if any(item.get_closest_marker(name) for name in ("bar", "local")) or item.path.name.startswith(ABOVE):
        return False
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "engine" in parameters:
        return parameters["engine"] in ("containerd", "api")
    return item.path.name.startswith(FILES)


def in_first_half(item: pytest.Item) -> bool:
    """The halves take about as long."""
    engine = getattr(getattr(item, "callspec", None), "params", {}).get("engine")
    return engine == "containerd" or (engine is None and item.path.name.startswith(FIRST_HALF))


def add_options(parser: pytest.Parser) -> None:
    """Those of `choose`."""
    parser.addoption("--areas", action="store_true", help="only what is tested with the portable build too")
    parser.addoption("--half", choices=["1", "2"], help="only that half of it, to run both at a time")


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the rest, where only the areas are wanted, and skips what needs Linux, where it is not to be had."""
    half = config.getoption("--half")
    kept = [item for item in items if not (PORTABLE or config.getoption("--areas")) or in_areas(item)]
    kept = [item for item in kept if half is None or in_first_half(item) == (half == "1")]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept
    for item in items:
        mark = item.get_closest_marker("linux")
        if mark is not None and PORTABLE:
            item.add_marker(pytest.mark.skip(reason=f"not in the portable build: {mark.args[0]}"))


def tell_skipped(terminal: pytest.TerminalReporter) -> None:
    """The names of what was skipped, which pytest itself tells by line only."""
    if PORTABLE and terminal.stats.get("skipped"):
        skipped = Counter((report.nodeid.partition("[")[0], report.longrepr[2]) for report in terminal.stats["skipped"])
        terminal.section("left out by the portable build")
        for (name, reason), count in sorted(skipped.items()):
            terminal.line(f"{name} ({count}): {reason.removeprefix('Skipped: ')}")


def sources(*parts: str) -> Path:
    """A file or directory of the sources, or a skip: the tests may lie elsewhere than in a clone or an sdist."""
    path = Path(__file__).parent.parent.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"there is no {path}: the tests do not lie in the sources", allow_module_level=True)
    return path
