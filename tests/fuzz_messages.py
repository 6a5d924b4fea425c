"""Requests of `types.API` for fuzzers: valid ones of every shape, such that were damaged, and HTTP/2 that is none.

What is drawn stays inside of the directories of the test: paths are its own or lead nowhere, and so do the names of
checkpoints and runtimes, for a server does what it is told to: remove a directory, run a program.
"""

from __future__ import annotations

import struct
from typing import Any

from fuzz_kit import Target
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from libctrd import protos

IDS = ("fuzz0", "fuzz1", "fuzz2")
PROCESSES = ("init", "p0", "p1")
CALLS = (
    "GetServerVersion",
    "CreateContainer",
    "UpdateContainer",
    "Signal",
    "UpdateProcess",
    "AddProcess",
    "CreateCheckpoint",
    "DeleteCheckpoint",
    "ListCheckpoint",
    "State",
    "Events",
    "Stats",
)
REACH = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}
HUGE = ("x" * 70_000, "\u20ac" * 300_000, "/" * 5000, "a/" * 40_000, "y" * 3_000_000)
ODD = (
    "",
    "\0",
    "fuzz0\0",
    "..",
    "../..",
    ".",
    "a/b",
    ".serve",
    "-x",
    "--root",
    "\u00e9",
    "\U0001f433",
    "x" * 76,
    "x" * 77,
)
ODD_STRINGS = (*ODD, "\n", "%s%n", "{}", '"', "'; false", "\ufeff", "\u202e", "fuzz0 ", " fuzz0")
texts = st.one_of(st.sampled_from(ODD_STRINGS), st.text(max_size=20), st.sampled_from(HUGE))


def numbers(kind: int) -> st.SearchStrategy[int]:
    """Numbers of a kind of field: small ones, any, and the outermost."""
    least, most = REACH[kind]
    near = st.sampled_from(sorted({least, least + 1, 0, 1, most - 1, most, 1 << 30, (1 << 31) - 1}))
    return st.one_of(st.integers(max(least, 0), 70), near, st.integers(least, most))


def is_list(field: Any) -> bool:
    """Does it hold several values?"""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED)


def leaves(descriptor: Any, deep: int = 3) -> list[tuple[Any, ...]]:
    """The ways to all fields of a message: each field, and in such that are messages each of theirs."""
    found: list[tuple[Any, ...]] = []
    for field in descriptor.fields:
        found.append((field,))
        if field.message_type is not None and not is_list(field) and deep:
            found += [(field, *rest) for rest in leaves(field.message_type, deep - 1)]
    return found


class Requests:
    """Strategies for what is sent to *target*."""

    def __init__(self, target: Target) -> None:
        fifos = [path for bundle in target.bundles.values() for path in bundle.fifos.values()]
        nowhere = texts.map(lambda text: f"{target.top}/nowhere/{text.replace('..', ',,')}")
        ids = st.one_of(st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from(ODD), texts)
        names = st.one_of(st.sampled_from(PROCESSES), st.sampled_from(PROCESSES), texts)
        stdio = st.one_of(
            st.just(""), st.sampled_from([*fifos, *target.no_fifos]), nowhere, st.sampled_from(("relative", "a\0b"))
        )
        bundle = st.one_of(
            st.sampled_from([bundle.path for bundle in target.bundles.values()]),
            st.sampled_from([*target.bad_bundles, "", "relative", "\0", target.top]),
            nowhere,
        )
        # A checkpoint's name is one that nobody else has, wherever its directory is.
        checkpoints = st.sampled_from(
            ("", "fuzz-check-1", "fuzz-check-2", "..", ".", "fuzz-check/3", "fuzz-\0", "\u00e9" * 300)
        )
        places = st.one_of(
            st.sampled_from(
                ("", f"{target.top}/checks", f"{target.top}/file", f"{target.top}/\0", "checks", "./checks")
            ),
            nowhere,
        )
        self._top = target.top
        self._bundles = target.bundles
        runtimes = st.sampled_from(("", "", "crun", "no-such-runtime", target.top, f"{target.top}/file", "no\0thing"))
        self._strings: dict[str, st.SearchStrategy[str]] = {
            "id": ids,
            "pid": names,
            "bundlePath": bundle,
            "stdin": stdio,
            "stdout": stdio,
            "stderr": stdio,
            "checkpoint": st.one_of(st.just(""), checkpoints),
            "name": checkpoints,
            "checkpointDir": places,
            "runtime": runtimes,
            "runtimeArgs": st.sampled_from(("--debug", "--no-such-option", "", "a\0b", "\u00e9")),
            "status": st.one_of(st.sampled_from(("running", "paused", "", "stopped")), texts),
            "args": st.one_of(st.sampled_from(("true", "sh", "-c", "exit 3", "sleep", "1000", "nosuch")), texts),
            "env": st.one_of(st.sampled_from(("PATH=/bin", "A", "=", "A=\0")), texts),
            "cwd": st.one_of(st.sampled_from(("/", "", "relative", "/no/such", "/bin/sh")), texts),
            "type": st.one_of(st.sampled_from(("RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_NONE")), texts),
            "capabilities": st.one_of(st.sampled_from(("CAP_KILL", "CAP_NONE", "kill")), texts),
        }

    @st.composite
    @staticmethod
    def _message(draw: Any, self: Requests, descriptor: Any) -> Any:
        message = protos.message(descriptor.full_name)()
        for field in descriptor.fields:
            if not draw(st.booleans()):
                continue
            if is_list(field):
                values = draw(st.lists(self._value(field), max_size=4))
                getattr(message, field.name).extend(values)
            elif field.message_type is not None:
                getattr(message, field.name).CopyFrom(draw(self._value(field)))
            else:
                setattr(message, field.name, draw(self._value(field)))
        return message

    def _value(self, field: Any) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            return Requests._message(self, field.message_type)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._strings.get(field.name, texts)
        return numbers(field.type)

    def valid(self, call: str) -> st.SearchStrategy[Any]:
        """A request of *call*: every field may be there, with a value of its kind."""
        return Requests._message(self, protos.method(f"types.API/{call}").request.DESCRIPTOR)

    def good(self, call: str) -> Any:
        """A request that is answered well, to container ``fuzz0``, which runs; of a create to ``fuzz1``."""
        fields: dict[str, Any] = {
            "CreateContainer": {"id": "fuzz1", **self._bundles["exit"].create},
            "UpdateContainer": {"resources": {"pidsLimit": 50}},
            "Signal": {"pid": "init", "signal": 18},
            "UpdateProcess": {"pid": "init", "width": 80, "height": 24},
            "AddProcess": {
                "pid": "p1",
                "args": ["true"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 1, "gid": 1},
                "capabilities": ["CAP_KILL"],
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}],
                **self._bundles["cat"].fifos,
            },
            "CreateCheckpoint": {"checkpoint": {"name": "fuzz-check-1"}, "checkpointDir": f"{self._top}/checks"},
            "DeleteCheckpoint": {"name": "fuzz-check-1", "checkpointDir": f"{self._top}/checks"},
            "ListCheckpoint": {"checkpointDir": self._top},
            "Events": {"timestamp": {"seconds": 1}, "storedOnly": True},
        }.get(call, {})
        kind = protos.method(f"types.API/{call}").request
        return kind(**({"id": "fuzz0"} if "id" in kind.DESCRIPTOR.fields_by_name else {}) | fields)

    @st.composite
    @staticmethod
    def one_wrong(draw: Any, self: Requests, call: str) -> tuple[str, Any]:
        """A good request of *call* but for one field, which has any value of its kind or is left out; and which."""
        message = self.good(call)
        ways = leaves(message.DESCRIPTOR)
        if not ways:
            return "", message
        way = draw(st.sampled_from(ways))
        at = message
        for field in way[:-1]:
            at = getattr(at, field.name)
        field = way[-1]
        at.ClearField(field.name)
        if draw(st.integers(0, 5)):
            if is_list(field):
                getattr(at, field.name).extend(draw(st.lists(self._value(field), max_size=3)))
            elif field.message_type is not None:
                getattr(at, field.name).CopyFrom(draw(self._value(field)))
            else:
                setattr(at, field.name, draw(self._value(field)))
        return ".".join(field.name for field in way), message

    def broken(self, call: str) -> st.SearchStrategy[bytes]:
        """Bytes that were such a request, or never were one."""
        whole = self.valid(call).map(lambda message: message.SerializeToString())
        return st.one_of(st.binary(max_size=200), damaged(whole))


@st.composite
def damaged(draw: Any, whole: st.SearchStrategy[bytes]) -> bytes:
    """Cut off, with bits that are turned, with bytes taken out, put in or told twice."""
    data = bytearray(draw(whole))
    for how in draw(st.lists(st.sampled_from(("cut", "flip", "drop", "add", "twice")), min_size=1, max_size=4)):
        at = draw(st.integers(0, max(0, min(len(data), 4096) - 1)))
        if how == "cut":
            del data[at:]
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 8))]
        elif how == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif len(data) < 1 << 16:
            data[at:at] = data[at:]
    return bytes(data)


# ---- HTTP/2 by hand --------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame, whose *length* may be a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def headers(*pairs: tuple[str, str]) -> bytes:
    """A block of headers, each said in full: a literal that is not kept, with a new name."""
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode() for name, value in pairs
    )


def request(path: str, message: bytes, encoding: str = "identity", packed: int = 0) -> list[bytes]:
    """The frames of one call."""
    asked = headers(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-encoding", encoding),
    )
    body = bytes((packed,)) + struct.pack(">I", len(message)) + message
    return [frame(SETTINGS, 0, 0, b""), frame(HEADERS, 4, 1, asked), frame(DATA, 1, 1, body)]


@st.composite
def http2(draw: Any) -> list[bytes]:
    """Pieces for a socket: garbage, a call with garbage in it, frames of any kind in any order."""
    message = draw(st.sampled_from((b"", b"\x0a\x05fuzz0", b"\xff" * 20)))
    frames = request(
        f"/types.API/{draw(st.sampled_from(('State', 'Events', 'Signal', 'None')))}",
        message,
        draw(st.sampled_from(("identity", "gzip", "deflate", "none-such"))),
        draw(st.sampled_from((0, 1, 2, 255))),
    )
    odd = st.builds(
        frame,
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from((0, 1, 2, 3, 0x7FFFFFFF, 0xFFFFFFFF)),
        st.binary(max_size=60),
        st.one_of(st.none(), st.sampled_from((0, 1, 16384, 16385, 0xFFFFFF))),
    )
    for extra in draw(st.lists(odd, max_size=5)):
        frames.insert(draw(st.integers(0, len(frames))), extra)
    pieces = [PREFACE, *frames]
    how = draw(st.sampled_from(("as it is", "damaged", "cut", "garbage", "no preface")))
    if how == "damaged":
        return [draw(damaged(st.just(b"".join(pieces))))]
    if how == "cut":
        return pieces[: draw(st.integers(0, len(pieces)))]
    if how == "garbage":
        return [draw(st.binary(max_size=3000))]
    return pieces[1:] if how == "no preface" else pieces
