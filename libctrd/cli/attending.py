"""How ctrd attends a process that it did not start: until its end, or until the user leaves it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from libctrd import relay
from libctrd.cli import exits, starting
from libctrd.cli.keys import Keys
from libctrd.cli.signals import ENDING, Signals
from libctrd.errors import ClosedError, CtrdError
from libctrd.state import INIT
from libctrd.stdio import PIPE, Stdio

if TYPE_CHECKING:
    from libctrd.container import Container
    from libctrd.process import Process


class _Leaving:
    """Detaches from a process once, by whichever thread finds a reason. ``code`` is our exit code then."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = threading.Lock()
        self.code: int | None = None

    def leave(self, code: int) -> None:
        with self._lock:
            if self.code is not None:
                return
            self.code = code
        self._process.detach()


def attach(
    container: Container, signals: Signals, name: str, *, interactive: bool | None, leave: bytes, passing: bool
) -> int:
    """Connects our streams to those of a process until its end; returns its exit code, or ours when it was left."""
    with contextlib.ExitStack() as stack:
        mode = None
        # Before anything comes out: what a terminal in the container has written is for a raw one.
        if interactive is not False and os.isatty(0) and (name != INIT or container.info().terminal):
            from libctrd.cli.terminal import raw

            mode = stack.enter_context(raw(0, signals))
        with signals.interrupting(lambda: name in container._processes):
            process = container.attach(Stdio(PIPE, 1, 2), process=name)
        leaving = _Leaving(process)
        try:
            if mode is not None and not process.terminal:
                mode.restore()
                mode = None
            wanted = mode is not None if interactive is None else interactive
            resize = starting.follow_size(process, signals) if process.terminal else starting.no_size
            if process.stdin is not None and not wanted:
                process.stdin.drop()
            elif process.stdin is not None and mode is not None:
                mode.enter(keys=False)
                stack.callback(_type(process, leave, leaving).cancel)
            elif process.stdin is not None:
                stack.callback(process.stdin.feed(0).cancel)

            def send(number: int) -> None:
                if number == signal.SIGHUP or (number in ENDING and not passing):
                    leaving.leave(exits.SIGNALLED + number)
                else:
                    process.signal(number)

            signals.forward(send, resize)
            status = process.wait()
        except ClosedError:
            if leaving.code is None:
                raise
            return leaving.code
        except BaseException:
            process.give_up_output()
            process.detach()
            raise
    return starting.code_of(process, status, f"container {container.id!r}")


def _type(process: Process, leave: bytes, leaving: _Leaving) -> relay.Pump:
    """Passes on what is typed at our terminal, and looks for the keys in it."""
    keys, stdin = Keys(leave), process.stdin
    assert stdin is not None

    def typed(data: bytes) -> None:
        passed, found = keys.typed(data)
        with contextlib.suppress(CtrdError):  # it has ended, and reads no more
            if passed:
                stdin.write(passed)
        if found:
            # By another thread: this one is the relay's, and is waited for when the streams are let go of.
            threading.Thread(target=leaving.leave, args=(0,), name="ctrd-leave", daemon=True).start()

    return relay.call(0, typed)  # a terminal that is hung up ends nothing: a signal tells of that
