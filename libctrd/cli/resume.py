"""``ctrd resume``: containers that stood still go on."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("resume")
@options.IDS
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Thaw containers that were paused, and print their ids once they go on."""
    with settings.connect() as client:

        def resume(id: str) -> None:
            client.get(id).resume()
            output.write_line(id)

        return output.for_each(ids, resume)
