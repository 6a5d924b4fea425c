"""To come later: the streams of a process that runs already, or has just ended, for a client that did not start it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from libctrd import _checks, relay
from libctrd.directory import held
from libctrd.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, UnavailableError
from libctrd.fifo import Fifo, adopt_fifo, open_fifo
from libctrd.process import Process
from libctrd.state import INIT
from libctrd.stdio import DETACHED, NULL, STREAMS, Callback, Choice, Stdio, Streams

if TYPE_CHECKING:
    from libctrd.container import Container
    from libctrd.engine.base import Ends


def attach(container: Container, name: str, streams: Choice | Stdio | Callback, drain_timeout: float | None) -> Process:
    """`Container.attach`, under the lock: so the end of the process is handled once all is in place."""
    client = container._client
    client._check_open()
    container._require_started()
    told = client._watch(container)
    if told._finished.is_set() or told._exit is not None:
        raise NotFoundError(f"container {told.id!r} has ended, and its output has gone")
    known = told._processes.get(name)
    if known is not None and not known.streams.left_to_others:
        raise AlreadyExistsError(f"process {name!r} of container {told.id!r} has its streams in this client already")
    client._owners.take(told._record, name)
    try:
        ends = client._engine.attach(told.id, name)
        process = known or Process(told, name, ends.terminal, DETACHED, drain_timeout)
        process.came_later = known is None
        connect(process, ends, streams)
        if not process.streams.names_taken():
            process.detach()
            raise InvalidArgumentError(
                f"process {name!r} of container {told.id!r} has no stream to attach to: it was started without them, "
                "or with its output let go or logged by the engine"
            )
    except BaseException:
        client._owners.give_back(told._record, name)
        raise
    if known is None:
        process.drain_timeout = drain_timeout
        told._processes[name] = process
    try:
        if process.streams.callback is not None:
            process.streams.callback(process.streams.pipe)
        process.began()
    except BaseException:
        process.detach()
        raise
    if name == INIT and not process.pid:
        process.pid = client._engine.snapshot(told.id).pid
    return process


def connect(process: Process, ends: Ends, streams: Choice | Stdio | Callback, *, discard: bool = False) -> None:
    """Gives *process* the streams that *ends* names, as far as they are wanted. When this raises it has none.

    With *discard* an output for which `NULL` is chosen is read all the same, and thrown away: nobody else will.
    """
    taken = Streams(streams, ends.terminal)
    left = dict(ends.passed)
    opened: dict[str, Fifo] = {}
    try:
        for stream, choice in zip(STREAMS, taken.chosen, strict=True):
            path = ends.paths.get(stream)
            unwanted = choice is NULL and discard and stream != "stdin"
            if not path or (choice in (NULL, DETACHED) and not unwanted):
                continue
            if stream in left:
                opened[stream] = adopt_fifo(left.pop(stream), path)
            else:
                opened[stream] = _open(process, path, os.O_WRONLY if stream == "stdin" else os.O_RDONLY)
                if stream != "stdin":
                    _see_a_writer(opened[stream])
            if unwanted:
                taken.pumps.append(relay.discard(opened.pop(stream)))
        process.take(ends, taken, opened)
    except BaseException:
        taken.close()
        for fifo in opened.values():
            fifo.close()
        ends.close()
        raise
    finally:
        for fd in left.values():
            os.close(fd)


def _open(process: Process, path: str, access: int) -> Fifo:
    """One of the container's own directory is opened in that; where a daemon was told of another one, at its path."""
    bundle, name = os.path.split(path)
    if bundle != process._container.bundle:
        return open_fifo(path, access | os.O_NONBLOCK)
    with held(bundle, process._container._client._root) as where:
        return open_fifo(os.path.join(where, name), access | os.O_NONBLOCK, shown_as=path)


def _see_a_writer(fifo: Fifo) -> None:
    """A read end that never saw a writer hears of no hang-up either; and all writers may have gone before it came."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if _checks.LINUX:
        os.close(os.open(f"/proc/self/fd/{fifo.fileno()}", flags))
        return
    fd = os.open(fifo.path, flags | os.O_NOFOLLOW)
    same = os.path.samestat(os.fstat(fd), os.fstat(fifo.fileno()))
    os.close(fd)
    if not same:
        raise UnavailableError(f"something else has taken the place of fifo {fifo.path!r} just now: try again")
