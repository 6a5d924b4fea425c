"""``ctrd serve``: the wire of containerd 0.2 (`types.API`) in front of the local engine (C25)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def serve(
    address: str,
    state_dir: str,
    *,
    runtime: str | None = None,
    metrics: str | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves the containers of *state_dir* at *address* (``unix:///PATH``) until SIGTERM or SIGINT; they run on then.

    *runtime* is for containers whose create names none. *metrics* is ``HOST:PORT`` to answer Prometheus at. *ready* is
    called once it answers. Called by the main thread. Raises an error of the family when it cannot begin:
    `AlreadyExistsError` when somebody listens there, `UnavailableError` when the directory is served already,
    `UnsupportedError` for one that a later version has written.
    """
    from libctrd import _checks

    _checks.needs_linux("ctrd serve, in front of the local engine,")
    from libctrd.serve.server import Server

    asyncio.run(Server(address, state_dir, runtime, metrics).run(ready))
