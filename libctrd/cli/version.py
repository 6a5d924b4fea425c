"""``ctrd version``: which ctrd this is."""

from __future__ import annotations

import click

import libctrd
from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("version")
@options.FORMAT
@click.pass_obj
def command(settings: Settings, format: str | None) -> None:
    """Show the version of ctrd."""
    if (format or settings.format) == "json":
        output.write_json({"version": libctrd.__version__})
    else:
        output.write_line(f"ctrd {libctrd.__version__}")
