"""A container as a client sees it: the order of a start (C6), its end, and what can be asked of it meanwhile.

Its state changes only under the container's lock, which the client keeps by id (C18). What an event does to it is told
in ``client.py``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from libctrd import directory as directories
from libctrd import ids, proc, starting
from libctrd import spec as specs
from libctrd._checks import seconds_of
from libctrd.asking import Asking, absolute
from libctrd.changes import Changes
from libctrd.engine.base import Record, Unattended
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from libctrd.locks import Milestone
from libctrd.process import Process
from libctrd.state import INIT, ContainerInfo, ExitStatus, StateInfo, Status
from libctrd.stdio import PIPE

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

    from libctrd.client import Client
    from libctrd.logs import Entries
    from libctrd.relay import Buffer
    from libctrd.stdio import Callback, Choice, Stdio, Text


_SIGKILL = 9


class Container(Asking):
    """A container of a client. Made by `Client.create` and `Client.get`, never directly."""

    def __init__(self, client: Client, record: Record) -> None:
        self._client = client
        self._record = record
        self._processes: dict[str, Process] = {}
        self.taken_over: dict[str, Process] = {}
        """The further processes that `Client.restore` has found and taken over, by name, the first to start first."""
        self._owned = False  # this client started it: it reads the output and cleans after the exit
        self._created_here = False
        self._told_of = False  # the engine tells this client what happens to it
        self._exit: ExitStatus | None = None
        self._oom_killed = False
        self._condemned = False  # it was sent SIGKILL to be cleaned
        self._changes = Changes(record.id)
        self._finished = Milestone()  # ended, read to the end, and cleaned where that is ours to do
        self._notified = Milestone()  # and its listeners were told: the exit notifier (C11)

    def __repr__(self) -> str:
        return f"<Container {self.id!r} of {self._client.address}>"

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def created_at(self) -> datetime:
        """When it was created, in UTC."""
        return self._record.created_at

    @property
    def pid(self) -> int:
        """The system pid of its ``init``; 0 when it is not running."""
        init = self._processes.get(INIT)
        if init is not None:
            return 0 if init.status else init.pid
        return self._client._engine.snapshot(self.id).pid

    @property
    def status(self) -> Status:
        """``created``, ``running``, ``paused`` or ``stopped``; ``stopped`` also when it is gone."""
        if self._exit is not None:
            return "stopped"
        try:
            return self._client._engine.snapshot(self.id).status
        except NotFoundError:
            return "stopped"

    @property
    def oom_killed(self) -> bool:
        """Has the kernel killed a process of it for want of memory so far?"""
        return self._oom_killed

    def info(self) -> ContainerInfo:
        """All of that at once, for ``ps`` and ``inspect``. Raises `NotFoundError` when it is gone."""
        snapshot = self._client._engine.snapshot(self.id)
        record = self._record
        return ContainerInfo(
            record.id,
            snapshot.status,
            snapshot.pid,
            record.bundle,
            record.runtime,
            record.created_at,
            record.terminal,
            snapshot.exit,
            record.image,
            record.labels,
        )

    def spec(self) -> dict[str, Any]:
        """Its spec, read from ``config.json`` in its directory (C4). A missing or malformed file is a clear error.

        Of a container that another program made the engine tells it.
        """
        return self._client._spec_of(self._record)

    # ---- streams -------------------------------------------------------------------------------------------------

    @property
    def stdin(self) -> Any:
        """Its standard input when it was started with `PIPE`: a `Stdin`, to be written and closed, or ``None``.

        With ``text=True`` it is an `io.TextIOWrapper`, as `stdout` and `stderr` are then.
        """
        init = self._processes.get(INIT)
        return init.stdin if init is not None else None

    @property
    def stdout(self) -> Any:
        """Its standard output when it was started with `PIPE`, a `Fifo`; else ``None``. All output, with a terminal."""
        init = self._processes.get(INIT)
        return init.stdout if init is not None else None

    @property
    def stderr(self) -> Any:
        """Its standard error when it was started with `PIPE`, a `Fifo`; else ``None``. Empty with a terminal (C13)."""
        init = self._processes.get(INIT)
        return init.stderr if init is not None else None

    def undelivered(self) -> dict[str, CtrdError]:
        """Which of its outputs could not be delivered to where they were to go, and why: by ``stdout`` and ``stderr``.

        Empty in every client but the one that started it. A sink that fails stops no container: what it prints from
        then on is dropped, and it is for the caller to ask, once `wait` has returned.
        """
        init = self._processes.get(INIT)
        return init.undelivered() if init is not None else {}

    def _give_up_output(self) -> None:
        """Its end no longer waits for a sink that does not take its output (`INHERIT`, a descriptor)."""
        init = self._processes.get(INIT)
        if init is not None:
            init.give_up_output()

    def _captured(self) -> dict[str, Buffer]:
        """What was collected of its output, for ``run``."""
        init = self._processes.get(INIT)
        return init.streams.captured if init is not None else {}

    # ---- its life ------------------------------------------------------------------------------------------------

    def start(
        self,
        stdio: Choice | Stdio | Callback = PIPE,
        *,
        unattended: Unattended = "hold",
        log: str | None = None,
        log_format: Literal["raw", "json"] = "raw",
        log_size: int = 0,
        log_files: int = 1,
        drain_timeout: float | None = None,
        auto_remove: bool = False,
        checkpoint: str | None = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> int:
        """Starts it; returns the system pid of ``init``.

        *stdio* says what becomes of its streams: `PIPE`, `INHERIT`, `NULL`, `DETACHED`, a `Stdio`, or a function that
        is called with an `IOPipe` before the engine is asked (C6). *unattended* says what becomes of output while no
        client reads it: ``hold`` (the container waits), ``discard``, or ``log`` (appended to the file *log*, as it
        comes or with *log_format* ``json`` as lines with a time each; after *log_size* bytes, 0 for never, the file
        becomes ``FILE.1``, and *log_files* such old ones are kept; `logs` reads them).
        *drain_timeout* is how many seconds after the end output is waited for that some other process keeps open;
        ``None`` is for as long as it takes (C28). *auto_remove* is for a detached container whose output is drained:
        it goes by itself once it has ended, without a client. *checkpoint* is the directory of a checkpoint to go on
        from, as `checkpoint` has written it. *text*, or an *encoding* (UTF-8 else) or *errors*, makes `stdin`, `stdout`
        and `stderr` streams of str, as in `subprocess`.

        Raises what the callback, the engine or a listener raised; then nothing of the start is left, and a container
        that this client created is cleaned. Source: C6, C8.
        """
        if unattended not in get_args(Unattended):
            raise InvalidArgumentError(f"unattended={unattended!r} is not known: say 'hold', 'discard' or 'log'")
        if (unattended == "log") != (log is not None):
            raise InvalidArgumentError("log=FILE belongs to unattended='log': give both or neither")
        log_file = None
        if log is not None:
            from libctrd import logs  # not at every start

            log_file = logs.wanted(absolute(log, "log"), log_format, log_size, log_files)
        seconds_of(drain_timeout, "drain_timeout=")
        as_text = _text(text, encoding, errors)
        client = self._client
        with client._locked(self.id):
            init = starting.launch(
                self,
                stdio,
                unattended=unattended,
                log_file=log_file,
                drain_timeout=drain_timeout,
                auto_remove=auto_remove and not directories.clean_disabled(),
                checkpoint=absolute(checkpoint, "checkpoint") if checkpoint is not None else "",
                text=as_text,
            )
            try:
                init.began()
                client._tell(self.id, StateInfo("start-container", init.pid, at=client._now()))
                return init.pid
            except BaseException as error:  # noqa: BLE001 - raised below, once the container has gone
                refusal = error
                self._owned = True
                init.streams.close()
                with contextlib.suppress(NotFoundError):  # it has ended by itself
                    client._engine.signal(self.id, INIT, _SIGKILL)
                from libctrd import unread  # the rare case

                unread.throw_away(self, INIT)
        self._finished.wait()  # its exit goes the usual way, so that whoever heard of the start hears of the end
        raise refusal

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits for its end; returns how it ended.

        In the client that started it: until it has ended, its output has come to its end, it is cleaned, and listeners
        were told. What the relay moves has been delivered by then; what the caller reads himself (`PIPE`) and has not
        read yet is in his own descriptor, complete. In any other client: until the exit record (C28).

        Raises `DeadlineError` after *timeout* seconds, `NotFoundError` when there is no such container,
        `InvalidArgumentError` when it was never started, `ClosedError` when its client is closed first.
        """
        told = self._told()
        # A listener may wait for the container that it is being told of: for it, that it is cleaned is enough.
        done = told._finished if self._client._is_telling(self.id) else told._notified
        if not done.wait(timeout):
            raise DeadlineError(f"container {self.id!r} did not end within {timeout:g} s")
        return self._ended(told)

    def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Writes *input* to its stdin and closes that, gathers its output, and waits for its end, as `wait` does.

        Returns stdout and stderr: bytes, with ``text=True`` str, ``None`` for what was not started with `PIPE`. Raises
        `DeadlineError` after *timeout* seconds, and then it runs on and nothing is lost: call it again, without input.
        `InvalidArgumentError` when this client has not started it.
        """
        init = self._processes.get(INIT)
        if init is None:
            raise InvalidArgumentError(f"container {self.id!r} was not started by this client: attach to it first")
        return init._communicate(self.wait, input, timeout)

    def logs(self, *, follow: bool = False, since: datetime | None = None, tail: int | None = None) -> Entries:
        """What its log holds, line by line, the files that were kept first: of one that was started with *log*.

        *follow* goes on until it has ended. *since* leaves out what is older, *tail* all but the last so many lines.
        Raises `NotFoundError` when it has no log, `InvalidArgumentError` for *since* with a raw one: that has no times.
        """
        from libctrd import logs  # the rare case

        return logs.Entries(self, follow=follow, since=since, tail=tail)

    def _told(self) -> Container:
        """The object that hears of its end: itself in the client that started it."""
        if self._exit is not None or self._processes or self._owned:
            return self
        self._require_started()
        return self._client._watch(self)

    def _ended(self, told: Container) -> ExitStatus:
        """How it ended, once *told* was told."""
        if told._exit is None:
            raise ClosedError(f"the client of container {self.id!r} was closed before it ended: get it from another")
        self._exit = told._exit
        return told._exit

    def _let_go(self) -> None:
        """Its client is closed: nobody will tell how it ends, so nobody may wait for it any longer."""
        for process in self._processes.values():
            process.let_go()
        self._finished.set()
        self._notified.set()

    def signal(self, sig: int | str | signal.Signals, *, process: str = INIT, everyone: bool = False) -> None:
        """Sends a signal to ``init``, by name (``"TERM"``, ``"SIGTERM"``) or number (C20).

        Or to the further process of the name *process*; or to *everyone* in the container. Raises
        `InvalidArgumentError` for a signal that does not exist, `NotFoundError` when there is no such process (any
        more).
        """
        number = proc.signal_number(sig)
        with self._client._locked(self.id):
            self._require_running()
            self._client._engine.signal(self.id, process, number, everyone)
            if number == _SIGKILL:
                from libctrd import unread  # not at every start

                unread.throw_away(self, *(self._processes if process == INIT else (process,)))

    def _kill_late(self, late: threading.Event) -> None:
        """Kills it for a time limit, in the background: whoever calls must not wait for the engine."""

        def kill() -> None:
            if self._finished.is_set():
                return  # it was in time after all
            late.set()
            with contextlib.suppress(NotFoundError):  # it has ended, and only its output is not taken
                self.signal(_SIGKILL)
            self._give_up_output()
            from libctrd import unread  # the rare case

            with self._client._locked(self.id):
                unread.throw_away(self, INIT)

        self._client._lanes.submit(("kill", self.id), kill)

    def exec(
        self,
        args: Sequence[str],
        stdio: Choice | Stdio | Callback = PIPE,
        *,
        name: str | None = None,
        terminal: bool = False,
        drain_timeout: float | None = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        **settings: Any,
    ) -> Process:
        """Starts a further process in it (C21); returns it.

        *stdio*, *text*, *encoding* and *errors* are as in `start`. *name* is its name, a fresh one when there is none.
        *settings* are the caller's own for it, each else the container's: ``env`` (in the place of the container's),
        ``cwd``, ``user``, ``capabilities``, ``rlimits``, ``apparmor``, ``selinux``, ``no_new_privileges``.

        Raises `NotFoundError` when the container is not running, `AlreadyExistsError` for a name that is in use,
        `InvalidArgumentError` for settings that cannot be, and what the callback or the engine raised; then nothing of
        it is left.
        """
        name = ids.generate() if name is None else ids.check(name)
        seconds_of(drain_timeout, "drain_timeout=")
        as_text = _text(text, encoding, errors)
        with self._client._locked(self.id):
            self._require_running()
            told = self._client._watch(self)
            wanted = specs.further(self.spec(), args, terminal=terminal, **settings)
            return starting.add(told, name, wanted, stdio, drain_timeout, as_text)

    def attach(
        self,
        stdio: Choice | Stdio | Callback = PIPE,
        *,
        process: str = INIT,
        drain_timeout: float | None = None,
    ) -> Process:
        """Connects to the streams of a process that was started without a client for them, or has lost its own.

        *stdio* is as in `start`; a stream that the process does not have is ``None``. Until `Process.detach`, or the
        end, its output is read here, and nothing of it is discarded or logged; what was held for a client comes first.
        Returns the process, whose ``wait()`` is that of its owner (C28). It is not cleaned by that: see
        `Client.restore` for becoming the owner of a container.

        Raises `NotFoundError` when there is no such process, `AlreadyExistsError` while another client reads its
        output, `InvalidArgumentError` when it has no stream for anybody.
        """
        seconds_of(drain_timeout, "drain_timeout=")
        from libctrd import attaching  # the rare case

        with self._client._locked(self.id):
            return attaching.attach(self, process, stdio, drain_timeout)

    def process(self, name: str) -> Process:
        """The further process *name* that this client started and that has not ended. Raises `NotFoundError`."""
        process = self._processes.get(name)
        if process is None:
            raise NotFoundError(f"container {self.id!r} has no process {name!r} of this client")
        return process

    def pause(self, timeout: float | None = None) -> None:
        """Freezes it; returns once the event of it has come and listeners were told (C20). *timeout* in seconds."""
        self._changes.make(self, "pause", timeout)

    def resume(self, timeout: float | None = None) -> None:
        """Thaws it; returns once the event of it has come and listeners were told (C20). *timeout* in seconds."""
        self._changes.make(self, "resume", timeout)

    def clean(self, *, force: bool = False) -> None:
        """Removes its directory, and all that the engine and the runtime hold of it (C2).

        One that is gone already is success, also when its id is another container's by now, which is left alone. With
        ``LIBCONTAINERD_NOCLEAN=1`` in the environment the directory stays. A running container is refused with
        `InvalidArgumentError`; with *force* it is killed first, its end is waited for, and its listeners hear of it.
        """
        client = self._client
        with client._locked(self.id):
            if client._is_anothers(self):
                return
            try:
                status = self.status
            except UnavailableError:  # its records are damaged: by force it can still be got rid of
                if not force:
                    raise
                status = "stopped"
            if status in ("running", "paused"):
                if not force:
                    raise InvalidArgumentError(f"container {self.id!r} is {status}: end it first, or clean it by force")
                self._condemn()
                from libctrd import unread  # the rare case

                unread.throw_all_away(self)
        if status in ("running", "paused") or self._told_of:  # its end is still to be told, though it is known already
            with contextlib.suppress(NotFoundError):  # whoever owns it has cleaned it already
                self._see_it_die()
        with client._locked(self.id):
            client._remove(self, force)

    def _condemn(self) -> None:
        """Sends it SIGKILL, and sees to it that it takes that: frozen by cgroup v1 it does not before it is thawed.

        Another client may freeze it at any time, also when that was begun before and is told after the SIGKILL. Who has
        frozen it before this look is seen by it, and of all others we are told (`handling`), now or by `_see_it_die`.
        """
        self._condemned = True
        with contextlib.suppress(NotFoundError):  # it has ended since we looked
            self._client._engine.signal(self.id, INIT, _SIGKILL)
            if self.status == "paused":
                self._thaw()

    def _see_it_die(self) -> None:
        """Waits for its end. Who was not told of it until now looks once more, when he is."""
        was_told = self._told_of
        told = self._told()
        told._condemned = self._condemned
        if self._condemned and not was_told and self.status == "paused":
            self._thaw()
        self.wait()

    def _thaw(self) -> None:
        """Resumes it for the SIGKILL that it was sent. Some runtimes have done so themselves, and say so."""
        with contextlib.suppress(NotFoundError, InvalidArgumentError):
            self._client._engine.resume(self.id)

    def clean_process(self, name: str) -> None:
        """Removes the three fifos of the process *name* and forgets it; an unknown name touches no file (C3).

        The caller holds the container's lock.
        """
        process = self._processes.pop(name, None)
        if process is not None:
            process.clean()

    def _leave_bundle(self) -> None:
        """Of a container that another program made there is a directory only while it holds fifos of ours."""
        if self._record.foreign:
            with contextlib.suppress(OSError):  # there still are some
                os.rmdir(self.bundle)

    # ---- a block -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        """At the end of the block it is killed if it still runs, and cleaned; its pipes are closed."""
        self.clean(force=True)
        init = self._processes.get(INIT)
        if init is not None:
            init.streams.pipe.close()


def _text(text: bool, encoding: str | None, errors: str | None) -> Text | None:
    if not text and encoding is None and errors is None:
        return None
    from libctrd import text as texts  # not at every start

    return texts.wanted(text, encoding, errors)
