"""``ctrd completion``: the script for a shell, and what it is answered."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_kit import need

from libctrd.cli.completion import SCRIPTS
from libctrd.cli.group import COMMANDS

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


def completed(ctrd: Ctrd, *words: str) -> list[str]:
    """What a shell is told when the last of *words* is to be completed."""
    done = ctrd(*words, env={**ctrd.environment, "_CTRD_COMPLETE": "1"})
    assert (done.returncode, done.stderr) == (0, b"")
    return [line.split("\t")[1] for line in done.stdout.decode().splitlines()]


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


# What each shell does when somebody has typed the words of $typed after ctrd, and asks.
ASK = {
    "bash": """
        COMP_WORDS=(ctrd "${typed[@]}")
        COMP_CWORD=${#typed[@]}
        _ctrd ctrd
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        words=(ctrd "${typed[@]}")
        CURRENT=$#words
        _describe() { print -rl -- "${(@P)3}"; }
        _ctrd
    """,
    "fish": "complete -C (string join -- ' ' ctrd $typed)",
}
BEGIN = {"bash": "typed=(%s)", "zsh": "compdef() { :; }; typed=(%s)", "fish": "set typed %s"}
TYPED = [
    (["pau"], "pause"),
    (["ps", "--al"], "--all"),
    (["--format", "json", "kill", "--sig"], "--signal"),
    (["--debug", '"pau'], "pause"),
    (["nothing-like-it"], ""),
]


@pytest.mark.parametrize(("typed", "told"), TYPED, ids=["-".join(typed) for typed, _ in TYPED])
@pytest.mark.parametrize("shell", SCRIPTS)
def test_each_shell_completes_by_its_script(shell: str, typed: list[str], told: str, tmp_path: Path) -> None:
    if shell != "bash" and '"' in typed[-1]:
        pytest.skip("only bash hands words over with their quotes")
    program = need(shutil.which(shell), shell)
    command = tmp_path / "ctrd"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m libctrd.cli "$@"\n')
    command.chmod(0o755)
    script = subprocess.run([command, "completion", shell], capture_output=True, text=True, check=True).stdout
    asking = f"{BEGIN[shell] % shlex.join(typed)}\n{script}\n{textwrap.dedent(ASK[shell])}"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run([program, "-c", asking], capture_output=True, text=True, env=environment)
    assert re.split(r"[\t:\n]", said.stdout)[0] == told, said.stderr


def test_a_shell_that_is_not_known_is_told(ctrd: Ctrd) -> None:
    assert "bash" in ctrd.failure(ctrd("completion", "csh"))
