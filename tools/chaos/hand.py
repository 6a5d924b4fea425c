"""The other hand: it kills, stops, starves, fills, and sets the clock, and puts right again what is not to last.

It tells the ledger first what may go wrong from now on, and for whom.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import resource
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ledger import Ledger
from places import LocalPlace

from libctrd import proc
from libctrd.errors import CtrdError

DAY = 86_400_000_000_000


class Process(NamedTuple):
    """One that may be hit: its pid, its command line, and the container that it works for ("": none)."""

    pid: int
    words: list[str]
    id: str


class Hand:
    """*clients* gives the living workers by number and generation; *top* is the small disk that everything lies on."""

    def __init__(
        self,
        ledger: Ledger,
        dice: random.Random,
        place: LocalPlace,
        top: str,
        clock: str,
        clients: Callable[[], dict[tuple[int, int], int]],
        pids_cgroup: str,
        only: str = "",
    ) -> None:
        self._ledger, self._dice, self._place, self._top, self._clients = ledger, dice, place, top, clients
        self._clock, self._pids_cgroup = clock, pids_cgroup
        self._stopped: dict[int, float] = {}
        self.done: Counter[str] = Counter()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._filling = False
        self._starved: set[int] = set()
        self._acts: list[tuple[int, Callable[[], str]]] = [
            (6, self.kill_client),
            (4, self.kill_shim),
            (3, self.kill_runtime),
            (2, self.fill_bytes),
            (2, self.fill_inodes),
            (3, self.starve_descriptors),
            (4, self.stop),
            (3, self.set_clock),
        ]
        if pids_cgroup:
            self._acts.append((2, self.starve_pids))
        if place.has_daemon:
            self._acts.append((1, self.kill_daemon))
        if only:
            self._acts = [(weight, act) for weight, act in self._acts if act.__name__ in only.split(",")]

    def act(self) -> None:
        """Does one thing, chosen by the dice."""
        (act,) = self._dice.choices([act for _, act in self._acts], [weight for weight, _ in self._acts])
        what = act()
        if what:
            self.done[what] += 1

    def due(self) -> None:
        """Puts right what has lasted long enough."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def rest(self) -> None:
        """Puts everything right at once."""
        while self._later:
            heapq.heappop(self._later)[2]()
        self._write_clock(0)

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serial), what))

    # ---- who there is ------------------------------------------------------------------------------------------------

    def _processes(self) -> list[Process]:
        """Every process that works for a container of ours."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
            except OSError:
                continue
            if (id := self._place.id_of(words)) is not None:
                found.append(Process(int(pid), words, id))
        return found

    def since(self, pid: int) -> float:
        """When that process was last let go on."""
        return self._stopped.get(pid, 0.0)

    def _send(self, process: Process, number: int, mark: str) -> bool:
        """Sends it a signal, if it is still what it was; its container is marked before."""
        try:
            pidfd = proc.pidfd_open(process.pid)
        except CtrdError:
            return False
        try:
            words = os.fsdecode(Path(f"/proc/{process.pid}/cmdline").read_bytes()).split("\0")
            if words != process.words:
                return False
            if mark:
                self._ledger.mark(process.id, mark)
            signal.pidfd_send_signal(pidfd, number)
            return True
        except OSError:
            return False
        finally:
            os.close(pidfd)

    # ---- kills -------------------------------------------------------------------------------------------------------

    def kill_client(self) -> str:
        clients = self._clients()
        if not clients:
            return ""
        who = self._dice.choice(sorted(clients))
        with self._ledger.lock:
            self._ledger.dead.add(who)
        os.kill(clients[who], signal.SIGKILL)
        return "clients killed"

    def kill_shim(self) -> str:
        shims = [process for process in self._processes() if self._place.is_shim(process.words)]
        if not shims:
            return ""
        hit = self._send(self._dice.choice(shims), signal.SIGKILL, "its shim was killed")
        return "shims killed" if hit else ""

    def kill_runtime(self) -> str:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            found = [process for process in self._processes() if not self._place.is_shim(process.words)]
            if found:
                hit = self._send(self._dice.choice(found), signal.SIGKILL, "its runtime was killed")
                return "runtimes killed" if hit else ""
        return ""

    def kill_daemon(self) -> str:
        cause = self._ledger.began("the daemon was killed")
        self._place.restart()
        self._after(1.0, lambda: self._ledger.ended(cause))
        return "daemons killed"

    # ---- scarcities --------------------------------------------------------------------------------------------------

    def fill_bytes(self) -> str:
        """The disk is full, but for a few pages."""
        if self._filling:
            return ""
        self._filling = True
        cause = self._ledger.began("the disk was full")
        filler = os.path.join(self._top, "filler")
        with open(filler, "wb", buffering=0) as file:
            block = 1 << 20
            while block >= 4096:
                try:
                    if file.write(b"x" * block) < block:
                        block //= 2
                except OSError:
                    block //= 2
            file.truncate(max(0, file.tell() - self._dice.choice((0, 0, 4096, 8192, 40_960))))
        self._after(self._dice.uniform(0.1, 1.0), lambda: self._empty([filler], cause))
        return "disk filled by bytes"

    def fill_inodes(self) -> str:
        """There are no inodes left, but for a few."""
        if self._filling:
            return ""
        self._filling = True
        cause = self._ledger.began("the disk was full")
        fillers: list[str] = []
        free = self._dice.choice((0, 0, 1, 3, 8, 20))
        with contextlib.suppress(OSError):
            while os.statvfs(self._top).f_ffree > free:
                path = os.path.join(self._top, f"filler-{len(fillers)}")
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
                fillers.append(path)
        self._after(self._dice.uniform(0.1, 1.0), lambda: self._empty(fillers, cause))
        return "disk filled by inodes"

    def _empty(self, fillers: list[str], cause: object) -> None:
        for filler in fillers:
            os.unlink(filler)
        self._ledger.ended(cause)  # type: ignore[arg-type]
        self._filling = False

    def starve_descriptors(self) -> str:
        """A client may open no more than a few descriptors: one whose Python has imported what it needs."""
        warm = self._ledger.warm
        clients = {who: pid for who, pid in self._clients().items() if who in warm and pid not in self._starved}
        if not clients:
            return ""
        who = self._dice.choice(sorted(clients))
        pid = clients[who]
        cause = self._ledger.began("no descriptors were left", f"worker {who[0]}")
        with contextlib.suppress(OSError):
            now = len(os.listdir(f"/proc/{pid}/fd"))
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (now + self._dice.randrange(8), before[1]))

            self._starved.add(pid)

            def restore() -> None:
                self._starved.discard(pid)
                with contextlib.suppress(OSError):  # it has ended
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
                self._ledger.ended(cause)

            self._after(self._dice.uniform(0.05, 0.8), restore)
            return "descriptors exhausted"
        self._ledger.ended(cause)
        return ""

    def starve_pids(self) -> str:
        """No more than a few processes and threads may be made by clients, shims and runtimes."""
        limit = Path(self._pids_cgroup, "pids.max")
        if limit.read_text().strip() != "max":
            return ""
        now = int(Path(self._pids_cgroup, "pids.current").read_text())
        cause = self._ledger.began("no pids were left")
        limit.write_text(str(now + self._dice.randrange(4)))

        def restore() -> None:
            limit.write_text("max")
            self._ledger.ended(cause)

        self._after(self._dice.uniform(0.05, 0.8), restore)
        return "pids exhausted"

    # ---- time --------------------------------------------------------------------------------------------------------

    def stop(self) -> str:
        """A client, a shim, a runtime or a program of a container stands still for a while."""
        candidates = [*self._clients().values(), *(process.pid for process in self._processes())]
        if not candidates:
            return ""
        pid = self._dice.choice(candidates)
        try:
            pidfd = proc.pidfd_open(pid)
        except CtrdError:
            return ""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)

        def go_on() -> None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            self._stopped[pid] = time.monotonic()
            os.close(pidfd)

        self._after(self._dice.choice((0.02, 0.1, 0.3, 1.0)), go_on)
        return "processes stopped"

    def set_clock(self) -> str:
        """The wall clock jumps: by seconds, hours or years, forth or back, from what it truly is."""
        far = self._dice.choice((DAY // 86_400, DAY // 24, DAY, 400 * DAY))
        self._write_clock(int(self._dice.uniform(-1, 1) * far))
        return "clock set"

    def _write_clock(self, offset: int) -> None:
        with open(self._clock, "r+b") as file:
            file.write(struct.pack("q", offset))
