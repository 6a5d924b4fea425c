"""Tests of `libctrd.proc.spawn`: what /proc says of the child it made."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from examples_kit import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proc_kit import Stopped, either_way, inode, nothing_left, open_fds, output_of, run_python  # noqa: F401 (fixtures)

from libctrd import _spawn, proc
from libctrd._proc import lib
from libctrd.errors import (
    ClosedError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)


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
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        assert open_fds() <= before
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
    assert output_of(["env"], env={"A": "x y", "B": "", "C": "\udcff\u20ac"}) == b"A=x y\nB=\nC=\xff\xe2\x82\xac\n"
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


def is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (OSError, ValueError):
        return False


def test_a_descriptor_over_the_limit_is_closed_too_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.dup2(0, soft - 1, inheritable=True)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        with Stopped() as child:
            assert set(child.fds()) == {0, 1, 2}
        monkeypatch.setattr(_spawn, "_closefrom", False)
        if is_glibc():
            with pytest.raises(UnavailableError, match="one that it would inherit is over RLIMIT_NOFILE"):
                proc.spawn(["true"])
        else:  # musl does not look at the limit
            with Stopped() as child:
                assert set(child.fds()) == {0, 1, 2}
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
        # musl's posix_spawn takes descriptors of its own, so that it may be the one to say so.
        assert line.startswith(
            (f"{errno.EMFILE} could not start 'true': ", f"{errno.EMFILE} could not start 'true' (p")
        )
        assert "ulimit -n" in line


def test_what_spawn_needs_of_the_system_is_named_when_it_is_missing() -> None:
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespace of our own: {probe.stderr.strip()}")
    out = run_python(
        """
        import subprocess
        from libctrd import _spawn, proc
        from libctrd.errors import NotFoundError
        _spawn._closefrom = False
        for path in ("/proc", "/dev"):
            subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
            try:
                proc.spawn(["true"])
            except NotFoundError as error:
                print(error)
        """,
        "unshare", "-m", "sh", "-c", '"$@"; exit $?', "sh",
    )  # fmt: skip
    listing, null = out.splitlines()
    assert listing.startswith("could not start 'true': close all other descriptors, as listed in '/proc/self/fd'")
    assert null.startswith("could not start 'true': open '/dev/null' (open): No such file or directory")


def test_a_c_library_without_new_sessions_is_not_taken_for_a_wrong_argument() -> None:
    failure = _spawn._failure(errno.EINVAL, "x", lib.STAGE_SESSION, -1, 2)
    assert isinstance(failure, UnsupportedError)
    assert "start 'x': in a session of its own (posix_spawn)" in str(failure)
    assert f"(not on {os.uname().sysname} " in str(failure)


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
