"""The user's own terminal: its size, and raw mode, in which every key reaches the container."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Iterator

from libctrd.cli import output
from libctrd.cli.signals import Signals


def size() -> tuple[int, int] | None:
    """Columns and lines of the terminal that our output, else our input, is on; ``None`` when there is none."""
    for fd in (1, 0, 2):
        try:
            columns, lines = os.get_terminal_size(fd)
        except OSError:
            continue
        if columns and lines:
            return columns, lines
    return None


class RawMode:
    """Raw mode of the terminal at descriptor *fd*: `enter` and `restore`, in any order and as often as needed.

    Modes are set at once (TCSANOW): to wait until the output is out could be for ever, and the modes have no say in
    output that is with the terminal already.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = termios.tcgetattr(fd)
        self._keys = True

    def enter(self, *, keys: bool | None = None) -> None:
        """Sets raw mode, as cfmakeraw(3) has it. With *keys* those that send signals still do.

        When it is not given it is as it was the last time.
        """
        if keys is not None:
            self._keys = keys
        iflag, oflag, cflag, lflag, ispeed, ospeed, characters = termios.tcgetattr(self._fd)
        iflag &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        oflag &= ~termios.OPOST
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        lflag = lflag | termios.ISIG if self._keys else lflag & ~termios.ISIG
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        characters = list(characters)
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, characters])
        output.line_end = "\r\n"

    def restore(self) -> None:
        """Sets the terminal back to what it was.

        Not when another job has it now: its modes are that job's (or the shell's), and a background job that sets
        modes is stopped for it. Nor when it was hung up: there is nothing to restore then.
        """
        output.line_end = "\n"
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)

    def resume(self) -> None:
        """Enters raw mode again after ctrd was stopped, and looks whether the terminal has another size by now."""
        with contextlib.suppress(OSError, termios.error):  # hung up meanwhile
            self.enter()
        os.kill(os.getpid(), signal.SIGWINCH)


@contextlib.contextmanager
def raw(fd: int, signals: Signals) -> Iterator[RawMode]:
    """Raw mode, keys that send signals apart; the terminal is restored at the end, whatever happens, and at a stop."""
    mode = RawMode(fd)
    signals.watch_stop(mode.restore, mode.resume)
    try:
        mode.enter(keys=True)
        yield mode
    finally:
        mode.restore()
