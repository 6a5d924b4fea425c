"""The benchmark measures what it says, and tells what is missing. Whether its bars hold depends on the host's peace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from containerd_kit import program
from portable_kit import sources

pytestmark = pytest.mark.local("it measures the local engine")

BENCH = sources("tools", "bench")
MEASURED = {
    "starts": ["start", "command"],
    "rates": ["rate"],
    "streams": ["pipe", "inherit", "unattended", "discard"],
    "fifos": ["fifo", "waiting"],
    "shims": ["shim"],
    "many": ["many"],
    "crowd": ["crowd"],
    "imports": ["imports"],
    "specs": ["spec"],
    "reporting": ["events", "events", "events"],
}
SMALL = ["--rounds", "2", "--size", "4", "--containers", "8", "--crowd", "3", "--ticks", "3"]

# A client that takes its time, and tells so.
CLIENT = """#!/bin/sh
while [ "$1" != -n ]; do shift; done
echo "{\\"seconds\\": $(($2 * 2)), \\"cpu_seconds\\": $(($2 / 2))}"
"""


def bench(rootfs: str, tmp_path: Path, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Its exit code, what it prints, and what it writes as JSON."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--rootfs", rootfs, *SMALL, "--json", file, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert not done.stderr
    return done.returncode, done.stdout, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("group", MEASURED)
def test_it_measures_a_group_against_its_peers_and_tells_whether_the_bars_hold(
    group: str, rootfs: str, tmp_path: Path
) -> None:
    code, printed, results = bench(rootfs, tmp_path, group)
    assert [result["name"] for result in results] == MEASURED[group]
    for result in results:
        assert result["missing"] == ""
        assert result["row"] in printed
        assert result["series"]
        for series in result["series"]:
            assert series["values"]
            if not series["label"].startswith("added"):
                assert all(value >= 0 for value in series["values"]), series
        assert result["bars"]
        for bar in result["bars"]:
            assert printed.count(bar["limit"]) >= 2, "beside the measurement, and in the table"
    assert code == (0 if all(bar["holds"] for result in results for bar in result["bars"]) else 1)


def test_the_phases_of_a_life_add_up_to_it(rootfs: str, tmp_path: Path) -> None:
    _, _, (phases,) = bench(rootfs, tmp_path, "phases", "--rounds", "5")
    *parts, whole = phases["series"]
    for place in range(5):
        assert all(part["values"][place] > 0 for part in parts if "the program" not in part["label"])
        assert sum(part["values"][place] for part in parts) == pytest.approx(whole["values"][place], rel=0.02)


def test_nothing_is_lost_however_small_the_crowd(rootfs: str, tmp_path: Path) -> None:
    _, _, (many,) = bench(rootfs, tmp_path, "many")
    for bar in many["bars"]:
        assert bar["holds"] or "core" in bar["limit"], bar


def test_lives_with_containerd_are_split_and_their_rates_compared(rootfs: str, tmp_path: Path) -> None:
    program("containerd")
    program("ctr")
    client = tmp_path / "client"
    client.write_text(CLIENT)
    client.chmod(0o755)
    code, printed, results = bench(rootfs, tmp_path, "lives", "--lives", "4", "--go-client", str(client))
    life, rate = ({series["label"]: series["values"] for series in result["series"]} for result in results)
    for whole, inside, outside in zip(
        life["one life"], life["containerd's own answers"], life["outside of them"], strict=True
    ):
        assert 0 < outside < inside < whole
        assert inside + outside == pytest.approx(whole)
    assert rate["Go client"] == [4 / 8.0]
    assert rate["Go client: its CPU for a life"] == [0.5e3]
    assert rate["libctrd"][0] > 0.5
    assert "times the rate of ctr run --rm" in printed
    assert results[1]["bars"][0]["holds"]
    assert code == (0 if all(bar["holds"] for bar in results[0]["bars"]) else 1)


def test_a_runtime_that_is_missing_is_named(rootfs: str, tmp_path: Path) -> None:
    code, printed, results = bench(rootfs, tmp_path, "starts", "--runtime", "no-such-runtime")
    assert code == 1
    assert "missing: there is no OCI runtime 'no-such-runtime'" in printed
    assert [(result["name"], result["series"]) for result in results] == [("start", []), ("command", [])]
