"""What can be asked of a running container: signals, statistics, limits, checkpoints; and where its root comes from."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from client_kit import Recorder
from engine_kit import Place
from field_kit import until

import libctrd
from libctrd import NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine.base import Mount
from libctrd.errors import (
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnsupportedError,
)

WAIT = 30.0
MIB = 1 << 20
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def web(client: Client, spec: Make) -> Iterator[Container]:
    """A container of a shell and a child of it, with limits, that runs until it is ended."""
    container = client.create("web", spec("trap 'exit 0' TERM; sleep 1000 & wait", memory="64m", pids_limit=20))
    container.start(NULL)
    yield container
    container.clean(force=True)


ASKED = {
    "stats": lambda container: container.stats(),
    "pids": lambda container: container.pids(),
    "update": lambda container: container.update({"memory": {"limit": 32 * MIB}}),
    "checkpoint": lambda container: container.checkpoint("/nowhere"),
}


# ---- signals and pauses ----------------------------------------------------------------------------------------------


def test_pause_and_resume_return_in_the_order_of_their_events(
    client: Client, web: Container, recorder: Recorder
) -> None:  # C11, C20
    for _ in range(3):
        web.pause(WAIT)
        assert recorder.of("web")[-1] == "pause"
        assert web.status == "paused"
        web.resume(WAIT)
        assert recorder.of("web")[-1] == "resume"
        assert web.status == "running"
    assert recorder.of("web") == ["pause", "resume"] * 3


def test_a_paused_container_does_nothing_until_it_is_resumed(client: Client, spec: Make) -> None:  # C20
    container = client.create("other", spec("while read x; do echo $x; done"))
    container.start()
    assert container.stdin is not None
    assert container.stdout is not None
    container.pause(WAIT)
    container.stdin.write(b"late\n")
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(container.stdout.read(5)))  # type: ignore[union-attr]
    reading.start()
    reading.join(0.2)
    assert reading.is_alive()
    container.resume(WAIT)
    reading.join(WAIT)
    assert got == [b"late\n"]
    container.clean(force=True)


def test_what_is_paused_or_runs_already_stays_so(web: Container) -> None:  # C20
    with pytest.raises(InvalidArgumentError, match=r"^could not resume container 'web': it is not paused$"):
        web.resume(WAIT)
    web.pause(WAIT)
    with pytest.raises(InvalidArgumentError, match=r"^could not pause container 'web': it is paused already$"):
        web.pause(WAIT)
    assert web.status == "paused"
    web.resume(WAIT)
    with pytest.raises(InvalidArgumentError, match="is not paused"):
        web.resume(WAIT)
    assert web.status == "running"


@pytest.mark.parametrize("change", ["pause", "resume"])
def test_of_two_who_change_it_at_once_one_is_told_that_it_is_so_already(
    client: Client, engine: Place, web: Container, recorder: Recorder, change: str
) -> None:  # C11, C18
    with engine.connect() as other:
        for turn in range(4):
            if change == "resume":
                web.pause(WAIT)
            outcomes: list[str] = []

            def make(container: Container) -> None:
                try:
                    getattr(container, change)(WAIT)
                    outcomes.append("done")  # noqa: B023 - the threads end before the next turn
                except InvalidArgumentError as error:
                    outcomes.append(str(error)[-14:])  # noqa: B023

            threads = [threading.Thread(target=make, args=(one,)) for one in (web, other.get("web"))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
            told = "paused already" if change == "pause" else " is not paused"
            assert sorted(outcomes) == sorted(["done", told]), turn
            if change == "pause":
                web.resume(WAIT)
        until(lambda: len(recorder.of("web")) == 8)
        assert recorder.of("web") == ["pause", "resume"] * 4


def test_another_client_pauses_it_and_both_hear_of_it(
    client: Client, engine: Place, web: Container, recorder: Recorder
) -> None:  # C11
    with engine.connect() as other:
        theirs = other.get("web")
        theirs.pause(WAIT)
        until(lambda: recorder.of("web") == ["pause"])
        web.resume(WAIT)
        until(lambda: theirs.status == "running")


def test_a_signal_reaches_the_first_process_alone(client: Client, spec: Make) -> None:  # C20
    script = "trap 'echo got; exit 7' USR1; (trap 'echo child' USR1; sleep 1000) & echo ready; wait"
    container = client.create("other", spec(script))
    container.start()
    assert container.stdout is not None
    assert container.stdout.read(6) == b"ready\n"
    container.signal("USR1")
    assert container.wait(WAIT).code == 7
    assert container.stdout.read() == b"got\n"
    container.stdout.close()


@pytest.mark.cannot("api", "send a signal to everyone in a container", raises=UnsupportedError)
def test_a_signal_can_reach_everyone(client: Client, spec: Make) -> None:  # C20
    container = client.create("other", spec("trap 'exit 9' USR1; echo ready; sleep 1000 & wait; echo never"))
    container.start(Stdio(NULL, PIPE, NULL))
    assert container.stdout is not None
    try:
        assert container.stdout.read(6) == b"ready\n", "an init that has no handler for a signal does not get it"
        container.signal("USR1", everyone=True)
        assert container.wait(WAIT).code == 9
    finally:
        container.clean(force=True)
        container.stdout.close()


# ---- what it uses, and may use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ASKED)
def test_without_a_running_process_nothing_is_asked_of_the_engine(client: Client, spec: Make, what: str) -> None:  # C20
    container = client.create("other", spec("true"))
    with pytest.raises(InvalidArgumentError, match="not started"):
        ASKED[what](container)
    container.start(NULL)
    container.wait(WAIT)
    with pytest.raises(NotFoundError, match="not running"):
        ASKED[what](container)


def test_the_statistics_tell_what_it_uses_and_may_use(client: Client, spec: Make) -> None:  # C20
    script = "head -c 16000000 /dev/zero | tail -c 16000000 > /dev/shm/much; while :; do :; done"
    container = client.create("other", spec(script, memory="64m", pids_limit=20))
    container.start(NULL)
    until(lambda: container.stats().memory.usage > 12 * MIB)
    first = container.stats()
    assert first.memory.limit == 64 * MIB
    assert first.memory.usage <= 64 * MIB
    assert first.pids.limit == 20
    assert 1 <= first.pids.current <= 20
    assert abs((datetime.now(timezone.utc) - first.at).total_seconds()) < WAIT
    until(lambda: container.stats().cpu.total_ns > first.cpu.total_ns)
    container.clean(force=True)


def test_the_pids_are_those_of_all_its_processes(web: Container) -> None:  # C20
    until(lambda: len(web.pids()) == 2)
    assert web.pid in web.pids()
    further = web.exec(["sleep", "1000"], NULL)
    assert further.pid in web.pids()
    assert all(os.path.exists(f"/proc/{pid}") for pid in web.pids())
    further.signal("KILL")
    further.wait(WAIT)
    assert further.pid not in web.pids()


def test_limits_can_be_changed_while_it_runs(web: Container) -> None:  # C20
    web.update({"memory": {"limit": 32 * MIB}, "pids": {"limit": 11}})
    assert web.stats().memory.limit == 32 * MIB
    assert web.stats().pids.limit == 11
    for wrong in ({"memory": {"limit": "much"}}, {"memory": 5}, {"memory": {"limit": 4096}}):
        with pytest.raises((InvalidArgumentError, RuntimeFailedError)):
            web.update(wrong)
    assert web.stats().memory.limit == 32 * MIB
    assert web.status == "running"


def _criu_works() -> bool:
    criu = shutil.which("criu", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    return criu is not None and os.system(f"{criu} check >/dev/null 2>&1") == 0


def test_a_checkpoint_that_fails_is_told_and_it_runs_on(web: Container, tmp_path: Path) -> None:  # C20
    where = tmp_path / "no directory"
    where.write_text("")
    with pytest.raises(CtrdError, match=r"checkpoint container 'web'|CRIU cannot run here: ") as caught:
        web.checkpoint(str(where), leave_running=True)
    assert "\n" not in str(caught.value)
    assert where.read_text() == ""
    assert web.status == "running"
    web.pause(WAIT)
    web.resume(WAIT)
    assert web.pids()


@pytest.mark.local("containerd's shim leaves it to CRIU to say so")
def test_where_criu_cannot_run_that_is_said_before_anything_is_touched(web: Container, tmp_path: Path) -> None:
    if _criu_works():
        pytest.skip("criu works on this host")
    with pytest.raises(UnsupportedError, match=r"^CRIU cannot run here: "):
        web.checkpoint(str(tmp_path / "state"))
    assert os.listdir(tmp_path) == []
    assert web.status == "running"


def test_checkpoints_are_listed_and_deleted(web: Container, tmp_path: Path) -> None:  # C20
    for name in ("two", "one"):
        (tmp_path / name / "images").mkdir(parents=True)
    (tmp_path / "file").write_text("no checkpoint")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert web.checkpoints(str(tmp_path)) == [str(tmp_path / "one"), str(tmp_path / "two")]
    web.delete_checkpoint(str(tmp_path / "two"))
    web.delete_checkpoint(str(tmp_path / "never"))
    assert web.checkpoints(str(tmp_path)) == [str(tmp_path / "one")]
    with pytest.raises(NotFoundError, match="checkpoints"):
        web.checkpoints()
    with pytest.raises(InvalidArgumentError):
        web.delete_checkpoint("")


def test_from_a_checkpoint_it_goes_on(client: Client, engine: Place, spec: Make, tmp_path: Path) -> None:  # C8, C20
    if not _criu_works():
        pytest.skip("criu does not work on this host: `criu check` says why")
    if engine.runtime_name == "crun" and os.path.isdir("/sys/fs/cgroup/unified"):
        pytest.skip("crun cannot do it where cgroup v1 and v2 are side by side")
    container = client.create("other", spec("n=0; while :; do n=$((n+1)); usleep 100000; done"))
    container.start(NULL)
    container.checkpoint(str(tmp_path / "state"))
    assert container.wait(WAIT).known
    again = client.create("other", spec("n=0; while :; do n=$((n+1)); usleep 100000; done"))
    again.start(NULL, checkpoint=str(tmp_path / "state"))
    assert again.status == "running"
    again.clean(force=True)


# ---- labels, roots, runtimes -----------------------------------------------------------------------------------------


def test_labels_are_kept_with_it_for_every_client(client: Client, engine: Place, spec: Make) -> None:
    labels = {"com.example.team": "storage", "text": "ä b\nc"}
    container = client.create("other", spec("true"), labels=labels)
    assert container.info().labels == labels
    with engine.connect() as other:
        assert other.get("other").info().labels == labels
    container.clean()
    for wrong in ({"": "x"}, {"a": 5}, {"a\0": "b"}):
        with pytest.raises(InvalidArgumentError, match="labels="):
            client.create("other", spec("true"), labels=wrong)  # type: ignore[arg-type]


@pytest.mark.containerd("the local engine knows directories only")
def test_its_root_can_be_made_up_of_mounts(client: Client, spec: Make, rootfs: str) -> None:
    mounts = [Mount("bind", rootfs, ("rbind", "ro"))]
    container = client.create("other", spec("touch /x 2>&1; echo end"), mounts=mounts)
    container.start(libctrd.Stdio(NULL, PIPE, NULL))
    assert container.stdout is not None
    text = container.stdout.read()
    assert b"Read-only" in text
    assert text.endswith(b"end\n")
    assert container.wait(WAIT).code == 0
    container.stdout.close()
    assert not os.path.exists(os.path.join(rootfs, "x"))


@pytest.mark.local("it tells what the local engine says instead")
@pytest.mark.parametrize(
    "wanted", [{"mounts": [Mount("tmpfs", "tmpfs")]}, {"snapshot": "x"}, {"image": "example.com/x:1"}], ids=str
)
def test_the_local_engine_knows_directories_only(
    client: Client, spec: Make, state_dir: str, wanted: dict[str, Any]
) -> None:  # C27
    with pytest.raises(UnsupportedError, match="local engine"):
        client.create("other", spec("true"), **wanted)
    assert os.listdir(state_dir) == []


@pytest.mark.containerd("the local engine knows directories only")
def test_of_mounts_snapshot_and_image_one_is_given(client: Client, spec: Make) -> None:
    with pytest.raises(InvalidArgumentError, match="give one"):
        client.create("other", spec("true"), mounts=[Mount("tmpfs", "tmpfs")], snapshot="x")


@pytest.mark.containerd("the local engine knows directories only")
def test_mounts_that_cannot_be_are_told_and_leave_nothing(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("other", spec("true"), mounts=[Mount("nosuchfs", "/nowhere")])
    with pytest.raises(RuntimeFailedError, match="other"):
        container.start(NULL)
    assert os.listdir(state_dir) == []
    client.create("other", spec("true")).clean()


@pytest.mark.containerd("the local engine hands it on to the runtime, which takes it from the bundle")
def test_a_relative_root_is_taken_from_here(
    client: Client, spec: Make, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.path.dirname(rootfs))
    wanted = spec("exit 4")
    wanted["root"]["path"] = os.path.basename(rootfs)
    container = client.create("other", wanted)
    monkeypatch.chdir("/")
    container.start(NULL)
    assert container.wait(WAIT).code == 4


@pytest.mark.containerd("the local engine hands all arguments on to the runtime")
@pytest.mark.parametrize("arguments", [["--debug"], ["--log", "/x"], ["--root"], ["--systemd-cgroup=maybe"]], ids=repr)
def test_an_argument_that_no_shim_hands_on_is_an_error(
    client: Client, spec: Make, state_dir: str, arguments: list[str]
) -> None:  # C1
    with pytest.raises(UnsupportedError, match=arguments[0].partition("=")[0]):
        client.create("other", spec("true"), runtime_args=arguments)
    assert os.listdir(state_dir) == []


@pytest.mark.containerd("the root of a runtime is the local engine's own")
def test_the_root_of_the_runtime_is_that_of_its_arguments(client: Client, spec: Make, tmp_path: Path) -> None:  # C1
    with pytest.raises(InvalidArgumentError, match="absolute"):
        client.create("other", spec("true"), runtime_args=["--root", "here"])
    container = client.create("other", spec("sleep 1000"), runtime_args=["--root", str(tmp_path / "own")])
    container.start(NULL)
    assert list((tmp_path / "own").glob("*/other/state.json"))
    container.clean(force=True)
    assert not list((tmp_path / "own").glob("*/other"))


def test_a_time_limit_of_a_pause_is_kept(client: Client, web: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._engine, "pause", lambda id: None)  # the engine that answers and never reports
    with pytest.raises(DeadlineError, match="pause"):
        web.pause(0.05)
