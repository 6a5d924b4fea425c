"""``ctrd rm``: containers that are no longer wanted."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings
from libctrd.errors import NotFoundError


@parts.command("rm")
@parts.option("-f", "--force", is_flag=True, help="End running ones first; one that is not there is fine.")
@options.IDS
@click.pass_obj
def command(settings: Settings, force: bool, ids: tuple[str, ...]) -> int:
    """Remove containers that have ended or never started, and print their ids."""
    with settings.connect() as client:

        def remove(id: str) -> None:
            try:
                container = client.get(id)
            except NotFoundError:
                if force:
                    return
                raise
            container.clean(force=force)
            output.write_line(id)

        return output.for_each(ids, remove)
