"""What is asked of a daemon that speaks `types.API` about what is past: it forgets a container when that ends, and a
process, but keeps some hundreds of events, of all containers together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from libctrd.engine import apiwire
from libctrd.engine.apioperations import Operations
from libctrd.engine.base import ProcessSnapshot
from libctrd.errors import CtrdError
from libctrd.state import INIT, Event, ExitStatus
from libctrd.stdio import fifos_in

if TYPE_CHECKING:
    from libctrd.engine.apitime import KeptTime
    from libctrd.engine.base import Record

MOMENT = 1.0
"""How long the event of an end may come after the end."""


class History(Operations):
    """The requests of an engine that are about what is past."""

    _kept: KeptTime

    if TYPE_CHECKING:

        def _since(self, id: str) -> int: ...

    def _stored(self, id: str, since: int) -> list[Any]:
        """What the daemon has kept of a container's events after that time, in nanoseconds."""
        request = apiwire.events_request(max(1, since), id, stored_only=True)
        doing = f"read the events of container {id!r}"
        return [
            event
            for event in self._channel.stream("types.API/Events", request, doing=doing, timeout=10.0)
            if event.id == id
        ]

    def _stored_exit(self, id: str, since: int) -> ExitStatus | None:
        """Its end, from the events after *since* that the daemon has kept. One whose start is among them has just ended
        when its end is not: that is waited for a moment.
        """
        with self._feed.waiting(id) as waits:
            stored = self._stored(id, since)
            exits = [event for event in stored if _is_end(event, INIT)]
            if exits:
                return apiwire.exit_status(exits[-1])
            if stored and waits.ended.wait(MOMENT):
                return waits.status
        return None

    def processes(self, id: str) -> list[ProcessSnapshot]:
        """See `Engine.processes`: of those that have ended the daemon's events tell, and nobody has collected those
        whose fifos are still there.
        """
        snapshot = self.snapshot(id)
        if snapshot.status == "created":
            return []
        record = self.record(id)
        init = ProcessSnapshot(INIT, snapshot.pid, snapshot.exit, record.terminal)
        found = self._container(id)
        further = {one.pid: one for one in found.processes if one.pid != INIT} if found is not None else {}
        running = [ProcessSnapshot(one.pid, one.systemPid, terminal=one.terminal) for one in further.values()]
        return [init, *running, *self._ended(record, {INIT, *further})]

    def _ended(self, record: Record, running: set[str]) -> list[ProcessSnapshot]:
        """Its further processes that have left fifos in its directory."""
        names = fifos_in(record.bundle) - running
        if record.foreign or not names:
            return []
        stored = self._stored(record.id, apiwire.nanoseconds_of(record.created_at))
        ends = {event.pid: apiwire.exit_status(event) for event in stored if event.type == "exit"}
        return [ProcessSnapshot(name, exit=ends[name]) for name in sorted(names) if name in ends]

    def last_event(self, id: str) -> Event | None:
        """See `Engine.last_event`.

        The kept time is shared by all clients of this daemon, and each moves it on by what it has handled itself. What
        is later was news to all of them when this client began; what is earlier was handled by one, which need not be
        the one whose container it is. So it may say where to look first, and nothing may be left out for it: what is
        later is the last word, whoever handled the rest; when it says nothing of the container, all that there is since
        that was made counts. Neither a pause nor an end is missed, then, for that another client was further on or that
        one had handled it and was killed before it was done; told twice it does no harm.

        What happened to further processes does not say how the container is: it counts when there is nothing else.
        """
        made = self._since(id)
        stored: list[Any] = []
        for since in dict.fromkeys((max(made, self._kept.at_start), made)):
            stored = self._stored(id, since)
            own = [event for event in stored if event.type in ("pause", "resume") or _is_end(event, INIT)]
            if own:
                return _event(own[-1])
        return _event(stored[-1]) if stored else None

    def _pid_of_start(self, id: str, name: str, at: int) -> int:
        """The system pid of the process whose start was told at that time, in nanoseconds; 0 when it has ended since.

        What `State` shows then may be another of that name: its predecessor's end is stored by then. While the daemon
        cannot be asked, it is not known either.
        """
        try:
            found = [process for container in self._containers(id) for process in container.processes]
            pid = next((process.systemPid for process in found if process.pid == name), 0)
            if pid and any(_is_end(event, name, INIT) for event in self._stored(id, at)):
                return 0
        except CtrdError:
            return 0
        return int(pid)


def _is_end(event: Any, *names: str) -> bool:
    """Is it the end of a process of one of those names?"""
    return event.type == "exit" and (event.pid or INIT) in names


def _event(event: Any) -> Event:
    status = apiwire.exit_status(event) if event.type == "exit" else None
    return Event(event.id, event.type, event.pid or INIT, status)
