"""What a fifo costs: made, opened at both ends, one byte through it, closed, removed; and ten thousand that wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import peers
from measure import Bar, Result, Series, at_most_times, in_turns, times_faster

from libctrd import open_fifo

TIMES = 2.0  # of the bare system calls in C
GO_TIMES = 5.0
BATCH = 500
MANY = 10_000
LIMIT = 20_000  # descriptors that a process may have
EACH = 2048  # bytes of user memory for one that waits
# Two processes: the first opens them and says what that cost, the second sends a byte through each.
WAITING = """
import json, os, resource, sys, time
from libctrd import open_fifo, relay
directory, many, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
def opened(name):
    return relay.buffer(open_fifo(f"{directory}/{name}", os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK))
first = opened("first")  # what the relay itself takes
fds, memory = len(os.listdir("/proc/self/fd")), anonymous()
begin = time.perf_counter()
all = [opened(number) for number in range(many)]
told = {
    "open": (time.perf_counter() - begin) / many * 1e6,
    "memory": (anonymous() - memory) / many,
    "fds": (len(os.listdir("/proc/self/fd")) - fds) / many,
    "threads": len(os.listdir("/proc/self/task")) - 1,
}
begin = time.process_time()
time.sleep(1)
told["idle"] = time.process_time() - begin
print("ready", flush=True)
begin = time.perf_counter()
for buffer in all:
    buffer.wait(60)
told["all"] = time.perf_counter() - begin
told["bytes"] = sum(buffer.bytes for buffer in all)
print(json.dumps(told))
"""
SENDER = """
import os, sys
for number in range(int(sys.argv[2])):
    fd = os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
"""


def ours(path: str) -> None:
    reader = open_fifo(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK)
    writer = open_fifo(path, os.O_WRONLY | os.O_NONBLOCK)
    writer.write(b"x")
    if reader.read(1) != b"x":
        raise SystemExit("the byte did not come through")
    writer.close()
    reader.close()
    os.unlink(path)


def measure(directory: Path, rounds: int, go_fifo: str | None) -> list[Result]:
    return [_cost(directory, rounds, go_fifo), _waiting(directory)]


def _cost(directory: Path, rounds: int, go_fifo: str | None) -> Result:
    path = str(directory / "fifo")
    program = peers.c(directory)

    def batch_of_ours() -> float:
        begin = time.perf_counter()
        for _ in range(BATCH):
            ours(path)
        return (time.perf_counter() - begin) / BATCH * 1e6

    def batch_of(command: list[str]) -> float:
        return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) / 1e3

    takers = {
        "open_fifo": batch_of_ours,
        "bare system calls in C": lambda: batch_of([program, "fifo", path, str(BATCH)]),
    }
    if go_fifo is not None:
        takers["Go's containerd/fifo"] = lambda: batch_of([go_fifo, "fifo", path, str(BATCH)])
    result = Result("fifo", f"a fifo from its making to its removal, a byte through it; batches of {BATCH}", row="P6")
    result.series = in_turns(rounds, "us", takers)
    result.bars = [at_most_times(TIMES, *result.series[:2])]
    if go_fifo is not None:
        result.bars.append(times_faster(GO_TIMES, result.series[0], result.series[2]))
    else:
        result.without.append(peers.NO_GO_FIFO)
    return result


def _waiting(directory: Path) -> Result:
    how = f"{MANY} fifos that wait in one process, which may have {LIMIT} descriptors; then a byte through each"
    result = Result("waiting", how, row="P7")
    place = directory / "many"
    place.mkdir()
    command = [sys.executable, "-c", WAITING, place, str(MANY), str(LIMIT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the process that opens the fifos ended: see above")
        subprocess.run([sys.executable, "-IS", "-c", SENDER, place, str(MANY)], check=True)
        told = json.loads(process.stdout.readline())
    memory = told["memory"]
    result.series = [Series("opened and handed to the relay, each", "us", [told["open"]])]
    result.facts = [f"a byte through each, and its end, was read {told['all']:.2f} s after the sender had ended"]
    result.bars = [
        Bar("every byte", f"{told['bytes']} of {MANY}", told["bytes"] == MANY),
        Bar(f"less than {EACH} bytes of user memory each", f"{memory:.0f} bytes", memory < EACH),
        Bar("one descriptor each", f"{told['fds']:g}", told["fds"] == 1),
        Bar("one relay thread", str(told["threads"]), told["threads"] == 1),
        Bar("no processor time while they wait", f"{told['idle'] * 1e3:.1f} ms in 1 s", told["idle"] < 0.01),
    ]
    return result
