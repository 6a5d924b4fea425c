"""Tests of waiting, pidfds and settings (`libctrd.proc`), with real children and real signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from proc_kit import (
    GONE,
    nothing_left,  # noqa: F401 (fixtures)
    run_python,
    until,
)

from libctrd import _checks, proc
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)


@pytest.mark.parametrize(("script", "code", "sig"), [("exit 0", 0, None), ("exit 201", 201, None)])
def test_a_child_that_exits_gives_its_code_once(script: str, code: int, sig: int | None) -> None:
    pid = proc.spawn(["sh", "-c", script])
    ended = proc.reap(pid)
    assert ended == proc.Exit(pid, code, sig, False)
    assert ended.code == code
    assert proc.reap(pid) is None


def test_a_child_that_a_signal_ended_gives_128_and_the_signal() -> None:
    pid = proc.spawn(["sleep", "1000"])
    assert proc.reap(pid, block=False) is None
    proc.kill(pid, "KILL")
    ended = proc.reap(pid)
    assert ended == proc.Exit(pid, None, 9, False)
    assert ended.code == 137


def test_reaping_a_process_that_is_no_child_is_no_error() -> None:
    assert proc.reap(1) is None
    assert proc.reap(GONE) is None


@pytest.mark.parametrize(
    ("script", "code", "sig"), [("exit 7", 7, None), ("kill -TERM $$", None, 15), ("exit 255", 255, None)]
)
def test_a_pidfd_tells_how_our_child_ended_and_reaps_it_once(script: str, code: int | None, sig: int | None) -> None:
    pid = proc.spawn(["sh", "-c", script])
    pidfd = proc.pidfd_open(pid)
    try:
        assert not os.get_inheritable(pidfd)
        assert proc.wait_pidfd(pidfd, 10) == proc.Exit(pid, code, sig, False)
        assert proc.wait_pidfd(pidfd, 10) is None
        assert proc.wait_pidfd(pidfd) is None
        with pytest.raises(NotFoundError, match="it has ended"):
            proc.pidfd_send_signal(pidfd, "TERM")
    finally:
        os.close(pidfd)


def test_a_wait_ends_at_its_time_and_reaps_nothing() -> None:
    pid = proc.spawn(["sleep", "1000"])
    pidfd = proc.pidfd_open(pid)
    try:
        for timeout in (0, -1, 0.05):
            began = time.monotonic()
            with pytest.raises(DeadlineError, match=f"still ran after {timeout} seconds"):
                proc.wait_pidfd(pidfd, timeout)
            assert time.monotonic() - began >= timeout
        proc.pidfd_send_signal(pidfd, "KILL")
        assert proc.wait_pidfd(pidfd, 1e12) == proc.Exit(pid, None, 9, False)
    finally:
        os.close(pidfd)


def test_the_end_of_a_process_that_is_no_child_is_seen_without_its_status() -> None:
    reader, writer = os.pipe()
    # The shell's child is no child of ours; it prints its pid and runs until its standard input ends.
    script = 'cat <&3 >/dev/null & echo "$!"; exec 3<&-; wait'
    ours, theirs = os.pipe()
    pid = proc.spawn(["sh", "-c", script], fds={1: writer, 3: ours})
    os.close(writer)
    os.close(ours)
    stranger = int(os.read(reader, 20))
    pidfd = proc.pidfd_open(stranger)
    try:
        with pytest.raises(DeadlineError):
            proc.wait_pidfd(pidfd, 0)
        threading.Timer(0.05, os.close, [theirs]).start()
        assert proc.wait_pidfd(pidfd, 10) is None
    finally:
        os.close(pidfd)
        os.close(reader)
        assert proc.reap(pid) == proc.Exit(pid, 0, None, False)


def test_of_several_threads_that_wait_for_one_child_one_gets_its_exit() -> None:
    pid = proc.spawn(["sleep", "1000"])
    pidfd = proc.pidfd_open(pid)
    got: list[proc.Exit | None] = []
    threads = [threading.Thread(target=lambda: got.append(proc.wait_pidfd(pidfd, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    proc.kill(pid, "TERM")  # from here, while four threads wait: none of them holds the GIL
    for thread in threads:
        thread.join()
    os.close(pidfd)
    assert sorted(got, key=bool) == [None, None, None, proc.Exit(pid, None, 15, False)]


def test_a_descriptor_that_is_no_pidfd_is_an_error_at_once() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(ClosedError, match=f"descriptor {reader} "):
            proc.wait_pidfd(reader)
        with pytest.raises(ClosedError):
            proc.pidfd_send_signal(writer, "TERM")
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(ClosedError):
        proc.wait_pidfd(reader, 1)
    with pytest.raises(InvalidArgumentError, match="no descriptor"):
        proc.wait_pidfd(-1)


def test_a_child_that_a_debugger_holds_is_waited_for_and_then_reaped() -> None:
    out = run_python("""
        import cffi, os
        from libctrd import proc
        from libctrd.errors import DeadlineError
        child = proc.spawn(["sleep", "1000"])
        pidfd = proc.pidfd_open(child)
        told, tell = os.pipe()
        end, hold = os.pipe()
        tracer = os.fork()
        if not tracer:
            os.close(hold)
            c = cffi.FFI()
            c.cdef("long ptrace(long, long, long, long);")
            seize = 0x4206
            failed = c.dlopen(None).ptrace(seize, child, 0, 0)
            os.write(tell, b"%d" % (c.errno if failed else 0))
            os.read(end, 1)  # until our parent lets go of the other end, and never a wait for the tracee
            os._exit(0)
        if os.read(told, 10) != b"0":
            print("no ptrace")
            proc.kill(child, "KILL")
        else:
            proc.kill(child, "KILL")
            try:
                proc.wait_pidfd(pidfd, 0.05)
            except DeadlineError as error:
                print(error)
        os.close(hold)
        assert proc.wait_pidfd(pidfd, 10) == proc.Exit(child, None, 9, False)
        assert proc.reap(tracer).code == 0
    """)
    if out == "no ptrace\n":
        pytest.skip("ptrace is not permitted here")
    assert "was held by its tracer after 0.05 seconds" in out


def test_a_child_that_the_system_reaped_is_no_error() -> None:
    run_python("""
        import os, signal
        from libctrd import proc
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        reader, writer = os.pipe()
        pid = proc.spawn(["cat"], fds={0: reader})
        pidfd = proc.pidfd_open(pid)
        os.close(writer)
        assert proc.reap(pid) is None
        assert proc.wait_pidfd(pidfd, 10) is None
    """)


def test_a_process_of_somebody_else_is_not_ours_to_signal() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    out = run_python("""
        import os, signal  # now: somebody else may not be able to read it
        from libctrd import proc
        from libctrd.errors import UnavailableError
        pid = proc.spawn(["sleep", "1000"])
        ref = proc.ProcessRef.of(pid)
        os.setresuid(65534, 65534, 0)
        for send in (lambda: proc.kill(pid, "TERM"), lambda: ref.send("TERM")):
            try:
                send()
            except UnavailableError as error:
                print(error)
        os.setresuid(0, 0, 0)
        ref.send("KILL")
        assert proc.reap(pid).signal == 9
    """)
    assert len(out.splitlines()) == 2
    assert all("send SIGTERM to " in line and "this user may" in line for line in out.splitlines())


def test_a_kernel_without_pidfds_is_named_with_the_one_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.SimpleNamespace(
        ctrd_pidfd_open=lambda pid: -errno.ENOSYS,
        ctrd_pidfd_send_signal=lambda pidfd, sig: errno.ENOSYS,
        ctrd_pidfd_reap=lambda *_: errno.EINVAL,
    )
    monkeypatch.setattr(proc, "lib", old)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("5.3", lambda: proc.pidfd_open(1)),
        ("5.1", lambda: proc.pidfd_send_signal(0, "TERM")),
        ("5.4", lambda: proc.wait_pidfd(0)),
    ]
    for version, call in calls:
        with pytest.raises(UnsupportedError, match=f"needs Linux {version}; this is Linux "):
            call()


def test_there_is_no_pidfd_of_nobody_or_of_a_thread() -> None:
    with pytest.raises(NotFoundError, match="it has ended"):
        proc.pidfd_open(GONE)
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(CtrdError, match=f"process {thread.native_id} "):
            proc.pidfd_open(thread.native_id)
    finally:
        go.set()
        thread.join()


def interrupt_once_main_waits_in(function: str) -> threading.Thread:
    """A thread that sends Ctrl-C to this process when its main thread sleeps inside *function*."""
    main = threading.main_thread()

    def watch() -> None:
        def waits() -> bool:
            frame = sys._current_frames()[main.ident or 0]
            state = Path(f"/proc/self/task/{main.native_id}/stat").read_bytes().rpartition(b") ")[2][:1]
            return frame.f_code.co_name == function and state == b"S"

        until(waits)
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("timeout", [None, 1000])
def test_ctrl_c_ends_a_wait_on_a_pidfd_and_the_child_is_still_ours(timeout: int | None) -> None:  # C17
    pid = proc.spawn(["sleep", "1000"])
    pidfd = proc.pidfd_open(pid)
    try:
        thread = interrupt_once_main_waits_in("_ended")
        with pytest.raises(KeyboardInterrupt):
            proc.wait_pidfd(pidfd, timeout)
        thread.join()
        proc.kill(pid, "TERM")
        assert proc.wait_pidfd(pidfd, 10) == proc.Exit(pid, None, 15, False)
    finally:
        os.close(pidfd)


def test_ctrl_c_ends_a_reap_and_the_child_is_still_ours() -> None:  # C17
    pid = proc.spawn(["sleep", "1000"])
    thread = interrupt_once_main_waits_in("reap")
    with pytest.raises(KeyboardInterrupt):
        proc.reap(pid)
    thread.join()
    proc.kill(pid, "TERM")
    assert proc.reap(pid) == proc.Exit(pid, None, 15, False)


def test_a_signal_whose_handler_returns_does_not_end_a_wait() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    pid = proc.spawn(["sleep", "0.3"])
    pidfd = proc.pidfd_open(pid)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert proc.wait_pidfd(pidfd, 10) == proc.Exit(pid, 0, None, False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(pidfd)
    assert len(seen) > 1


def test_a_subreaper_becomes_the_parent_of_orphans() -> None:
    out = run_python("""
        import os
        from libctrd import proc
        assert proc.child_subreaper() is False
        proc.set_child_subreaper(True)
        assert proc.child_subreaper() is True
        reader, writer = os.pipe()
        pid = proc.spawn(["sh", "-c", "(sleep 0.1; exit 5) & echo $!"], fds={1: writer})
        orphan = int(os.read(reader, 20))
        assert proc.reap(pid).code == 0
        assert proc.reap(orphan) == proc.Exit(orphan, 5, None, False)
        proc.set_child_subreaper(False)
        print(proc.child_subreaper())
    """)
    assert out == "False\n"


def test_the_parent_death_signal_comes_when_the_parent_ends() -> None:
    out = run_python("""
        import os, signal
        from libctrd import proc
        proc.set_child_subreaper(True)
        assert proc.parent_death_signal() is None
        reader, writer = os.pipe()
        middle = os.fork()
        if not middle:
            child = os.fork()
            if not child:
                proc.set_parent_death_signal("USR1")
                assert proc.parent_death_signal() == signal.SIGUSR1
                os.write(writer, b"%d" % os.getpid())
                signal.pause()
            signal.pause()
        child = int(os.read(reader, 20))
        proc.kill(middle, "KILL")
        assert proc.reap(middle).code == 137
        print(proc.reap(child).signal == signal.SIGUSR1)
        proc.set_parent_death_signal("TERM")
        proc.set_parent_death_signal(None)
        print(proc.parent_death_signal())
    """)
    assert out == "True\nNone\n"


def test_importing_the_process_helpers_loads_nothing_heavy() -> None:
    out = run_python("""
        import sys, libctrd
        before = set(sys.modules)
        import libctrd.proc
        print(*sorted(set(sys.modules) - before))
    """)
    assert "libctrd.proc" in out.split()
    assert not {"asyncio", "ctypes", "dataclasses", "inspect", "signal", "subprocess"} & set(out.split())


def test_what_only_linux_can_do_names_itself_and_the_system_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # C27
    monkeypatch.setattr(_checks, "LINUX", False)
    calls: dict[str, Callable[[], object]] = {
        "pidfd_open": lambda: proc.pidfd_open(1),
        "pidfd_send_signal": lambda: proc.pidfd_send_signal(0, 1),
        "wait_pidfd": lambda: proc.wait_pidfd(0),
        "set_child_subreaper": lambda: proc.set_child_subreaper(True),
        "child_subreaper": proc.child_subreaper,
        "set_parent_death_signal": lambda: proc.set_parent_death_signal(None),
        "parent_death_signal": proc.parent_death_signal,
        "boot_id": proc.boot_id,
        "start_time": lambda: proc.start_time(1),
        "is_same": lambda: proc.is_same(1, 1),
        "ProcessRef.alive": proc.ProcessRef(1, 1).alive,
    }
    for name, call in calls.items():
        with pytest.raises(UnsupportedError, match=f"^{name} needs Linux; this is {os.uname().sysname} "):
            call()
