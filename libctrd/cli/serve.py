"""``ctrd serve``: the wire of containerd 0.2, in front of the local engine."""

from __future__ import annotations

import os

import click

from libctrd.cli import output, parts
from libctrd.cli.group import Settings


@parts.command("serve")
@parts.option("--address", required=True, metavar="A", help="Where to listen: unix:///PATH/OF/A/SOCKET.")
@parts.option("--metrics", metavar="HOST:PORT", help="Answer Prometheus there; :PORT for this host alone.")
@click.pass_obj
def command(settings: Settings, address: str, metrics: str | None) -> None:
    """Serve the API of containerd 0.2 (types.API): its clients run their containers with today's runtimes.

    The containers are those of the local engine, of --state-dir. SIGTERM ends the server, after the calls that are
    under way; containers run on, and the next server takes them over, and tells what it missed. For systemd it is
    Type=notify, and takes a socket that is handed over.
    """
    from libctrd.engine import default_state_dir
    from libctrd.errors import InvalidArgumentError
    from libctrd.serve import serve

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    engine = settings.address or "local:"
    if not engine.startswith("local:"):
        raise InvalidArgumentError(
            f"ctrd serve stands in front of the local engine, not of {engine}: say --state-dir DIR"
        )
    state_dir = engine.removeprefix("local:") or default_state_dir()
    serve(
        address,
        state_dir,
        runtime=settings.runtime,
        metrics=metrics,
        ready=lambda: output.write_line(f"ctrd serves {address} from {state_dir}"),
    )
