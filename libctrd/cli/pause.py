"""``ctrd pause``: containers that are to stand still for a while."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("pause")
@options.IDS
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Freeze containers, and print their ids once they stand still. Thaw them with: ctrd resume ID"""
    with settings.connect() as client:

        def pause(id: str) -> None:
            client.get(id).pause()
            output.write_line(id)

        return output.for_each(ids, pause)
