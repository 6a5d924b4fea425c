"""``ctrd info``: what will run a container here."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("info")
@options.FORMAT
@click.pass_obj
def command(settings: Settings, format: str | None) -> None:
    """Show the engine, of which version it is, and its OCI runtime."""
    import msgspec

    with settings.connect() as client:
        info = client.info()
    if (format or settings.format) == "json":
        output.write_json(info)
    else:
        pairs = [(name.replace("_", " "), value) for name, value in msgspec.to_builtins(info).items() if value]
        rows = [(name, value if isinstance(value, str) else ", ".join(value)) for name, value in pairs]
        output.write_table(["ENGINE", ""], rows)
