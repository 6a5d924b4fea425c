"""tools/chaos itself: its clock, its ledger, its disks; and that it finds each fault that is planted in a whole run.

`tools/chaos/run` is the run that counts; `.ci/run` makes one of two minutes.
"""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_kit import need, need_runtime
from field_kit import fill, need_root, small_disk
from portable_kit import sources

import libctrd
from libctrd.errors import CtrdError

TOOL = sources("tools", "chaos")
sys.path.insert(0, str(TOOL))
import lives  # noqa: E402 - a module of the tool
from ledger import Judge, Ledger  # noqa: E402

pytestmark = pytest.mark.local("what it does to other engines is for its own runs")
SEED = 8
A, B = (0, 0), (0, 1)  # a client, and the next of its number


# ---- the clock ------------------------------------------------------------------------------------------------------

CLOCK = """
import datetime, sys, threading, time
before = time.monotonic()
print(round(time.time()), datetime.datetime.now().year, round(time.clock_gettime(time.CLOCK_REALTIME)), flush=True)
sys.stdin.readline()
print(round(time.time()), flush=True)
assert not threading.Event().wait(0.1)
assert not threading.Lock().acquire() or time.monotonic() - before < 30
"""


def test_the_clock_jumps_both_ways_under_a_program_and_its_waits_stay_as_long(tmp_path: Path) -> None:
    need("/usr/bin/cc", "gcc")
    library, clock = tmp_path / "clock.so", tmp_path / "clock"
    source = TOOL / "clock.c"
    subprocess.run(["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    year = 365 * 86_400
    clock.write_bytes(struct.pack("q", -9 * year * 10**9))
    environment = {**os.environ, "LD_PRELOAD": str(library), "CTRD_CHAOS_CLOCK": str(clock)}
    now = int(subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True).stdout)
    with subprocess.Popen(
        [sys.executable, "-c", CLOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        seconds, told_year, again = map(int, program.stdout.readline().split())
        assert abs(seconds - (now - 9 * year)) < 60
        assert abs(again - seconds) < 60
        assert told_year < 2100
        with open(clock, "r+b") as file:
            file.write(struct.pack("q", 9 * year * 10**9))
        program.stdin.write("\n")
        program.stdin.flush()
        assert abs(int(program.stdout.readline()) - (now + 9 * year)) < 60
    assert program.returncode == 0


# ---- the ledger -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(str(tmp_path / "ledger"), SEED)
    yield ledger
    ledger.finish()


def id_of(kind: str) -> str:
    """A container that lives so, and prints something on both."""
    for number in itertools.count():
        life = lives.life(SEED, f"c0-0-{number}")
        if life.kind == kind and life.out.count > 5 and life.err.count:
            return f"c0-0-{number}"
    raise AssertionError


def story(id: str, *steps: Any) -> list[tuple[tuple[int, int], tuple[Any, ...]]]:
    """Of a life that goes well, but for *steps*: what is to be changed, and into what; ``None`` leaves it out."""
    life = lives.life(SEED, id)
    records: list[tuple[str, tuple[Any, ...]]] = [("create", ()), ("start", (life.kind,)), ("started", ())]
    for stream in ("stdout", "stderr"):
        whole = life.expected(stream)
        for part in (whole[:20], whole[20:], b""):
            records += [("read", ("init", stream)), ("got", ("init", stream, part))]
    records += [("told", ("init", life.code)), ("exit", ("init", life.code, True)), ("gone", (False,))]
    changed = list(steps)
    told: list[tuple[tuple[int, int], tuple[Any, ...]]] = []
    for what, rest in records:
        match = next((step for step in changed if step[0] == (what, *rest)[: len(step[0])]), None)
        if match is None:
            told.append((A, (what, id, *rest)))
            continue
        changed.remove(match)
        told += [(who, (word, id, *more)) for who, word, *more in match[1]]
    assert not changed
    return told


def judged(ledger: Ledger, id: str, told: list[tuple[tuple[int, int], tuple[Any, ...]]]) -> Ledger:
    with ledger.lock:
        for at, (who, record) in enumerate(told):
            ledger.take(float(at), who, *record)
    return ledger


def test_a_life_that_went_well_is_found_to_have_gone_well(ledger: Ledger) -> None:
    id = id_of("plain")
    judged(ledger, id, story(id))
    assert ledger.wrong == []
    assert ledger.counts["bytes read"] == sum(len(lives.life(SEED, id).expected(s)) for s in ("stdout", "stderr"))


OUT = lives.life(SEED, id_of("plain")).expected("stdout")
CODE = lives.life(SEED, id_of("plain")).code
FAULTS = {
    "a byte that is missing": [(("got", "init", "stdout", OUT[20:]), [(A, "got", "init", "stdout", OUT[21:])])],
    "a byte that is another": [(("got", "init", "stdout", OUT[:20]), [(A, "got", "init", "stdout", b"x" * 20)])],
    "bytes that came twice": [(("got", "init", "stdout", OUT[20:]), [(A, "got", "init", "stdout", OUT)])],
    "an end that came too soon": [(("got", "init", "stdout", OUT[20:]), [(A, "got", "init", "stdout", b"")])],
    "an exit that was told to nobody": [(("told",), []), (("exit",), [])],
    "an exit that was told twice": [(("told",), [(A, "told", "init", CODE), (A, "told", "init", CODE)])],
    "an exit code that is another": [(("exit",), [(A, "exit", "init", (CODE + 1) % 255, True)])],
    "an exit code that nobody knows, without a reason": [(("exit",), [(A, "exit", "init", 255, False)])],
    "a directory that is left": [(("gone",), [(A, "gone", True)])],
    "a report after its end": [(("gone",), [(A, "gone", False), (A, "told", "init", CODE)])],
    "a refusal without a reason": [(("gone",), [(A, "error", "wait", "CtrdError", "no", 0.0), (A, "gone", False)])],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_ledger_finds(ledger: Ledger, fault: str) -> None:
    id = id_of("plain")
    judged(ledger, id, story(id, *FAULTS[fault]))
    assert ledger.wrong, "it is blind"


def test_what_a_killed_client_held_is_counted_apart_and_what_it_did_not_is_missing(ledger: Ledger) -> None:
    """It had asked for more, and been killed before it could tell: up to one read is gone, and not a byte more."""
    id = id_of("leave")
    life = lives.life(SEED, id)
    rest = life.expected("stdout")[45:]
    next_client = [
        (B, "restore"),
        (B, "restored", False, []),
        (B, "read", "init", "stdout"),
        (B, "got", "init", "stdout", rest),
    ]
    told = story(id, (("got", "init", "stdout", life.expected("stdout")[20:]), next_client))
    told = [(B if at > told.index((B, ("restore", id))) else who, record) for at, (who, record) in enumerate(told)]
    ledger.dead.add(A)
    judged(ledger, id, told)
    assert ledger.wrong == []
    assert ledger.counts["bytes that died with a client"] == 25
    other = Ledger(f"{os.path.dirname(str(ledger._listener.getsockname()))}/other", SEED)
    judged(other, id, told)  # nobody was killed
    other.finish()
    assert any("25 bytes are missing at 20" in line for line in other.wrong), other.wrong


def test_of_a_killed_shim_the_code_is_unknown_and_never_another(ledger: Ledger) -> None:
    id = id_of("plain")
    ledger.mark(id, "its shim was killed")
    unknown = [(("told",), [(A, "told", "init", 255)]), (("exit",), [(A, "exit", "init", 255, False)])]
    judged(ledger, id, story(id, *unknown))
    assert ledger.wrong == []
    assert ledger.counts["exit codes not known, for a shim was killed, or a start cut off"] == 1
    judge = Judge(ledger, id, [])
    assert judge.faults == []


def test_an_exit_that_the_bystander_hears_twice_is_found(ledger: Ledger) -> None:
    id = id_of("plain")
    judged(ledger, id, story(id))
    for _ in range(2):
        ledger.overheard(id, "init", lives.life(SEED, id).code)
    ledger.overheard(id, "init", 254)
    other = ledger.wrong
    ledger.finish()
    assert any("told 3 times" in line for line in other)
    assert any("ended with 254" in line for line in other)
    ledger.finish = lambda: None  # type: ignore[method-assign] - it has been


# ---- disks ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_clear_refusal_and_leaves_nothing(tmp_path: Path, rootfs: str) -> None:
    need_root()
    disks = small_disk(tmp_path / "disk", "size=1m,nr_inodes=60")
    with disks as disk, libctrd.connect(f"local:{disk}/state") as client:
        spec = libctrd.spec.default(["true"], rootfs)
        for full in ("bytes", "inodes"):
            if full == "bytes":
                fill(disk)
            else:
                while os.statvfs(disk).f_ffree:
                    Path(disk, f"inode-{os.statvfs(disk).f_ffree}").touch()
            with pytest.raises(CtrdError, match="No space left") as refused:
                client.create("web", spec).start(libctrd.NULL)
            assert "\n" not in str(refused.value)
            for filler in Path(disk).iterdir():
                if filler.name != "state":
                    filler.unlink()
            assert os.listdir(f"{disk}/state") == []


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", ["", "byte", "fifo", "process"])
def test_a_run_finds_what_is_planted_and_nothing_else(rootfs: str, plant: str) -> None:
    need_runtime("crun")
    need("/usr/bin/cc", "gcc")
    lead = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    lead += ['mount -t tmpfs -o size=96m,nr_inodes=6000,mode=755 tmpfs /run && exec "$@"', "sh"]
    words = ["--rootfs", rootfs, "--minutes", "0.05", "--workers", "2", "--seed", "1", "--every", "0.5"]
    words += ["--only", "set_clock", *(["--plant", plant] if plant else [])]
    done = subprocess.run(
        [*lead, sys.executable, str(TOOL), *words], capture_output=True, text=True, timeout=100, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == bool(plant), said
    if plant:
        found = [line for line in said.splitlines() if line.startswith(("c", "left"))]
        assert 1 <= len(found) <= 3, said
