"""What reads bytes of others, as targets: each takes any bytes, and may raise nothing but the errors of libctrd.

`tools/fuzz/run` drives them by coverage; the suite with random bytes, and with all that was ever found. Those of a
containerd, its images and its events, are in fuzz_containerd.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import fuzz_containerd

from libctrd import ids, protos
from libctrd import spec as specs
from libctrd.engine import apiwire, shim, ttrpc
from libctrd.errors import CtrdError
from libctrd.images import layers, reference
from libctrd.serve import eventlog, wire

_SPEC: Final = json.dumps(specs.default(["sh"], "/", rootless=False)).encode()


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """The path of a file in memory."""
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def spec(data: bytes) -> None:
    """A ``config.json``: what is valid can be asked, written, and read again as it was."""
    with _file(data) as path:
        document = specs.load(path)
    specs.host_root(document)
    specs.own_namespace(document, "pid")
    specs.validate(document)
    assert json.loads(specs.encode(document)) == json.loads(data.decode("utf-8-sig"))
    specs.resolve(document, "/bundle")


def words(data: bytes) -> None:
    """What is given as text: ids, mounts, sizes, users, references of images."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (ids.check, specs.parse_mount, specs.parse_size, specs.parse_user, reference.parse):
        with contextlib.suppress(CtrdError):
            parse(text)


def exit_records(data: bytes) -> None:
    """The records that a shim leaves, and a pid file."""
    with tempfile.TemporaryDirectory() as directory:
        for name in (shim.EXIT_RECORD, "exec-1.exit", shim.PID_FILE):
            with open(os.path.join(directory, name), "wb") as file:
                file.write(data)
        shim.read_pid(directory)
        with contextlib.suppress(CtrdError):
            shim.read_exit(directory)
        with contextlib.suppress(CtrdError):
            shim.read_process_exits(directory)


def replies(data: bytes) -> None:
    """What a shim, or a runtime through it, answers: each line is a packet, events of a watch before it among them."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        ours.settimeout(shim.REPLY_SECONDS)
        for packet in filter(None, data.split(b"\n")[:20]):
            its.send(packet[: shim.PACKET])
        its.shutdown(socket.SHUT_WR)
        shim.ask(ours, "/state", "start")


def event_log(data: bytes) -> None:
    """A log of events, whole or damaged: what can be read is kept, in order, and can be written again."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "log")
        with open(path, "wb") as file:
            file.write(data)
        log = eventlog.EventLog(path)
        try:
            entries = log.after(0)
            log.append("exit", "x", "init", 1)
        finally:
            log.close()
        again = eventlog.EventLog(path)
        try:
            assert again.after(0)[: len(entries)] == entries
        finally:
            again.close()


def frames(data: bytes) -> None:
    """What comes over a ttrpc connection, in one piece or byte by byte."""
    whole, bit_by_bit = ttrpc.Frames(), ttrpc.Frames()
    try:
        found = whole.feed(data)
    except CtrdError:
        return
    assert found == [frame for byte in data for frame in bit_by_bit.feed(bytes([byte]))]


def messages(data: bytes) -> None:
    """Messages of `types.API` from a daemon and from a client, as far as they are messages at all."""
    for name, use in _USES.items():
        message: Any = protos.message(f"types.{name}")()
        try:
            message.ParseFromString(data)
        except Exception as error:  # noqa: BLE001 - of which kind is a matter of protobuf's version
            assert type(error).__name__ == "DecodeError"  # noqa: PT017
            continue
        with contextlib.suppress(CtrdError, *_REFUSED.get(name, ())):
            use(message)


def _there_and_back(limits: dict[str, Any]) -> None:
    """What a server has read of an update, a client can ask for, and the server reads the same again."""
    assert wire.resources(apiwire.resources(limits)) == limits


_REFUSED: Final = {"EventsRequest": (ValueError,)}  # the server says so in the words of that API
_USES: Final[dict[str, Callable[[Any], object]]] = {
    "Event": lambda event: (apiwire.exit_status(event), apiwire.nanoseconds(event.timestamp)),
    "StatsResponse": apiwire.stats,
    "UpdateResource": lambda update: _there_and_back(wire.resources(update)),
    "AddProcessRequest": wire.document,
    "EventsRequest": lambda request: wire.nanoseconds(request.timestamp),
}


def layer(data: bytes) -> None:
    """A layer of an image: an archive of tar, packed or not."""
    layers.check(iter(io.BytesIO(data).read, b""), "a layer")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (spec, words, exit_records, replies, event_log, frames, messages, layer, *fuzz_containerd.TARGETS)
}
COMPILED: Final = {"spec": "shape"}
"""Those whose bytes reach a module of ours that is compiled, and which: a fuzzer has to see into that."""
JSON: Final = {"spec", "exit_records", "event_log"}
"""Those that take JSON: most changes of a byte make it none, so parts of documents are changed as well."""
SEEDS: Final[dict[str, list[bytes]]] = {
    "spec": [
        _SPEC,
        b"{}",
        b'{"ociVersion":"1.0.2","root":{"path":"/"},"linux":{"uidMappings":[{}]}}',
        b'{"ociVersion":"1.0.2","root":{"path":"/"},"hostname":"web","process":{"args":["sh"],"cwd":"/"}}',
    ],
    "words": [
        b"web-1",
        b"type=bind,source=/a,target=/b,ro",
        b"64m",
        b"1000:1000",
        b"docker.io/library/a:1@sha256:" + b"0" * 64,
    ],
    "exit_records": [b'{"name":"x","code":7,"oom_killed":false,"seconds":1700000000,"nanoseconds":5}', b"4711\n"],
    "replies": [
        b"ok",
        b"error 2 open /x",
        b'failed 1 {"msg":"no","level":"error"}',
        b"broken 13 bind x",
        b"exit 1 0 2 3",
        b"oom\nprocess x 7\nended x 1 2 3\nok",
    ],
    "event_log": [b'{"version":1}\n{"type":"exit","id":"a","at":5,"pid":"init","status":3,"mark":"m"}\n'],
    "frames": [b"\0\0\0\3\0\0\0\1\2\0\x0a\x01x", b"\0\0\0\0\0\0\0\1\1\0"],
    "messages": [b"\x0a\x04exit\x12\x01a\x1a\x04init \x07", b"\x0a\x01a"],
    "layer": [b"", b"\0" * 1024],
    **fuzz_containerd.SEEDS,
}
