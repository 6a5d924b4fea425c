"""The benchmark measures what it says, and tells what is missing. Whether its bars hold depends on the host's peace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.local("it measures the local engine")

BENCH = Path(__file__).parent.parent / "tools/bench"
MEASURED = ["start", "command", "pipe", "inherit", "discard", "shim", "fifo"]


def bench(rootfs: str, tmp_path: Path, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Its exit code, what it prints, and what it writes as JSON."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--rootfs", rootfs, "--rounds", "2", "--size", "4", "--json", file, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert not done.stderr
    return done.returncode, done.stdout, json.loads(file.read_text(encoding="utf-8"))


def test_it_measures_everything_against_its_peer_and_tells_whether_the_bars_hold(rootfs: str, tmp_path: Path) -> None:
    code, printed, results = bench(rootfs, tmp_path)
    assert [result["name"] for result in results] == MEASURED
    for result in results:
        assert result["missing"] == ""
        assert len(result["series"]) >= 2
        assert all(value > 0 for series in result["series"] for value in series["values"])
        assert result["bars"]
        for bar in result["bars"]:
            assert bar["limit"] in printed
    assert code == (0 if all(bar["holds"] for result in results for bar in result["bars"]) else 1)


def test_a_runtime_that_is_missing_is_named(rootfs: str, tmp_path: Path) -> None:
    code, printed, results = bench(rootfs, tmp_path, "starts", "--runtime", "no-such-runtime")
    assert code == 1
    assert "missing: there is no OCI runtime 'no-such-runtime'" in printed
    assert [(result["name"], result["series"]) for result in results] == [("start", []), ("command", [])]
