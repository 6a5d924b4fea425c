"""The sealed copy of the OCI runtime that containers are started with: what it is, when there is none, its use."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import libctrd
from libctrd import proc
from libctrd.engine import sealed

ELF = b"\x7fELF" + bytes(60)
SEALS = 0xF
MAY_BIND = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep: capabilities(7)
pytestmark = pytest.mark.local("the local engine starts runtimes itself")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others get no copy")


@pytest.fixture(autouse=True)
def the_usual_copy_again() -> Iterator[None]:
    yield
    if (crun := shutil.which("crun")) is not None:
        sealed.copy(crun)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "runtime"
    path.write_bytes(ELF)
    path.chmod(0o755)
    return path


@as_root
def test_a_copy_has_every_byte_and_takes_no_more(program: Path) -> None:
    copy = sealed.copy(str(program))
    assert copy is not None
    assert os.pread(copy.fd, 100, 0) == ELF
    assert fcntl.fcntl(copy.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    for attempt in (lambda: os.pwrite(copy.fd, b"x", 0), lambda: os.ftruncate(copy.fd, 1)):
        with pytest.raises(PermissionError):
            attempt()
    assert not os.get_inheritable(copy.fd)


@as_root
def test_it_is_made_once_and_anew_when_the_program_changes(program: Path) -> None:
    first = sealed.copy(str(program))
    assert first is not None
    assert sealed.copy(str(program)) is first
    other = program.with_suffix(".new")
    other.write_bytes(ELF + b"2")
    other.rename(program)
    second = sealed.copy(str(program))
    assert second is not None
    assert second is not first
    fd = first.fd
    os.fstat(fd)  # whoever is about to start with it still has it
    del first
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@as_root
@pytest.mark.parametrize("why", ["script", "setuid", "large", "missing", "rights"])
def test_a_program_that_has_to_be_executed_as_the_file_that_it_is(why: str, program: Path) -> None:
    change: dict[str, Callable[[], object]] = {
        "script": lambda: program.write_text("#!/bin/sh\n"),
        "setuid": lambda: program.chmod(0o755 | stat.S_ISUID),
        "large": lambda: os.truncate(program, sealed.LARGEST + 1),
        "missing": program.unlink,
        "rights": lambda: os.setxattr(program, "security.capability", MAY_BIND),
    }
    if why == "rights" and not hasattr(os, "setxattr"):
        pytest.skip("this Python cannot give a program rights")
    change[why]()
    assert sealed.copy(str(program)) is None


def test_no_copy_for_others_than_root(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sealed.copy(str(program)) is None


@as_root
def test_no_copy_where_selinux_is_in_force(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_PLACED", str(tmp_path))
    assert sealed.copy(str(program)) is None


@as_root
def test_no_copy_where_the_kernel_refuses_one(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EACCES, name)  # what vm.memfd_noexec=2 makes of it

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert sealed.copy(str(program)) is None


@as_root
def test_a_copy_that_may_not_be_executed_gives_way_to_the_file(tmp_path: Path, rootfs: str, state_dir: str) -> None:
    """A copy that is no program stands for every reason for which the kernel may refuse one."""
    crun = shutil.which("crun")
    if crun is None:
        pytest.skip("there is no crun: apt-get install crun")
    usual = sealed.copy(crun)
    assert usual is not None
    broken = sealed.Copy(os.memfd_create("broken", os.MFD_CLOEXEC), usual.of)
    sealed._last = broken
    try:
        with libctrd.connect(f"local:{state_dir}", runtime=crun) as client:
            spec = libctrd.spec.default(["/bin/echo", "hi"], rootfs)
            done = libctrd.run(spec=spec, capture_output=True, client=client)
    finally:
        sealed._last = None
    assert (done.exit_code, done.stdout) == (0, b"hi\n")


@as_root
def test_the_runtime_does_not_begin_twice(rootfs: str, state_dir: str, tmp_path: Path) -> None:
    """A start executes the shim, the runtime once, and the container's program: crun from its file would be twice."""
    crun, strace = shutil.which("crun"), shutil.which("strace")
    if crun is None or strace is None:
        pytest.skip("needs crun and strace: apt-get install crun strace")
    log = tmp_path / "calls"
    script = (
        "import sys, libctrd\n"
        "with libctrd.connect('local:' + sys.argv[1], runtime=sys.argv[3]) as client:\n"
        "    libctrd.run(['/bin/true'], rootfs=sys.argv[2], client=client).check()\n"
    )
    command = [strace, "-f", "-o", str(log), "-e", "trace=execve,execveat"]
    pid = proc.spawn([*command, sys.executable, "-c", script, state_dir, rootfs, crun], fds={1: 1, 2: 2})
    ended = proc.reap(pid)
    assert ended is not None
    assert ended.code == 0
    executed = [line for line in log.read_text().splitlines() if " = 0" in line and "exec" in line]
    assert len([line for line in executed if "ctrd-shim" in line]) == 1
    assert len([line for line in executed if "execveat(5" in line]) == 1
    assert len(executed) == 4  # Python, the shim, the runtime, /bin/true


@as_root
def test_a_runtime_that_was_replaced_after_the_start_is_used_as_it_is_now(
    rootfs: str, state_dir: str, tmp_path: Path
) -> None:
    crun = shutil.which("crun")
    if crun is None:
        pytest.skip("there is no crun: apt-get install crun")
    path, marker = tmp_path / "crun", tmp_path / "called"
    shutil.copy2(crun, path)
    with libctrd.connect(f"local:{state_dir}", runtime=str(path)) as client:
        container = client.create("web", libctrd.spec.default(["/bin/sleep", "60"], rootfs))
        container.start(libctrd.NULL)
        other = tmp_path / "new"
        other.write_text(f'#!/bin/sh\necho "$@" >>{marker}\nexec {crun} "$@"\n')
        other.chmod(0o755)
        other.rename(path)
        container.pause()
        container.resume()
        container.clean(force=True)
    assert " pause web" in marker.read_text()
