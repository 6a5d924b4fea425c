"""A host that gives out: full disks, no descriptors left, directories that may not be written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from field_kit import fill, need_root, output_of, small_disk

import libctrd
from libctrd.errors import CtrdError

pytestmark = pytest.mark.local("the disk, the directory and the descriptors of the shim")

WAIT = 30.0
Make = Callable[..., dict[str, Any]]


# ---- disks ----------------------------------------------------------------------------------------------------------


def leave_bytes(where: str, free: int) -> None:
    """Fills the disk of *where* but for *free* bytes, in whole pages."""
    fill(where)
    size = os.path.getsize(os.path.join(where, "filler"))
    os.truncate(os.path.join(where, "filler"), size - free)


def attempt(address: str, spec: dict[str, Any]) -> int | None:
    """The exit code of a container there, ``None`` when it could not be run."""
    with libctrd.connect(address) as client:
        try:
            container = client.create("web", spec)
            container.start(libctrd.NULL)
        except CtrdError as error:
            return None if "\n" not in str(error) else -1
        return container.wait(WAIT).code


def test_a_disk_that_is_full_by_bytes(tmp_path: Path, spec: Make) -> None:
    """At every level: it works, or it is a clear error and nothing is left; and there is a level for each."""
    need_root()
    outcomes = set()
    with small_disk(tmp_path / "disk", "size=512k") as disk:
        os.mkdir(os.path.join(disk, "state"), 0o700)
        for pages in (*range(16), 24, 32, 64):
            leave_bytes(disk, pages * 4096)
            code = attempt(f"local:{disk}/state", spec("exit 3"))
            assert code in (None, 3)
            assert os.listdir(os.path.join(disk, "state")) == [], f"with {pages} pages free"
            outcomes.add(code)
            os.unlink(os.path.join(disk, "filler"))
    assert outcomes == {None, 3}


def test_a_disk_that_is_full_by_inodes(tmp_path: Path, spec: Make) -> None:
    need_root()
    outcomes = set()
    with small_disk(tmp_path / "disk", "size=1m,nr_inodes=40") as disk:
        os.mkdir(os.path.join(disk, "state"), 0o700)
        for free in range(24):
            used = 0
            while os.statvfs(disk).f_ffree > free:
                Path(disk, f"inode-{used}").touch()
                used += 1
            code = attempt(f"local:{disk}/state", spec("exit 3"))
            assert code in (None, 3)
            assert os.listdir(os.path.join(disk, "state")) == [], f"with {free} inodes free"
            outcomes.add(code)
            for number in range(used):
                os.unlink(os.path.join(disk, f"inode-{number}"))
    assert outcomes == {None, 3}


def test_an_exit_is_recorded_though_the_disk_is_full_by_then(tmp_path: Path, spec: Make) -> None:  # C28
    need_root()
    with small_disk(tmp_path / "disk", "size=1m") as disk, libctrd.connect(f"local:{disk}/state") as client:
        container = client.create("web", spec("read x; exit 23"))
        container.start(libctrd.Stdio(libctrd.PIPE, libctrd.DETACHED, libctrd.DETACHED))
        fill(disk)
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == 23
        container.clean()


def test_the_record_of_an_exit_that_no_client_cleans_is_there_on_a_full_disk(tmp_path: Path, spec: Make) -> None:  # C28
    need_root()
    with small_disk(tmp_path / "disk", "size=1m") as disk, libctrd.connect(f"local:{disk}/state") as client:
        container = client.create("web", spec("kill -STOP 1; sleep 1000"))
        container.start(libctrd.DETACHED)
        fill(disk)
        container.signal("KILL")
        assert container.wait(WAIT).code == 137
        record = json.loads(Path(disk, "state/web/exit.json").read_text())
        assert record["code"] == 137
        container.clean()
        assert os.listdir(os.path.join(disk, "state")) == []


# ---- descriptors ----------------------------------------------------------------------------------------------------

FEW_DESCRIPTORS = """
import os, resource, sys
import libctrd
address, rootfs = sys.argv[1:]
client = libctrd.connect(address)
spec = libctrd.spec.default(["sh", "-c", "echo out; exit 3"], rootfs)
assert libctrd.run(spec=spec, capture_output=True, client=client).exit_code == 3  # all that is lazy is there now
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
opened = len(os.listdir("/proc/self/fd")) - 1
outcomes = []
for free in range(0, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + free, hard))
    try:
        done = libctrd.run(spec=spec, capture_output=True, client=client)
        outcome = "ran" if (done.exit_code, done.stdout) == (3, b"out\\n") else repr(done)
    except libctrd.CtrdError as error:
        outcome = "refused" if "\\n" not in str(error) else repr(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    left = os.listdir(address.removeprefix("local:"))
    now = len(os.listdir("/proc/self/fd")) - 1
    outcomes.append((free, outcome, left, now - opened))
client.close()
for outcome in outcomes:
    print(*outcome, sep=";")
"""


def test_no_descriptors_are_left(state_dir: str, rootfs: str) -> None:
    """However many are free: it runs, with all of its output, or it is refused; nothing leaks and nothing is left."""
    lines = output_of(FEW_DESCRIPTORS, f"local:{state_dir}", rootfs).splitlines()
    outcomes = [line.split(";") for line in lines]
    assert len(outcomes) == 40
    assert {outcome for _, outcome, _, _ in outcomes} == {"ran", "refused"}
    assert {left for _, _, left, _ in outcomes} == {"[]"}
    assert all(int(more) <= 0 for *_, more in outcomes), outcomes


# ---- directories ----------------------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
import libctrd
import libctrd.client, libctrd.engine.local  # while the library may be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    libctrd.connect(sys.argv[1])
except libctrd.CtrdError as error:
    print(type(error).__name__, error)
"""


def test_a_state_directory_of_somebody_else(state_dir: str) -> None:
    need_root()
    os.mkdir(state_dir, 0o700)
    os.chmod(os.path.dirname(state_dir), 0o755)
    said = output_of(AS_NOBODY, f"local:{state_dir}")
    assert said.startswith(f"UnavailableError the state directory {state_dir!r} belongs to user 0"), said
    said = output_of(AS_NOBODY, f"local:{os.path.dirname(state_dir)}/new")
    assert said.startswith("UnavailableError could not make the state directory"), said
    assert os.listdir(os.path.dirname(state_dir)) == ["state"]


def test_a_state_directory_that_cannot_be_written(tmp_path: Path, spec: Make) -> None:
    need_root()
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CtrdError, match="state directory"):
            libctrd.connect(f"local:{disk}")
        with pytest.raises(CtrdError, match="read-only"):
            libctrd.connect(f"local:{disk}/state")


def test_a_state_directory_that_is_a_symlink_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CtrdError, match="symbolic link"):
        libctrd.connect(f"local:{tmp_path}/state")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_state_directory_that_becomes_read_only(tmp_path: Path, spec: Make) -> None:
    need_root()
    with small_disk(tmp_path / "disk", "size=1m") as disk, libctrd.connect(f"local:{disk}/state") as client:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CtrdError, match="read-only"):
            client.create("web", spec("true"))
        assert client.containers() == []
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        client.create("web", spec("true")).clean()
