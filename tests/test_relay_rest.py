"""A source that is thrown away is looked at by the clock while much comes: see `rest` in pyx/loop.pxi."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from fifo_kit import LONG, until
from relay_kit import steady

from libctrd import relay

__all__ = ["steady"]

LINES = 20_000
FLOOD = 256 << 20
pytestmark = pytest.mark.linux("a clock of less than a millisecond in the poller")


def wake_ups() -> int:
    """How often the relay thread has waited for something."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "ctrd-relay\n":
            lines = (task / "status").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")))
    raise AssertionError("there is no relay thread")


def test_a_talkative_source_wakes_the_relay_rarely() -> None:
    """20,000 short writes, one after the other, are thrown away at far fewer looks."""
    reads, writes = os.pipe()
    pump = relay.discard(reads)
    os.close(reads)
    before = wake_ups()

    def talk() -> None:
        for _ in range(LINES):
            os.write(writes, b"a line that nobody reads\n")
        os.close(writes)

    talker = threading.Thread(target=talk)
    talker.start()
    pump.wait(LONG)
    talker.join()
    assert pump.bytes == LINES * len(b"a line that nobody reads\n")
    assert wake_ups() - before < LINES / 4


def test_a_source_that_rested_wakes_the_relay_again() -> None:
    """Bursts that let it rest, and silence after each, in which it comes to wait for an event again: none is missed."""
    reads, writes = os.pipe()
    pump = relay.discard(reads)
    os.close(reads)
    sent = 0
    for _ in range(20):
        for _ in range(500):
            sent += os.write(writes, b"x" * 100)
        until(lambda all=sent: pump.bytes == all, "all of a burst")
        before = wake_ups()
        quiet = threading.Event()
        assert not quiet.wait(0.01)
        assert wake_ups() - before < 8, "it goes on looking though nothing comes"
    os.close(writes)
    pump.wait(LONG)
    assert pump.bytes == sent


@pytest.mark.parametrize("room", [4096, 65536, 1 << 20])
def test_a_writer_without_a_pause_loses_nothing_to_the_rests(room: int) -> None:
    """It fills the pipe while that is emptied, so that a turn ends with more to do: the relay may rest there too."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, room)
    pump = relay.discard(reads)
    os.close(reads)
    flood = subprocess.Popen(["head", "-c", str(FLOOD), "/dev/zero"], stdout=writes)
    os.close(writes)
    pump.wait(LONG)
    assert flood.wait(LONG) == 0
    assert pump.bytes == FLOOD


def test_one_that_rests_is_cancelled_and_finished_at_once() -> None:
    """Neither waits for the end of the rest, nor leaves something in the list of those that rest."""
    for end in ("cancel", "finish"):
        reads, writes = os.pipe()
        pump = relay.discard(reads)
        os.close(reads)
        for _ in range(1000):
            os.write(writes, b"x" * 100)
        getattr(pump, end)()
        until(lambda pump=pump: pump.done, f"the end by {end}")
        os.close(writes)


def test_without_such_a_clock_it_waits_for_events(tmp_path: Path) -> None:
    """Linux before 5.11 has none, nor a host whose policy forbids the call: every byte is thrown away all the same."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is missing on this host: apt-get install strace")
    script = """
        import os, sys
        from libctrd import relay
        reads, writes = os.pipe()
        pump = relay.discard(reads)
        os.close(reads)
        sent = 0
        for _ in range(20):  # how soon it has nothing again is for the host to say
            for _ in range(5_000):  # each time it waits anew, and mostly soon
                sent += os.write(writes, b"x" * 100)
                while pump.bytes != sent:
                    os.sched_yield()
            if "ENOSYS" in open(sys.argv[1]).read():
                break
        os.close(writes)
        pump.wait(60)
        assert pump.bytes == sent
    """
    log = tmp_path / "log"
    calls = ["-f", "--seccomp-bpf", "-o", log, "-e", "trace=epoll_pwait2", "-e", "inject=epoll_pwait2:error=ENOSYS"]
    python = [sys.executable, "-c", textwrap.dedent(script), log]
    subprocess.run([strace, *calls, *python], check=True, timeout=LONG)
    assert log.read_text().count("ENOSYS") == 1, "it is asked for once"
