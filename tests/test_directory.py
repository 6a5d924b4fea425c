"""The container's directory: where it lies, how it is made, and that removing it removes nothing else."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples_kit import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libctrd import directory
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and chown need root: run the suite as root")


@pytest.fixture
def mounts() -> Iterator[list[str]]:
    """Mount points to be taken off after the test, whatever happened."""
    made: list[str] = []
    yield made
    for point in made:
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def mount(made: list[str], *arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
    made.append(arguments[-1])


# ---- removing (C2) ------------------------------------------------------------------------------------------------


def test_a_tree_goes_with_all_in_it(tmp_path: Path) -> None:  # C2
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/file").write_text("x")
    os.mkfifo(tree / "a/fifo")
    (tree / "a/b/read-only").mkdir(mode=0o500)
    directory.remove_tree(str(tree))
    assert os.listdir(tmp_path) == []


def test_one_that_is_not_there_is_success(tmp_path: Path) -> None:  # C2
    directory.remove_tree(str(tmp_path / "nothing"))
    directory.remove_tree(str(tmp_path / "no/parent/either"))


def test_a_symlink_is_removed_and_not_followed(tmp_path: Path) -> None:  # C2
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "to-directory").symlink_to(outside)
    (tree / "deep/to-file").symlink_to(outside / "precious")
    (tree / "deep/dangling").symlink_to("/nowhere")
    directory.remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "precious").read_text() == "x"


def test_a_tree_that_is_a_symlink_itself_only_loses_the_link(tmp_path: Path) -> None:  # C2
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tmp_path / "tree").symlink_to(outside)
    directory.remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").is_symlink()
    assert (outside / "precious").exists()


@needs_root
@pytest.mark.parametrize("times", [1, 2])
def test_a_mount_is_taken_off_and_never_descended_into(tmp_path: Path, mounts: list[str], times: int) -> None:  # C2
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "sub/point").mkdir(parents=True)
    for _ in range(times):
        mount(mounts, "--bind", str(outside), str(tree / "sub/point"))  # the same device: only the mount differs
    directory.remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "precious").read_text() == "x"
    assert str(tree) not in Path("/proc/self/mountinfo").read_text()


@needs_root
def test_a_file_that_something_is_mounted_on_goes_too(tmp_path: Path, mounts: list[str]) -> None:  # C2
    outside = tmp_path / "precious"
    outside.write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("")
    mount(mounts, "--bind", str(outside), str(tree / "file"))
    directory.remove_tree(str(tree))
    assert not tree.exists()
    assert outside.read_text() == "x"


@needs_root
def test_a_mount_that_cannot_be_taken_off_is_refused_and_left_alone(
    tmp_path: Path, mounts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # C2
    tree = tmp_path / "tree"
    (tree / "point").mkdir(parents=True)
    mount(mounts, "-t", "tmpfs", "none", str(tree / "point"))
    (tree / "point/precious").write_text("x")

    def refuse(path: str, *, shown_as: str) -> None:
        raise UnavailableError(f"could not unmount {shown_as!r}: Operation not permitted")

    monkeypatch.setattr(directory.proc, "unmount", refuse)
    with pytest.raises(UnavailableError, match="point"):
        directory.remove_tree(str(tree))
    assert (tree / "point/precious").read_text() == "x"


@needs_root
def test_what_is_mounted_far_below_is_taken_off_too(tmp_path: Path, mounts: list[str]) -> None:  # C2
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    point = tmp_path.joinpath("tree", *"d" * (directory._DEEPEST + 1))
    point.mkdir(parents=True)
    mount(mounts, "--bind", str(outside), str(point))
    directory.remove_tree(str(tmp_path / "tree"))
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "precious").read_text() == "x"


def test_a_tree_deeper_than_calls_can_be_nested_or_a_path_be_long_goes(tmp_path: Path) -> None:  # C2
    """One that a container has made in its root file system, say. The naive way dies of recursion, and ever again."""
    (tmp_path / "tree").mkdir()
    fd = os.open(tmp_path / "tree", os.O_RDONLY)
    for number in range(3000):
        os.mkdir("deep", dir_fd=fd)
        if number % 500 == 0:
            os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
            os.symlink("/", "link", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        directory.remove_tree(str(tmp_path / "tree"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        left = os.listdir(tmp_path)
        subprocess.run(["rm", "-rf", str(tmp_path / "tree")], check=True)  # pytest itself is one who nests calls
    assert left == []


def test_a_link_on_the_way_is_followed_only_for_who_may(tmp_path: Path) -> None:  # C2
    (tmp_path / "outside/tree").mkdir(parents=True)
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(UnavailableError, match="'link' in it is a symbolic link"):
        directory.remove_tree(str(tmp_path / "link/tree"), follow=False)
    assert (tmp_path / "outside/tree").exists()
    directory.remove_tree(str(tmp_path / "link/tree"))
    assert not (tmp_path / "outside/tree").exists()


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("dfls"), st.lists(st.sampled_from("abc"), min_size=1, max_size=4)), max_size=12)
)
def test_whatever_the_tree_it_goes_and_the_rest_stays(tmp_path: Path, entries: list[tuple[str, list[str]]]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    for kind, parts in entries:
        path = tree.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "d":
                path.mkdir(exist_ok=True)
            elif kind == "f":
                path.touch()
            elif kind == "l":
                path.symlink_to(outside)
            else:
                os.mkfifo(path)
        except OSError:
            continue  # something of another kind stands there already
    directory.remove_tree(str(tree))
    assert not tree.exists()
    assert os.listdir(outside) == ["precious"] or set(os.listdir(outside)) >= {"precious"}
    shutil.rmtree(outside)


def test_the_environment_can_ask_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:  # C2
    for value, keeps in (("1", True), ("", False), ("0", False), ("true", False), ("11", False)):
        monkeypatch.setenv("LIBCONTAINERD_NOCLEAN", value)
        assert directory.clean_disabled() is keeps
    monkeypatch.delenv("LIBCONTAINERD_NOCLEAN")
    assert not directory.clean_disabled()


# ---- making (C5, C19) ---------------------------------------------------------------------------------------------


def test_it_is_made_private(tmp_path: Path) -> None:  # C5
    directory.make(str(tmp_path / "web"), os.geteuid(), os.getegid())
    assert stat.S_IMODE((tmp_path / "web").stat().st_mode) == 0o700
    with pytest.raises(AlreadyExistsError, match="web"):
        directory.make(str(tmp_path / "web"), os.geteuid(), os.getegid())


@needs_root
def test_it_belongs_to_the_containers_root(tmp_path: Path) -> None:  # C5
    directory.make(str(tmp_path / "web"), 1234, 4321)
    status = (tmp_path / "web").stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)


def test_with_root_as_root_the_place_is_the_state_directory(tmp_path: Path) -> None:  # C19
    assert directory.for_root(str(tmp_path), 0, 0) == str(tmp_path)


@needs_root
def test_mapped_root_gets_siblings_from_where_others_may_not_enter(tmp_path: Path) -> None:  # C19
    os.chmod(tmp_path, 0o755)
    open_for_all = tmp_path / "open"
    open_for_all.mkdir(mode=0o755)
    closed = open_for_all / "closed"
    closed.mkdir(mode=0o700)
    base = Path(directory.for_root(str(closed / "state/missing"), 1234, 4321))
    relative = str(base)[str(base).index("open") :] if "open/" in str(base) else str(base)
    assert relative.endswith("closed.1234.4321/state.1234.4321/missing.1234.4321")
    for path in (base, base.parent, base.parent.parent):
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o700)


@needs_root
def test_nothing_is_made_or_given_away_behind_a_link(tmp_path: Path) -> None:  # C19
    """Not the directory itself, nor one above it that another user may have put there; and a stranger's is closed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "state.1234.4321").symlink_to("outside")
    with pytest.raises(InvalidArgumentError, match="not a directory"):
        directory.make(str(tmp_path / "state.1234.4321"), 1234, 4321, exist_ok=True)
    with pytest.raises(UnavailableError, match="symbolic link"):
        directory.make(str(tmp_path / "state.1234.4321/web"), 1234, 4321)
    assert (os.listdir(tmp_path / "outside"), (tmp_path / "outside").stat().st_uid) == ([], 0)
    (tmp_path / "other.1234.4321").mkdir(mode=0o777)
    os.chmod(tmp_path / "other.1234.4321", 0o777)
    directory.make(str(tmp_path / "other.1234.4321"), 1234, 4321, exist_ok=True)
    assert stat.S_IMODE(os.stat(tmp_path / "other.1234.4321").st_mode) == 0o700


@needs_root
def test_a_sibling_that_is_there_is_given_to_it_again(tmp_path: Path) -> None:  # C19
    base = directory.for_root(str(tmp_path / "state"), 1234, 4321)
    os.chown(base, 0, 0)
    assert directory.for_root(str(tmp_path / "state"), 1234, 4321) == base
    assert (os.stat(base).st_uid, os.stat(base).st_gid) == (1234, 4321)


# ---- the state directory ------------------------------------------------------------------------------------------


def test_the_state_directory_is_made_private(tmp_path: Path) -> None:
    path = directory.check_state_dir(str(tmp_path / "deep/state"))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_a_state_directory_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError, match="symbolic link"):
        directory.check_state_dir(str(tmp_path / "state"))
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="it gives directories away: run it as root")
@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [(0o777, (0, 0), "others may write"), (0o770, (0, 7), "others may write"), (0o700, (7, 0), "belongs to user 7")],
)
def test_a_state_directory_that_others_could_change_is_refused(
    tmp_path: Path, mode: int, owner: tuple[int, int], why: str
) -> None:
    """By its mode, its group, its owner; the group of this user is no other."""
    place = tmp_path / "state"
    place.mkdir()
    os.chown(place, *owner)
    place.chmod(mode)
    with pytest.raises(UnavailableError, match=why):
        directory.check_state_dir(str(place))
    os.chown(place, 0, 0)
    place.chmod(0o775)
    assert directory.check_state_dir(str(place)) == str(place)


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "why"), [(0o777, 0, "others may write in"), (0o755, 7, "above the state directory .* user 7")]
)
def test_a_state_directory_that_others_could_move_away_is_refused(
    tmp_path: Path, mode: int, owner: int, why: str
) -> None:
    """Whoever can write somewhere above it puts his own in its place, between two calls; /tmp is as safe as any."""
    above = tmp_path / "above"
    (above / "between").mkdir(parents=True)
    above.chmod(mode)
    os.chown(above, owner, 0)
    with pytest.raises(UnavailableError, match=why):
        directory.check_state_dir(str(above / "between/state"))
    assert os.listdir(above / "between") == []
    os.chown(above, 0, 0)
    above.chmod(0o1777)
    assert directory.check_state_dir(str(above / "between/state")) == str(above / "between/state")


def test_a_link_above_a_state_directory_is_followed_once(tmp_path: Path) -> None:
    """As with /var/run. What it leads to later does not matter any more."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    assert directory.check_state_dir(str(tmp_path / "link/state")) == str(tmp_path / "run/state")


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(InvalidArgumentError, match="not a directory"):
        directory.check_state_dir(str(tmp_path / "state"))


@needs_root
def test_a_state_directory_that_may_not_be_written_is_refused(tmp_path: Path, mounts: list[str]) -> None:
    (tmp_path / "state").mkdir()
    mount(mounts, "-t", "tmpfs", "-o", "ro", "none", str(tmp_path / "state"))
    with pytest.raises(CtrdError, match="state directory"):
        directory.check_state_dir(str(tmp_path / "state"))


# ---- the lock -----------------------------------------------------------------------------------------------------


def test_one_hand_at_a_time(tmp_path: Path) -> None:
    held = directory.lock(str(tmp_path))
    with pytest.raises(AlreadyExistsError, match="another process"):
        directory.lock(str(tmp_path))
    os.close(held)
    os.close(directory.lock(str(tmp_path)))


def test_the_lock_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        directory.lock(str(tmp_path / "nothing"))


def test_who_waited_for_a_directory_that_was_removed_meanwhile_does_not_get_it(tmp_path: Path) -> None:
    path = tmp_path / "web"
    path.mkdir()
    held = directory.lock(str(path))
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(directory.lock(str(path), wait=True))
        except CtrdError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    path.rmdir()
    os.close(held)
    thread.join(20)
    assert isinstance(outcome[0], NotFoundError)
