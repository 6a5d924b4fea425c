"""``ctrd spec``: a spec to begin with, or the faults of one."""

from __future__ import annotations

from typing import Any

import click

from libctrd.cli import exits, options, output, parts


@parts.command("spec", context_settings=options.OWN_ARGUMENTS)
@parts.option(
    "--validate", "file", metavar="FILE", help="Check a spec, or the one of a bundle; all its faults are told."
)
@options.apply((*options.ROOT, *options.SPEC, options.ARGUMENTS))
def command(file: str | None, rootfs: str | None, bundle: str | None, args: tuple[str, ...], **chosen: Any) -> int:
    """Print the spec that ctrd run would make, as a config.json for a bundle. Without ARG... it runs sh.

    Its root file system is the directory rootfs of the bundle, unless --rootfs names another.
    """
    if file is not None:
        if rootfs or bundle or args or any(chosen.values()):
            raise click.UsageError("--validate checks what is there: it goes with no option that says what runs")
        return _validate(file)
    relative = rootfs is None and bundle is None
    spec = options.make_spec(args if args or bundle else ("sh",), "rootfs" if relative else rootfs, bundle, **chosen)
    if relative:
        spec["root"]["path"] = "rootfs"
    output.write_json(spec)
    return 0


def _validate(file: str) -> int:
    """Tells the faults of the spec in *file*, a line each; returns the exit code."""
    from libctrd import spec as specs
    from libctrd.errors import InvalidArgumentError

    try:
        specs.validate(specs.load(file))
    except InvalidArgumentError as error:
        for fault in error.faults:
            output.complain(f"{file}: {fault}")
        if not error.faults:
            raise
        return exits.FAILED
    return 0
