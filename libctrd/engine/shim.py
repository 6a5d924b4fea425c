"""The client's side of the shim: to start one, to talk to one. The protocol is told at the top of ``pyx/shim.c``."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.

# The compiled half of `socket` has all that is used of it here. The other half makes enumerations of its constants, and
# brings `selectors` along: as long to import as a fifth of all modules of ours, each time that `ctrd run` is called.
import _socket as socket
import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import msgspec

from libctrd import proc
from libctrd._checks import one_line
from libctrd.engine.base import ProcessSnapshot
from libctrd.errors import (
    CtrdError,
    DeadlineError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    from_errno,
    from_os_error,
)
from libctrd.state import ExitStatus

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "ctrd-shim")
SOCKET = "shim.sock"
PROCESS_RECORD = "exec-*.exit"
EXIT_RECORD = "exit.json"
EXIT_ROOM = "exit.tmp"
PID_FILE = "pid"
CRIU_FILE = "criu.conf"
"""Options that CRIU reads of itself, when there is such a file: each runtime hands `CRIU_VARIABLE` on to it, which
names it. So a container's spec needs no annotation for them, nor the runtime an option."""
CRIU_VARIABLE = "CRIU_CONFIG_FILE"

PACKET = 16384
START_SECONDS = 60.0
"""How long a runtime may take to start a container; then it is killed."""
REPLY_SECONDS = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# What must not reach the runtime: it would announce itself to our service manager, or hand over our sockets.
_NOT_HANDED_ON = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def exit_status(code: int, oom: bool, seconds: int, nanoseconds: int) -> ExitStatus:
    return ExitStatus(code, oom, _EPOCH + timedelta(seconds=seconds, microseconds=nanoseconds // 1000))


def read_whole(path: str) -> bytes:
    """What is in a file of a container's state: in three calls of the system, for it is read at each of its steps."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = block = os.read(fd, 65536)
        while len(block) == 65536:
            block = os.read(fd, 65536)
            content += block
        return content
    finally:
        os.close(fd)


class _ExitRecord(msgspec.Struct):
    code: int
    oom_killed: bool
    seconds: int
    nanoseconds: int


_exit_decoder = msgspec.json.Decoder(_ExitRecord)  # see `libctrd._spec_check`


def read_exit(directory: str) -> ExitStatus | None:
    """The exit record of the container whose state is in *directory*; ``None`` while there is none."""
    try:
        record = _exit_decoder.decode(read_whole(os.path.join(directory, EXIT_RECORD)))
        return exit_status(record.code, record.oom_killed, record.seconds, record.nanoseconds)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"read the exit record in {directory!r}") from error
    except (msgspec.MsgspecError, OverflowError) as error:
        raise UnavailableError(f"the exit record in {directory!r} is damaged: {error}") from error


class _ProcessExitRecord(msgspec.Struct):
    name: str
    code: int
    seconds: int
    nanoseconds: int


_process_exit_decoder = msgspec.json.Decoder(_ProcessExitRecord)


def read_process_exits(directory: str) -> dict[str, ExitStatus]:
    """How the further processes have ended whose end nobody has collected yet, by name, from their records."""
    import glob  # only a look at further processes comes here

    found = {}
    for path in glob.glob(os.path.join(glob.escape(directory), PROCESS_RECORD)):
        try:
            with open(path, "rb") as file:
                record = _process_exit_decoder.decode(file.read())
            found[record.name] = exit_status(record.code, False, record.seconds, record.nanoseconds)
        except FileNotFoundError:
            continue  # collected meanwhile
        except OSError as error:
            raise from_os_error(error, f"read the exit record {path!r}") from error
        except (msgspec.MsgspecError, OverflowError) as error:
            raise UnavailableError(f"the exit record {path!r} is damaged: {error}") from error
    return found


def was_started(directory: str) -> bool:
    """Was the container ever started? From just before that there is the room for its exit record, then that."""
    return any(os.path.lexists(os.path.join(directory, name)) for name in (EXIT_ROOM, EXIT_RECORD))


def read_pid(directory: str) -> int:
    """The pid of ``init`` that the runtime left, 0 when there is none."""
    try:
        with open(os.path.join(directory, PID_FILE), "rb") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def connection(directory: str) -> Iterator[socket.socket]:
    """A connection to the shim that serves *directory*. Raises `NotFoundError` when none does."""
    peer = connect(directory)
    try:
        yield peer
    finally:
        peer.close()


def connect(directory: str, name: str = SOCKET) -> socket.socket:
    """Like `connection`, for one that is kept. The path may be longer than a socket's may be: it goes by descriptor.

    *name* is that of the socket, for another program of ours than a container's shim.
    """
    try:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise from_os_error(error, f"make the socket to the shim in {directory!r} (socket)") from error
    try:
        handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            peer.settimeout(REPLY_SECONDS)
            try:
                peer.connect(f"/proc/self/fd/{handle}/{name}")
            except BlockingIOError:
                _connect_in_turn(peer, f"/proc/self/fd/{handle}/{name}")
        finally:
            os.close(handle)
    except OSError as error:
        peer.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise NotFoundError(f"no shim serves {directory!r}: it has ended or was never started") from error
        raise from_os_error(error, f"connect to the shim in {directory!r}") from error
    except BaseException:
        peer.close()
        raise
    return peer


def _connect_in_turn(peer: socket.socket, path: str) -> None:
    """Waits for a place in its backlog, where a socket with a timeout of Python's does not (connect(2), EAGAIN)."""
    import struct  # more than a hundred have come at once

    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(REPLY_SECONDS), 0))
    peer.connect(path)
    peer.settimeout(REPLY_SECONDS)


def request(directory: str, text: str) -> None:
    """One request that is answered by "ok". Raises what the shim or the runtime said otherwise."""
    with connection(directory) as peer:
        ask(peer, directory, text)


def ask(peer: socket.socket, directory: str, text: str, doing: str = "") -> str:
    """Sends a request over *peer*, returns the reply. ``ok`` and others come back, failures are raised.

    *doing* says in an error what was tried, in the place of *text*.
    """
    reply = _exchange(peer, directory, text)
    check(reply, directory, doing or text)
    return reply


def end(peer: socket.socket, directory: str, plain: bool) -> None:
    """Has the shim of an ended container remove what the runtime holds of it; returns when the shim has ended, too.

    When it is *plain* that a runtime leaves nothing but its cgroups the shim can do that by itself, unless there is
    something in one of them. To call the runtime costs half of a bare run of it again.
    """
    if not plain or _exchange(peer, directory, "end") == f"error {errno.EBUSY}":
        ask(peer, directory, "delete")
    until_gone(peer)


def until_gone(peer: socket.socket) -> None:
    """Returns when the shim, which has been asked to end, has closed its side."""
    peer.settimeout(None)
    with contextlib.suppress(ConnectionResetError):  # that is its end as well
        while peer.recv(PACKET):
            pass


_EVENTS = ("oom", "pause", "resume", "process", "ended")
"""What comes unasked over a connection that watches, and may lie before the reply."""


def _exchange(peer: socket.socket, directory: str, text: str) -> str:
    try:
        peer.sendall(text.encode())
        while True:
            reply = peer.recv(PACKET).decode("utf-8", "replace")
            if reply.partition(" ")[0] not in _EVENTS:
                return reply
    except TimeoutError as error:
        raise DeadlineError(
            f"the shim in {directory!r} did not answer {text!r} within {REPLY_SECONDS:g} s: the OCI runtime hangs"
        ) from error
    except OSError as error:
        raise NotFoundError(f"the shim in {directory!r} ended before it answered {text!r}") from error


def check(reply: str, directory: str, text: str) -> None:
    """Raises the error that *reply* is, if it is one; `UnavailableError` when it is malformed."""
    try:
        _check(reply, directory, text)
    except (ValueError, OverflowError) as error:
        if isinstance(error, CtrdError):
            raise
        raise UnavailableError(
            f"the shim in {directory!r} answered {reply!r} to {text!r}, which cannot be: it may be of another libctrd"
        ) from error


def _check(reply: str, directory: str, text: str) -> None:
    word, _, rest = reply.partition(" ")
    if not reply:
        raise NotFoundError(f"the shim in {directory!r} ended before it answered {text!r}")
    if word == "exit":  # the last word of a shim that is ending, to whoever has come by then
        raise NotFoundError(f"the container in {directory!r} has ended: it could not {text}")
    if word == "error":
        number, _, what = rest.partition(" ")
        call, _, path = what.partition(" ")
        of = f": {call} of {path}" if path else ""
        refused = from_errno(int(number), f"{text} on the container in {directory!r}{of}")
        refused.call = call
        raise refused
    if word == "failed":
        raise runtime_failed(rest, f"{text} the container in {directory!r}")
    if word == "broken":
        number, call, what = [*rest.split(" ", 2), "", ""][:3]
        raise from_errno(int(number), f"start the shim in {directory!r}: {call} of {what}")


def runtime_failed(rest: str, tried: str, more: str = "") -> RuntimeFailedError:
    """The error for "CODE LOG" as the shim reports it; *more* is what the runtime wrote elsewhere."""
    code, _, raw = rest.partition(" ")
    said = "; ".join(filter(None, [_messages(raw), more.strip()]))
    why = one_line(said) or f"it ended with exit code {code} and said nothing"
    return RuntimeFailedError(f"the OCI runtime could not {tried}: {why}", output=said, exit_code=int(code))


class _LogLine(msgspec.Struct):
    msg: str = ""
    level: str = ""


_log_decoder = msgspec.json.Decoder(_LogLine)


def _messages(raw: str) -> str:
    """The errors among the JSON lines of a runtime's log, in order; a line that is none is taken as it is."""
    found = []
    for line in raw.splitlines():
        try:
            entry = _log_decoder.decode(line)
        except msgspec.MsgspecError:
            entry = _LogLine(line.strip(), "error")
        if entry.msg and entry.level not in ("debug", "info", "warning"):
            found.append(entry.msg)
    return "; ".join(dict.fromkeys(found))


def start_process(directory: str, what: str, fields: tuple[str, ...]) -> int:
    """Has the shim start a further process; returns its pid. *fields*: name, token, flags, the three fifos. *what* says
    in an error which it is.

    When this raises, the process is not there, or on its way out: the shim knows that nobody wants it any more. Raises
    what the shim or the runtime said, and `DeadlineError` when the runtime hangs.
    """
    text = f"start {what} in"
    cancel = "cancel"
    try:
        with connection(directory) as peer:
            peer.settimeout(START_SECONDS)
            try:
                peer.sendall(b"\0".join([b"exec", *map(os.fsencode, fields)]) + b"\0")
                reply = peer.recv(PACKET).decode("utf-8", "replace")
            except TimeoutError:
                cancel = "cancel-now"
                raise DeadlineError(
                    f"the OCI runtime did not {text} the container in {directory!r} within {START_SECONDS:g} s: "
                    "look at what it waits for"
                ) from None
            except OSError as error:
                raise NotFoundError(f"the shim in {directory!r} ended before it could {text} its container") from error
        check(reply, directory, text)
        return int(reply.removeprefix("started "))
    except BaseException:
        with contextlib.suppress(CtrdError):
            request(directory, f"{cancel} {fields[1]}")
        raise


def processes(directory: str) -> list[ProcessSnapshot]:
    """The further processes that the shim holds."""
    with connection(directory) as peer:
        lines = ask(peer, directory, "processes").splitlines()[1:]
    found = []
    for name, pid, terminal, *end in map(str.split, lines):
        status = exit_status(int(end[0]), False, int(end[1]), int(end[2])) if end else None
        found.append(ProcessSnapshot(name, int(pid), status, terminal == "1"))
    return found


def descriptors(directory: str, process: str = "") -> dict[str, int]:
    """The client's ends of the fifos of ``init``, or of another *process*, handed over by the shim: ``i``, ``o``, ``e``
    to a descriptor that is ours now.
    """
    import array  # only an attach comes here

    with connection(directory) as peer:
        peer.sendall(f"fds {process}".rstrip().encode())
        fds = array.array("i")
        data, control, _, _ = peer.recvmsg(64, socket.CMSG_SPACE(3 * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return dict(zip(data.decode().removeprefix("fds "), fds, strict=False))


def _reaped(pid: int) -> bool:
    """Has that child of ours ended? It is reaped then, unless somebody else of this process has done so."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


_left: list[int] = []
"""Shims that go on though the client that started them was closed: still children of this process."""


def reap_left() -> None:
    """Reaps those of them that have ended: whenever a shim is started, and whenever a client begins."""
    _left[:] = [pid for pid in _left if not _reaped(pid)]


class Shim:
    """A shim that this process has started: its pid, and the socket on which it reports."""

    def __init__(
        self, directory: str, arguments: list[str], locked: int | None = None, sealed: int | None = None
    ) -> None:
        """Starts one. *arguments* are its command line. It is not waited for; see `started`.

        *locked* is a descriptor of *directory* with its lock (`directory.lock`). The shim gets a copy and the lock with
        it: it lets go of that once it serves its socket, though its starter may have been killed by then. *sealed* is a
        descriptor of the runtime's sealed copy (`libctrd.engine.sealed`), when the arguments say that there is one.
        """
        reap_left()
        self.directory = directory
        self.gone = threading.Event()
        try:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise from_os_error(error, f"make the socket to the shim of {directory!r} (socketpair)") from error
        try:
            with contextlib.closing(its):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                handle = os.open(directory, flags) if locked is None else locked
                try:
                    self.pid = proc.spawn(
                        [PROGRAM, *arguments],
                        fds={3: its.fileno(), 4: handle} | ({} if sealed is None else {5: sealed}),
                        env={**environment_for_runtime(), CRIU_VARIABLE: os.path.join(directory, CRIU_FILE)},
                        new_session=True,
                    )
                finally:
                    if locked is None:
                        os.close(handle)
        except OSError as error:
            ours.close()
            raise from_os_error(error, f"open the state directory {directory!r}") from error
        except BaseException:
            ours.close()
            raise
        self.socket = ours

    def started(self, timeout: float = START_SECONDS) -> int:
        """Waits until the container has started; returns the pid of ``init``.

        When it did not start, or on Ctrl-C, the shim and what the runtime made have gone before the error is raised.
        """
        try:
            self.socket.settimeout(timeout)
            try:
                reply = self.socket.recv(PACKET).decode("utf-8", "replace")
            except TimeoutError:
                raise DeadlineError(
                    f"the OCI runtime did not start the container in {self.directory!r} within {timeout:g} s: "
                    "look at what it waits for"
                ) from None
            word, _, rest = reply.partition(" ")
            if word == "started":
                self.socket.setblocking(False)
                return int(rest)
            if word == "failed":
                raise runtime_failed(rest, f"start the container in {self.directory!r}")
            check(reply, self.directory, "start")
            raise UnavailableError(f"the shim in {self.directory!r} answered {reply!r} to a start")
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Ends a start or its container, and the shim; returns when that is done. Only a shim kills its children."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(None)
            self.socket.send(b"undo")
            while self.socket.recv(PACKET):
                pass
        self.ended()

    def end(self, plain: bool) -> None:
        """Like the function `end`, over the socket of a shim that nobody else reads any more."""
        self.socket.settimeout(REPLY_SECONDS)
        end(self.socket, self.directory, plain)
        self.ended()

    def let_go(self) -> None:
        """Closes the socket; the shim goes on, and is reaped by whoever comes next after it has ended."""
        self.socket.close()
        _left.append(self.pid)

    def ended(self) -> None:
        """Closes the socket and reaps the shim, which is ending."""
        self.socket.close()
        proc.reap(self.pid)
        self.gone.set()


def environment_for_runtime() -> dict[str, str]:
    env = dict(os.environ)
    for name in _NOT_HANDED_ON:
        env.pop(name, None)
    return env


def undo(directory: str, arguments: list[str]) -> None:
    """Has the runtime delete, by force, a container whose shim is gone; in a shim, which knows how to call it."""
    shim = Shim(directory, arguments)
    reply = shim.socket.recv(PACKET)
    shim.ended()
    if reply:
        try:
            check(reply.decode("utf-8", "replace"), directory, "delete")
        except CtrdError as error:
            raise UnavailableError(
                f"what is left of the container in {directory!r} cannot be removed: {error}"
            ) from error
