"""Where a server listens: a unix socket of its own, or one that systemd hands over; and what systemd is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat

from libctrd import directory
from libctrd.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError, from_os_error

LONGEST = 107
"""Bytes of a unix socket's path."""
_FIRST_FD = 3
_BLOCK = 1 << 16


def path_of(address: str) -> str:
    """The path in ``unix:///PATH``. Raises `InvalidArgumentError` for what cannot be listened at."""
    path = address.removeprefix("unix://")
    if path == address or not path.startswith("/") or "\0" in path:
        raise InvalidArgumentError(f"the address {address!r} is none to listen at: say unix:///PATH/OF/A/SOCKET")
    if len(os.fsencode(path)) > LONGEST:
        raise InvalidArgumentError(
            f"the path of the socket {path!r} has {len(os.fsencode(path))} bytes, and the system takes {LONGEST}: "
            "choose a shorter one"
        )
    return path


def make_room(path: str) -> None:
    """Removes a socket that nobody listens at any more. Raises `AlreadyExistsError` when somebody does, or when
    something else lies there, which is not touched.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, f"look at {path!r}") from error
    if not stat.S_ISSOCK(mode):
        raise AlreadyExistsError(f"{path!r} is no socket: remove it, or choose another address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)
        try:
            peer.connect(path)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise AlreadyExistsError(f"somebody listens at {path!r}: {os.strerror(error.errno or 0)}") from error
        else:
            raise AlreadyExistsError(f"somebody listens at {path!r} already: choose another address, or end that one")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def lock(state_dir: str) -> int:
    """Takes the lock of a state directory, for as long as the descriptor that it returns is open.

    Raises `UnavailableError` when another server has it.
    """
    path = os.path.join(state_dir, ".serve")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"make the directory {path!r}") from error
    try:
        return directory.lock(path)
    except AlreadyExistsError as error:
        raise UnavailableError(
            f"the state directory {state_dir!r} is served already: end that server, or choose another --state-dir"
        ) from error


# ---- systemd ---------------------------------------------------------------------------------------------------------


def handed_over() -> socket.socket | None:
    """The listening socket that systemd started us with (sd_listen_fds(3)); ``None`` when there is none.

    Raises `InvalidArgumentError` for more than one, or for one that is no unix stream socket that listens.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "0")
    if count != "1":
        raise InvalidArgumentError(f"systemd hands over {count} sockets (LISTEN_FDS): ctrd serve takes one")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    try:
        listener = socket.socket(fileno=_FIRST_FD)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise from_os_error(error, f"take the socket that systemd hands over, descriptor {_FIRST_FD}") from error
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listens:
        raise InvalidArgumentError(
            "what systemd hands over is no unix stream socket that listens: see systemd.socket(5)"
        )
    os.set_inheritable(_FIRST_FD, False)
    return listener


def notify(text: str) -> None:
    """Tells the service manager, if there is one that wants to know (sd_notify(3)). A failure is none of ours."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer, contextlib.suppress(OSError):
        peer.connect("\0" + where[1:] if where.startswith("@") else where)
        peer.send(text.encode())


async def forward(listener: socket.socket, path: str) -> asyncio.Server:
    """Accepts at *listener* and hands each connection on to the socket *path*: gRPC takes no descriptor to listen at.

    What one side has not taken holds the other back; the end of either is the end of both.
    """

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_BLOCK):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    return await asyncio.start_unix_server(accepted, sock=listener)
