"""One process of a container: its name, its streams, its end. The first is called ``init`` (C9).

It holds no lock of its own: everything is changed under the container's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from libctrd import proc, reactor, relay, stdio
from libctrd._checks import seconds_of, terminal_size
from libctrd._log import log
from libctrd.directory import held
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from libctrd.locks import Milestone
from libctrd.state import INIT, ExitStatus

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from libctrd.container import Container
    from libctrd.engine.base import Ends
    from libctrd.fifo import Fifo
    from libctrd.stdio import Callback, Choice, Stdio
    from libctrd.text import Talk


_SIGKILL = 9
TELL_AGAIN_SECONDS = 0.5
"""After so long an engine that was away is told again that a stdin is closed."""
DETACH_SECONDS = 1.0
"""How long `Process.detach` may take to deliver what was printed by then."""


class Process:
    """A process that this client has started or attached to. Made by `Container.exec` and `attach`, never directly."""

    def __init__(
        self,
        container: Container,
        name: str,
        terminal: bool,
        streams: Choice | Stdio | Callback,
        drain_timeout: float | None,
    ) -> None:
        self.name = name
        """Its name: ``init`` for the first (C9)."""
        self.pid = 0
        """Its system pid; 0 while that is not known."""
        self.status: ExitStatus | None = None
        """How it ended; ``None`` while it runs."""
        self.terminal = terminal
        self.streams = stdio.Streams(streams, terminal)
        self.drain_timeout = drain_timeout
        self._container = container
        self._started = False
        self._close_pending = False
        self._talk: Talk | None = None
        self._ends: Ends | None = None  # of streams that this client came to later
        self.came_later = False
        """Another client has started it, and its end is that client's to clean, unless this one has restored it."""
        self._drained = False  # its output has come to its end
        self._finished = Milestone()  # and it is cleaned
        self._notified = Milestone()  # and listeners were told

    def __repr__(self) -> str:
        return f"<Process {self.name!r} of container {self._container.id!r}>"

    # ---- for its user --------------------------------------------------------------------------------------------

    @property
    def stdin(self) -> Any:
        """Its standard input when it was started with `PIPE`: a `Stdin`, to be written and closed, or ``None``.

        With ``text=True`` it is an `io.TextIOWrapper`, as `stdout` and `stderr` are then.
        """
        return self._stream("stdin")

    @property
    def stdout(self) -> Any:
        """Its standard output when it was started with `PIPE`, a `Fifo`; else ``None``. All output, with a terminal."""
        return self._stream("stdout")

    @property
    def stderr(self) -> Any:
        """Its standard error when it was started with `PIPE`, a `Fifo`; else ``None``. Empty with a terminal (C13)."""
        return self._stream("stderr")

    def _stream(self, name: str) -> Any:
        if self.streams.text is None:
            return getattr(self.streams.pipe, name)
        from libctrd import text  # not at every start

        return text.stream(self.streams, name)

    def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Writes *input* to its stdin and closes that, gathers its output, and waits for its end.

        Returns stdout and stderr: bytes, with ``text=True`` str, ``None`` for what was not started with `PIPE`. Raises
        `DeadlineError` after *timeout* seconds, and then it runs on and nothing is lost: call it again, without input.
        The rest is as for `wait`.
        """
        return self._communicate(self.wait, input, timeout)

    def _communicate(
        self, wait: Callable[[float | None], ExitStatus], input: bytes | str | None, timeout: float | None
    ) -> tuple[Any, Any]:
        from libctrd import text  # not at every start

        seconds_of(timeout, "timeout=")
        if self._talk is None:
            self._talk = text.Talk(self, text.encoded(input, self.streams.text) if input is not None else b"")
        elif input is not None:
            raise InvalidArgumentError("communicate() has sent an input before: call it again without one")
        return self._talk.finish(wait, timeout)

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits until it has ended, its output has come to its end and listeners were told; returns how it ended (C28).

        What the caller reads himself (`PIPE`) and has not read by then is in his own descriptor, complete. Raises
        `DeadlineError` after *timeout* seconds, `ClosedError` when its client is closed first.
        """
        container = self._container
        done = self._finished if container._client._is_telling(container.id) else self._notified
        if not done.wait(timeout):
            raise DeadlineError(f"process {self.name!r} of container {container.id!r} did not end within {timeout:g} s")
        return self._ended()

    def _ended(self) -> ExitStatus:
        """How it ended, once that was told."""
        if self.status is None:
            raise ClosedError(
                f"process {self.name!r} of container {self._container.id!r} was detached, or its client closed, "
                "while it ran"
            )
        return self.status

    def signal(self, sig: int | str | signal.Signals) -> None:
        """Sends it a signal, by name (``"TERM"``, ``"SIGTERM"``) or number (C20).

        Raises `InvalidArgumentError` for a signal that does not exist, `NotFoundError` when it has ended.
        """
        number = proc.signal_number(sig)
        container = self._container
        with container._client._locked(container.id):
            self._require_running()
            container._client._engine.signal(container.id, self.name, number)
            if number == _SIGKILL:
                from libctrd import unread  # not at every start

                unread.throw_away(container, self.name)

    def resize(self, width: int, height: int) -> None:
        """Sets the size of its terminal, in characters (C20)."""
        terminal_size(width, height)
        container = self._container
        if not self.terminal:
            raise InvalidArgumentError(f"process {self.name!r} of container {container.id!r} has no terminal")
        with container._client._locked(container.id):
            self._require_running()
            container._client._engine.resize(container.id, self.name, width, height)

    def undelivered(self) -> dict[str, CtrdError]:
        """Which of its outputs could not be delivered to where they were to go, and why: by ``stdout`` and ``stderr``.

        A sink that fails stops no process: what it prints from then on is dropped, and it is for the caller to ask.
        """
        return {name: pump.error for name, pump in self.streams.delivering.items() if pump.error is not None}

    def give_up_output(self) -> None:
        """Its end no longer waits for a sink that does not take its output (`INHERIT`, a descriptor)."""
        self.streams.give_up()

    def _require_running(self) -> None:
        if self.status is not None:
            raise NotFoundError(f"process {self.name!r} of container {self._container.id!r} is not running any more")

    def detach(self) -> None:
        """Lets go of its streams, which `Container.attach` gave it: it runs on, and its output is unattended again.

        What was printed by now is delivered first where that does not take long. Its stdin does not end. A `wait` of
        this object that another client's process has ends with `ClosedError`. Idempotent.
        """
        container = self._container
        gathered, self.streams.gathered = self.streams.gathered, {}
        for pump in (*self.streams.pumps, *gathered.values()):
            pump.finish()
        for pump in self.streams.pumps:
            pump.wait(DETACH_SECONDS)
        with container._client._locked(container.id):
            if self._ends is None:
                return
            self.streams.close()
            self.streams = stdio.Streams(stdio.DETACHED, self.terminal)
            self.let_go_of_ends()
            container._client._owners.give_back(container._record, self.name)
            if self.came_later and not container._owned and container._processes.get(self.name) is self:
                del container._processes[self.name]
                self.let_go()

    # ---- its life ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Opens the fifos and wraps stdin (C6)."""
        bundle = self._container.bundle
        with held(bundle, self._container._client._root) as where:
            self.streams.open(where, self.name, self._stdin_closed, named=bundle)

    def take(self, ends: Ends, streams: stdio.Streams, fifos: dict[str, Fifo]) -> None:
        """Takes streams of a process that is there already, in the place of `open`."""
        self.streams = streams
        self._ends = ends
        streams.take(fifos, self._stdin_closed)

    def let_go_of_ends(self) -> None:
        """Nobody reads its output here any longer."""
        ends, self._ends = self._ends, None
        if ends is not None:
            ends.close()

    def drained(self) -> None:
        """Its output has come to its end. Who reads it himself may not have taken all yet: then nobody else may."""
        self._drained = True
        if self._container._owned or not self.streams.read_by_caller:
            self.let_go_of_ends()

    def began(self) -> None:
        """It runs: a close of stdin that came before is told now (C7), and the relay may begin."""
        streams = self.streams
        if streams.pumps or not {*streams.chosen} <= {stdio.PIPE, stdio.NULL, stdio.DETACHED}:
            relay.prepare_to_call()  # now, when it can be refused: not when the end is there and somebody waits for it
        streams.begin()
        self._started = True
        if self._close_pending:
            self._tell_close_stdin()

    def _stdin_closed(self) -> None:
        """Called once, by whichever thread closed stdin first. Before the start it only leaves word.

        The two flags need no lock: this sets ``_close_pending`` and then looks at ``_started``, `began` does it the
        other way round, so at least one of the two tells; and to be told twice does the engine no harm.
        """
        self._close_pending = True
        if self._started:
            self._tell_close_stdin()

    def _tell_close_stdin(self) -> None:
        """Tells the engine: for ``init`` without making the closer wait; for others at once, its error the closer's."""
        if self.name == INIT:
            self._tell_later()
            return
        try:
            self._container._client._engine.close_stdin(self._container.id, self.name)
        except NotFoundError:
            pass  # it is gone already: that is success
        except UnavailableError:
            reactor.shared().later(TELL_AGAIN_SECONDS, self._tell_later)
            raise

    def _tell_later(self) -> None:
        container = self._container
        container._client._lanes.submit(("stdin", container.id), self._tell_from_lane)

    def _tell_from_lane(self) -> None:
        """Again and again while the engine is away, or we have no descriptor for it: nobody else does, and a process
        that waits for the end of its stdin would wait for ever.
        """
        container = self._container
        if self.status is not None:
            return
        try:
            container._client._engine.close_stdin(container.id, self.name)
        except NotFoundError:
            pass  # it is gone already: that is success
        except UnavailableError as error:
            log.warning("container %s is told later that its stdin is closed: %s", container.id, error)
            if not container._client._closed:
                reactor.shared().later(TELL_AGAIN_SECONDS, self._tell_later)
        except CtrdError as error:
            log.warning("container %s could not be told that its stdin is closed: %s", container.id, error)

    def exited(self, status: ExitStatus) -> None:
        """It has ended."""
        self.status = status
        self.streams.exited()

    def failed(self) -> None:
        """It never came to be: everything is closed, and the fifos are removed."""
        self.streams.close()
        self._container._client._owners.give_back(self._container._record, self.name)
        self.clean()

    def clean(self) -> None:
        """Removes its three fifos (C3). The caller holds the container's lock."""
        try:
            with held(self._container.bundle, self._container._client._root) as where:
                stdio.remove_fifos(where, self.name)
        except NotFoundError:
            pass  # they have gone with their directory
        except CtrdError as error:  # somebody has put something else in its place
            log.warning("the fifos of process %s are left as they are: %s", self.name, error)

    def let_go(self) -> None:
        """Its client is closed: nobody will tell how it ends, so nobody may wait for it any longer."""
        for pump in self.streams.all_pumps():
            pump.cancel()
        self.let_go_of_ends()
        self._finished.set()
        self._notified.set()
