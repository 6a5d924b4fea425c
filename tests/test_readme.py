"""The README keeps its word: every example in it is run as it stands, and prints what is shown after it.

A ``python`` block runs in an interpreter of its own, a ``console`` block in one bash: a line that begins with ``$``
is a command, the lines after it are its output. What a ``text`` block after a ``python`` block holds is that one's
output. ``...`` in shown output stands for anything within a line. Whatever an example does, nothing of it stays.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from containerd_kit import program, until
from engine_kit import on_host
from portable_kit import sources

import libctrd

pytestmark = pytest.mark.local("an example says itself which engine it is for")

ROOT = sources("README.md").parent
README = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "EXAMPLES.md"))
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
def place(rootfs: str, state_dir: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory like the clone after tools/quickstart; the containers have a state directory of the test's own.

    Its name is short, for a private containerd has its socket in it.
    """
    top = Path(tempfile.mkdtemp(prefix="ctrd-readme-", dir="/run" if os.access("/run", os.W_OK) else None))
    (top / "quickstart").mkdir()
    (top / "quickstart/rootfs").symlink_to(rootfs)
    monkeypatch.setenv("CTRD_ADDRESS", f"local:{state_dir}")
    monkeypatch.delenv("CONTAINERD_NAMESPACE", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield top
    if left_in(top):
        end_containerd(top / "quickstart/containerd")
    until(lambda: not left_in(top), "the end of all that an example has started")
    shutil.rmtree(top)


def end_containerd(directory: Path) -> None:
    """Ends what an example that failed has left running of a private containerd, and that itself."""
    address = f"containerd:{directory}"
    for namespace in (directory / "bundles").glob("[!.]*"):
        with libctrd.connect(address, namespace=namespace.name) as client:
            for container in client.containers():
                container.clean(force=True)
    with libctrd.connect(address) as client:
        client.stop_daemon()


def left_in(top: Path) -> dict[str, list[str]]:
    """The processes and mounts that there still are of an example in *top*."""
    return {what: found for what, found in on_host(str(top)).items() if found and what != "files"}


def ran(command: list[str], block: Block, place: Path) -> str:
    """What *command*, which runs *block*, prints, its errors too; it must succeed, and stop the daemons it started."""
    if "containerd:" in block.text:
        program("containerd")
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
    assert not list(place.rglob("containerd.pid")), "stop the daemon at the end: an example leaves nothing running"
    return output


def check_output(printed: str, shown: str) -> None:
    """*printed* is what is *shown*."""
    pattern = re.escape(shown).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, printed), f"shown:\n{shown}\nprinted:\n{printed}"


@pytest.mark.parametrize("block", of_language("python"))
def test_a_python_example_prints_what_is_shown(block: Block, place: Path) -> None:
    assert block.shown, "show what it prints, in a text block right after it"
    check_output(ran([sys.executable, "-c", block.text], block, place), block.shown)


@pytest.mark.parametrize("block", of_language("console"))
def test_a_console_example_prints_what_is_shown(block: Block, place: Path) -> None:
    # Each command is followed by its exit code on a line of its own, so that the output can be told apart.
    steps = re.findall(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
    assert steps
    mark = "-- end of a step --"
    script = "".join(f"{command}echo '{mark}'\n" for command, _ in steps)
    printed = ran(["bash", "-c", script], block, place).split(f"{mark}\n")
    for (command, shown), output in zip(steps, printed, strict=False):
        try:
            check_output(output, shown)
        except AssertionError as error:
            raise AssertionError(f"$ {command}{error}") from None
    assert len(printed) == len(steps) + 1


def test_the_commands_after_the_clone_are_two_and_are_what_ci_runs() -> None:
    shell = [block.text.split("\n")[:-1] for block in blocks() if block.language == "sh"]
    assert shell == [["tools/quickstart", "tools/test"]]
    ci = sources(".ci", "run").read_text(encoding="utf-8")
    for command in shell[0]:
        assert re.search(rf"^(exec )?{command}$", ci, re.MULTILINE)
        assert os.access(ROOT / command, os.X_OK)


def test_no_block_is_of_a_kind_that_is_not_run() -> None:
    assert {block.language for block in blocks()} <= {"python", "console", "sh", "text"}


def test_the_readme_fits_in_its_lines() -> None:
    assert [line for line in README.split("\n") if len(line) > 120] == []
