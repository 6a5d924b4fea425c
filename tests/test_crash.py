"""A client, a shim and a runtime that die at a system call: a share of the points; `tools/crash/run` takes all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from engine_kit import need, need_runtime
from portable_kit import sources

pytestmark = [
    pytest.mark.local("it kills what the local engine starts"),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers of this suite need root: run it as root"),
]


@pytest.mark.parametrize(
    ("kind", "every"), [("client", 45), ("shim", 13), ("second", 31), ("runtime", 13), ("init", 97), ("deletion", 31)]
)
def test_the_next_client_brings_it_to_a_clean_end(kind: str, every: int, rootfs: str) -> None:  # C18, C28
    """Whoever dies, and wherever: what is left can be waited for and cleaned, and then nothing is left."""
    need_runtime("crun")
    need("/usr/bin/cc", "gcc")
    tool = sources("tools", "crash")
    done = subprocess.run(
        [sys.executable, tool, "--rootfs", rootfs, "--every", str(every), "--from", str(os.getpid() % every + 1), kind],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong: 0" in done.stdout
