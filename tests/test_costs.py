"""What a container costs, in counts and not in times: these may not grow unnoticed. A lower count is a reason to lower
the limit here. The times are for ``tools/bench/run``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from libctrd.engine import runtime as runtimes

pytestmark = [
    pytest.mark.local("it counts what the local engine does"),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers of this suite need root: run it as root"),
]

LIVES = """
import sys
import libctrd
from libctrd.engine import runtime
with libctrd.connect("local:" + sys.argv[1], runtime="crun") as client:
    spec = libctrd.spec.default(["/bin/true"], sys.argv[2])
    for number in range(int(sys.argv[3])):
        container = client.create(f"life{number}", spec)
        container.start(libctrd.PIPE)
        assert container.wait().code == 0
"""
MANY, FEW = 12, 2
# System calls of one life, from `create` to the return of `wait`: of the client with all its threads, and of the shim.
CLIENT_CALLS = 312
SHIM_CALLS = 186
RELAY = """
import os, sys
from libctrd import relay
block = bytes(1 << 20)
def move(mib):
    source, feed = os.pipe()
    pump = relay.discard(source) if sys.argv[1] == "discard" else relay.copy(source, os.open("/dev/null", os.O_WRONLY))
    for _ in range(mib):
        os.write(feed, block)
    os.close(feed)
    pump.wait()
move(4)
os.getppid()
move(int(sys.argv[2]))
os.getppid()
"""


def traced(log: Path, script: str, *arguments: str, calls: str = "all") -> list[str]:
    """Runs *script* under strace; the lines of its log, each with a pid."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace, to count system calls with: apt-get install strace")
    # -s: strace cuts a string after 32 characters, and with it the name of a program that lies deep.
    whole = ["strace", "-f", "-qq", "-s", "4096", "-o", log]
    command = [*whole, "-e", f"trace={calls}", sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def lives(log: Path, state: str, rootfs: str, count: int) -> tuple[Counter[str], Counter[str]]:
    """By program: the system calls of so many lives, and the starts of processes. A call that was left and taken up
    again counts once.
    """
    lines = [line.split(maxsplit=1) for line in traced(log, LIVES, state, rootfs, str(count))]
    parents = {}  # a child may be seen before the call that has made it has returned
    for pid, text in lines:
        made = re.match(r"(?:<\.\.\. )?(?:vfork|clone3?)\b.*= (\d+)$", text)
        if made is not None:
            parents[made[1]] = pid
    program: dict[str, str] = {}
    calls: Counter[str] = Counter()
    starts: Counter[str] = Counter()
    for pid, text in lines:
        name = re.match(r"(\w+)\(", text)
        if name is None:  # an end, a signal, the rest of a call
            continue
        if pid not in program:
            program[pid] = program.get(parents.get(pid, ""), "client")
        calls[program[pid]] += 1
        if name[1] in ("execve", "execveat") and text.endswith(("= 0", "<unfinished ...>")) and len(program) > 1:
            executed = re.search(r'\["([^"]+)"', text)
            assert executed is not None, text
            program[pid] = os.path.basename(executed[1])
            starts[program[pid]] += 1
    return calls, starts


def test_one_life_starts_few_processes_and_makes_few_calls(tmp_path: Path, state_dir: str, rootfs: str) -> None:
    if shutil.which("crun") is None:
        pytest.skip("there is no crun: apt-get install crun")
    runtimes.find("crun")  # tried before: to try it starts containers as well
    few_calls, few_starts = lives(tmp_path / "few", state_dir, rootfs, FEW)
    many_calls, many_starts = lives(tmp_path / "many", state_dir, rootfs, MANY)
    more = MANY - FEW
    starts = {name: (many_starts[name] - few_starts[name]) / more for name in many_starts}
    assert starts == {"ctrd-shim": 1, "crun": 1, "true": 1}
    client, shim = ((many_calls[name] - few_calls[name]) / more for name in ("client", "ctrd-shim"))
    print(f"system calls of one life: client {client:g}, shim {shim:g}")
    assert 0 < client <= CLIENT_CALLS
    assert 0 < shim <= SHIM_CALLS


@pytest.mark.parametrize("how", ["discard", "copy"])
def test_the_relay_takes_no_memory_for_what_it_moves(how: str, tmp_path: Path) -> None:
    """Neither the heap nor a mapping grows between the two marks, however much goes through."""
    lines = traced(tmp_path / "log", RELAY, how, "64", calls="getppid,brk,mmap,mremap,clone,clone3")
    marks = [number for number, line in enumerate(lines) if "getppid(" in line]
    assert len(marks) == 2
    between = lines[marks[0] + 1 : marks[1]]
    # PROT_NONE takes no memory: a thread's first malloc reserves room for its own, and may come late.
    assert [line for line in between if "getppid resumed" not in line and "PROT_NONE" not in line] == []
