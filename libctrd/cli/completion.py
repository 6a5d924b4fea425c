"""``ctrd completion``: what a shell needs to complete commands, options and the ids of containers."""

from __future__ import annotations

import importlib.resources
import shlex
from collections.abc import Sequence
from typing import Final

import click

from libctrd.cli import output, parts

VARIABLE: Final = "_CTRD_COMPLETE"
"""The environment variable by which a shell asks, whatever it is set to."""
SCRIPTS: Final = {"bash": "ctrd", "zsh": "_ctrd", "fish": "ctrd.fish"}
"""The script of each shell, in ``completions``: by the name that it has to have where the shell looks for it."""


@parts.command("completion")
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
def command(shell: str) -> None:
    """Print the script by which a shell completes ctrd: for bash, say in ~/.bashrc: eval "$(ctrd completion bash)" """
    script = importlib.resources.files("libctrd.cli") / "completions" / SCRIPTS[shell]
    output.write(script.read_text(encoding="utf-8"))


def answer(words: Sequence[str]) -> int:
    """Tells a shell what the last of *words*, which follow the command and are as they were typed, could become.

    A line for each: its kind (``plain``, ``file`` or ``dir``, and then the shell looks itself), the value, and a help,
    with a tab between.
    """
    from click.shell_completion import ShellComplete

    from libctrd.cli.group import ctrd

    *before, begun = [_typed(word) for word in words] or [""]
    for item in ShellComplete(ctrd, {}, "ctrd", VARIABLE).get_completions(before, begun):
        help = " ".join((item.help or "").split())
        output.write_line(f"{item.type}\t{item.value}\t{help}")
    return 0


def _typed(word: str) -> str:
    """A word as the command would get it: bash gives it with its quotes, and one that is begun has no second."""
    try:
        return "".join(shlex.split(word, comments=False))
    except ValueError:
        return word.lstrip("\"'")


def ids(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """The ids of containers that begin so, for arguments that take one. Whatever fails, a shell gets none."""
    import os

    from libctrd.engine import connect
    from libctrd.errors import CtrdError

    chosen = context.find_root().params
    directory = chosen.get("state_dir")
    address = "local:" + os.path.abspath(directory) if directory else chosen.get("address")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with connect(address, namespace=chosen.get("namespace")) as client:
            return [container.id for container in client.containers() if container.id.startswith(begun)]
    except CtrdError:
        return []
