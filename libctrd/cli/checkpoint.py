"""``ctrd checkpoint``: the state of a container that runs, on disk."""

from __future__ import annotations

import click

from libctrd.cli import checkpoints, options, output, parts
from libctrd.cli.group import Settings


@parts.command("checkpoint")
@parts.option("--leave-running", is_flag=True, help="It runs on. [default: it ends]")
@options.ID_ARGUMENT
@click.argument("directory", metavar="DIR")
@click.pass_obj
def command(settings: Settings, id: str, directory: str, leave_running: bool) -> None:
    """Write the state of the container ID, which runs, into the directory DIR, which is made, and print DIR.

    CRIU writes it; what ctrd needs beside it to start such a container again lies there too. Open TCP connections and
    external unix sockets are part of it, files are not. Go on from it with: ctrd restore DIR
    """
    with settings.connect() as client:
        container = client.get(id)
        found = checkpoints.describe(container)
        container.checkpoint(directory, leave_running=leave_running)
        checkpoints.keep(directory, found)
        output.write_line(directory)
