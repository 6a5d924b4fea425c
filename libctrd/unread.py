"""Output that nobody takes any more, of processes that were sent SIGKILL.

There are daemons that tell the end of a process only once all of its output was taken, and cannot know that nobody is
there to do so: containerd 0.2. So nobody would ever hear of that end, and whoever waits for it would wait for ever. Who
reads still is left alone: every byte is his. Everything here is called under the container's lock.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from libctrd import reactor
from libctrd.errors import NotFoundError
from libctrd.state import INIT
from libctrd.stdio import DISCARD_SECONDS, OUTPUTS, fifos_in

if TYPE_CHECKING:
    from libctrd.container import Container


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
