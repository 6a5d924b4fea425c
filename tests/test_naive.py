"""That the tests of races would fail the naive way: each runs once more, with that way in the place of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from naive_kit import NAIVE

pytestmark = [
    pytest.mark.local("the naive ways are those of the local engine"),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers of this suite need root: run it as root"),
]
TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", NAIVE)
def test_the_naive_way_fails(name: str) -> None:
    """Soon, where it hangs."""
    words = ["-q", "-x", "-p", "naive_kit", "-p", "no:cacheprovider", "--timeout", "12", str(TESTS / NAIVE[name].test)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-k", "local or crun or not (crun or runc or containerd or api)"],
        capture_output=True, text=True, check=False, timeout=100, cwd=TESTS.parent,
        env={**os.environ, "CTRD_TEST_NAIVE": name, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^FAILED ", done.stdout, re.MULTILINE), done.stdout + done.stderr
