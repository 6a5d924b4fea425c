"""The ledger: it knows each container, each byte that has to come and each exit, and is told of every step.

What counts as wrong is written in `judge`. What a process that was killed has taken along is counted apart.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import lives
import msgspec
from worker import BLOCK

GRACE = 1.0
"""Seconds before and after a scarcity in which an error may still come from it."""


class Cause(NamedTuple):
    """Why calls may fail, from a moment to another: of all, or of one worker or container alone."""

    what: str
    scope: str
    begun: float
    ended: float


class Entry(NamedTuple):
    """One record: when, by which client (worker and generation), what."""

    at: float
    who: tuple[int, int]
    what: str
    rest: tuple[Any, ...]


class Ledger:
    """Takes records on a socket, in a thread of its own, and judges each container once it has gone."""

    def __init__(self, path: str, seed: int, kind: str = "local", plant: str = "") -> None:
        self.kind = kind
        self.seed = seed
        self.plant = plant
        self._lost = ""
        self.lock = threading.Lock()
        self.open: dict[str, list[Entry]] = defaultdict(list)
        self.closed: dict[str, dict[str, set[int]]] = {}
        self.marks: dict[str, set[str]] = defaultdict(set)
        self.dead: set[tuple[int, int]] = set()
        self.warm: set[tuple[int, int]] = set()
        self.parted: set[tuple[int, int]] = set()  # of these every record has been taken
        self.causes: list[Cause] = []
        self.heard: Counter[tuple[str, str]] = Counter()
        self.heard_codes: dict[tuple[str, str], int] = {}
        self.last: dict[tuple[int, int], float] = {}
        self.byes: dict[tuple[int, int], list[str]] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stories: list[str] = []  # of those containers with which something is wrong
        self._decode = msgspec.msgpack.Decoder().decode
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._waker = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    # ---- what is told ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        peers: dict[int, tuple[int, int]] = {}
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._wake:
                    return
                if key.fileobj is self._listener:
                    peer, _ = self._listener.accept()
                    self._selector.register(peer, selectors.EVENT_READ)
                    continue
                packet = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                if not packet:
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    self.parted.add(peers.pop(key.fd, (0, 0)))
                    continue
                at, what, *rest = self._decode(packet)
                with self.lock:
                    if what == "hello":
                        peers[key.fd] = (rest[0], rest[1])
                    self.take(at, peers[key.fd], what, *rest)

    def take(self, at: float, who: tuple[int, int], what: str, *rest: Any) -> None:
        """One record. The caller holds the lock."""
        if self.plant:
            rest = self._plant(what, rest)
            if not rest:
                return
        self.last[who] = at
        self.counts[what] += 1
        if what == "hello":
            return
        if what == "warm":
            self.warm.add(who)
            return
        if what == "bye":
            self.byes[who] = rest[0]
            return
        if what == "error":
            self._error(at, who, *rest)
        id = rest[0]
        if not id:
            return
        if id in self.closed:
            if what in ("told", "exit"):
                self.wrong.append(f"{id}: the exit of {rest[1]} was reported again after its end: {rest[2:]} by {who}")
            elif what not in ("force", "unclean", "gone", "error"):
                self.wrong.append(f"{id}: {what} after its end")
            return
        self.open[id].append(Entry(at, who, what, tuple(rest[1:])))
        if what == "got":
            self.counts["bytes"] += len(rest[3])
        if what == "gone":
            self._close(id)

    def _plant(self, what: str, rest: tuple[Any, ...]) -> tuple[Any, ...]:
        """A record as a fault would make it, once; nothing of one that is lost."""
        if self.plant == "byte" and what == "got" and len(rest[3]) > 1 and self._reads_all(rest[0]):
            self.plant = ""
            return (*rest[:3], rest[3][:-1])
        if self.plant == "code" and what == "exit":
            self.plant = ""
            return (*rest[:2], (rest[2] + 1) % 255, *rest[3:])
        if self.plant == "twice" and what == "told":
            self.plant = ""
            self.open[rest[0]].append(Entry(0, (0, 0), what, rest[1:]))
        if self.plant == "exit" and what in ("told", "exit") and rest[1] == "init":
            self._lost = self._lost or rest[0]
            return () if rest[0] == self._lost else rest
        return rest

    def _reads_all(self, id: str) -> bool:
        """Is it not killed before it has been read to the end?"""
        return lives.life(self.seed, id).kind not in ("kill", "force", "trap")

    def _close(self, id: str) -> None:
        entries = self.open.pop(id)
        verdict = Judge(self, id, entries)
        verdict.judge()
        self.wrong += [f"{id} ({verdict.life.kind}): {fault}" for fault in verdict.faults]
        if verdict.faults:
            self.stories.append(f"{id} {verdict.life}\n{verdict.marks}\n" + "\n".join(map(brief, verdict.entries)))
        self.counts.update(verdict.apart)
        self.closed[id] = verdict.allowed

    def _error(self, at: float, who: tuple[int, int], id: str, step: str, kind: str, text: str, begun: float) -> None:
        found = self.explain(at, who, id, begun)
        if found is None:
            self.wrong.append(f"{id or who}: {step} failed, and nothing explains it: {kind}: {text}")
        else:
            self.counts[f"refused, {found}"] += 1
        if "\n" in text:
            self.wrong.append(f"{id or who}: {step} failed with more than one line: {text!r}")

    def explain(self, at: float, who: tuple[int, int], id: str, begun: float) -> str | None:
        """Which hand's doing an error between *begun* and *at* may come from."""
        for cause in reversed(self.causes):
            if cause.ended + GRACE < begun or cause.begun > at:
                continue
            if cause.scope in ("", id, f"worker {who[0]}"):
                return cause.what
        return None

    # ---- what the hand does ------------------------------------------------------------------------------------------

    def began(self, what: str, scope: str = "") -> Cause:
        """A scarcity begins."""
        cause = Cause(what, scope, time.monotonic(), float("inf"))
        with self.lock:
            self.causes.append(cause)
        return cause

    def ended(self, cause: Cause) -> None:
        """And is over."""
        with self.lock:
            self.causes[self.causes.index(cause)] = cause._replace(ended=time.monotonic())

    def mark(self, id: str, what: str) -> None:
        """Something of that container is killed now."""
        with self.lock:
            self.marks[id].add(what)
            self.causes.append(Cause(what, id, time.monotonic(), float("inf")))

    def overheard(self, id: str, process: str, code: int) -> None:
        """The bystander, a client that is told of everything and is never killed, was told of an exit."""
        with self.lock:
            self.heard[id, process] += 1
            self.heard_codes[id, process] = code

    def open_of(self, number: int) -> list[str]:
        """The ids that worker has not ended, as far as is known."""
        with self.lock:
            return [id for id in self.open if number < 0 or id.startswith(f"c{number}-")]

    def finish(self) -> None:
        """No record comes any more; judges the rest."""
        os.write(self._waker, b".")
        self._thread.join()
        self._selector.close()
        self._listener.close()
        os.close(self._wake)
        os.close(self._waker)
        for id in list(self.open):
            self.wrong.append(f"{id}: nobody has ended it")
            self.stories.append(f"{id}\n" + "\n".join(map(brief, self.open[id])))
        for (id, process), count in self.heard.items():
            if count > 1:
                self.wrong.append(f"{id}: the bystander was told {count} times that {process} had ended")
            allowed = self.closed.get(id, {}).get(process)
            if allowed is not None and self.heard_codes[id, process] not in allowed:
                code = self.heard_codes[id, process]
                self.wrong.append(f"{id}: the bystander was told that {process} ended with {code}, not {allowed}")
        for who, more in self.byes.items():
            if more:
                self.wrong.append(f"client {who} has open what it had not before: {more}")


def brief(entry: Entry) -> str:
    """An entry for people."""
    rest = [f"{len(word)} bytes {word[:20]!r}" if isinstance(word, bytes) else word for word in entry.rest]
    return f"  {entry.at:.3f} {entry.who} {entry.what} {rest}"


class Judge:
    """What became of one container."""

    def __init__(self, ledger: Ledger, id: str, entries: list[Entry]) -> None:
        self.id, self.seed, self.dead, self.kind = id, ledger.seed, ledger.dead, ledger.kind
        self.marks = ledger.marks.pop(id, set())
        self.entries = sorted(entries, key=lambda entry: entry.at)
        self.life = lives.life(ledger.seed, id)
        self.faults: list[str] = []
        self.apart: Counter[str] = Counter()
        self.allowed: dict[str, set[int]] = {}

    def judge(self) -> None:
        """Fills `faults` and `apart`."""
        self.started = bool(self._of("started") or self._of("restored"))
        self.forced = bool(self._of("force") or self._of("signal"))
        self.died = any(entry.who in self.dead for entry in self.entries)
        if self._of("gone")[-1].rest[0]:
            self.faults.append("its directory is there though it was cleaned")
        for process in ("init", *self.life.execs):
            self._judge_exit(process)
            for stream in ("stdout", "stderr"):
                self._judge_bytes(process, stream)

    def _of(self, what: str, *rest: Any) -> list[Entry]:
        return [entry for entry in self.entries if entry.what == what and entry.rest[: len(rest)] == rest]

    def _judge_exit(self, process: str) -> None:
        life = self.life if process == "init" else lives.life(self.seed, self.id, process)
        allowed = {life.code}
        killable = self.forced or (process != "init" and (self.marks or self.died))
        if killable or "its runtime was killed" in self.marks:
            allowed.add(137)
        if "its runtime was killed" in self.marks and self.kind == "containerd":
            allowed.add(1)  # that of runc's own init, which it told before it became the container's
        if "its shim was killed" in self.marks or self._cut_off():
            allowed |= {255, 137}
        self.allowed[process] = allowed
        waited = self._of("exit", process)
        told = self._of("told", process)
        again = {entry.who for entry in self._of("unclean")} & self.dead
        if self.life.kind == "attach":  # no client owns it: its exit is kept until one has cleaned it
            again = self.dead
        if process != "init" and self.kind == "api":  # its events are told again when the clock was set back
            again = self.dead
        if len(told) > 1 and again:
            self.apart["exits told again, for a client was killed before it could clean"] += 1
            waited, told = ([entry for entry in entries if entry.who not in again] for entries in (waited, told))
        for entries in (waited, told):
            if len(entries) > 1:
                reports = [(entry.who, entry.rest[1:]) for entry in entries]
                self.faults.append(f"the exit of {process} was reported more than once: {reports}")
        for entry in (*waited, *told):
            code, known = entry.rest[1], entry.rest[2] if len(entry.rest) > 2 else True
            if code not in allowed:
                self.faults.append(f"{process} ended with {code} (known: {known}), and should with {allowed}")
            elif code == 255 or not known:
                self.apart["exit codes not known, for a shim was killed, or a start cut off"] += entry.what == "exit"
        begun = self.started if process == "init" else bool(self._of("execed", process))
        if waited or told:
            self.apart["exits told"] += 1
        elif begun and self._last_died(process):
            self.apart["exits that a killed client knew"] += 1
        elif begun and self.forced and "its shim was killed" in self.marks:
            self.apart["exits not known, of containers that were cleaned by force, for the shim was killed"] += 1
        elif begun and not (process != "init" and self.marks):
            self.faults.append(f"the exit of {process} was told to nobody")

    def _cut_off(self) -> bool:
        """Was the client that started it killed before it had been told that it runs? Nobody may know then."""
        return self.died and not self._of("started")

    def _last_died(self, process: str) -> bool:
        aside = ("force", "unclean", "gone", "error", "told")
        touched = [entry for entry in self.entries if entry.what not in aside]
        if process != "init":  # what the next client found is said when it has restored the container
            touched = [entry for entry in touched if entry.rest[:1] == (process,)]
            if any(process in entry.rest[1] for entry in self._of("restored")):
                return False
        return bool(touched) and touched[-1].who in self.dead

    def _judge_bytes(self, process: str, stream: str) -> None:
        life = self.life if process == "init" else lives.life(self.seed, self.id, process)
        if life.kind == "capture" and stream == "stderr":
            return
        whole = life.expected(stream)
        at = gap = 0
        reading: tuple[int, int] | None = None  # who was about to read
        for entry in self.entries:
            if entry.what == "read" and entry.rest == (process, stream):
                reading = entry.who if reading is None or reading == entry.who else reading
            elif entry.what == "got" and entry.rest[:2] == (process, stream):
                data = entry.rest[2]
                if not data:
                    pass
                elif whole.startswith(data, at):
                    at += len(data)
                else:
                    place = whole.find(data, at)
                    missing = place - at
                    may = reading in self.dead and reading != entry.who and missing <= BLOCK
                    if place < 0:
                        again = whole.find(data) >= 0
                        what = "read twice" if again else "not what it printed"
                        self.faults.append(f"{process} {stream}: at {at} {len(data)} bytes {what}: {data[:40]!r}")
                        return
                    if not may and not (life.kind == "capture" and self.died):
                        self.faults.append(f"{process} {stream}: {missing} bytes are missing at {at}")
                    gap += missing
                    at = place + len(data)
                if data or reading == entry.who:  # an end that the next client finds does not clear a killed one
                    reading = None
        self.apart["bytes read"] += at - gap
        if gap:
            self.apart["bytes that died with a client"] += gap
        rest = len(self._least(process, stream, life, whole)) - at
        if rest > 0:
            self._judge_rest(process, stream, rest, reading)

    def _least(self, process: str, stream: str, life: lives.Life, whole: bytes) -> bytes:
        """What has to come: of what was fed, only what was written when its client was killed."""
        if stream == "stderr" or life.kind != "cat":
            return whole
        wrote = sum(entry.rest[1] for entry in self._of("wrote", process))
        return life.out.data + life.fed.data[:wrote]

    def _judge_rest(self, process: str, stream: str, rest: int, reading: tuple[int, int] | None) -> None:
        """So many bytes have never come."""
        life = self.life if process == "init" else lives.life(self.seed, self.id, process)
        further = self._of("execed", process) or self._of("attached", process)
        begun = self.started if process == "init" else bool(further)
        if not begun or self.forced or "its runtime was killed" in self.marks or self._of("abandon", process):
            return  # it was ended before it had printed all, or nobody has read on
        codes = {entry.rest[1] for what in ("exit", "told") for entry in self._of(what, process)}
        if life.code not in codes and (self._cut_off() or ("its shim was killed" in self.marks and 137 in codes)):
            return  # daemons end a container whose shim was killed; a start that was cut off may have come to nothing
        restored = self._of("restored")
        if "its shim was killed" in self.marks and (self.died or self.life.kind in ("attach", "leave")):
            self.apart["bytes unread when the shim was killed"] += rest
        elif reading in self.dead and rest <= BLOCK:
            self.apart["bytes that died with a client"] += rest
        elif self.died and (not restored or restored[-1].rest[0]):
            self.apart["bytes that died with a client"] += rest  # it had let the shim go, or cleaned it even
        elif process != "init" and self._last_died(process):
            self.apart["bytes that died with a client"] += rest  # it had collected the end, so nobody else kept them
        else:
            self.faults.append(f"{process} {stream}: the last {rest} bytes are missing")
