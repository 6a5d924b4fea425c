"""``ctrd doctor``: whether this host can run containers, and how to mend what is wrong."""

from __future__ import annotations

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings

_FAULTY = 1


@parts.command("doctor")
@options.FORMAT
@click.pass_obj
def command(settings: Settings, format: str | None) -> int:
    """Check what containers need here: runtimes, cgroups, namespaces, limits, the state directory, daemons, CRIU.

    A note says what will not be had; a fault, that no container runs before it is mended. Exits with 1 when there is a
    fault.
    """
    from libctrd import doctor

    found = doctor.examine(settings.address)
    if (format or settings.format) == "json":
        output.write_json(found)
    else:
        rows = [(one.check, one.state, one.found) for one in found]
        output.write_table(["CHECK", "STATE", "FOUND"], rows)
        for one in found:
            if one.advice:
                output.write_line(f"{one.check}: {one.advice}")
    return _FAULTY if any(one.state == "fault" for one in found) else 0
