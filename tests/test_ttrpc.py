"""ttrpc: frames are cut right however they come, a call gets its answer or a clear error, memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd import protos
from libctrd.engine.ttrpc import LARGEST, REQUEST, RESPONSE, Call, Frame, Frames, encode
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    UnsupportedError,
)

METHOD = "containerd.task.v2.Task/State"
frames = st.builds(Frame, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))


class Peer:
    """A shim that says what the test wants it to. `Call` connects to it, and then it takes that one connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self.connection: socket.socket | None = None

    def call(self, **how: Any) -> Call:
        request = protos.message("containerd.task.v2.StateRequest")(id="one", exec_id="two")
        call = Call(self.path, METHOD, request, doing="ask", **how)
        self.connection, _ = self._listener.accept()
        return call

    def say(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.sendall(data)

    def answer(self, *, code: int = 0, text: str = "", payload: bytes = b"") -> None:
        status = protos.message("google.rpc.Status")(code=code, message=text)
        response = protos.package("ttrpc").Response(status=status if code else None, payload=payload)
        self.say(encode(Frame(1, RESPONSE, 0, response.SerializeToString())))

    def asked(self) -> Frame:
        assert self.connection is not None
        (frame,) = Frames().feed(self.connection.recv(LARGEST))
        return frame

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def close(self) -> None:
        self._listener.close()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    # Next to nothing of a long tmp_path fits into a socket's path.
    directory = os.open(tmp_path, os.O_PATH)
    made = Peer(f"/proc/self/fd/{directory}/s")
    yield made
    made.close()
    os.close(directory)


# ---- frames ----------------------------------------------------------------------------------------------------------


# C26
@given(st.lists(frames, max_size=6), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser, got = Frames(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += parser.feed(stream[begin:end])
    assert got == sent


# C26
@given(st.binary(max_size=2000))
def test_any_bytes_are_frames_or_a_clear_error(noise: bytes) -> None:
    got: list[Frame] = []
    with contextlib.suppress(UnavailableError):
        got = Frames().feed(noise)
    assert noise.startswith(b"".join(map(encode, got)))


# C26
def test_a_frame_that_announces_too_much_is_refused_before_any_of_it_is_kept() -> None:
    with pytest.raises(UnavailableError, match=f"{LARGEST + 1} bytes"):
        Frames().feed(struct.pack(">IIBB", LARGEST + 1, 1, RESPONSE, 0))


def test_the_largest_frame_passes_and_a_larger_one_is_not_made() -> None:
    whole = Frame(1, RESPONSE, 0, bytes(LARGEST))
    assert Frames().feed(encode(whole)) == [whole]
    with pytest.raises(InvalidArgumentError, match="allowed"):
        encode(Frame(1, RESPONSE, 0, bytes(LARGEST + 1)))


def test_a_header_is_the_ten_bytes_of_the_specification() -> None:
    assert encode(Frame(1, REQUEST, 0, b"abc")) == b"\0\0\0\3" + b"\0\0\0\1" + b"\1" + b"\0" + b"abc"


# ---- a call ----------------------------------------------------------------------------------------------------------


# C26
def test_a_call_says_what_it_wants_and_gets_its_answer(peer: Peer) -> None:
    call = peer.call(timeout=1.5, metadata=(("key", "value"),))
    assert call.receive() is None
    frame = peer.asked()
    request = protos.package("ttrpc").Request.FromString(frame.content)
    assert (frame.stream, frame.type, frame.flags) == (1, REQUEST, 0)
    assert (request.service, request.method, request.timeout_nano) == (
        "containerd.task.v2.Task",
        "State",
        1_500_000_000,
    )
    assert [(pair.key, pair.value) for pair in request.metadata] == [("key", "value")]
    assert protos.message("containerd.task.v2.StateRequest").FromString(request.payload).exec_id == "two"
    peer.answer(payload=b"reply")
    assert call.wait(time.monotonic() + 10) == b"reply"
    call.close()


def test_an_answer_may_come_byte_by_byte(peer: Peer) -> None:
    call = peer.call()
    response = protos.package("ttrpc").Response(payload=b"slow").SerializeToString()
    packet = encode(Frame(1, RESPONSE, 0, response))
    for at in range(len(packet) - 1):
        peer.say(packet[at : at + 1])
        assert call.receive() is None
    peer.say(packet[-1:])
    assert call.receive() == b"slow"
    call.close()


# C26
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, RuntimeFailedError),
        (3, InvalidArgumentError),
        (4, DeadlineError),
        (5, NotFoundError),
        (12, UnsupportedError),
        (14, UnavailableError),
        (99, RuntimeFailedError),
    ],
)
def test_what_the_shim_refuses_is_an_error_of_the_family(peer: Peer, code: int, kind: type[CtrdError]) -> None:
    call = peer.call()
    peer.answer(code=code, text="it is\x1b[31m so: unknown")
    with pytest.raises(kind, match=r"could not ask: it is\?\[31m so$"):
        call.receive()
    call.close()


# C26
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "allowed"),
        (encode(Frame(1, 3, 0, b"data")), "type 3"),
        (encode(Frame(2, RESPONSE, 0, b"")), "stream 2"),
        (encode(Frame(1, RESPONSE, 0, b"\xff\xff\xff")), "decoded"),
    ],
)
def test_who_does_not_speak_ttrpc_is_told_so(peer: Peer, said: bytes, why: str) -> None:
    call = peer.call()
    peer.say(said)
    with pytest.raises(UnavailableError, match=f"does not speak ttrpc.*{why}"):
        call.receive()
    call.close()


# C26
def test_a_shim_that_goes_without_an_answer_is_not_found(peer: Peer) -> None:
    call = peer.call()
    peer.asked()
    peer.say(encode(Frame(1, RESPONSE, 0, b"half"))[:12])
    peer.hang_up()
    with pytest.raises(NotFoundError, match="has gone"):
        call.receive()
    call.close()


def test_a_shim_that_goes_before_it_has_read_is_not_found(peer: Peer) -> None:
    call = peer.call()
    peer.hang_up()
    with pytest.raises(NotFoundError, match="could not ask"):
        call.receive()
    call.close()


def test_nobody_who_listens_is_not_found(peer: Peer) -> None:
    path = peer.path
    peer.close()
    with pytest.raises(NotFoundError, match="nobody listens"):
        Call(path, METHOD, protos.message("containerd.task.v2.StateRequest")(), doing="ask")
    with pytest.raises(NotFoundError, match="nobody listens"):
        Call(f"{path}-not", METHOD, protos.message("containerd.task.v2.StateRequest")(), doing="ask")


def test_a_shim_that_accepts_no_more_is_told_at_once(peer: Peer) -> None:
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(peer.path)  # the last ones no longer get through
    with pytest.raises(UnavailableError, match="it hangs"):
        Call(peer.path, METHOD, protos.message("containerd.task.v2.StateRequest")(), doing="ask")
    for one in waiting:
        one.close()


def test_a_shim_that_says_nothing_is_waited_for_so_long_and_no_longer(peer: Peer) -> None:
    call = peer.call()
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match="in time"):
        call.wait(begin + 0.05)
    assert 0.04 < time.monotonic() - begin < 5
    call.close()


def test_a_closed_call_says_so_and_closes_again(peer: Peer) -> None:
    call = peer.call()
    call.close()
    call.close()
    assert call.fileno() == -1
    with pytest.raises(ClosedError, match="closed"):
        call.receive()


def test_a_failed_call_leaves_no_descriptor(peer: Peer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(NotFoundError):
            Call(f"{peer.path}-not", METHOD, protos.message("containerd.task.v2.StateRequest")(), doing="ask")
    assert len(os.listdir("/proc/self/fd")) == before
