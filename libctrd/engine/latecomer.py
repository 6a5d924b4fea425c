"""For clients that come later: the streams of a container of the local engine, how it is, and those that others start.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from libctrd._log import log
from libctrd.engine import shim
from libctrd.engine.base import Ends, how_it_is
from libctrd.errors import CtrdError, NotFoundError
from libctrd.state import INIT, Event
from libctrd.stdio import STREAMS
from libctrd.stdio import path as fifo_path

if TYPE_CHECKING:
    from libctrd.engine.base import ProcessSnapshot, Record, Sink, Snapshot
    from libctrd.engine.newcomers import Newcomers as _Newcomers
    from libctrd.reactor import Reactor


_LETTERS = {"stdin": "i", "stdout": "o", "stderr": "e"}


class Latecomer:
    """What `LocalEngine` adds to itself: it knows where containers lie, and how each is."""

    root: str
    _reactor: Reactor
    _sink: Sink
    _lock: threading.Lock
    _shims: dict[str, shim.Shim]

    if TYPE_CHECKING:

        def record(self, id: str) -> Record: ...
        def snapshot(self, id: str) -> Snapshot: ...
        def processes(self, id: str) -> list[ProcessSnapshot]: ...
        def watch(self, id: str) -> None: ...
        def _directory(self, id: str) -> str: ...

    def __init__(self) -> None:
        self._newcomers: _Newcomers | None = None
        # Both guarded by the engine's lock: those that this client starts just now, and those of which a start is to be
        # told once their shim says that they run.
        self._starting: set[str] = set()
        self._started_elsewhere: set[str] = set()

    def watch_all(self) -> None:
        """See `Engine.watch_all`."""
        from libctrd.engine.newcomers import Newcomers  # the rare case

        newcomers: Newcomers | None = Newcomers(self.root, self._reactor, self._found)
        with self._lock:
            if self._newcomers is None:
                self._newcomers, newcomers = newcomers, None
        if newcomers is not None:
            newcomers.close()  # another thread was quicker, or it was before

    def _found(self, id: str) -> None:
        """Called by the reactor's thread. To connect to a socket that listens takes no time, but where 128 others wait.

        `create` puts its container into the table of starts before there is a socket, and takes it out after it has a
        shim: so one of our own is never taken for another's.
        """
        with self._lock:
            if id in self._starting or id in self._shims:
                return
            self._started_elsewhere.add(id)
        try:
            self.watch(id)
        except CtrdError as error:
            with self._lock:
                self._started_elsewhere.discard(id)
            log.debug("container %s was started, and has gone already: %s", id, error)

    def _runs(self, id: str, pid: int) -> None:
        """A shim has said that its container runs, or has ended by now."""
        with self._lock:
            new = pid and id in self._started_elsewhere
            if new:
                self._started_elsewhere.discard(id)
        if new:
            self._sink(Event(id, "start-container", pid=pid))

    def _never_ran(self, id: str) -> bool:
        """The shim of a container that others start has gone, and never said that it runs: has that start failed? Then
        whoever wanted it hears of that, and for all others there was no container.
        """
        with self._lock:
            if id not in self._started_elsewhere:
                return False
            self._started_elsewhere.discard(id)
        try:
            snapshot = self.snapshot(id)
        except CtrdError:
            return True
        return snapshot.status == "created" or (snapshot.exit is not None and not snapshot.exit.known)

    def _stop_watching(self) -> None:
        with self._lock:
            newcomers, self._newcomers = self._newcomers, None
        if newcomers is not None:
            newcomers.close()

    def attach(self, id: str, process: str) -> Ends:
        """See `Engine.attach`. While the connection to the shim lasts that neither discards nor logs."""
        record = self.record(id)
        where = self._directory(id)
        terminal = record.terminal if process == INIT else self._terminal_of(id, process)
        paths = {stream: fifo_path(record.bundle, process, stream) for stream in STREAMS}
        paths = {stream: path for stream, path in paths.items() if os.path.lexists(path)}
        try:
            peer = shim.connect(where)
        except NotFoundError:
            return Ends(terminal, paths)  # it was killed: nobody else holds an end
        try:
            shim.ask(peer, where, "attach")
            passed = {}
            if not all(os.access(path, os.R_OK | os.W_OK, effective_ids=True) for path in paths.values()):
                # The runtime gave them to the container's user, who is another than this one.
                handed = shim.descriptors(where, "" if process == INIT else process)
                passed = {stream: handed[letter] for stream, letter in _LETTERS.items() if letter in handed}
        except BaseException:
            peer.close()
            raise
        return Ends(terminal, paths, peer.close, passed)

    def _terminal_of(self, id: str, name: str) -> bool:
        for process in self.processes(id):
            if process.name == name:
                return process.terminal
        raise NotFoundError(f"container {id!r} has no process {name!r}")

    def last_event(self, id: str) -> Event | None:
        """See `Engine.last_event`."""
        return how_it_is(id, self.snapshot(id))
