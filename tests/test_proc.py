"""Tests of `libctrd.proc` with real children, real signals and what /proc says of them."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libctrd import _checks, _spawn, proc
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

ROOT = Path(__file__).parent.parent
GONE = 2**22 + 1  # above the largest pid_max there is, so nobody's


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    """Polls for what nothing announces, with a deadline."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def open_fds() -> set[int]:
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")}


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each test leaves no child, zombie or running, and no descriptor."""
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture(params=["closefrom", "listed"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of closing what the child shall not have."""
    if request.param == "listed":
        monkeypatch.setattr(_spawn, "_closefrom", False)
    elif not _spawn._closefrom:
        pytest.skip("this C library has no posix_spawn_file_actions_addclosefrom_np")


class Stopped:
    """A child that stopped itself as its first deed, so that /proc shows it as `spawn` made it."""

    def __init__(self, **how: object) -> None:
        self.pid = proc.spawn(["sh", "-c", "kill -STOP $$"], **how)  # type: ignore[arg-type]

    def __enter__(self) -> Stopped:
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert proc.reap(self.pid) == proc.Exit(self.pid, None, signal.SIGKILL, False)

    def fds(self) -> dict[int, tuple[int, int]]:
        """Each open descriptor, and the device and inode behind it."""
        folder = f"/proc/{self.pid}/fd"
        return {int(fd): inode(os.stat(f"{folder}/{fd}")) for fd in os.listdir(folder)}

    def status(self, field: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field + ":"))


def inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def output_of(argv: list[str], **how: object) -> bytes:
    """What a child wrote to its descriptor 1."""
    reader, writer = os.pipe()
    try:
        pid = proc.spawn(argv, fds={1: writer}, **how)  # type: ignore[arg-type]
        os.close(writer)
        with open(reader, "rb", closefd=False) as file:
            text = file.read()
    finally:
        os.close(reader)
    assert proc.reap(pid) == proc.Exit(pid, 0, None, False)
    return text


# ---- signals


@pytest.mark.parametrize("sig", [15, "15", "TERM", "SIGTERM", "term", "SigTerm", signal.SIGTERM])
def test_a_signal_is_known_by_number_and_by_each_spelling_of_its_name(sig: int | str) -> None:
    assert proc.signal_number(sig) == 15


def test_real_time_signals_count_from_both_ends() -> None:
    assert proc.signal_number("RTMIN+3") == signal.SIGRTMIN + 3
    assert proc.signal_number("sigrtmax-1") == signal.SIGRTMAX - 1
    assert proc.signal_number("RTMIN") == signal.SIGRTMIN
    assert proc.signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert proc.signal_name(signal.SIGRTMAX - 1) == "SIGRTMAX-1"


NO_SIGNALS = [
    0, -1, 65, 10**30, True, 1.0, None, b"TERM", "", "0", "65", "9" * 5000, "+15", "-15", "0x0f", "\u0661",
    "SIG", "SIGSIGTERM", "TERM ", "\u017fIGTERM", "SIG_DFL", "RTMIN-1", "RTMAX+1", "RTMIN+31", "RTMIN+",
    "RTMIN++1", "RTMIN+9999999999",
]  # fmt: skip


@pytest.mark.parametrize("sig", NO_SIGNALS, ids=lambda sig: repr(sig)[:20])
def test_what_is_no_signal_is_refused_with_what_is_accepted(sig: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"number from 1 to \d+, a name like 'TERM'") as caught:
        proc.signal_number(sig)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@given(st.integers(1, int(signal.SIGRTMAX)))
def test_every_signal_is_found_again_by_its_name(number: int) -> None:
    name = proc.signal_name(number)
    assert proc.signal_number(name) == proc.signal_number(name.lower()) == number
    assert proc.signal_number(name.removeprefix("SIG")) == number


SPELLING = st.text() | st.from_regex(r"(?i)(sig)?(rt(min|max)|term|[a-z]{2,6})([+-]?\d{0,5})", fullmatch=True)


@given(SPELLING | st.integers())
@settings(max_examples=500)
def test_anything_else_is_a_signal_in_range_or_one_clear_error(sig: int | str) -> None:
    try:
        number = proc.signal_number(sig)
    except InvalidArgumentError:
        return
    assert 1 <= number <= signal.SIGRTMAX
    if isinstance(sig, str) and not sig.isdigit():
        assert sig.upper().removeprefix("SIG").rstrip("0123456789+-") in proc.signal_name(number) or (
            sig.upper().removeprefix("SIG")[:5] in ("RTMIN", "RTMAX", "IOT", "CLD", "POLL")
        )


@pytest.mark.parametrize("pid", [0, -1, 2**31, True, 1.5, "1"])
def test_a_pid_that_would_mean_a_group_or_everybody_is_refused(pid: int) -> None:
    for call in (lambda: proc.kill(pid, "TERM"), lambda: proc.start_time(pid), lambda: proc.reap(pid)):
        with pytest.raises(InvalidArgumentError, match="is no process id"):
            call()


def test_killing_nobody_says_so() -> None:
    with pytest.raises(NotFoundError, match=f"send SIGTERM to process {GONE} .*it has ended") as caught:
        proc.kill(GONE, "TERM")
    assert caught.value.errno == errno.ESRCH
    assert isinstance(caught.value.__cause__, ProcessLookupError)


# ---- waiting


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
def test_a_pidfd_tells_how_our_child_ended_and_reaps_it_once(
    script: str, code: int | None, sig: int | None
) -> None:
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


# ---- settings of this process


def run_python(script: str, *prefix: str) -> str:
    """The output of *script* in a Python of its own, for what would change this one."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


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


# ---- which process is it


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
        import ctypes, threading
        threading.Thread(target=input).start()
        ctypes.CDLL(None).pthread_exit(None)
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


# ---- spawn


@pytest.mark.usefixtures("either_way")
def test_a_child_has_its_descriptors_and_no_other() -> None:
    extra = [os.open("/dev/zero", os.O_RDONLY) for _ in range(300)]
    pipes = [*os.pipe(), *os.pipe()]
    for fd in (*extra, *pipes):
        os.set_inheritable(fd, True)
    null = inode(os.stat("/dev/null"))
    try:
        mine = [inode(os.fstat(fd)) for fd in pipes]
        plan = {1: pipes[1], 7: pipes[0], 40: pipes[2], extra[250]: pipes[3]}
        with Stopped(fds=plan) as child:
            expected = {0: null, 1: mine[1], 2: null, 7: mine[0], 40: mine[2], extra[250]: mine[3]}
            assert child.fds() == expected
        assert [inode(os.fstat(fd)) for fd in pipes] == mine
        assert all(os.get_inheritable(fd) for fd in (*extra, *pipes))
    finally:
        for fd in (*extra, *pipes):
            os.close(fd)


@pytest.mark.usefixtures("either_way")
def test_maps_that_cross_come_out_right() -> None:
    fds = [os.memfd_create(f"file {number}") for number in range(3)]
    try:
        a, b, c = fds
        files = {fd: inode(os.fstat(fd)) for fd in fds}
        for plan in ({a: b, b: a}, {a: b, b: c, c: a}, {a: a}, {0: b, 1: b, 2: b, b: a}, {b: c, c: c}):
            with Stopped(fds=plan) as child:
                null = dict.fromkeys((0, 1, 2), inode(os.stat("/dev/null")))
                assert child.fds() == null | {target: files[source] for target, source in plan.items()}
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.usefixtures("either_way")
@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_map_comes_out_right(data: st.DataObject) -> None:
    files = [os.memfd_create(f"file {number}") for number in range(6)]
    try:
        highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
        numbers = st.integers(0, 12) | st.sampled_from(files) | st.integers(13, min(highest, 3000))
        plan = data.draw(st.dictionaries(numbers, st.sampled_from(files), max_size=12))
        for fd in data.draw(st.sets(st.sampled_from(files))):
            os.set_inheritable(fd, True)
        before = open_fds()
        with Stopped(fds=plan) as child:
            null = dict.fromkeys((0, 1, 2), inode(os.stat("/dev/null")))
            expected = {target: inode(os.fstat(source)) for target, source in plan.items()}
            assert child.fds() == null | expected
        assert open_fds() == before
    finally:
        for fd in files:
            os.close(fd)


def test_a_target_beyond_what_is_closed_unseen_closes_what_is_open_below_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"at most {hard} descriptors here, the test needs 5000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, hard))
    file = os.memfd_create("file")
    extras = [os.dup2(file, 1500), os.dup2(file, 4500)]
    try:
        with Stopped(fds={4000: file}) as child:
            assert set(child.fds()) == {0, 1, 2, 4000}
    finally:
        for fd in (file, *extras):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_starts_with_no_signal_blocked_or_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    try:
        with Stopped() as child:
            assert int(child.status("SigBlk"), 16) == 0
            assert int(child.status("SigIgn"), 16) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR2})
        signal.signal(signal.SIGUSR1, before)


def test_a_new_session_is_led_by_the_child_and_only_on_request() -> None:
    with Stopped(new_session=True) as child:
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
    with Stopped() as child:
        assert os.getsid(child.pid) == os.getsid(0)


def test_the_environment_is_the_one_given_or_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        output_of(["env"], env={"A": "x y", "B": "", "C": "\udcff\u20ac"})
        == b"A=x y\nB=\nC=\xff\xe2\x82\xac\n"
    )
    assert output_of(["env"], env={}) == b""
    monkeypatch.setenv("CTRD_OF_OURS", "here")
    assert b"CTRD_OF_OURS=here\n" in output_of(["env"])


def test_the_name_and_the_file_may_differ_and_paths_are_taken(tmp_path: Path) -> None:
    shell = Path(shutil.which("sh") or "")
    assert output_of(["other", "-c", "echo $0"], executable=shell) == b"other\n"
    assert output_of(["other", "-c", 'echo "$0"', "\udcff x"], executable="sh") == b"\xff x\n"


def test_a_program_that_cannot_start_is_named_with_what_to_do(tmp_path: Path) -> None:
    def file(name: str, text: str, mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    cases = [
        (str(tmp_path / "missing"), NotFoundError, errno.ENOENT, "check that it exists"),
        ("ctrd-no-such-program", NotFoundError, errno.ENOENT, "check that it exists"),
        (file("plain", "#!/bin/sh\n", 0o644), UnavailableError, errno.EACCES, "check its owner and mode"),
        (str(tmp_path), UnavailableError, errno.EACCES, "check its owner and mode"),
        (file("text", "echo hi\n"), InvalidArgumentError, errno.ENOEXEC, "no program for this machine"),
        (file("empty", ""), InvalidArgumentError, errno.ENOEXEC, "no program for this machine"),
        (file("script", "#!/no/such/shell\n"), NotFoundError, errno.ENOENT, "its interpreter is not"),
    ]
    for path, family, number, advice in cases:
        with pytest.raises(family, match=advice) as caught:
            proc.spawn(["name"], executable=path)
        assert repr(path) in str(caught.value)
        assert isinstance(caught.value, CtrdError)
        assert caught.value.errno == number
        assert isinstance(caught.value.__cause__, OSError)


def test_arguments_over_the_limit_are_the_callers_fault() -> None:
    with pytest.raises(InvalidArgumentError, match=r"start 'true' .*ARG_MAX") as caught:
        proc.spawn(["true", "x" * (1 << 20)])
    assert caught.value.errno == errno.E2BIG


@pytest.mark.parametrize(
    ("argv", "how", "what"),
    [
        ([], {}, "argv is"),
        ("true", {}, "argv is 'true'"),
        ([1], {}, "an argument is 1"),
        (["true", "a\0b"], {}, "NUL"),
        (["true"], {"executable": "tr\0ue"}, "NUL"),
        (["true"], {"env": {"A=B": "c"}}, "a '=' in it"),
        (["true"], {"env": {"": "c"}}, "may not be empty"),
        (["true"], {"env": {"A": "b\0c"}}, "the variable A"),
        (["true"], {"fds": {-1: 0}}, "-1 is no descriptor"),
        (["true"], {"fds": {0: -1}}, "-1 is no descriptor"),
        (["true"], {"fds": {0: "1"}}, "'1' is no descriptor"),
        (["true"], {"fds": {2**31 - 1: 0}}, "is no descriptor"),
        (["true"], {"fds": {2**31 - 2: 0}}, "descriptor 2147483646 .*RLIMIT_NOFILE"),
    ],
)
def test_arguments_no_program_can_get_are_refused(argv: object, how: dict[str, object], what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        proc.spawn(argv, **how)  # type: ignore[arg-type]


def test_a_descriptor_that_is_not_open_is_named() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(ClosedError, match=f"start 'true': hand descriptor {fd} on") as caught:
        proc.spawn(["true"], fds={1: 2, 5: fd})
    assert caught.value.errno == errno.EBADF


def test_a_descriptor_over_the_limit_is_closed_too_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.dup2(0, soft - 1, inheritable=True)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        with Stopped() as child:
            assert set(child.fds()) == {0, 1, 2}
        monkeypatch.setattr(_spawn, "_closefrom", False)
        with pytest.raises(UnavailableError, match="one that it would inherit is over RLIMIT_NOFILE"):
            proc.spawn(["true"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(fd)


@pytest.mark.parametrize("closefrom", [True, False])
def test_a_process_without_descriptors_left_says_so_and_loses_none(closefrom: bool) -> None:
    out = run_python(f"""
        import os, resource
        from libctrd import _spawn, proc
        from libctrd.errors import UnavailableError
        _spawn._closefrom = _spawn._closefrom and {closefrom}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        for limit in range(3, 20):  # each step runs out in its turn, until there is room for all
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                pid = proc.spawn(["true"], fds={{1: 1, 2: 2}})
            except UnavailableError as error:
                print(error.errno, error)
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert os.listdir("/proc/self/fd") == before
        assert proc.reap(pid) == proc.Exit(pid, 0, None, False)
    """)
    lines = out.splitlines()
    assert 3 <= len(lines) < 10
    for line in lines:
        assert line.startswith(f"{errno.EMFILE} could not start 'true': ")
        assert "ulimit -n" in line


def test_many_threads_start_and_reap_their_own_children() -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for step in range(20):
            code = (number * 20 + step) % 256
            pid = proc.spawn(["sh", "-c", f"exit {code}"])
            ended = proc.reap(pid)
            if ended != proc.Exit(pid, code, None, False):
                wrong.append(ended)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- other systems


def test_what_only_linux_can_do_names_itself_and_the_system_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # C27
    monkeypatch.setattr(_checks, "_LINUX", False)
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
        with pytest.raises(
            UnsupportedError, match=f"^{name} needs Linux; this system is {os.uname().sysname} "
        ):
            call()


def test_the_c_source_compiles_where_there_is_no_linux() -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) here")
    script = "import runpy; print(runpy.run_path('tools/build_proc.py')['SOURCE'])"
    source = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsyntax-only"]
    for system in ([], ["-U__linux__"]):
        done = subprocess.run(
            [compiler, *flags, *system, "-xc", "-"],
            input=source.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
