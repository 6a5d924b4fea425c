"""``ctrd inspect``: all that is known of containers."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("inspect")
@options.IDS
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Show all that is known of containers: a JSON array with an object for each, its spec included."""
    import msgspec

    found: list[dict[str, Any]] = []
    with settings.connect() as client:

        def look(id: str) -> None:
            container = client.get(id)
            known: dict[str, Any] = msgspec.to_builtins(container.info())
            found.append(known)
            known["processes"] = None
            known["spec"] = None  # and so it stays when its config.json was spoilt, which is then told
            known["spec"] = container.spec()
            known["processes"] = msgspec.to_builtins(container.processes())

        code = output.for_each(ids, look)
    output.write_json(found)
    return code
