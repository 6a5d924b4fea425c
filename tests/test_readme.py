"""The README keeps its word: every example in it is run as it stands, and prints what is shown after it.

A ``python`` block runs in an interpreter of its own, a ``console`` block in one bash: a line that begins with ``$``
is a command, the lines after it are its output. What a ``text`` block after a ``python`` block holds is that one's
output. ``...`` in shown output stands for anything within a line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.local("the examples run without a daemon")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = 60


class Block(NamedTuple):
    language: str
    text: str
    shown: str
    line: int


def blocks() -> list[Block]:
    """The fenced blocks of the README in their order; a ``text`` block belongs to the one right before it."""
    found: list[Block] = []
    end_of_last = 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        language, text = match[1], match[2]
        between = README[end_of_last : match.start()]
        end_of_last = match.end()
        if language == "text" and found and not between.strip():
            found[-1] = found[-1]._replace(shown=text)
        else:
            found.append(Block(language, text, "", README.count("\n", 0, match.start()) + 1))
    return found


def of_language(language: str) -> list[object]:
    return [pytest.param(block, id=f"line{block.line}") for block in blocks() if block.language == language]


@pytest.fixture
def place(tmp_path: Path, rootfs: str, state_dir: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like the clone after tools/quickstart; the containers have a state directory of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("containers of this suite need root: run it as root")
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart/rootfs").symlink_to(rootfs)
    monkeypatch.setenv("CTRD_ADDRESS", f"local:{state_dir}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def ran(command: list[str], place: Path) -> str:
    """What *command* prints, its errors too; it must succeed."""
    done = subprocess.run(
        command,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
    )
    output = done.stdout.decode()
    assert done.returncode == 0, output
    return output


def check_output(printed: str, shown: str) -> None:
    """*printed* is what is *shown*."""
    pattern = re.escape(shown).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, printed), f"shown:\n{shown}\nprinted:\n{printed}"


@pytest.mark.parametrize("block", of_language("python"))
def test_a_python_example_prints_what_is_shown(block: Block, place: Path) -> None:
    assert block.shown, "show what it prints, in a text block right after it"
    check_output(ran([sys.executable, "-c", block.text], place), block.shown)


@pytest.mark.parametrize("block", of_language("console"))
def test_a_console_example_prints_what_is_shown(block: Block, place: Path) -> None:
    # Each command is followed by its exit code on a line of its own, so that the output can be told apart.
    steps = re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
    assert steps
    mark = "-- end of a step --"
    script = "".join(f"{command}echo '{mark}'\n" for command, _ in steps)
    printed = ran(["bash", "-c", script], place).split(f"{mark}\n")
    for (command, shown), output in zip(steps, printed, strict=False):
        try:
            check_output(output, shown)
        except AssertionError as error:
            raise AssertionError(f"$ {command}{error}") from None
    assert len(printed) == len(steps) + 1


def test_the_commands_after_the_clone_are_two_and_are_what_ci_runs() -> None:
    shell = [block.text.split("\n")[:-1] for block in blocks() if block.language == "sh"]
    assert shell == [["tools/quickstart", "tools/test"]]
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for command in shell[0]:
        assert re.search(rf"^(exec )?{command}$", ci, re.MULTILINE)
        assert os.access(ROOT / command, os.X_OK)


def test_no_block_is_of_a_kind_that_is_not_run() -> None:
    assert {block.language for block in blocks()} <= {"python", "console", "sh", "text"}


def test_the_readme_fits_in_its_lines() -> None:
    assert [line for line in README.split("\n") if len(line) > 120] == []
