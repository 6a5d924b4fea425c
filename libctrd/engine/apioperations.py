"""What can be asked of a container over `types.API` while it runs: calls, one each, that keep no state here (C20).

An engine is made of them and of what has an order and a memory: starts, ends, events (``api.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from libctrd import ids, protos
from libctrd.engine import apiwire, taskio
from libctrd.engine.apiwire import API, ENGINE
from libctrd.engine.base import Ends, so_already, unsupported
from libctrd.errors import (
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
)
from libctrd.state import INIT, Stats
from libctrd.stdio import OUTPUTS, STREAMS
from libctrd.stdio import path as fifo_path
from libctrd.unread import discard_fifos

if TYPE_CHECKING:
    from libctrd.engine.apifeed import Feed
    from libctrd.engine.base import Record, Snapshot
    from libctrd.engine.channel import Channel

STATE_SECONDS = 5.0
STARTING_SECONDS = 10.0
_NO_PIDS = "get all pids for container"
CREATE_SECONDS = 35.0
"""The daemon itself gives up after 30."""


def server_version(channel: Channel) -> tuple[str, str]:
    """The daemon's version, such as ``0.2.3``, and its revision. `UnsupportedError`: it does not speak `types.API`."""
    request = API.GetServerVersionRequest()
    reply = channel.call("types.API/GetServerVersion", request, doing="ask the daemon its version")
    return f"{reply.major}.{reply.minor}.{reply.patch}", reply.revision


def awaited_version(channel: Channel) -> tuple[str, str]:
    """`server_version`, once there is one: 0.2.9 serves before it knows that API, while it looks for its containers,
    and tells only its health then. No event says when that is over: so it is asked again, a little later each time.
    """
    end = time.monotonic() + STARTING_SECONDS
    for pause in _pauses():
        try:
            return server_version(channel)
        except UnsupportedError:
            if time.monotonic() > end or not _tells_health(channel):
                raise
        time.sleep(pause)
    raise AssertionError("not reached")


def _tells_health(channel: Channel) -> bool:
    request = protos.message("grpc.health.v1.HealthCheckRequest")()
    try:
        channel.call("grpc.health.v1.Health/Check", request, doing="ask the daemon its health")
    except UnsupportedError:
        return False
    return True


def _pauses() -> Iterator[float]:
    """Seconds between two questions for what nothing announces."""
    return itertools.chain((0.005, 0.01, 0.02, 0.04), itertools.repeat(0.08))


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except OSError:
        return False  # it was removed


def drain(bundle: str, process: str, streams: Iterable[str] = OUTPUTS) -> None:
    """Throws away what is, and will be, in those fifos of a process that there are."""
    discard_fifos(bundle, process, [stream for stream in streams if _is_fifo(fifo_path(bundle, process, stream))])


class Operations:
    """The requests of an engine over *channel* that are a call each."""

    _feed: Feed

    if TYPE_CHECKING:

        def record(self, id: str) -> Record: ...
        def snapshot(self, id: str) -> Snapshot: ...

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def _call(
        self,
        name: str,
        request: Any,
        doing: str,
        timeout: float = 10.0,
        *,
        starting: bool = False,
        whole: bool = False,
    ) -> Any:
        """Calls it. Errors are of the family, as far as that daemon's words tell them apart."""
        try:
            return self._channel.call(f"types.API/{name}", request, doing=doing, timeout=timeout, whole=whole)
        except RuntimeFailedError as error:
            raise apiwire.error_of(error, starting) from error.__cause__
        except UnsupportedError as error:  # it did speak it when we connected
            raise UnavailableError(
                f"could not {doing}: the daemon at {self._channel.path} has just started and looks for its containers "
                "still: try again"
            ) from error

    # ---- what there is -------------------------------------------------------------------------------------------

    def _containers(self, id: str = "") -> list[Any]:
        """What the daemon tells of one container, or of all. `NotFoundError`: it has no such container.

        While any container is ending, 0.2.9 cannot list its pids, and refuses the whole question. No event says when it
        can again: so it is asked again, a little later each time.
        """
        doing = f"look at container {id!r}" if id else "list the containers"
        request = API.StateRequest(id=ids.check(id) if id != "" else "")
        end = time.monotonic() + STATE_SECONDS
        for pause in _pauses():
            try:
                return list(self._call("State", request, doing).containers)
            except RuntimeFailedError as error:
                if _NO_PIDS not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(pause)
        raise AssertionError("not reached")

    def _container(self, id: str) -> Any | None:
        """One of the daemon's, or ``None``: it forgets each that has ended."""
        try:
            return next((found for found in self._containers(id) if found.id == id), None)
        except NotFoundError:
            return None

    def _running(self, id: str) -> Any:
        found = self._container(id)
        if found is None:
            raise NotFoundError(f"container {id!r} is not running: it has ended, was not started or does not exist")
        return found

    def _process(self, id: str, name: str) -> Any:
        for process in self._running(id).processes:
            if process.pid == name:
                return process
        raise NotFoundError(f"container {id!r} has no process {name!r} that runs")

    def attach(self, id: str, process: str) -> Ends:
        """See `Engine.attach`. Where it writes to is what the daemon was told at its start, and stays so. What has just
        ended has left what there is to be read in its fifos.
        """
        try:
            found = self._process(id, process)
        except NotFoundError:
            if process == INIT and self.snapshot(id).status != "stopped":
                raise
            record = self.record(id)
            paths = {stream: fifo_path(record.bundle, process, stream) for stream in STREAMS}
            fifos = {stream: path for stream, path in paths.items() if _is_fifo(path)}
            if process != INIT and not fifos:
                raise
            return Ends(record.terminal and process == INIT, fifos)
        paths = {stream: getattr(found, stream) for stream in STREAMS if stream != "stderr" or not found.terminal}
        return Ends(found.terminal, {stream: path for stream, path in paths.items() if _is_fifo(path)})

    def pids(self, id: str) -> list[int]:
        """See `Engine.pids`."""
        return sorted(self._running(id).pids)

    def stats(self, id: str) -> Stats:
        """See `Engine.stats`."""
        return apiwire.stats(self._call("Stats", API.StatsRequest(id=id), f"measure container {id!r}"))

    # ---- what can be done to it ----------------------------------------------------------------------------------

    def signal(self, id: str, process: str, number: int, everyone: bool = False) -> None:
        """See `Engine.signal`. That API reaches one process."""
        if everyone:
            raise unsupported(ENGINE, "send a signal to everyone in a container", "send it to each process")
        doing = f"send signal {number} to process {process!r} of container {id!r}"
        self._call("Signal", API.SignalRequest(id=id, pid=process, signal=number), doing)

    def discard(self, id: str, process: str, streams: Iterable[str]) -> None:
        """See `Engine.discard`: a shim of 0.2.9 ends when it has copied all output into our fifos, of which it holds a
        reading end itself, so that it never learns that there is no reader.
        """
        drain(self.record(id).bundle, process, streams)

    def close_stdin(self, id: str, process: str) -> None:
        """See `Engine.close_stdin`. The input of a terminal is ended by what is typed for that, for the daemon does
        nothing there; it is told all the same.
        """
        doing = f"close stdin of process {process!r} of container {id!r}"
        found = self._process(id, process)
        if found.terminal and (path := found.stdin or fifo_path(self.record(id).bundle, process, "stdin")):
            taskio.end_terminal(path)
        self._call("UpdateProcess", API.UpdateProcessRequest(id=id, pid=process, closeStdin=True), doing)

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """See `Engine.resize`."""
        request = API.UpdateProcessRequest(id=id, pid=process, width=width, height=height)
        self._call("UpdateProcess", request, f"resize the terminal of process {process!r} of container {id!r}")

    def pause(self, id: str) -> None:
        """See `Engine.pause`."""
        self._change(id, "pause", "paused")

    def resume(self, id: str) -> None:
        """See `Engine.resume`."""
        self._change(id, "resume", "running")

    def _change(self, id: str, change: str, status: str) -> None:
        self._feed.start()
        request = API.UpdateContainerRequest(id=id, status=status)
        try:
            self._call("UpdateContainer", request, f"{change} container {id!r}")
        except (RuntimeFailedError, InvalidArgumentError) as error:
            if self._is_so_already(id, change, str(error)):
                raise so_already(id, change) from error
            raise

    def _is_so_already(self, id: str, change: str, said: str) -> bool:
        """Does a refusal mean that? runc calls what is paused only "not running", which what has ended is as well."""
        if change == "resume":
            return "not paused" in said
        if "not running" not in said:
            return "paused already" in said
        with contextlib.suppress(NotFoundError):
            return self.snapshot(id).status == "paused"
        return False

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Engine.update`."""
        request = API.UpdateContainerRequest(id=id, resources=apiwire.resources(resources))
        self._call("UpdateContainer", request, f"change the limits of container {id!r}", whole=True)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self, id: str, path: str, leave_running: bool) -> None:
        """See `Engine.checkpoint`. Open connections and sockets are part of it, the network's namespace is not."""
        where, name = os.path.split(os.path.abspath(path))
        wanted = API.Checkpoint(
            name=name, exit=not leave_running, tcp=True, unixSockets=True, shell=False, emptyNS=["network"]
        )
        request = API.CreateCheckpointRequest(id=id, checkpoint=wanted, checkpointDir=where)
        self._call("CreateCheckpoint", request, f"checkpoint container {id!r}", CREATE_SECONDS, whole=True)
