"""What the fuzzers of `ctrd serve` share: a server that is watched, and calls of bytes of any kind (C25)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import psutil
from engine_kit import on_host, remove
from field_kit import until
from google.protobuf.message import DecodeError
from serve_kit import WAIT, Events, Served, keepers, script

from libctrd import protos

SOON = 1.0
"""Seconds within which a server answers, whatever was done to it before."""
PATIENCE = 10
"""So many times it is asked: a host may be busy with other things for a while, but a server that hangs stays so."""
SPARE = {"fds": 8, "threads": 3, "children": 0, "rss": 96 << 20}
"""What a server may hold more than at the beginning: connections that gRPC keeps, idle threads of its, and what an
allocator does not give back of messages of some MiB."""
FATES = ("exit", "trap", "cat", "terminal")
CODES = {"exit": 7, "trap": 9, "cat": 4, "terminal": 5}
"""What a bundle's container does, and the code that it ends with when nobody kills it."""
SCRIPTS = {
    "exit": "echo out; exit 7",
    "trap": "trap 'exit 9' TERM; while :; do sleep 0.05; done",
    "cat": "cat; exit 4",
    "terminal": "read x; exit 5",
}
BAD_CONFIGS = {
    "empty": b"",
    "cut": b'{"ociVersion": "1.0.2", "process": {"args": ["sh"',
    "list": b"[]",
    "null": b"null",
    "deep": b'{"a":' + b"[" * 100_000,
    "latin": b'{"ociVersion": "\xff\xfe"}',
    "bare": b"{}",
    "typed": b'{"ociVersion": 1, "process": [], "root": "x", "linux": 3, "mounts": {}, "hostname": []}',
    "vast": b'{"ociVersion": "1.0.2", "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 1e999}}}',
    "nul": b'{"ociVersion": "1.0.2", "process": {"args": ["sh\\u0000"], "cwd": "/"}, "root": {"path": "/no\\u0000"}}',
}
FAULTS = ("Traceback", "a fault in", "never retrieved", "never awaited", "could not be removed")
"""What it says on stderr when it has a fault."""
WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
"""What a server that works never says."""
GIVEN_UP = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Of a call that nobody waited for."""


class Target(Served):
    """A server to be attacked, with bundles for its containers, good and bad ones, and a stream that reads all events.

    It runs in a directory of its own, and what it says on stderr is kept. `settle` is for after each attack.
    """

    def __init__(self, rootfs: str) -> None:
        super().__init__("--runtime", "crun")
        self.said = os.path.join(self.top, "said")
        self.home = os.path.join(self.top, "home")
        os.mkdir(self.home)
        self.bundles = {
            fate: self.bundle(fate, script(text, rootfs, terminal=fate == "terminal")) for fate, text in SCRIPTS.items()
        }
        for name, config in BAD_CONFIGS.items():
            os.mkdir(os.path.join(self.top, name))
            Path(self.top, name, "config.json").write_bytes(config)
        os.makedirs(os.path.join(self.top, "directory", "config.json"))
        os.mkdir(os.path.join(self.top, "fifo"))
        os.mkfifo(os.path.join(self.top, "fifo", "config.json"))
        Path(self.top, "file").write_text("x")
        os.symlink(self.bundles["exit"].fifos["stdout"], os.path.join(self.top, "link"))
        self.bad_bundles = [os.path.join(self.top, name) for name in (*BAD_CONFIGS, "directory", "fifo", "file", "no")]
        self.no_fifos = [os.path.join(self.top, name) for name in ("file", "link", "directory", "no/thing", "s")]
        self.events: Any = None
        self.created: dict[str, int] = defaultdict(int)
        """How often a create of an id was answered well."""
        self.calls = 0
        self.starts = 0
        """How many there were, for who wants to know."""
        self.unsure: set[str] = set()
        """Ids of which a create may have gone well without a word: it was cancelled, or its bytes were random."""

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "libctrd.cli", "--state-dir", self.state, *self.options, "serve"]
        with open(self.said, "ab") as said:
            return subprocess.Popen(
                [*command, "--address", f"unix://{self.socket}", *arguments],
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=self.home,
            )

    def begin(self) -> None:
        """Starts it, has it do each thing once, and counts what it holds then."""
        self.start()
        self.events = Events(self)
        for fate in FATES:
            self.call("CreateContainer", id="first", **self.bundles[fate].create)
            self.created["first"] += 1
            self.clear()
            self.read_all()
        self.raw(b"")
        self.before = self.holds()

    # ---- calls ---------------------------------------------------------------------------------------------------

    def outcome(self, call: str, **fields: Any) -> Any:
        """The reply, or the error that came instead."""
        self.calls += 1
        try:
            return self.call(call, **fields)
        except grpc.RpcError as error:
            return error

    def send(
        self,
        path: str,
        *messages: bytes,
        timeout: float = WAIT,
        cancel_after: float | None = None,
        take: int = 3,
        compression: Any = None,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> grpc.StatusCode:
        """Calls *path* with requests of any bytes; returns the status. Of a stream *take* replies are waited for, and
        not long; *cancel_after* so many seconds the call is given up.
        """
        self.calls += 1
        make = self.channel.stream_stream(path)
        call = make(iter(messages), timeout=timeout, compression=compression, metadata=metadata)
        if cancel_after is not None:
            if cancel_after:
                time.sleep(cancel_after)  # the moment is what is tried
            call.cancel()
        try:
            for _ in range(take):
                if next(call, None) is None:
                    break
            else:
                call.cancel()
        except grpc.RpcError:
            pass
        code = call.code()
        assert code not in WRONG, (path, code, call.details(), messages[:1])
        return code

    def attempt(
        self, call: str, data: bytes, timeout: float = WAIT, cancel_after: float | None = None
    ) -> grpc.StatusCode:
        """Makes a call of `types.API` with a request of any bytes, and remembers what its stories must be like then."""
        method = protos.method(f"types.API/{call}")
        watched = 0.1 if call == "Events" else timeout  # what listens does not end by itself
        code = self.send(method.path, data, timeout=min(watched, timeout), cancel_after=cancel_after)
        if call == "CreateContainer":
            with contextlib.suppress(DecodeError):
                id = method.request.FromString(data).id
                if code is grpc.StatusCode.OK:
                    self.created[id] += 1
                elif code in GIVEN_UP:
                    self.unsure.add(id)
        if timeout == WAIT and call != "Events" and cancel_after is None:
            assert code not in GIVEN_UP, (call, code, data[:200])
        return code

    def raw(self, *pieces: bytes, half: bool = False, until: bytes = b"") -> bytes:
        """Sends bytes to the socket, whatever they are, and hangs up; with *half* the sending side first, and then it
        is read until the other side does, or says nothing for a moment. With *until* it is read until that has come.
        """
        got = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer, contextlib.suppress(OSError):
            peer.settimeout(WAIT if until else 0.2)
            peer.connect(self.socket)
            for piece in pieces:
                peer.sendall(piece)
            if half:
                peer.shutdown(socket.SHUT_WR)
            while (half or until not in got) and len(got) < 1 << 20 and (data := peer.recv(1 << 16)):
                got += data
        return got

    # ---- what must be so after each attack -----------------------------------------------------------------------

    def answers(self) -> None:
        """It tells its version and that it is well, soon."""
        health = protos.method("grpc.health.v1.Health/Check")
        check = self.channel.unary_unary(
            health.path,
            request_serializer=health.request.SerializeToString,
            response_deserializer=health.reply.FromString,
        )
        for _ in range(PATIENCE):
            try:
                assert self.call("GetServerVersion", SOON).minor == 2
                assert check(health.request(), timeout=SOON).status == 1
                return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
        raise AssertionError("it answers no more")

    def clear(self) -> None:
        """Ends every container that there is; returns when all are gone."""

        def none_is_left() -> bool:
            listed = self.call("State").containers
            for container in listed:
                with contextlib.suppress(grpc.RpcError):  # it has ended since, or runs
                    self.call("UpdateContainer", id=container.id, status="running")
                with contextlib.suppress(grpc.RpcError):
                    self.call("Signal", id=container.id, pid="init", signal=9)
            # State may leave out one that has just ended, and whose id is not free before its end is told.
            return not listed and os.listdir(self.state) == [".serve"]

        until(none_is_left)

    def read_all(self) -> None:
        """Reads what is unread of containers that are gone; nothing is kept for anybody then."""
        for bundle in self.bundles.values():
            for name in bundle.fifos:  # one that was made to be read by a container may have been given to be written
                fd = bundle.read(name)
                with contextlib.suppress(BlockingIOError):
                    while os.read(fd, 1 << 16):
                        pass
                os.close(fd)

        def nothing_is_kept() -> bool:
            return not keepers(self.state)

        until(nothing_is_kept)

    def settle(self) -> None:
        """Everything is as at the beginning: see each part."""
        assert self.process is not None
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.faults()}"
        self.answers()
        self.clear()
        self.read_all()
        assert os.listdir(self.home) == [], "left where it runs"
        assert self.faults() == ""
        until(self._is_told, 20)
        try:
            until(lambda: not self.more(), 10)
        except AssertionError:
            raise AssertionError(f"it holds more than at the beginning: {self.more()}") from None

    def _is_told(self) -> bool:
        """The stream has the story of every container, and all of them are possible ones."""
        assert self.events.error is None, self.events.error
        seen = list(self.events.seen)
        told = check_stories(seen, self.created, self.unsure)
        if told:  # and need not be looked at again
            self.starts += sum(kind == "start-container" for kind, *_ in seen)
            del self.events.seen[: len(seen)]
            self.created.clear()
        return told

    def faults(self) -> str:
        """What it said that only one says which has a fault."""
        said = Path(self.said).read_text(errors="replace")
        return said if any(word in said for word in FAULTS) else ""

    def holds(self) -> dict[str, int]:
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        return {
            "fds": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(process.children()),
            "rss": process.memory_info().rss,
        }

    def more(self) -> dict[str, tuple[int, int]]:
        """What it holds more than it may: before and now. The pool of threads for calls may be full."""
        now = self.holds()
        spare = {**SPARE, "threads": SPARE["threads"] + 64}
        return {
            what: (self.before[what], count) for what, count in now.items() if count > self.before[what] + spare[what]
        }

    def end(self) -> None:
        """Ends the server; nothing of its containers may be left on the host then."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.clear()
                self.read_all()
                self.events.close()
                assert self.stop() == 0
            left = {what: found for what, found in on_host(self.state).items() if found and what != "files"}
            assert left == {}
        finally:
            if self.process is not None:
                self.stop(signal.SIGKILL)
            remove(self.state)  # what a fault has left
            self.remove()


def check_stories(seen: list[tuple[str, str, str, int]], created: dict[str, int], unsure: set[str]) -> bool:
    """Is each container's story in *seen* possible: starts and ends in turn, of each process one of both, all of them
    before that of init; and as many starts as creates that went well? ``False`` when it is not at its end yet.
    """

    def story(id: str) -> list[tuple[str, str, str, int]]:
        return [event for event in seen if event[1] == id][-20:]

    starts: dict[str, int] = defaultdict(int)
    running: dict[str, set[str]] = {}
    for kind, id, pid, status in seen:
        if kind == "start-container":
            assert id not in running, ("started twice", story(id))
            running[id] = set()
            starts[id] += 1
            continue
        assert id in running, (f"{kind} without a start", story(id))
        if kind == "start-process":
            assert pid not in running[id], ("a process that was started twice", story(id))
            running[id].add(pid)
        elif kind == "exit" and pid == "init":
            assert running.pop(id) == set(), ("init ended before a process", story(id))
            assert 0 <= status <= 255, story(id)
        elif kind == "exit":
            assert pid in running[id], ("a process that ended twice", story(id))
            running[id].discard(pid)
        else:
            assert kind in ("pause", "resume", "oom"), story(id)
    for id, count in starts.items():
        assert count <= created[id] or id in unsure, ("more starts than creates", id, count, created[id])
    return not running and all(starts[id] >= count for id, count in created.items())
