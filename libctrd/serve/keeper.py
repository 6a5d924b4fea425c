"""What nobody has read yet of processes that have ended: kept for readers that come later (C28).

An exit is told at once, and with it the container is gone and its id is free. The bytes in a fifo would go with the
last end of it that is open. So those outputs that are not read to their end are handed over to the *keeper* first: a
program of our own (``pyx/shim_keep.c``), one for a state directory, which is there while there is something to keep. It
needs no server: a reader finds all of it, and the end, while there is none, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import socket
import termios
import threading

from libctrd import proc
from libctrd.engine import shim
from libctrd.errors import CtrdError, NotFoundError, UnavailableError, from_errno, from_os_error
from libctrd.state import INIT

log = logging.getLogger("libctrd")

SOCKET = "keep.sock"
"""As ``KEEPER_NAME`` in ``pyx/shim.h``."""
REPLY_SECONDS = 3.0
_OUTPUTS = "oe"


class Keeper:
    """That of the state directory *state_dir*; its socket is in *directory*. Any thread may call."""

    def __init__(self, state_dir: str, directory: str) -> None:
        self._state_dir = state_dir
        self._directory = directory
        self._lock = threading.Lock()  # the keeper talks to one at a time

    def keep(self, where: str, process: str) -> None:
        """Keeps what nobody has read yet of *process*, which has ended, of the container in *where*; its shim has the
        fifos still. To keep what is kept already is fine. That it could not be kept is told in the log alone: an exit
        must not wait for it.
        """
        held: list[int] = []
        try:
            ends = shim.descriptors(where, "" if process == INIT else process)
            held.extend(ends.values())
            unread = [ends[letter] for letter in _OUTPUTS if letter in ends and _is_unread(ends[letter])]
            if unread:
                self._hand_over(unread)
        except NotFoundError:
            pass  # its shim was killed, and nobody has them any more
        except (CtrdError, OSError) as error:
            log.warning("what nobody has read yet of process %s of %s is lost: %s", process, where, error)
        finally:
            for fd in held:
                os.close(fd)

    def _hand_over(self, fds: list[int]) -> None:
        with self._lock:
            try:
                self._send(socket.socket(fileno=shim.connect(self._directory, SOCKET).detach()), fds)
            except NotFoundError:  # there is none, or it was ending
                self._start(fds)

    def _send(self, peer: socket.socket, fds: list[int]) -> None:
        """Hands them over, and closes *peer*. `NotFoundError` when the other side has ended."""
        with peer:
            try:
                peer.settimeout(REPLY_SECONDS)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why it has ended
                    socket.send_fds(peer, [b"keep"], fds)
                try:
                    reply = peer.recv(shim.PACKET).decode()
                except ConnectionResetError:  # what it said before comes with the next look
                    reply = peer.recv(shim.PACKET).decode()
            except TimeoutError as error:
                raise UnavailableError(
                    f"the keeper in {self._directory!r} did not answer within {REPLY_SECONDS:g} s: it was stopped"
                ) from error
            except OSError as error:
                raise NotFoundError(f"the keeper in {self._directory!r} ended before it answered") from error
        word, number, what = [*reply.split(" ", 2), "", ""][:3]
        if word == "error":
            raise from_errno(int(number), f"hand over what is unread to the keeper in {self._directory!r}")
        if word == "broken":
            raise from_errno(int(number), f"start the keeper in {self._directory!r} ({what})")
        if not word:
            raise NotFoundError(f"the keeper in {self._directory!r} ended before it answered")

    def _start(self, fds: list[int]) -> None:
        try:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise from_os_error(error, "make the socket to the keeper (socketpair)") from error
        try:
            with its:
                handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    # The directory is for who lists the processes of the host.
                    command = [shim.PROGRAM, "--state", self._state_dir, "--keep"]
                    pid = proc.spawn(command, fds={3: its.fileno(), 4: handle}, env={}, new_session=True)
                finally:
                    os.close(handle)
        except BaseException:
            ours.close()
            raise
        try:
            self._send(ours, fds)
        finally:
            proc.reap(pid)  # at once: what stays is a child of its own, and nobody waits for that


def _is_unread(fd: int) -> bool:
    """Does something lie in that fifo, or may something come yet: of a terminal, or of a child that goes on?"""
    waiting = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    look = select.poll()
    look.register(fd, 0)
    return any(waiting) or not any(mask & select.POLLHUP for _, mask in look.poll(0))
