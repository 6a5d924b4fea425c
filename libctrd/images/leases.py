"""Leases: what keeps the garbage collector's hands off while an image comes in, and how all of it goes if it does not.

A lease that its holder cannot end, because it was killed, ends by itself after a day. When the work under a lease
fails, the lease is deleted with the collector run at once, so that nothing is left when the caller hears of the
failure. Contract row C26; the wire is ``containerd.services.leases.v1``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from libctrd import protos
from libctrd.errors import CtrdError, NotFoundError

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

EXPIRE_LABEL: Final = "containerd.io/gc.expire"
DAY: Final = 24 * 3600
_SERVICE: Final = "containerd.services.leases.v1.Leases"
_COLLECT: Final = 60.0  # seconds for a deletion that waits for the collector


@contextmanager
def held(channel: Channel, seconds: float = DAY) -> Iterator[str]:
    """A lease of its own for the block; gives its id. It expires *seconds* from now if nobody ends it.

    When the block raises, all that only the lease held is gone before the error goes on.
    """
    types = protos.package("containerd.services.leases.v1")
    id = f"libctrd-{secrets.token_hex(8)}"
    expire = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    request = types.CreateRequest(id=id, labels={EXPIRE_LABEL: expire})
    channel.call(f"{_SERVICE}/Create", request, doing="create a lease for an image")
    try:
        yield id
    except BaseException:
        try:
            _delete(channel, id, sync=True)
        except CtrdError as error:
            # The failure of the block is what the caller is to hear; the lease ends by itself.
            import logging

            logging.getLogger(__name__).warning("%s; it expires at %s", error, expire)
        raise
    _delete(channel, id, sync=False)


def _delete(channel: Channel, id: str, *, sync: bool) -> None:
    types = protos.package("containerd.services.leases.v1")
    request = types.DeleteRequest(id=id, sync=sync)
    try:
        channel.call(f"{_SERVICE}/Delete", request, doing=f"delete the lease {id!r}", timeout=_COLLECT)
    except NotFoundError:
        return


def hold(channel: Channel, id: str, kind: str, name: str) -> None:
    """Puts *name*, of *kind* (``content`` or ``snapshots/NAME``), under the lease *id*; it need not be there yet."""
    types = protos.package("containerd.services.leases.v1")
    request = types.AddResourceRequest(id=id, resource=types.Resource(id=name, type=kind))
    channel.call(f"{_SERVICE}/AddResource", request, doing=f"hold {name[:19]} with the lease {id!r}")
