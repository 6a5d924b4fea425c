"""What a shim of containerd is told of a process's streams: our fifos' paths, or what becomes of output instead."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from libctrd.engine.base import CreateRequest
from libctrd.errors import CtrdError, UnsupportedError, from_os_error
from libctrd.fifo import open_fifo

STDIN_SECONDS = 5.0


def of_start(request: CreateRequest) -> tuple[str, str, str]:
    """The names of stdin, stdout and stderr, which say too what becomes of output that nobody reads.

    Raises `UnsupportedError` for what a shim cannot do with it.
    """
    stdin, stdout, stderr, terminal = request.stdin, request.stdout, request.stderr, request.record.terminal
    if request.auto_remove:
        raise UnsupportedError(
            "the containerd engine cannot remove a container by itself once it has ended: leave --rm out"
        )
    if request.unattended == "hold" or not (stdout or (stderr and not terminal)):
        return names(stdin, stdout, stderr, terminal)
    if request.attended:
        raise UnsupportedError(
            f"the containerd engine cannot {request.unattended} output once its reader has gone: "
            "say unattended='hold', or start it with stdio=DETACHED"
        )
    if request.unattended == "discard":
        sink = os.devnull
    elif terminal:
        raise UnsupportedError("the containerd engine cannot log the output of a terminal: leave --log or -t out")
    elif request.log is not None and (request.log.json or request.log.limit):
        raise UnsupportedError(
            "the containerd engine can only append output to a log as it comes: leave --log-format and --log-size out"
        )
    elif request.log is not None and stdout and stderr:
        import urllib.parse  # the rare case; it takes milliseconds

        _touch(request.log.path)
        sink = "file://" + urllib.parse.quote(request.log.path)
    else:
        raise UnsupportedError("the containerd engine can log both, stdout and stderr, or none: leave NULL out")
    return names(stdin, stdout and sink, stderr and sink, terminal)


def names(stdin: str, stdout: str, stderr: str, terminal: bool) -> tuple[str, str, str]:
    """These names, as a shim takes them: it opens an output without a name all the same, but if there is no stream."""
    if terminal:
        return stdin, stdout or os.devnull, ""
    if not (stdin or stdout or stderr):
        return "", "", ""
    return stdin, stdout or os.devnull, stderr or os.devnull


END_OF_INPUT = b"\x04\x04"
"""What a terminal takes for the end of its input, as typed at a keyboard: the first one ends a line that was begun."""


def end_terminal(path: str) -> None:
    """Ends the input of a terminal whose shim reads the fifo at *path*; returns once there was room for that.

    To close it instead would hang the terminal up, with newer shims before all output is out.
    """
    with contextlib.suppress(CtrdError), open_fifo(path, os.O_WRONLY | os.O_NONBLOCK) as writer:  # it has ended
        writer.wait_connected(STDIN_SECONDS)
        writer.write(END_OF_INPUT)


@contextlib.contextmanager
def until_read(path: str) -> Iterator[None]:
    """Holds a write end of the stdin fifo at *path* from when the shim reads it on, which it begins in its own time.

    A shim that is told to close stdin before it has opened it gives up its own write end, and then waits for a writer
    for ever: the process would never see the end of its input. The wait is bounded, for the process may be gone.
    """
    try:
        writer = open_fifo(path, os.O_WRONLY | os.O_NONBLOCK)
    except CtrdError:
        yield  # it was removed: the process has ended
        return
    with writer:
        with contextlib.suppress(CtrdError):
            writer.wait_connected(STDIN_SECONDS)
        yield


def _touch(log: str) -> None:
    """Makes the log file when it is missing. A shim would make all directories above too, and say less on failure."""
    try:
        os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise from_os_error(error, f"write the log {log!r}") from error


@contextlib.contextmanager
def read_ends(*paths: str) -> Iterator[None]:
    """Holds a read end of each fifo open, for the shim would wait for one; it holds both ends from its own open on."""
    held = []
    try:
        for path in paths:
            if path.startswith("/"):
                try:
                    held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                except OSError as error:
                    raise from_os_error(error, f"open the fifo {path!r} for reading") from error
        yield
    finally:
        for fd in held:
            os.close(fd)
