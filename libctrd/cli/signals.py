"""The signals that reach ctrd while it attends a container: passed on to it, each as it came.

Python's handlers run in the main thread between any two steps of it, also while it holds a lock of the library. So the
handler does nothing: the number also goes through a pipe (``signal.set_wakeup_fd``), at the other end of which a thread
of our own makes the request. A signal that comes before the start stays in the pipe and is passed on afterwards,
unless it is one that ends programs: it ends the start instead (`Signals.interrupting`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from libctrd.cli import output
from libctrd.cli.exits import Interrupted
from libctrd.errors import CtrdError, NotFoundError, from_os_error

ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Those by which people and systems end a program."""
PASSED_ON: Final = (
    *ENDING,
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGIO, signal.SIGPWR),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
"""All but those that tell of a fault of our own, of our children, pipes and limits, and those of job control."""


class Signals:
    """Catches the signals to pass on, from its making until the process ends: none may end it half-way through."""

    def __init__(self) -> None:
        try:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
        except OSError as error:
            raise from_os_error(error, "make the pipe that signals go through (pipe)") from error
        self._early = 0
        self._started: Callable[[], bool] | None = None  # set while a signal raises, unless it is true
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored at our start, as nohup does: stays so
                signal.signal(number, self._caught)

    def _caught(self, number: int, _: FrameType | None) -> None:
        if number not in ENDING:
            return
        if self._started is None:
            self._early = self._early or number
        elif not self._started():
            self._started = None  # once: what is done about it shall not be interrupted
            raise Interrupted(number)

    @contextlib.contextmanager
    def interrupting(self, started: Callable[[], bool]) -> Iterator[None]:
        """Within it, a signal that ends programs raises `Interrupted`, also one that came before.

        But not once *started* is true: then the container may have told the world so, and the signal is meant for it.
        """
        self._started = started
        try:
            if self._early:
                raise Interrupted(self._early)
            yield
        finally:
            self._started = None

    def watch_size(self) -> None:
        """Catches the changes of our terminal's size too."""
        signal.signal(signal.SIGWINCH, self._caught)

    def watch_stop(self, stopping: Callable[[], None], going_on: Callable[[], None]) -> None:
        """Calls *stopping* before ctrd is stopped by SIGTSTP and *going_on* when it goes on, in the main thread."""

        def stop(number: int, _: FrameType | None) -> None:
            stopping()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # here we are stopped, but where no shell could ever let us go on
            signal.signal(number, stop)
            going_on()

        signal.signal(signal.SIGTSTP, stop)
        signal.signal(signal.SIGCONT, lambda _, __: going_on())

    def forward(self, send: Callable[[int], None], resized: Callable[[], None]) -> None:
        """From now on passes on what has come and what comes: to *send* by number, a change of size to *resized*.

        *send* raises `NotFoundError` once the container has ended. Who then still sends a signal that ends programs
        means us, who wait for somebody to read the output: `Interrupted` is raised in the main thread.
        """
        threading.Thread(target=self._forward, args=(send, resized), name="ctrd-signals", daemon=True).start()

    def _forward(self, send: Callable[[int], None], resized: Callable[[], None]) -> None:
        while True:
            for number in os.read(self._reader, 64):
                try:
                    if number == signal.SIGWINCH:
                        resized()
                    elif number in PASSED_ON:
                        send(number)
                except NotFoundError:
                    if number in ENDING:
                        self._started = lambda: False
                        signal.pthread_kill(threading.main_thread().ident or 0, number)
                        return
                except CtrdError as error:
                    output.complain(f"signal {number} could not be passed on: {error}")
