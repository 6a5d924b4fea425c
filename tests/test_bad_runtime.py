"""OCI runtimes that are none, fail, hang, lie or die: a start says what was wrong, in one line, and leaves nothing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from engine_kit import leftovers
from field_kit import WAIT, Make, nothing_in, refused, until

import libctrd
from libctrd.client import Client
from libctrd.engine import runtime as runtimes
from libctrd.engine import shim
from libctrd.errors import CtrdError, DeadlineError, NotFoundError, RuntimeFailedError, UnavailableError

pytestmark = pytest.mark.local("how the shim calls a runtime")


@pytest.fixture
def program(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Makes an executable script that passes for a runtime; whether it works here was "found out" already."""

    def make(script: str) -> str:
        path = tmp_path / "runtime"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime is tried beforehand: the start itself must cope."""
    monkeypatch.setattr(runtimes, "_try", lambda path: runtimes.Runtime(path, True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("/no/such/runtime", NotFoundError), ("no-such-runtime", NotFoundError), ("/tmp", UnavailableError)],
)
def test_a_runtime_that_is_missing(
    any_client: Client, spec: Make, state_dir: str, name: str, kind: type[CtrdError]
) -> None:
    with refused(kind, name, state=state_dir):
        any_client.create("web", spec("true"), runtime=name)
    with libctrd.connect(any_client.address, runtime=name) as other, refused(kind, name, state=state_dir):
        other.create("web", spec("true"))


def test_a_runtime_that_is_not_executable(any_client: Client, spec: Make, state_dir: str, tmp_path: Path) -> None:
    path = tmp_path / "runtime"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    with refused(UnavailableError, str(path), "not an executable", state=state_dir):
        any_client.create("web", spec("true"), runtime=str(path))


@pytest.mark.parametrize("content", [b"", b"\x7fELFgarbage", b"#!/no/such/interpreter\n", b"\0" * 4096], ids=repr)
def test_a_runtime_that_is_no_program(
    any_client: Client, spec: Make, state_dir: str, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "runtime"
    path.write_bytes(content)
    path.chmod(0o755)
    with refused(CtrdError, str(path), state=state_dir):
        any_client.create("web", spec("true"), runtime=str(path)).start()


GARBAGE = "printf 'line one\\nline two\\377\\n' >&2; head -c 5000 /dev/urandom; printf '\\033[2J' >&2"


@pytest.mark.parametrize("code", [0, 1, 255])
@pytest.mark.parametrize("tried", [False, True], ids=["unknown", "believed to work"])
def test_a_runtime_that_prints_garbage_and_ends(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,  # type: ignore[no-untyped-def]
    request: pytest.FixtureRequest,
    code: int,
    tried: bool,
) -> None:
    if tried:
        request.getfixturevalue("believed")
    name = program(f"{GARBAGE if code else 'echo garbage'}; exit {code}")
    with refused(RuntimeFailedError, "pid file" if code == 0 else "", state=state_dir):
        any_client.create("web", spec("true"), runtime=name).start()


def test_what_a_runtime_says_without_a_log_is_told(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    name = program("echo 'the moon is in the wrong house' >&2; exit 3")
    with refused(RuntimeFailedError, "the moon is in the wrong house", "exit code 3", state=state_dir):
        any_client.create("web", spec("true"), runtime=name).start()


def test_what_a_failed_runtime_has_left_to_itself_ends_with_it(
    any_client: Client,
    spec: Make,
    state_dir: str,
    tmp_path: Path,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    """crun's helper is nobody's child but the subreaper's: of a start cut short it went on to make a container."""
    left = tmp_path / "left"
    helper = f"sleep 1000 & echo $$ $! > {left}.tmp; mv {left}.tmp {left}; wait"
    start = f"(setsid sh -c '{helper}' &); while [ ! -e {left} ]; do :; done; exit 3"
    name = program(f"case $* in *' run '*) {start}; esac")
    with refused(RuntimeFailedError, "exit code 3", state=state_dir):
        any_client.create("web", spec("true"), runtime=name).start()
    pids = [int(pid) for pid in left.read_text().split()]
    assert len(pids) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_runtime_that_dies_of_a_signal(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    with refused(RuntimeFailedError, "137", state=state_dir):
        any_client.create("web", spec("true"), runtime=program("kill -KILL $$")).start()


@pytest.mark.parametrize("child", ["", "sleep 1000 & "], ids=["alone", "with a child"])
def test_a_runtime_that_hangs_is_killed_in_time(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,  # type: ignore[no-untyped-def]
    believed: None,
    monkeypatch: pytest.MonkeyPatch,
    child: str,
) -> None:
    monkeypatch.setattr(shim.Shim.started, "__defaults__", (0.3,))
    name = program(f'case "$*" in *" run "*) {child}exec sleep 1000;; esac')
    with refused(DeadlineError, "within 0.3 s", "web", state=state_dir):
        any_client.create("web", spec("true"), runtime=name).start()


def test_a_real_runtime_that_is_killed_half_way_leaves_nothing(
    client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    """At many moments of a real start the runtime itself is killed -9; its helpers and cgroups must go too."""
    real = client.info().runtime
    known = runtimes.find(real)
    outcomes = set()
    for delay in range(12):
        name = program(
            f'case "$*" in *" run "*) {real} "$@" & pid=$!; usleep {delay * 4000}; kill -9 $pid; wait $pid;;'
            f' *) exec {real} "$@";; esac'
        )
        runtimes._known.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                runtimes, "_try", lambda path: runtimes.Runtime(path, True, known.hide_unified, known.version)
            )
            try:
                container = client.create("web", spec("exit 3"), runtime=name)
                container.start(libctrd.NULL)
                assert container.wait(WAIT).code == 3
                outcomes.add("started")
            except RuntimeFailedError:
                outcomes.add("failed")
        until(lambda: not any(leftovers(state_dir).values()))
    assert "failed" in outcomes


@pytest.mark.parametrize("content", ["", "x", "-1", "0", "1", "99999999999999999999"])
def test_a_runtime_whose_pid_file_holds_no_process(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,
    content: str,  # type: ignore[no-untyped-def]
) -> None:
    name = program(
        f"while [ $# -gt 1 ]; do [ \"$1\" = --pid-file ] && printf '%s' '{content}' > \"$2\"; shift; done; exit 0"
    )
    with refused(RuntimeFailedError, state=state_dir):
        any_client.create("web", spec("true"), runtime=name).start()


def test_arguments_that_the_runtime_refuses(client: Client, spec: Make, state_dir: str) -> None:  # C1
    container = client.create("web", spec("true"), runtime_args=["--no-such-option"])
    with refused(RuntimeFailedError, "no-such-option", state=state_dir):
        container.start()


def test_more_arguments_than_the_shim_takes(any_client: Client, spec: Make, state_dir: str) -> None:
    container = any_client.create("web", spec("true"), runtime_args=["--debug"] * 100)
    with refused(CtrdError, "64", state=state_dir):
        container.start()


def test_a_start_that_fails_is_told_to_each_of_many_threads(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    name = program("exit 9")
    told: list[int | None] = []

    def start(number: int) -> None:
        try:
            any_client.create(f"c{number}", spec("true"), runtime=name).start()
        except RuntimeFailedError as error:
            told.append(error.exit_code)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert told == [9] * 16
    assert nothing_in(state_dir)


def test_a_runtime_that_names_a_stranger_as_init(
    any_client: Client,
    spec: Make,
    state_dir: str,
    program,
    believed: None,  # type: ignore[no-untyped-def]
) -> None:
    """Its pid file names a process that is not its child: neither is it waited for, for ever, nor may it be harmed."""
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    try:
        name = program(
            'while [ $# -gt 1 ]; do [ "$1" = --pid-file ] && echo ' + str(stranger) + ' > "$2"; shift; done; exit 0'
        )
        with refused(CtrdError, "web", state=state_dir):
            any_client.create("web", spec("true"), runtime=name).start()
        assert os.waitpid(stranger, os.WNOHANG) == (0, 0), "it lives"
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
