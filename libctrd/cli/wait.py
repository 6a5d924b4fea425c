"""``ctrd wait``: the exit codes of containers, whoever started them."""

from __future__ import annotations

import click

from libctrd.cli import exits, options, output, parts
from libctrd.cli.group import Settings


@parts.command("wait")
@options.IDS
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Wait until containers have ended; print the exit code of each, and exit with the last one.

    Exits with 125 when one of them could not be waited for.
    """
    last = 0
    with settings.connect() as client:

        def wait(id: str) -> None:
            nonlocal last
            status = client.get(id).wait()
            if not status.known:
                output.complain(f"the exit code of container {id!r} is not known: nobody was there to see it")
            last = status.code
            output.write_line(str(status.code))

        failed = output.for_each(ids, wait)
    return exits.FAILED if failed else last
