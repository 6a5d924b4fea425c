"""How ctrd makes a container and starts it: to attend it until its end, or to leave it to itself."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from libctrd.cli import output
from libctrd.cli.exits import FAILED, Interrupted
from libctrd.cli.signals import Signals
from libctrd.errors import CtrdError, DeadlineError, NotFoundError
from libctrd.state import INIT
from libctrd.stdio import DETACHED, NULL, Stdio

if TYPE_CHECKING:
    from libctrd.client import Client
    from libctrd.container import Container
    from libctrd.process import Process
    from libctrd.state import ExitStatus

    Running = TypeVar("Running", Container, Process)

_STREAMS: Final = {"stdout": 1, "stderr": 2}
LAST_SECONDS: Final = 1.0
"""How long an end that is under way may still take once ctrd was told to end."""


def create(client: Client, signals: Signals, id: str | None, spec: dict[str, Any], **options: Any) -> Container:
    """Creates a container, with a fresh *id* when there is none. When this raises there is none.

    *options* goes to `Client.create`.
    """
    from libctrd import ids

    id = ids.generate() if id is None else id
    try:
        with signals.interrupting(lambda: False):
            return client.create(id, spec, **options)
    except BaseException:
        made = client._known(id)
        if made is not None:  # a signal came when it had just been made
            made.clean()
        raise


def leave(container: Container, signals: Signals, *, new: bool, interactive: bool, **options: Any) -> None:
    """Starts *container*, leaves it to itself and prints its id.

    Without *interactive* its input is empty; with it, somebody may come and write. *options* goes to `Container.start`.
    When this raises, a *new* container has gone, and so has one that ran; one that could not be started stays.
    """
    streams = Stdio(DETACHED if interactive else NULL, DETACHED, DETACHED)
    with _undone(container, new), signals.interrupting(lambda: _runs(container)):
        container.start(streams, **options)
        output.write_line(container.id)


def attend(
    container: Container, signals: Signals, *, new: bool, interactive: bool, terminal: bool, **options: Any
) -> int:
    """Starts *container*, waits for its end and returns its exit code; it is cleaned then.

    Our output is its output; with *interactive* our input is its input. With *terminal* it has a terminal, and ours, if
    we have one, becomes its keyboard and its screen. *options* goes to `Container.start`. When this raises, a *new*
    container has gone, and so has one that ran; one that could not be started stays.
    """

    def start(streams: Stdio) -> Container:
        container.start(streams, **options)
        return container

    with _undone(container, new):
        running, status = _see_through(start, signals, lambda: _runs(container), interactive, terminal)
    return code_of(running, status, f"container {container.id!r}")


def leave_process(container: Container, signals: Signals, args: Sequence[str], **options: Any) -> None:
    """Starts a further process without streams, leaves it to itself and prints its name."""
    with signals.interrupting(lambda: False):
        process = container.exec(args, NULL, **options)
        output.write_line(process.name)


def attend_process(
    container: Container, signals: Signals, args: Sequence[str], *, interactive: bool, terminal: bool, **options: Any
) -> int:
    """Starts a further process, awaits its end, returns its exit code, like `attend`; when this raises it is gone."""
    from libctrd import ids

    name = options.pop("name", None) or ids.generate()

    def start(streams: Stdio) -> Process:
        return container.exec(args, streams, name=name, terminal=terminal, **options)

    try:
        running, status = _see_through(start, signals, lambda: False, interactive, terminal)
    except BaseException:
        with contextlib.suppress(CtrdError):  # it has not begun, or has ended, or the container has
            begun = container.process(name)
            begun.give_up_output()
            begun.signal("KILL")
        raise
    return code_of(running, status, f"process {name!r}")


def _see_through(
    start: Callable[[Stdio], Running], signals: Signals, began: Callable[[], bool], interactive: bool, terminal: bool
) -> tuple[Running, ExitStatus]:
    """Starts what is to be attended, and waits for its end. *began*: from then on signals are meant for it."""
    with contextlib.ExitStack() as stack:
        mode = None
        if terminal and interactive and os.isatty(0):
            from libctrd.cli.terminal import raw

            mode = stack.enter_context(raw(0, signals))
        with signals.interrupting(began):
            running = start(Stdio(0 if interactive else NULL, 1, 2))
        resize = follow_size(running, signals) if terminal else no_size
        if mode is not None:
            mode.enter(keys=False)
        signals.forward(running.signal, resize)
        return running, _wait(running)


def code_of(running: Container | Process, status: ExitStatus, what: str) -> int:
    """Our exit code when *what* has ended like that: its own, but when output of it could not be written."""
    if not status.known:
        output.complain(f"the exit code of {what} is not known: nobody was there to see it")
    return FAILED if _has_lost_output(running, what) else status.code


def _has_lost_output(source: Container | Process, what: str) -> bool:
    """Tells of output that could not be written. A reader that has gone wanted no more of it: that is no loss."""
    lost = {
        name: error
        for name, error in source.undelivered().items()
        if error.errno not in (errno.EPIPE, errno.ECONNRESET)
        and not (error.errno == errno.EIO and stat.S_ISCHR(os.fstat(_STREAMS[name]).st_mode))  # a terminal, hung up
    }
    for name, error in lost.items():
        output.complain(f"output of {what} to {name} is lost: {error}")
    return bool(lost)


def _runs(container: Container) -> bool:
    """Whether the start by this process has got so far that it runs. It takes no lock: a handler of signals asks."""
    init = container._processes.get(INIT)
    return init is not None and init.pid != 0


@contextlib.contextmanager
def _undone(container: Container, new: bool) -> Iterator[None]:
    """Whatever is raised within ends and removes *container* when it is *new* or was started by this process."""
    try:
        yield
    except BaseException:
        init = container._processes.get(INIT)
        if init is not None:
            init.streams.close()  # output that is stuck, for want of a reader, would hold up the clean-up
        if new or init is not None:
            container.clean(force=True)
        raise


def _wait(running: Container | Process) -> ExitStatus:
    try:
        return running.wait()
    except Interrupted:
        with contextlib.suppress(DeadlineError):
            return running.wait(LAST_SECONDS)  # its own code, when the end was only a moment away
        raise


def no_size() -> None:
    """What a change of our window's size is to a container without a terminal."""


def follow_size(running: Container | Process, signals: Signals) -> Callable[[], None]:
    """Gives its terminal the size of ours, now; returns what does so again."""
    from libctrd.cli.terminal import size

    def resize() -> None:
        now = size()
        if now is not None:
            with contextlib.suppress(NotFoundError):  # it has ended
                running.resize(*now)

    signals.watch_size()
    resize()
    return resize
