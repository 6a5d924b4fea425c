"""For clients that come later: the streams of a container of the local engine, how it is, and those that others start.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import os

from libctrd.engine import shim
from libctrd.engine.base import Ends, Snapshot, how_it_is
from libctrd.errors import NotFoundError
from libctrd.state import INIT, Event
from libctrd.stdio import STREAMS
from libctrd.stdio import path as fifo_path

_LETTERS = {"stdin": "i", "stdout": "o", "stderr": "e"}


class Latecomer:
    """What `LocalEngine` adds to itself: it knows where containers lie, and how each is."""

    def attach(self, id: str, process: str) -> Ends:
        """See `Engine.attach`. While the connection to the shim lasts that neither discards nor logs."""
        record = self.record(id)  # type: ignore[attr-defined]
        where: str = self._directory(id)  # type: ignore[attr-defined]
        if process != INIT:
            raise NotFoundError(f"container {id!r} has no process {process!r}")
        paths = {stream: fifo_path(record.bundle, process, stream) for stream in STREAMS}
        paths = {stream: path for stream, path in paths.items() if os.path.lexists(path)}
        try:
            peer = shim.connect(where)
        except NotFoundError:
            return Ends(record.terminal, paths)  # it was killed: nobody else holds an end
        try:
            shim.ask(peer, where, "attach")
            passed = {}
            if not all(os.access(path, os.R_OK | os.W_OK, effective_ids=True) for path in paths.values()):
                # The runtime gave them to the container's user, who is another than this one.
                handed = shim.descriptors(where)
                passed = {stream: handed[letter] for stream, letter in _LETTERS.items() if letter in handed}
        except BaseException:
            peer.close()
            raise
        return Ends(record.terminal, paths, peer.close, passed)

    def last_event(self, id: str) -> Event | None:
        """See `Engine.last_event`."""
        snapshot: Snapshot = self.snapshot(id)  # type: ignore[attr-defined]
        return how_it_is(id, snapshot)
