"""``ctrd completion``: the script for a shell, and what it is answered."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from libctrd.cli.completion import SHELLS
from libctrd.cli.group import COMMANDS

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


def completed(ctrd: Ctrd, *words: str) -> list[str]:
    """What bash is told when the last of *words* is to be completed."""
    asked = {"_CTRD_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["ctrd", *words]), "COMP_CWORD": str(len(words))}
    done = ctrd(env={**ctrd.environment, **asked})
    assert (done.returncode, done.stderr) == (0, b"")
    return [line.partition(",")[2] for line in done.stdout.decode().splitlines() if line]


def test_commands_options_and_ids_are_completed(ctrd: Ctrd) -> None:
    assert completed(ctrd, "re") == [name for name in COMMANDS if name.startswith("re")]
    assert "--all" in completed(ctrd, "ps", "--a")
    for id in ("one", "other", "third"):
        assert ctrd("create", "--rootfs", ctrd.rootfs, "--id", id, "true").returncode == 0
    assert sorted(completed(ctrd, *ctrd.engine.options, "rm", "o")) == ["one", "other"]
    assert completed(ctrd, *ctrd.engine.options, "attach", "t") == ["third"]
    assert sorted(completed(ctrd, *ctrd.engine.options, "stats", "one", "o")) == ["one", "other"]
    assert ctrd("rm", "one", "other", "third").returncode == 0


def test_where_there_is_no_engine_no_id_is_completed(ctrd: Ctrd) -> None:
    assert completed(ctrd, "--address", "unix:///nowhere/at-all.sock", "rm", "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_each_shell_is_printed(ctrd: Ctrd, shell: str) -> None:
    done = ctrd("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"_CTRD_COMPLETE" in done.stdout
    if shell == "bash":
        script = f"{done.stdout.decode()}\ncomplete -p ctrd"
        said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ))
        assert "ctrd" in said.stdout


def test_a_shell_that_is_not_known_is_told(ctrd: Ctrd) -> None:
    assert "bash" in ctrd.failure(ctrd("completion", "csh"))
