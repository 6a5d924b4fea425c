"""Which engine for which address. Engines are imported when they are chosen, and not before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from libctrd.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from libctrd.client import Client


def default_state_dir() -> str:
    """``/run/ctrd`` for root, for others ``ctrd`` under ``XDG_RUNTIME_DIR``. Raises when there is no such place."""
    if os.geteuid() == 0:
        return "/run/ctrd"
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime_dir:
        raise InvalidArgumentError(
            "there is no place for the state of containers: set XDG_RUNTIME_DIR, or name a directory as local:/DIR"
        )
    return os.path.join(runtime_dir, "ctrd")


def connect(address: str | None = None, *, runtime: str | None = None) -> Client:
    """Connects to an engine and returns its client.

    *address* is ``local:`` (no daemon; state in the default directory) or ``local:/DIR``; when it is ``None`` the
    environment's ``CTRD_ADDRESS``, else ``CONTAINERD_ADDRESS``, else ``local:`` counts. *runtime* is the OCI runtime of
    the local engine (a path or a name) for containers that name none: crun if it works here, else runc.

    Raises `InvalidArgumentError` for an address that cannot be, `UnsupportedError` for one that this version does not
    know, `UnavailableError` when the state directory cannot be used.
    """
    address = address or os.environ.get("CTRD_ADDRESS") or os.environ.get("CONTAINERD_ADDRESS") or "local:"
    if not isinstance(address, str) or "\0" in address:
        raise InvalidArgumentError(f"the address {address!r} is no str without NUL: say local: or local:/DIR")
    scheme, colon, rest = address.partition(":")
    if not colon:
        raise InvalidArgumentError(f"the address {address!r} has no scheme: say local: or local:/DIR")
    if scheme != "local":
        raise UnsupportedError(
            f"this version of libctrd speaks to no engine at {address!r}: it knows local: and local:/DIR"
        )
    if rest and not rest.startswith("/"):
        raise InvalidArgumentError(f"the state directory in the address {address!r} is not absolute: say local:/DIR")
    from libctrd import reactor
    from libctrd.client import Client  # above the engines' Protocol in this package: hence not at the top
    from libctrd.engine.local import LocalEngine

    engine = LocalEngine(rest or default_state_dir(), reactor.shared(), runtime)
    return Client(engine, engine.root)
