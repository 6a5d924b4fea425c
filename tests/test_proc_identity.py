"""Tests of the guard against pid reuse (`libctrd.proc`), with pids that really come around again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proc_kit import (
    nothing_left,  # noqa: F401 (fixtures)
    run_python,
    until,
)

from libctrd import proc
from libctrd.errors import (
    NotFoundError,
    UnavailableError,
)


def test_the_boot_has_one_id() -> None:
    assert proc.boot_id() == proc.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(proc.boot_id()) == 36


def test_the_start_time_is_the_kernels() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    before = int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks)
    pid = proc.spawn(["sleep", "1000"])
    after = int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks)
    assert before <= proc.start_time(pid) <= after
    proc.kill(pid, "KILL")
    proc.reap(pid)
    with pytest.raises(NotFoundError, match=f"there is no process {pid}"):
        proc.start_time(pid)


def test_a_name_with_spaces_and_parentheses_confuses_nobody(tmp_path: Path) -> None:
    program = tmp_path / ") R 1 (x) 2)"
    shutil.copy(shutil.which("sleep") or "", program)
    pid = proc.spawn([str(program), "1000"])
    try:
        assert Path(f"/proc/{pid}/comm").read_text().strip() == program.name
        ref = proc.ProcessRef.of(pid)
        assert ref.start_time == proc.start_time(pid) > 1000
        assert ref.alive()
    finally:
        proc.kill(pid, "KILL")
        proc.reap(pid)


@given(
    st.binary(max_size=40).filter(lambda name: b"\0" not in name),
    st.sampled_from("RSDZTtWXxKPI"),
    st.integers(1, 10**5),
    st.integers(0, 2**64 - 1),
)
def test_field_22_is_found_behind_any_name(name: bytes, state: str, threads: int, started: int) -> None:
    fields = [b"1"] * 49  # fields 4 to 52
    fields[16], fields[18] = b"%d" % threads, b"%d" % started
    line = b"77 (" + name + b") " + state.encode() + b" " + b" ".join(fields) + b"\n"
    assert proc._parse_stat(line) == (state, started, threads)


@given(st.binary(max_size=200))
def test_what_is_no_stat_line_is_one_clear_error(line: bytes) -> None:
    with pytest.raises(UnavailableError, match="this is no line of /proc/PID/stat"):
        proc._parse_stat(line.replace(b" ", b".").replace(b"\n", b"."))


def test_a_zombie_is_the_same_process_and_not_alive() -> None:
    pid = proc.spawn(["sleep", "1000"])
    ref = proc.ProcessRef.of(pid)
    assert ref.alive()
    assert proc.is_same(pid, ref.start_time)
    ref.send("TERM")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not ref.alive()
    assert proc.is_same(*ref)
    assert proc.reap(pid) == proc.Exit(pid, None, 15, False)
    assert not ref.alive()
    assert not proc.is_same(*ref)
    with pytest.raises(NotFoundError, match="is gone"):
        ref.send("TERM")


def test_a_process_whose_first_thread_has_ended_is_alive() -> None:
    script = """if True:
        import cffi, threading
        c = cffi.FFI()
        c.cdef("void pthread_exit(void *);")
        threading.Thread(target=input).start()
        c.dlopen(None).pthread_exit(c.NULL)
    """
    reader, writer = os.pipe()
    pid = proc.spawn([sys.executable, "-c", script], fds={0: reader})
    os.close(reader)
    try:
        until(lambda: proc._parse_stat(proc._read_stat(pid))[0] == "Z")
        assert proc.ProcessRef.of(pid).alive()
    finally:
        proc.kill(pid, "KILL")
        os.close(writer)
        proc.reap(pid)


def test_a_signal_never_hits_a_process_with_another_start_time() -> None:
    pid = proc.spawn(["sleep", "1000"])
    try:
        for wrong in (proc.start_time(pid) - 1, proc.start_time(pid) + 1, 0):
            ref = proc.ProcessRef(pid, wrong)
            assert not ref.alive()
            assert not proc.is_same(pid, wrong)
            with pytest.raises(NotFoundError, match=f"process {pid}, started at tick {wrong}, is gone"):
                ref.send("KILL")
        assert proc.reap(pid, block=False) is None
    finally:
        proc.kill(pid, "KILL")
        proc.reap(pid)


def test_a_pid_that_came_around_again_is_told_apart() -> None:
    # In a pid namespace of its own the next pid may be chosen, so that the same one really comes around.
    probe = subprocess.run(
        ["unshare", "-pf", "--mount-proc", "sh", "-c", "echo 50 >/proc/sys/kernel/ns_last_pid"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"no pid namespace whose next pid may be chosen: {probe.stderr.strip()}")
    out = run_python(
        """
        import os, time
        from libctrd import proc
        from libctrd.errors import NotFoundError
        first = proc.spawn(["sleep", "1000"])
        ref = proc.ProcessRef.of(first)
        ref.send("KILL")
        proc.reap(first)
        hertz = os.sysconf("SC_CLK_TCK")
        while time.clock_gettime(time.CLOCK_BOOTTIME) * hertz <= ref.start_time + 1:
            pass  # into a later tick, which real pids take far longer to come around to
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(first - 1))
        stranger = proc.spawn(["sleep", "1000"])
        assert stranger == first, (stranger, first)
        assert not ref.alive() and not proc.is_same(*ref)
        try:
            ref.send("KILL")
        except NotFoundError as error:
            print(error)
        assert proc.reap(stranger, block=False) is None
        assert proc.ProcessRef.of(stranger).alive()
        """,
        "unshare", "-pf", "--mount-proc", "--kill-child",
    )  # fmt: skip
    assert "is gone" in out


def test_a_process_that_proc_hides_is_not_taken_for_gone() -> None:
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespace of our own: {probe.stderr.strip()}")
    out = run_python(
        """
        import os, subprocess
        from libctrd import proc
        from libctrd.errors import UnavailableError
        ref = proc.ProcessRef.of(os.getppid())
        subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
        for ask in (ref.alive, lambda: proc.is_same(*ref), lambda: ref.send("KILL"), proc.boot_id):
            try:
                print(ask())
            except Exception as error:
                print(type(error).__name__, error)
        """,
        "unshare", "-m", "sh", "-c", '"$@"; exit $?', "sh",
    )  # fmt: skip
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["UnavailableError"] * 3 + ["NotFoundError"]
    assert all("check that /proc is mounted" in line for line in lines)
