"""Output that nobody takes any more, of processes that were sent SIGKILL.

There are daemons that tell the end of a process only once all of its output was taken, and cannot know that nobody is
there to do so: containerd 0.2. So nobody would ever hear of that end, and whoever waits for it would wait for ever. Who
reads still is left alone: every byte is his. Everything here is called under the container's lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from libctrd import reactor, relay
from libctrd._log import log
from libctrd.errors import CtrdError, NotFoundError
from libctrd.fifo import open_fifo
from libctrd.state import INIT
from libctrd.stdio import OUTPUTS, fifos_in, path

if TYPE_CHECKING:
    from libctrd.container import Container


DISCARD_SECONDS = 3.0


def discard_fifos(directory: str, process: str = "init", streams: Iterable[str] = OUTPUTS) -> list[relay.Pump]:
    """Drains a process's stdout and stderr in the background until their end, so that it never blocks on writing (C12).

    They are not created. The other sides have 3 seconds in all to appear. One that cannot be opened is a logged
    warning, and the other is drained all the same. *streams* names only one of them. Returns what drains them, at once.
    """
    pumps = []
    for stream in streams:
        where = path(directory, process, stream)
        try:
            pumps.append(relay.discard(open_fifo(where, os.O_RDONLY | os.O_NONBLOCK)))
        except CtrdError as error:
            log.warning("the output in %s is not drained: %s", where, error)
    for pump in pumps:
        # From then on a read of nothing is the end: of a fifo whose writer never came, and of no other.
        reactor.shared().later(DISCARD_SECONDS, pump.no_more_writers)
    return pumps


def throw_away(container: Container, *names: str) -> None:
    """What this client has let go of, of the processes of these names. What others may still come for stays."""
    for name in names:
        process = container._processes.get(name)
        if process is not None and process.streams.let_go:
            _discard(container, name, process.streams.let_go)


def throw_all_away(container: Container) -> None:
    """What is there of all of its processes, for it is cleaned by force, and nothing of it can be read later.

    Who cleans waits for its end, and may be the one who should read what a daemon holds back: he has a moment for it.
    """
    client = container._client
    for ours in list((client._known(container.id) or container)._processes.values()):
        reactor.shared().later(DISCARD_SECONDS, ours.streams.hurry)
    for name in {INIT, *container._processes, *fifos_in(container.bundle)}:
        process = container._processes.get(name)
        if not client._owners.try_to_take(container._record, name):
            continue  # another client, which lives
        read = {*process.streams.names_taken()} - process.streams.let_go if process is not None else set()
        _discard(container, name, {*OUTPUTS} - read)
        if process is None:
            client._owners.give_back(container._record, name)


def _discard(container: Container, name: str, streams: set[str]) -> None:
    with contextlib.suppress(NotFoundError):  # it has ended, and is cleaned
        container._client._engine.discard(container.id, name, streams)
