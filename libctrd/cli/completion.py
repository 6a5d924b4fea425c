"""``ctrd completion``: what a shell needs to complete commands, options and the ids of containers."""

from __future__ import annotations

from typing import Final

import click

from libctrd.cli import output, parts

VARIABLE: Final = "_CTRD_COMPLETE"
"""The environment variable by which a shell asks."""
SHELLS: Final = ("bash", "zsh", "fish")


@parts.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script by which a shell completes ctrd: for bash, say in ~/.bashrc: eval "$(ctrd completion bash)" """
    from click.shell_completion import get_completion_class

    from libctrd.cli.group import ctrd

    made = get_completion_class(shell)
    assert made is not None  # click knows all of SHELLS
    output.write_line(made(ctrd, {}, "ctrd", VARIABLE).source())


def answer(instruction: str) -> int:
    """Answers a shell that asks, as it says in `VARIABLE`; returns the exit code."""
    from click.shell_completion import shell_complete

    from libctrd.cli.group import ctrd

    return shell_complete(ctrd, {}, "ctrd", VARIABLE, instruction)


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
