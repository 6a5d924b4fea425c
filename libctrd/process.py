"""One process of a container: its name, its streams, its end. The first is called ``init`` (C9).

It holds no lock of its own: everything is changed under the container's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from libctrd import stdio
from libctrd.state import ExitStatus

if TYPE_CHECKING:
    from libctrd.stdio import Callback, Choice, Stdio


class Process:
    """A process that this client has started. ``pid`` is its system pid, 0 while that is not known."""

    def __init__(
        self,
        name: str,
        bundle: str,
        terminal: bool,
        streams: Choice | Stdio | Callback,
        close_stdin: Callable[[], None],
        drain_timeout: float | None,
    ) -> None:
        self.name = name
        self.pid = 0
        self.status: ExitStatus | None = None
        self.streams = stdio.Streams(streams, terminal)
        self.drain_timeout = drain_timeout
        self._bundle = bundle
        self._close_stdin = close_stdin
        self._started = False
        self._close_pending = False

    def open(self) -> None:
        """Opens the fifos and wraps stdin (C6)."""
        self.streams.open(self._bundle, self.name, self._stdin_closed)

    def began(self) -> None:
        """It runs: a close of stdin that came before is told now (C7), and the relay may begin."""
        self.streams.begin()
        self._started = True
        if self._close_pending:
            self._close_stdin()

    def _stdin_closed(self) -> None:
        """Called once, by whichever thread closed stdin first. Before the start it only leaves word.

        The two flags need no lock: this sets ``_close_pending`` and then looks at ``_started``, `began` does it the
        other way round, so at least one of the two tells; and to be told twice does the engine no harm.
        """
        self._close_pending = True
        if self._started:
            self._close_stdin()

    def exited(self, status: ExitStatus) -> None:
        """It has ended."""
        self.status = status
        self.streams.exited()

    def failed(self) -> None:
        """It never came to be: everything is closed, and the fifos are removed."""
        self.streams.close()
        self.clean()

    def clean(self) -> None:
        """Removes its three fifos (C3). The caller holds the container's lock."""
        stdio.remove_fifos(self._bundle, self.name)
