"""Who is told of what happens to the containers of a client: listeners, and streams that are iterated (C11)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from libctrd._log import log
from libctrd.errors import InvalidArgumentError
from libctrd.events import EventStream, Lanes, Listener

if TYPE_CHECKING:
    from libctrd.state import StateInfo


class Telling:
    """The part of `Client` that tells. Its tables are replaced, never changed, so who reads needs no lock."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listeners: list[Listener] = []
        self._streams: list[EventStream] = []
        self._lanes = Lanes("ctrd-lane")
        self._telling = threading.local()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """From now on *listener* is told of every container of this client (C11). Call what it returns to end that.

        Reports of events come through a queue: in order for one container, independently between containers; what it
        raises then is logged. ``start-container`` is reported within the call of `Container.start`, under the
        container's lock, and what it raises fails that start (C6).
        """
        if not callable(getattr(listener, "state_changed", None)):
            raise InvalidArgumentError(f"{listener!r} is no listener: it has no method state_changed(id, info)")
        with self._guard:
            self._listeners = [*self._listeners, listener]

        def unsubscribe() -> None:
            with self._guard:
                self._listeners = [other for other in self._listeners if other is not listener]

        return unsubscribe

    def events(self) -> EventStream:
        """A stream of what happens to the containers of this client from now on, as pairs of id and `StateInfo`.

        Iterate it, or call its ``get(timeout)``; close it (it is a context manager) to end the iteration.
        """
        return self._stream(EventStream(self._end_stream))

    def _stream(self, stream: EventStream) -> EventStream:
        with self._guard:
            self._streams = [*self._streams, stream]
        return stream

    def _end_stream(self, stream: EventStream) -> None:
        with self._guard:
            self._streams = [other for other in self._streams if other is not stream]

    def _tell(self, id: str, info: StateInfo) -> None:
        """A report that a call makes itself: straight to the listeners, and their exception to the caller (C11)."""
        for stream in self._streams:
            stream.put(id, info)
        for listener in self._listeners:
            listener.state_changed(id, info)

    def _is_telling(self, id: str) -> bool:
        """Is the calling thread just telling a listener of that container?"""
        return getattr(self._telling, "id", None) == id

    def _report(self, id: str, info: StateInfo, then: Callable[[], None] | None = None) -> None:
        """Queues a report. *then* follows it, whether or not a listener failed (C11)."""
        self._lanes.submit(("report", id), partial(self._report_now, id, info, then))

    def _report_now(self, id: str, info: StateInfo, then: Callable[[], None] | None) -> None:
        self._telling.id = id
        try:
            for stream in self._streams:
                stream.put(id, info)
            for listener in self._listeners:
                try:
                    listener.state_changed(id, info)
                except BaseException:
                    log.exception("a listener failed on %s of container %s", info.type, id)
        finally:
            self._telling.id = None
            if then is not None:
                then()

    @staticmethod
    def _now() -> datetime:
        return datetime.now(timezone.utc)
