"""A shim without root when the system refuses it a user namespace: which step failed, and nothing goes on."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import faults, need_strace, started_alone
from field_kit import need_root

from libctrd.engine import shim

pytestmark = pytest.mark.local("the shim's own namespaces")
USER = "nobody"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that this user owns, with a shim that it may execute in it."""
    need_root()
    need_strace()
    directory = Path(tempfile.mkdtemp(prefix="ctrd-user-"))
    shutil.copy(shim.PROGRAM, directory / "ctrd-shim")
    shutil.chown(directory, USER)
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


MAPS = ("--uid-map", "0 4000000000 1", "--gid-map", "0 4000000000 1")
"""Which no /etc/subuid allows."""
STEPS = {
    "namespace": ("unshare", errno.ENOSPC, "1", "", (), "unshare a user namespace"),
    "groups": ("openat", errno.EACCES, "1", "/proc/self/setgroups", (), "map the ids of this user"),
    "ids": ("openat", errno.EACCES, "1", "/proc/self/uid_map", (), "map the ids of this user"),
    "capabilities": ("capset", errno.EPERM, "1", "", (), "capset the capabilities in a user namespace"),
    "inherited": ("prctl", errno.EPERM, "2", "", (), "capset the capabilities in a user namespace"),
    "dumpable": ("prctl", errno.EINVAL, "3+", "", (), "capset the capabilities in a user namespace"),
    "slave": ("mount", errno.EPERM, "1", "", (), "mount /sys/fs/cgroup/unified"),
    "helper": ("pipe2", errno.EMFILE, "1", "", MAPS, "fork a helper for newuidmap"),
    "no helper": ("clone,clone3,fork", errno.EAGAIN, "1", "", MAPS, "fork a helper for newuidmap"),
    "not there": ("sched_yield", errno.EPERM, "1", "", MAPS, "newuidmap and newgidmap 0 4000000000 1"),
    "not allowed": ("sched_yield", errno.EPERM, "1", "", MAPS, "newuidmap and newgidmap 0 4000000000 1"),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_into_a_user_namespace_says_when_it_fails(
    place: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, number, when, path, maps, words = STEPS[step]
    tracer = [need_strace(), "-D", "-qq", "-o", "/dev/null", "-e", "signal=none", "-u", USER]
    tracer += [*faults(call, number, when, path), "--"]
    options = ["--state", str(place), "--bundle", str(place), "--root", str(place / "runtime"), *maps]
    command = [*tracer, str(place / "ctrd-shim"), *options, "--flags", "u", "web", "--", "/bin/false"]
    if step == "not there":
        monkeypatch.setenv("PATH", "/nowhere")
    peer, code = started_alone(place, command[0], command[1:])
    with peer:
        told = peer.recv(shim.PACKET).decode()
        assert code == 1
    expected = errno.EPERM if maps and call == "sched_yield" else number
    assert told == f"broken {expected} {words}"
    assert sorted(os.listdir(place)) == ["ctrd-shim"]
