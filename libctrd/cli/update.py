"""``ctrd update``: other limits for containers that run."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings


@parts.command("update")
@parts.option("-m", "--memory", metavar="SIZE", help="The most memory it may use, such as 64m or 1.5g.")
@parts.option("--cpus", metavar="N", type=float, help="The most processors' time it may use, such as 0.5.")
@parts.option("--pids-limit", metavar="N", type=int, help="The most processes it may have.")
@parts.option(
    "--blkio-weight", metavar="N", type=click.IntRange(10, 1000), help="Its share of block devices, from 10 to 1000."
)
@options.IDS
@click.pass_obj
def command(settings: Settings, /, ids: tuple[str, ...], blkio_weight: int | None, **limits: Any) -> int:
    """Change the limits of containers that run, and print their ids. What is not named stays as it is.

    It lasts as long as they run: their config.json stays as it was.
    """
    from libctrd import spec as specs

    made = specs.default(["-"], "/", rootless=False, **limits)["linux"].get("resources") or {}
    resources = {kind: made[kind] for kind in ("memory", "cpu", "pids") if kind in made}
    if blkio_weight is not None:
        resources["blockIO"] = {"weight": blkio_weight}
    if not resources:
        raise click.UsageError("there is nothing to change: give --memory, --cpus, --pids-limit or --blkio-weight")
    with settings.connect() as client:

        def update(id: str) -> None:
            client.get(id).update(resources)
            output.write_line(id)

        return output.for_each(ids, update)
