"""Why a daemon's socket cannot be used, in words: no socket, not allowed, nobody listening, or someone else.

What there is to be known is asked of the socket itself, for gRPC's own errors tell these cases apart badly or not at
all. Nothing here imports gRPC.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from typing import Final, NamedTuple

from libctrd.errors import InvalidArgumentError

# HTTP/2's opening, RFC 9113 section 3.4, and an empty SETTINGS frame after it: the least that a client may say.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEADER: Final = 9  # bytes: a length of three, the type, flags, the stream's number of four
_SETTINGS: Final = 4
_LONGEST_PATH: Final = 107  # bytes, of sun_path without the NUL at its end

PATIENCE: Final = 1.0
"""The seconds that a listener has for its first word, when there is no reason to give it less."""


def socket_path(address: str) -> str:
    """The path in ``unix:///absolute/path``. `InvalidArgumentError`: the address is not of that form."""
    if not isinstance(address, str):
        raise InvalidArgumentError(f"the address of a containerd is a str, not {type(address).__name__}")
    path = address.removeprefix("unix://")
    if path == address or not path.startswith("/") or "\0" in path:
        raise InvalidArgumentError(
            f"the address {address!r} names no socket of a containerd: say unix:///ABSOLUTE/PATH"
        )
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidArgumentError(
            f"the address {address!r} names a path of more than {_LONGEST_PATH} bytes, which no socket can have: "
            "choose a shorter one"
        )
    return path


class Fault(NamedTuple):
    """What is wrong and what to do, in words; *silent*: whoever listens has said nothing yet."""

    text: str
    silent: bool = False


def fault_at(path: str, patience: float = PATIENCE) -> Fault | None:
    """Why the socket at *path* cannot be used and what to do, or ``None`` when nothing is wrong with it.

    Whoever listens is asked whether it speaks HTTP/2 and has *patience*, in seconds, to answer; for 0 it is not asked.
    """
    try:
        kind = os.stat(path).st_mode
    except PermissionError:
        return Fault(f"user {os.geteuid()} may not reach {path}: run as root, or have the directories above it opened")
    except (FileNotFoundError, NotADirectoryError):
        return Fault(f"there is no socket {path}: is containerd running? start it, or name its socket in the address")
    except OSError as error:
        return Fault(f"{path} cannot be looked at: {error.strerror}")
    if not stat.S_ISSOCK(kind):
        return Fault(f"{path} is no socket: name containerd's in the address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)  # connecting waits for nothing but room in the listener's queue
        try:
            peer.connect(path)
        except PermissionError:
            return Fault(
                f"user {os.geteuid()} may not use the socket {path}: run as root, or join the group that it is for"
            )
        except ConnectionRefusedError:
            return Fault(f"nobody listens at {path}: containerd has ended; start it")
        except BlockingIOError:
            return Fault(f"whoever listens at {path} accepts no more connections: is containerd stopped or overloaded?")
        except OSError as error:
            return Fault(f"the socket {path} cannot be connected to: {error.strerror}")
        return _fault_of_peer(peer, path, time.monotonic() + patience) if patience else None


def _fault_of_peer(peer: socket.socket, path: str, end: float) -> Fault | None:
    """What is wrong with the words of whoever listens; ``None``: it answers as a server of HTTP/2 must."""
    hint = "; the socket for gRPC is the one without .ttrpc" if path.endswith(".ttrpc") else ""
    answer = b""
    try:
        peer.send(_PREFACE)  # a new connection has room for all of it
        while len(answer) < _FRAME_HEADER:
            peer.settimeout(max(0.001, end - time.monotonic()))
            more = peer.recv(_FRAME_HEADER - len(answer))
            if not more:
                break
            answer += more
    except TimeoutError:
        return Fault(
            f"whoever listens at {path} says nothing: is it containerd, and is that stopped?{hint}", silent=True
        )
    except OSError:
        pass  # it hung up on us: what it said before that is judged below
    if len(answer) == _FRAME_HEADER and answer[3] == _SETTINGS and answer[5:] == bytes(4):
        return None
    return Fault(f"whoever listens at {path} does not speak gRPC: name containerd's socket in the address{hint}")
