"""Clients that start, exec, pause, kill, restore and clean containers, while another hand kills and starves them.

At the end a last client recovers what is left, and a ledger says whether a byte or an exit was lost, or anything is
left. Exits with 1 then. It runs in namespaces of its own for processes and mounts, on a /run of its own: see `run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

from engine_kit import cgroups  # noqa: E402
from hand import Hand  # noqa: E402 - the kits of the tests are above
from ledger import Ledger  # noqa: E402
from places import PLACES  # noqa: E402

TOP = "/run"
LONG = 90.0  # seconds without a word from a client: it hangs
TOLD = ("refused,", "exits ", "exit codes", "bytes ")  # how what is counted apart begins
END = 120.0
MOST = 100  # lines of what is wrong that are printed
PLANTS = ("byte", "exit", "twice", "code", "fifo", "process", "cgroup")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/chaos/run", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--engine", default="local", choices=sorted(PLACES))
    parser.add_argument("--runtime", help="the OCI runtime (default: the engine's own choice)")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=None, help="for the same lives and the same hand again")
    parser.add_argument("--every", type=float, default=0.25, metavar="S", help="the hand acts all S seconds on average")
    parser.add_argument(
        "--only", default="", metavar="ACTS", help="only these of the hand's acts, by name, with commas"
    )
    parser.add_argument("--rootfs", required=True, help="a root file system with busybox")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], help="a fault that has to be found")
    return parser.parse_args()


class Chaos:
    """One run."""

    def __init__(self, given: argparse.Namespace, files: str) -> None:
        self.given, self.files = given, files
        self.seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
        self.clock = f"{files}/clock"
        Path(self.clock).write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": f"{files}/clock.so", "CTRD_CHAOS_CLOCK": self.clock}
        self.place = PLACES[given.engine](given.runtime, self.environment)
        self.ledger = Ledger(f"{files}/ledger", self.seed, given.engine, given.plant)
        self.cgroup = pids_cgroup()
        self.ending = False
        self.running: dict[tuple[int, int], subprocess.Popen[bytes]] = {}
        self.hand = Hand(
            self.ledger, random.Random(f"{self.seed}/hand"), self.place, TOP, self.clock, self.clients, self.cgroup,
            given.only,
        )  # fmt: skip
        self.bystander = self.place.connect()
        self.bystander.watch_all()
        self.bystander.subscribe(self)

    def state_changed(self, id: str, info: Any) -> None:
        """The bystander's listener."""
        if info.type in ("exit", "exit-process"):
            self.ledger.overheard(id, info.process, info.exit_code)

    # ---- clients -----------------------------------------------------------------------------------------------------

    def clients(self) -> dict[tuple[int, int], int]:
        """The pids of those that live."""
        return {who: client.pid for who, client in self.running.items() if client.poll() is None}

    def spawn(self, number: int, generation: int) -> None:
        """A client; it takes over what the one before it has left."""
        word = {
            **self.place.of_clients(),
            "number": number,
            "generation": generation,
            "seed": self.seed,
            "ledger": f"{self.files}/ledger",
            "files": f"{self.files}/out",
            "rootfs": self.given.rootfs,
            "open": self.ledger.open_of(number),
        }
        path = os.pathsep.join(filter(None, [str(HERE.parent.parent / "tests"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **self.environment, "PYTHONPATH": path}
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(word)]
        if self.cgroup:  # by a shell, before anything of it is there
            command = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{self.cgroup}/cgroup.procs", *command]
        with open(f"{self.files}/log-{number}", "ab") as log:
            self.running[number, generation] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def look(self, respawn: bool) -> None:
        """After those that have ended: the next of their number comes. After those that hang."""
        for who, client in list(self.running.items()):
            code = client.poll()
            if code is None:
                silent = time.monotonic() - max(self.ledger.last.get(who, 0.0), self.hand.since(client.pid))
                if who in self.ledger.last and silent > LONG:
                    self.ledger.wrong.append(f"client {who} hangs: see log-{who[0]} in {self.files}")
                    client.send_signal(signal.SIGUSR1)
                    time.sleep(1)
                    self.ledger.dead.add(who)
                    client.kill()
                continue
            if who in self.ledger.last and who not in self.ledger.parted:
                continue  # not every record of it has been taken
            del self.running[who]
            if self.ending and code == -signal.SIGTERM:  # it had not come so far as to heed it
                self.ledger.dead.add(who)
            if who not in self.ledger.dead and code != 0:
                tail = Path(f"{self.files}/log-{who[0]}").read_text(errors="replace")[-1500:]
                self.ledger.wrong.append(f"client {who} ended with {code}: {tail}")
                self.ledger.dead.add(who)
            if respawn:
                self.spawn(who[0], who[1] + 1)
        self.reap()

    def reap(self) -> None:
        """What has nobody else: this process is the first of its namespace."""
        ours = {client.pid for client in self.running.values()} | self.place.daemons()
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the time is over; then the end."""
        os.mkdir(f"{self.files}/out")
        end = time.monotonic() + self.given.minutes * 60
        for number in range(self.given.workers):
            self.spawn(number, 0)
        dice = random.Random(f"{self.seed}/times")
        following = time.monotonic() + 1
        while time.monotonic() < end:
            self.hand.due()
            self.look(True)
            if time.monotonic() >= following:
                self.hand.act()
                following = time.monotonic() + dice.expovariate(1 / self.given.every)
            time.sleep(0.005)
        self.hand.rest()
        self.ending = True
        for client in self.running.values():
            client.terminate()
        self.wait_for_clients()
        self.spawn(-1, 0)
        self.wait_for_clients()
        self.bystander.close()
        self.ledger.finish()
        self.plant()

    def plant(self) -> None:
        """Leaves what has to be found, if that is wanted."""
        if self.given.plant == "fifo":
            os.makedirs(f"{self.place.root}/c0-0-0", exist_ok=True)
            os.mkfifo(f"{self.place.root}/c0-0-0/init-stdout")
        elif self.given.plant == "process":
            subprocess.Popen(["sh", "-c", "sleep 30 & exit 0"]).wait()
        elif self.given.plant == "cgroup":
            os.makedirs(f"/sys/fs/cgroup/pids/ctrd-{cgroups.mark(self.place.root)}-c0-0-0", exist_ok=True)

    def wait_for_clients(self) -> None:
        end = time.monotonic() + END
        while self.running:
            self.look(False)
            if time.monotonic() > end:
                for who, client in self.running.items():
                    self.ledger.wrong.append(f"client {who} does not end: see log-{who[0]} in {self.files}")
                    client.send_signal(signal.SIGUSR1)
                    time.sleep(1)
                    client.kill()
                    client.wait()
                return
            time.sleep(0.005)

    def leftovers(self) -> list[str]:
        """What there still is that nobody of us is."""
        end = time.monotonic() + 10
        while True:
            self.reap()
            left = [f"{what}: {things}" for what, things in self.place.leftovers().items() if things]
            ours = {os.getpid(), *self.place.daemons()}
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if int(pid) not in ours:
                        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        left.append(f"process {pid}: {words or Path(f'/proc/{pid}/comm').read_text()}")
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)

    def report(self, left: list[str]) -> None:
        """All figures, and each thing that is wrong."""
        print(f"engine {self.given.engine}, runtime {self.place.runtime_name}, seed {self.seed}, "
              f"{self.given.minutes:g} minutes, {self.given.workers} clients")  # fmt: skip
        counts = self.ledger.counts
        rows = {
            "containers": len(self.ledger.closed),
            "further processes": counts["execed"],
            "restored": counts["restored"],
            "bytes read": counts["bytes"],
            **dict(sorted(self.hand.done.items())),
            **{what: count for what, count in sorted(counts.items()) if what.startswith(TOLD)},
            "exits that the bystander heard": sum(self.ledger.heard.values()),
        }  # fmt: skip
        for what, count in rows.items():
            print(f"  {count:12,}  {what}")
        print(f"  {len(left):12,}  left over")
        print(f"  {len(self.ledger.wrong):12,}  wrong")
        lines = [*self.ledger.wrong, *(f"left: {thing}" for thing in left)]
        for line in lines[:MOST]:
            print(line)
        if len(lines) > MOST:
            print(f"and {len(lines) - MOST} more")


def pids_cgroup() -> str:
    """A cgroup in which processes can be counted; "" where there is none to be had."""
    for top in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        if os.path.exists(f"{top}/cgroup.procs"):
            path = f"{top}/ctrd-chaos-{time.monotonic_ns():x}"
            os.mkdir(path)
            if os.path.exists(f"{path}/pids.max"):
                return path
            os.rmdir(path)
    print("no pids cgroup can be made here: pids are not exhausted")
    return ""


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    files = tempfile.mkdtemp(prefix="ctrd-chaos-", dir="/tmp")
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-shared", "-fPIC", "-o", f"{files}/clock.so", str(HERE / "clock.c")]
    subprocess.run(command, check=True)
    logging.basicConfig(filename=f"{files}/log-bystander")
    chaos = Chaos(given, files)
    try:
        chaos.run()
        left = chaos.leftovers()
    finally:
        if chaos.cgroup:
            with contextlib.suppress(OSError):
                os.rmdir(chaos.cgroup)
    chaos.report(left)
    if chaos.ledger.wrong or left:
        chaos.place.remove()
        Path(f"{files}/stories").write_text("\n\n".join(chaos.ledger.stories))
        print(f"what the clients said is in {files}, and the stories of containers with which something is wrong")
        return 1
    chaos.place.remove()
    shutil.rmtree(files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
