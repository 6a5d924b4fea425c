"""A client that lives the lives of containers, one after another, and tells the ledger before and after each step.

It may be killed at any moment. The next of its number takes over what it left, and the last of all what everybody left.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import lives
import msgspec

import libctrd
from libctrd import relay
from libctrd.engine import shim
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError

BLOCK = 65536
"""So many bytes are read at a time, and no more can die with a client that was killed between a read and its record."""
PATIENCE = 60.0
STEP = 4000


class RefusedError(Exception):
    """A step of a life that failed, and was told to the ledger."""


class Teller:
    """Tells the ledger: one packet a record, whole or not at all, whenever this process is killed."""

    def __init__(self, path: str, number: int, generation: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._encode = msgspec.msgpack.Encoder().encode
        self.say("hello", number, generation, os.getpid())

    def say(self, *words: Any) -> None:
        self._socket.sendall(self._encode((time.monotonic(), *words)))


class Streams:
    """What is read of one process, each byte told."""

    def __init__(self, worker: Worker, id: str, process: str, of: Any, reads: bool = True) -> None:
        self._say, self._step, self._id, self._process = worker.teller.say, worker.step, id, process
        names = ("stdout", "stderr") if reads else ()
        self.open = {name: fifo for name in names if (fifo := getattr(of, name)) is not None}
        self.stdin = of.stdin

    def read(self, stream: str, most: int = BLOCK) -> bytes:
        """At least a byte, unless the end has come."""
        self._say("read", self._id, self._process, stream)
        with self._step(self._id, "read"):
            data: bytes = self.open[stream].read(min(most, BLOCK))
        self._say("got", self._id, self._process, stream, data)
        return data

    def part(self, stream: str, count: int) -> None:
        """So many bytes, or up to the end."""
        while count > 0 and stream in self.open and (data := self.read(stream, count)):
            count -= len(data)

    def rest(self) -> None:
        """Up to the end of both."""
        for stream in self.open:
            while self.read(stream):
                pass

    def feed(self, data: bytes) -> None:
        """Into its stdin; the intention is told first."""
        for start in range(0, len(data), STEP):
            block = data[start : start + STEP]
            self._say("write", self._id, self._process, len(block))
            with self._step(self._id, "write"):
                self.stdin.write(block)
            self._say("wrote", self._id, self._process, len(block))

    def end_stdin(self) -> None:
        if self.stdin is not None:
            with self._step(self._id, "close stdin"):
                self.stdin.close()

    def leave(self) -> None:
        """As a client goes whose streams end, though nobody tells the engine that there is no more to come."""
        self.close()

    def close(self) -> None:
        for stream in (self.stdin, *self.open.values()):
            if stream is not None:
                stream.close()


class Worker:
    """One client process."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.number, self.generation, self.seed = given["number"], given["generation"], given["seed"]
        self.dice = random.Random(f"{self.seed}/{self.number}/{self.generation}")
        self.teller = Teller(given["ledger"], self.number, self.generation)
        self.stopping = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        self.client = self.connect()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def connect(self) -> libctrd.Client:
        """A new client; as soon as one can be had."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(RefusedError), self.step("", "connect"):
                client = libctrd.connect(
                    self.given["address"], runtime=self.given["runtime"], namespace=self.given["namespace"]
                )
                client.subscribe(self)
                return client
            if time.monotonic() > end:
                raise SystemExit("no client could be had")
            self.stopping.wait(0.05)

    def state_changed(self, id: str, info: libctrd.StateInfo) -> None:
        """The listener: of the ends of what this client owns."""
        if info.type in ("exit", "exit-process"):
            self.teller.say("told", id, info.process, info.exit_code)

    @contextlib.contextmanager
    def step(self, id: str, what: str) -> Iterator[None]:
        """A call that may fail; that is told, and raised as `RefusedError`."""
        begun = time.monotonic()
        try:
            yield
        except CtrdError as error:
            self.teller.say("error", id, what, type(error).__name__, str(error), begun)
            raise RefusedError(what) from error

    def attempt(self, id: str, what: str, call: Callable[..., Any], *arguments: Any) -> bool:
        """Like `step`; did it work?"""
        try:
            with self.step(id, what):
                call(*arguments)
        except RefusedError:
            return False
        return True

    def end(self, id: str, process: str, of: Any) -> None:
        """Waits for the end of a container or process, and tells it."""
        with self.step(id, "wait"):
            status = of.wait(PATIENCE)
        self.teller.say("exit", id, process, status.code, status.known)

    def get_rid(self, id: str, what: str = "force") -> None:
        """By force, whatever there is of that container; again until it works."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.teller.say(what, id)
                with self.step(id, "clean"):
                    try:
                        self.client.get(id).clean(force=True)
                    except NotFoundError:
                        self.client.create(id, self.spec("true")).clean()  # what is half made, if there is such
                break
            except RefusedError:
                if time.monotonic() > end:
                    break
                self.stopping.wait(0.05) if not self.stopping.is_set() else time.sleep(0.05)
        self.teller.say("gone", id, os.path.lexists(os.path.join(self.given["root"], id)))

    def spec(self, script: str) -> dict[str, Any]:
        return libctrd.spec.default(["/bin/sh", "-c", script], self.given["rootfs"])

    # ---- a life ------------------------------------------------------------------------------------------------------

    def live(self, id: str) -> None:
        """All of it, from the creation to the clean end."""
        life = lives.life(self.seed, id)
        streams: list[Streams] = []
        try:
            self.teller.say("create", id)
            with self.step(id, "create"):
                container = self.client.create(id, self.spec(life.script))
            self.teller.say("start", id, life.kind)
            with self.step(id, "start"):
                if life.kind == "capture":
                    with open(self.file(id), "ab") as file:
                        container.start(libctrd.Stdio(libctrd.NULL, file, libctrd.NULL))
                else:
                    container.start(libctrd.DETACHED if life.kind == "attach" else libctrd.PIPE)
            self.teller.say("started", id)
            getattr(self, f"live_{life.kind}", self.live_plain)(container, life, streams)
        except RefusedError:
            for each in streams:
                each.close()
            self.get_rid(id)
            return
        for each in streams:
            each.close()
        self.gone(id)

    def gone(self, id: str) -> None:
        """It has ended. That it could not be cleaned just then is logged, and left to whoever comes next."""
        if os.path.lexists(os.path.join(self.given["root"], id)):
            self.get_rid(id, "unclean")
        else:
            self.teller.say("gone", id, False)

    def live_plain(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        """Read to the end, stdin closed first where it waits for that."""
        own = Streams(self, container.id, "init", container)
        streams.append(own)
        if life.kind in ("host", "pause", "leave"):
            own.end_stdin()
        own.rest()
        self.end(container.id, "init", container)

    def live_cat(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        own = Streams(self, container.id, "init", container)
        streams.append(own)
        own.part("stdout", len(life.out.data))
        own.feed(life.fed.data)
        own.end_stdin()
        own.rest()
        self.end(container.id, "init", container)

    def live_host(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        """Further processes, two at a time."""
        for name in life.execs:
            self.attempt(container.id, f"exec {name}", self.exec, container, name)
        self.live_plain(container, life, streams)

    def exec(self, container: libctrd.Container, name: str) -> None:
        id, life = container.id, lives.life(self.seed, container.id, name)
        self.teller.say("exec", id, name)
        process = container.exec(["/bin/sh", "-c", life.script], name=name)
        self.teller.say("execed", id, name)
        streams = Streams(self, id, name, process)
        try:
            if life.kind == "cat":
                streams.part("stdout", len(life.out.data))
                streams.feed(life.fed.data)
            streams.end_stdin()
            streams.rest()
            self.end(id, name, process)
        except RefusedError:
            self.teller.say("abandon", id, name)
            raise
        finally:
            streams.close()

    def live_pause(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        self.attempt(container.id, "pause", container.pause, PATIENCE)
        self.thaw(container)
        self.live_plain(container, life, streams)

    def thaw(self, container: libctrd.Container) -> None:
        """Until it is not paused any more: what runs may refuse to, the more so when it is killed amid it."""
        paused = [True]
        while paused:
            paused.clear()
            if not self.attempt(container.id, "look", lambda: container.status == "paused" and paused.append(True)):
                paused.append(True)
            elif paused:
                with contextlib.suppress(RefusedError), self.step(container.id, "resume"):
                    container.resume(PATIENCE)

    def live_kill(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        own = Streams(self, container.id, "init", container)
        streams.append(own)
        own.part("stdout", len(life.out.data) // 2)
        self.teller.say("signal", container.id, "KILL")
        self.signal(container, "KILL")
        own.rest()
        self.end(container.id, "init", container)

    def signal(self, container: libctrd.Container, name: str) -> None:
        """That it has ended meanwhile is no failure."""
        with self.step(container.id, "signal"), contextlib.suppress(NotFoundError):
            container.signal(name)

    def live_force(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        own = Streams(self, container.id, "init", container)
        streams.append(own)
        own.part("stdout", len(life.out.data))
        self.teller.say("force", container.id)
        with self.step(container.id, "clean"):
            container.clean(force=True)
        self.end(container.id, "init", container)

    def live_trap(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        own = Streams(self, container.id, "init", container)
        streams.append(own)
        own.part("stdout", len(life.out.data))
        own.part("stderr", len(life.err.data))
        if not life.out.count and not life.err.count:  # nothing says that it heeds the signal by now
            self.teller.say("signal", container.id, "KILL")
        self.signal(container, "TERM" if life.out.count or life.err.count else "KILL")
        own.rest()
        self.end(container.id, "init", container)

    def live_leave(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        """The client is closed, and another one goes on with it."""
        own = Streams(self, container.id, "init", container)
        own.part("stdout", min(len(life.out.data), self.dice.choice((0, 9, 100_000))))
        self.client.close()
        own.leave()
        self.client = self.connect()
        self.take_over(container.id)

    def live_attach(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        """Nobody reads at first; then somebody comes, goes, and comes again."""
        count = min(len(life.out.data), 27_000)
        for last in (False, True):
            with self.step(container.id, "attach"):
                process = container.attach()
            own = Streams(self, container.id, "init", process)
            try:
                if not last:
                    own.part("stdout", count)
                    continue
                own.end_stdin()
                own.rest()
            finally:
                process.detach() if not last else own.close()
        self.end(container.id, "init", container)
        with self.step(container.id, "clean"):
            container.clean()

    def live_capture(self, container: libctrd.Container, life: lives.Life, streams: list[Streams]) -> None:
        """The relay delivers it into a file; what that holds is told in the end."""
        self.end(container.id, "init", container)
        self.tell_file(container.id)

    def file(self, id: str) -> str:
        return os.path.join(self.given["files"], id)

    def tell_file(self, id: str) -> None:
        try:
            with open(self.file(id), "rb") as file:
                while data := file.read(BLOCK):
                    self.teller.say("got", id, "init", "stdout", data)
            os.unlink(self.file(id))
        except FileNotFoundError:
            pass  # killed before it was made

    # ---- what others have left ---------------------------------------------------------------------------------------

    def mine(self, id: str) -> bool:
        return self.number < 0 or id.startswith(f"c{self.number}-")

    def take_over_all(self) -> None:
        """Every container of predecessors, and what of them never came to be one."""
        found: list[libctrd.Container] = []
        while not self.attempt("", "list", lambda: found.extend(self.client.containers())):
            time.sleep(0.05)
        for id in [container.id for container in found if self.mine(container.id)]:
            try:
                self.take_over(id)
                self.gone(id)
            except RefusedError:
                self.get_rid(id)
        for id in {*self.given["open"]} - {container.id for container in found}:
            self.get_rid(id)

    def take_over(self, id: str) -> None:
        life = lives.life(self.seed, id)
        self.teller.say("restore", id)
        let_go, held = self.kept_of(id)
        with contextlib.ExitStack() as stack, self.step(id, "restore"):
            stdio: Any = libctrd.PIPE
            if life.kind == "capture":
                file = stack.enter_context(open(self.file(id), "ab"))
                stdio = libctrd.Stdio(libctrd.NULL, file, libctrd.NULL)
            try:
                container = self.client.restore(id, stdio=stdio, further=libctrd.PIPE)
            except InvalidArgumentError as error:
                self.teller.say("unstarted", id)
                raise RefusedError("it was never started") from error
        self.teller.say("restored", id, let_go, held)
        own = Streams(self, id, "init", container, life.kind != "capture")
        try:
            for name, process in container.taken_over.items():
                self.teller.say("attached", id, name)
                self.end_process(id, name, process)
            if life.kind == "pause":
                self.thaw(container)
            own.end_stdin()
            if life.kind == "trap" or (life.kind in ("kill", "force") and self.dice.random() < 0.5):
                self.teller.say("signal", id, "KILL")
                with contextlib.suppress(RefusedError):
                    self.signal(container, "KILL")
            own.rest()
            self.end(id, "init", container)
            if life.kind == "capture":
                self.tell_file(id)
        finally:
            own.close()

    def end_process(self, id: str, name: str, process: libctrd.Process) -> None:
        streams = Streams(self, id, name, process)
        try:
            streams.end_stdin()
            streams.rest()
            with contextlib.suppress(RefusedError):
                self.end(id, name, process)
        finally:
            streams.close()

    def kept_of(self, id: str) -> tuple[bool, list[str]]:
        """Had its client told the shim to end before it was killed? It held all of the output then. If not, of which
        further processes has it not collected the end?
        """
        if self.given["kind"] != "local":
            with contextlib.suppress(CtrdError):
                return self.client.get(id).status == "stopped", []
            return True, []
        try:
            return False, [process.name for process in shim.processes(os.path.join(self.given["root"], id))]
        except CtrdError:
            return True, []

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.take_over_all()
        if self.number < 0:
            self.client.close()
            self.teller.say("bye", [], 0)
            return
        while not self.attempt("", "relay", self.warm):
            time.sleep(0.05)
        before = self.open_now()
        self.teller.say("warm")
        count = 0
        while not self.stopping.is_set():
            self.live(f"c{self.number}-{self.generation}-{count}")
            count += 1
        end = time.monotonic() + 5
        while (more := self.open_now() - before) and time.monotonic() < end:
            time.sleep(0.01)
        if self.given["kind"] != "local" and sum(more.values()) <= 2:  # gRPC may have connected once more
            more = Counter(name for name in more if not name.startswith("socket:"))
        self.client.close()
        self.teller.say("bye", [f"{name} ({count})" for name, count in more.items()], count)

    @staticmethod
    def warm() -> None:
        """Has libctrd make what it keeps once for all."""
        reader, writer = os.pipe()
        try:
            relay.discard(reader)
        finally:
            os.close(reader)
            os.close(writer)

    @staticmethod
    def open_now() -> Counter[str]:
        from fifo_kit import open_files

        gc.collect()
        return Counter(name for name in open_files() if not name.startswith("/memfd:"))  # the one copy of a runtime


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    Worker(json.loads(sys.argv[1])).run()
