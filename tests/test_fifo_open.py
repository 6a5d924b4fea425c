"""Opening a named pipe: what may stand at the path, what may be swapped there, and what may run out."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fifo_kit import (  # noqa: F401
    READ,
    WRITE,
    Background,
    both,
    open_files,
    path_fixture,
    steady_fixture,
    until,
    waiting,
    way_fixture,
)

from libctrd.errors import ClosedError, CtrdError, InvalidArgumentError, NotFoundError, UnavailableError
from libctrd.fifo import open_fifo

pytestmark = pytest.mark.usefixtures("steady", "way")

NOBODY = 65534


# --- what stands at the path --------------------------------------------------------------------------------


def test_it_is_made_when_missing_with_the_mode_less_the_umask(path: Path) -> None:  # C14
    before = os.umask(0o027)
    open_fifo(path, READ | os.O_CREAT).close()
    assert path.is_fifo()
    assert path.stat().st_mode & 0o7777 == 0o700
    path.unlink()
    open_fifo(path, WRITE | os.O_CREAT, 0o666).close()
    assert path.stat().st_mode & 0o7777 == 0o640
    os.umask(before)


def test_one_that_exists_is_fine(path: Path) -> None:  # C14
    os.mkfifo(path, 0o600)
    inode = path.stat().st_ino
    open_fifo(path, WRITE | os.O_CREAT).close()
    open_fifo(os.fsencode(path), READ).close()
    open_fifo(str(path), os.O_RDWR).close()
    assert path.stat().st_ino == inode
    assert path.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("flags", [READ, WRITE, os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def test_a_path_where_nothing_is(path: Path, flags: int) -> None:  # C14
    with pytest.raises(NotFoundError, match=r"could not open fifo '.*fifo' for .*\(open\): No such file") as caught:
        open_fifo(path, flags)
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(NotFoundError, match=r"\(mkfifo\)"):
        open_fifo(path / "below", flags | os.O_CREAT)


@pytest.mark.parametrize("create", [0, os.O_CREAT])
@pytest.mark.parametrize("flags", [READ, WRITE, os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def test_anything_else_at_that_path_is_an_error_that_names_it(tmp_path: Path, flags: int, create: int) -> None:  # C14
    file, directory, link, dangling = (tmp_path / name for name in ("file", "directory", "link", "dangling"))
    file.write_bytes(b"content")
    directory.mkdir()
    os.mkfifo(tmp_path / "real")
    link.symlink_to(tmp_path / "real")
    dangling.symlink_to(tmp_path / "nowhere")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for there, kind in (
        (file, "a regular file"),
        (directory, "a directory"),
        (link, "a symbolic link, which is not followed"),
        (dangling, "a symbolic link"),
        (tmp_path / "socket", "a socket"),
        (Path("/dev/null"), "a device"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"'{there}' .*it is {kind}"):
            open_fifo(there, flags | create)
    listener.close()
    assert file.read_bytes() == b"content"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(NotFoundError):
        open_fifo(file / "below", flags | create)


def test_arguments_that_cannot_be(path: Path) -> None:
    for flags in (os.O_TRUNC, os.O_APPEND, os.O_EXCL | os.O_CREAT, os.O_DIRECTORY, os.O_WRONLY | os.O_RDWR):
        with pytest.raises(InvalidArgumentError, match="O_RDONLY, O_WRONLY or O_RDWR"):
            open_fifo(path, flags)
    for mode in (-1, 0o10000):
        with pytest.raises(InvalidArgumentError, match="permissions"):
            open_fifo(path, READ | os.O_CREAT, mode)
    for timeout in (-1, -0.001, float("nan")):
        with pytest.raises(InvalidArgumentError, match="timeout"):
            open_fifo(path, READ | os.O_CREAT, timeout=timeout)
    with pytest.raises(InvalidArgumentError, match="NUL"):
        open_fifo("a\0b", READ)
    with pytest.raises(InvalidArgumentError, match=os.strerror(errno.ENAMETOOLONG)):
        open_fifo(path.with_name("n" * 300), READ | os.O_CREAT)
    for wrong in (7, None):
        with pytest.raises(TypeError):
            open_fifo(wrong, READ)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Cancellation"):
        open_fifo(path, READ, cancel=object())  # type: ignore[arg-type]
    assert not path.exists()
    open_fifo(path, READ | os.O_CREAT | os.O_CLOEXEC, timeout=float("inf")).close()


def test_its_descriptor_is_not_inherited(path: Path) -> None:
    with open_fifo(path, READ | os.O_CREAT) as reader:
        assert not os.get_inheritable(reader.fileno())


# --- swaps --------------------------------------------------------------------------------------------------


def test_a_path_that_is_swapped_while_a_writer_waits_changes_nothing(path: Path, way: str) -> None:  # C16
    with open_fifo(path, WRITE | os.O_CREAT) as writer:
        old = path.with_name("old")
        path.rename(old)
        os.mkfifo(path)
        impostor = os.open(path, READ)
        if way == "portable":  # nothing holds the inode there: the swap is noticed instead
            with pytest.raises(UnavailableError, match="something else has taken its place"):
                writer.write(b"secret")
        else:
            assert writer.write_nowait(b"secret") == 0
            with open_fifo(old, READ) as reader:
                writer.write(b"secret")
                assert reader.read(10) == b"secret"
        assert os.read(impostor, 1) == b""
        os.close(impostor)


def test_a_path_that_is_swapped_all_the_time_never_yields_what_is_no_fifo(path: Path) -> None:  # C16
    folder = path.parent
    victim = folder / "victim"
    victim.write_bytes(b"content")
    over = False

    def swap() -> None:
        while not over:
            for kind in ("fifo", "link", "file"):
                new = folder / f"new-{kind}"
                if kind == "fifo":
                    os.mkfifo(new)
                elif kind == "link":
                    new.symlink_to(victim)
                else:
                    new.write_bytes(b"content")
                new.rename(path)
            path.unlink()

    swapping = Background(swap)
    opened = 0
    until = time.monotonic() + 60
    for turn in itertools.count():
        if turn >= 400 and (opened or time.monotonic() > until):  # how often each of them runs is the system's to say
            break
        try:
            with open_fifo(path, (READ, WRITE, os.O_RDWR)[turn % 3] | os.O_CREAT) as fifo:
                opened += 1
                if fifo.mode == "read-write":
                    fifo.write(b"x" * 10)
                elif fifo.mode == "write":
                    assert fifo.write_nowait(b"x") == 0
        except CtrdError as error:
            assert str(path) in str(error)  # noqa: PT017 - every failure names the path, whatever it is
    over = True
    swapping.result()
    assert opened
    assert victim.read_bytes() == b"content"


def test_a_removed_path_is_of_no_concern_to_those_who_have_it_open(path: Path) -> None:  # C16
    reader, writer = both(path)
    path.unlink()
    with reader:
        writer.write(b"x")
        writer.close()
        assert reader.read() == b"x"


# --- permissions and resources ------------------------------------------------------------------------------


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """As a user who may do nothing: so that permissions count, also when root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    for directory in (folder, *folder.parents):
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("flags", [READ, WRITE, os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def test_a_fifo_or_directory_without_permission(path: Path, flags: int) -> None:
    os.mkfifo(path)
    path.chmod(0)
    path.parent.chmod(0o555)
    with as_nobody(path.parent):
        with pytest.raises(UnavailableError, match=r"Permission denied .*owner and mode") as caught:
            open_fifo(path, flags)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(UnavailableError, match=r"\(mkfifo\): Permission denied"):
            open_fifo(path.with_name("new"), flags | os.O_CREAT)
    path.parent.chmod(0o755)


def test_a_writer_that_may_not_read_gets_there_as_well(path: Path, way: str) -> None:  # C14 C16
    os.mkfifo(path)
    path.chmod(0o222)
    with as_nobody(path.parent):
        writer = open_fifo(path, WRITE)
        assert writer.write_nowait(b"x") == 0
        for needs_descriptor in (writer.fileno, writer.detach):
            with pytest.raises(UnavailableError, match="before its reader has come"):
                needs_descriptor()
        assert writer.grow(4096) == 0
        opening = Background(open_fifo, path, os.O_WRONLY)
        writing = Background(writer.write, b"hello")
        until(lambda: waiting() == 2)
    moved = path.with_name("moved")
    if way != "portable":  # what is held counts there, not the name
        path.rename(moved)
    else:
        moved = path
    moved.chmod(0o666)
    with open_fifo(moved, READ) as reader:
        assert writing.result() == 5
        with writer, opening.result() as late:
            assert late.connected
            assert late.write(b" again") == 6
        assert reader.read() == b"hello again"


@contextmanager
def room_for(more: int) -> Iterator[None]:
    """Lets this process open *more* descriptors and not one beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    plugs = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, hard))
    try:
        while True:
            plugs.append(os.dup(plugs[0]))
    except OSError as error:
        assert error.errno == errno.EMFILE  # noqa: PT017 - nothing else ends the loop
    for _ in range(more):
        os.close(plugs.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for plug in plugs:
            os.close(plug)


@pytest.mark.parametrize("flags", [READ, WRITE, os.O_RDWR])
@pytest.mark.parametrize("exists", [True, False])
def test_descriptors_that_run_out_at_any_step_are_a_clear_error(path: Path, flags: int, exists: bool) -> None:
    needed = 0
    for more in range(4):
        path.unlink(missing_ok=True)
        if exists:
            os.mkfifo(path)
        with room_for(more):
            try:
                open_fifo(path, flags | os.O_CREAT).close()
            except UnavailableError as error:
                needed = more + 1
                assert error.errno == errno.EMFILE  # noqa: PT017 - the other outcome is as good
                assert "RLIMIT_NOFILE" in str(error)  # noqa: PT017
    assert needed <= 2, "two are enough"


def test_a_reader_that_waits_sees_no_writer_when_one_fails_for_want_of_descriptors(path: Path) -> None:
    os.mkfifo(path)
    with open_fifo(path, READ) as reader:
        for more in (0, 1):
            with room_for(more):
                try:
                    open_fifo(path, WRITE).close()
                except UnavailableError:
                    assert reader.read_nowait(1) is None
                    assert not reader.connected


def test_threads_wait_also_when_no_descriptor_is_left_to_wake_them(path: Path, way: str) -> None:  # C15
    count = 24  # more than the wakers that are kept
    reader, far = both(path.with_name("read"))
    closed = open_fifo(path.with_name("closed"), READ | os.O_CREAT)
    writer = open_fifo(path, WRITE | os.O_CREAT)
    peer = subprocess.Popen(
        ["sh", "-c", "read go; exec cat " + str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    with room_for(0):
        reading = [Background(reader.read, 1) for _ in range(count)]
        never = Background(closed.read)
        far.write(bytes(count))
        assert [one.result() for one in reading] == [b"\0"] * count
        closed.close()
        with pytest.raises(ClosedError):
            never.result()
        if way != "portable":  # there the write end needs one more descriptor when its reader comes
            writing = Background(writer.write, b"x")
            peer.stdin.write(b"go\n")
            peer.stdin.flush()
            assert writing.result() == 1
    for fifo in (reader, far, writer):
        fifo.close()
    if way == "portable":
        peer.kill()
    assert peer.stdout.read() == (b"" if way == "portable" else b"x")
    peer.communicate()


def test_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount the small file system that this test fills")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", str(small)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        files = open_files()
        for number in range(2):  # the root of the file system takes an inode as well
            open_fifo(small / str(number), WRITE | os.O_CREAT).close()
        with pytest.raises(UnavailableError, match=r"\(mkfifo\): No space left .*free space or inodes"):
            open_fifo(small / "3", WRITE | os.O_CREAT)
        assert open_files() == files
    finally:
        subprocess.run(["umount", str(small)], check=True)
