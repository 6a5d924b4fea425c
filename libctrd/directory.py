"""The container's directory: where it lies (C19), how it is made (C5) and how it is removed (C2).

Removals go by directory descriptor, follow no symbolic link and never descend into a mount.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from libctrd import _checks, proc
from libctrd._checks import descriptors_left
from libctrd._proc import lib
from libctrd.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, UnavailableError, from_os_error

_UNDO_DESCRIPTORS = 8  # twice of what the removal of a container's directory has open at a time
_DEEPEST = 32
"""So many directories of a tree that is removed are open at a time, at most."""
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)  # without it a fifo must not wait
NOCLEAN = "LIBCONTAINERD_NOCLEAN"
"""The environment variable that, when exactly ``1``, keeps every container's directory (C2)."""


def check_state_dir(path: str) -> str:
    """Makes the state directory *path* when it is missing (0700) and checks that it may be used; returns its real path.

    Raises `InvalidArgumentError` when a symbolic link or no directory stands there, `UnavailableError` when it is not
    ours to write, or others can put another in its place. (A link above it, such as ``/var/run``, is followed.)
    """
    above, name = os.path.split(os.path.abspath(path))
    path = os.path.join(os.path.realpath(above), name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _check_above(path)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                raise InvalidArgumentError(
                    f"the state directory {path!r} is a symbolic link, which is not followed: name the directory itself"
                ) from None
            if not stat.S_ISDIR(mode):
                raise InvalidArgumentError(f"the state directory {path!r} is not a directory: choose another") from None
    except OSError as error:
        raise from_os_error(error, f"make the state directory {path!r}") from error
    _check_ours(path)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise from_os_error(PermissionError(errno.EACCES, ""), f"use the state directory {path!r}")
    return path


def _check_ours(path: str) -> None:
    """Who can write a state directory can put another container in a container's place, with other rights."""
    status = os.lstat(path)
    if status.st_uid != os.geteuid():
        raise UnavailableError(
            f"the state directory {path!r} belongs to user {status.st_uid}, and not to {os.geteuid()}: use your own"
        )
    if _others_may_write(status):
        raise UnavailableError(
            f"others may write in the state directory {path!r} (mode {stat.S_IMODE(status.st_mode):04o}), and so put "
            "containers there: chmod go-w, or use another"
        )


def _check_above(path: str) -> None:
    """Who can change a name on the way to a state directory can put his own in its place.

    So every directory above *path*, which has no link in it, has to belong to root or to this user, and to be writable
    for nobody else, or sticky, like ``/tmp``. Raises `UnavailableError`.
    """
    above = path
    while above != "/":
        above = os.path.dirname(above)
        status = os.stat(above)
        if status.st_uid not in (0, os.geteuid()):
            from libctrd.held import belongs_to_nobody_here  # the rare case

            if belongs_to_nobody_here(status.st_uid):
                continue
            raise UnavailableError(
                f"{above!r}, above the state directory {path!r}, belongs to user {status.st_uid}, who could put "
                f"another in its place: use one whose path is root's or user {os.geteuid()}'s own"
            )
        if _others_may_write(status) and not status.st_mode & stat.S_ISVTX:
            raise UnavailableError(
                f"others may write in {above!r} (mode {stat.S_IMODE(status.st_mode):04o}), and so put another "
                f"directory in the place of the state directory {path!r}: chmod go-w, or use another"
            )


def _others_may_write(status: os.stat_result) -> bool:
    """This user's own group is no other: where the umask is 002 each user has one that nobody else is in."""
    mode = status.st_mode
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid != os.getegid()))


def for_root(root: str, uid: int, gid: int) -> str:
    """The directory in which a container's own directory is made, for container root *uid*:*gid* on the host (C19).

    With 0:0 it is *root*. Else the path goes on, from the first component that is missing or that others may not
    enter, inside siblings named ``<component>.<uid>.<gid>``, which are made with mode 0700 for that user, or given to
    it again.
    """
    if uid == 0 and gid == 0:
        return root
    path = "/"
    for part in root.split("/"):
        if not part:
            continue
        path = os.path.join(path, part)
        try:
            enterable = os.lstat(path).st_mode & stat.S_IXOTH
        except OSError:  # it is missing, above all; of all else `make` says what is the matter
            enterable = 0
        if not enterable:
            path = f"{path}.{uid}.{gid}"
            make(path, uid, gid, exist_ok=True)
    return path


def make(path: str, uid: int, gid: int, exist_ok: bool = False) -> None:
    """Makes the directory *path* with mode 0700, owned by *uid*:*gid* (C5). Raises `AlreadyExistsError` and others.

    The way to it may be that user's: no link on it is followed (`open_directory`), and what is held is given away.
    """
    above, name = os.path.split(path)
    parent = _open_unfollowed(above)
    try:
        _make(parent, name, path, uid, gid, exist_ok)
    finally:
        os.close(parent)


def _make(parent: int, name: str, path: str, uid: int, gid: int, exist_ok: bool) -> None:
    made = True
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        if not exist_ok:
            raise AlreadyExistsError(
                f"the directory {path!r} is there already: remove it or choose another id"
            ) from None
        made = False
    except OSError as error:
        raise from_os_error(error, f"make the directory {path!r}") from error
    try:
        fd = _open(parent, name)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise from_os_error(error, f"open the directory {path!r}") from error
        raise InvalidArgumentError(
            f"{path!r} is not a directory, and a container's directory is to be made in it"
        ) from None
    try:
        if (uid, gid) != (os.geteuid(), os.getegid()) or not made:
            os.fchown(fd, uid, gid)
        if not made:
            os.fchmod(fd, 0o700)  # who had made it might have let others in
    except OSError as error:
        if made:
            os.rmdir(name, dir_fd=parent)
        raise from_os_error(error, f"give the directory {path!r} to {uid}:{gid}") from error
    finally:
        os.close(fd)


@contextlib.contextmanager
def held(path: str, root: str) -> Iterator[str]:
    """A path to the directory *path* that stays the one to it, whatever becomes of its names meanwhile.

    One that lies in *root*, a state directory, is that already: nobody else can change a name there. Raises what
    `libctrd.held.open_directory` does.
    """
    if os.path.dirname(path) == root:
        yield path
        return
    fd = _open_unfollowed(path)
    try:
        yield f"/proc/self/fd/{fd}"  # only Linux maps the ids of containers, so only there is such a directory
    finally:
        os.close(fd)


def check_room() -> None:
    """Raises `UnavailableError` when so few descriptors are free that not even a failed create could be undone."""
    descriptors_left(_UNDO_DESCRIPTORS, "open the descriptors that making a container takes (open)")


def lock(path: str, wait: bool = False) -> int:
    """Opens the directory *path* and takes its lock for this process (flock); returns the descriptor, which holds it.

    The lock says that somebody makes or removes what is in it. It goes when the process does. Raises `NotFoundError`
    when there is no such directory, `AlreadyExistsError` when another process holds the lock and *wait* is false.
    """
    while True:
        try:
            fd = os.open(path, _OPEN | os.O_NOFOLLOW)
        except OSError as error:
            raise from_os_error(error, f"open the directory {path!r}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise AlreadyExistsError(f"{path!r} is being made or removed by another process: try again") from error
        except FileNotFoundError:
            pass  # removed while we waited for the lock: the next open says whether it was made anew
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def subdirectories(path: str) -> list[str]:
    """The paths of the directories in the directory *path*, in order. Raises `NotFoundError` when that is not there."""
    try:
        return sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        raise from_os_error(error, f"list the directory {path!r}") from error


def clean_disabled() -> bool:
    """True when the environment asks that directories are kept (C2)."""
    return os.environ.get(NOCLEAN) == "1"


def remove_tree(path: str, *, follow: bool = True) -> None:
    """Removes the directory *path* and all in it (C2). One that is not there is success.

    Symbolic links are removed, not followed. Those on the way to it are followed, unless *follow* is false, for a
    *path* on which others may change names: then they are refused with `UnavailableError`. A mount in the tree is
    unmounted first (lazily, like the runtimes do); one that cannot be, and any elsewhere than on Linux, is refused
    before anything behind it is touched. However deep the tree is, it takes a bounded number of descriptors.
    """
    parent, name = os.path.split(path.rstrip("/"))
    try:
        top = os.open(parent or ".", _OPEN) if follow else _open_unfollowed(parent)
    except (FileNotFoundError, NotFoundError):
        return
    except OSError as error:
        raise from_os_error(error, f"open {parent!r} to remove {name!r} from it") from error
    try:
        _Removal(path).remove(top, name, path)
    finally:
        os.close(top)


def remove_both(bundle: str, path: str) -> None:
    """Removes the directory of a container, and *path*, ours for it, when that is another one (C19)."""
    try:
        if bundle != path:
            remove_tree(bundle, follow=os.path.dirname(bundle) == os.path.dirname(path))
    finally:
        remove_tree(path)


def _open_unfollowed(path: str) -> int:
    from libctrd.held import open_directory  # the rare case

    return open_directory(path)


class _Removal:
    """The removal of one tree. What lies deeper than `_DEEPEST` is moved into its top first, and removed there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._top = -1
        self._lifted: list[tuple[str, int]] = []

    def remove(
        self, parent: int, name: str, path: str, inode: int | None = None, depth: int = 0, tries: int = 5
    ) -> None:
        """Another process may put a file into it meanwhile, such as a note of how the container has ended: again then.

        *inode* is the number that *parent* has for it; ``None`` for the tree itself, which may be a mount.
        """
        try:
            fd = _open(parent, name) if inode is None else _open_below(parent, name, path, inode)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise from_os_error(error, f"open {path!r} to remove it") from error
            _unlink(parent, name, path)
            return
        try:
            self._empty(fd, path, depth)
            while depth == 0 and self._lifted:
                lifted, number = self._lifted.pop()
                self.remove(fd, lifted, f"{self._path}/{lifted}", number, 1)
        finally:
            os.close(fd)
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENOTEMPTY and tries > 1:
                self.remove(parent, name, path, inode, depth, tries - 1)
                return
            raise from_os_error(error, f"remove the directory {path!r}") from error

    def _empty(self, fd: int, path: str, depth: int) -> None:
        try:
            with os.scandir(fd) as entries:
                children = [(entry.name, entry.is_dir(follow_symlinks=False), entry.inode()) for entry in entries]
        except OSError as error:
            raise from_os_error(error, f"list {path!r} to remove it") from error
        if depth == 0:
            self._top = fd
        for child, is_dir, number in children:
            where = f"{path}/{child}"
            if not is_dir:
                _unlink(fd, child, where)
            elif depth < _DEEPEST or not self._lift(fd, child, where, number):
                self.remove(fd, child, where, number, depth + 1)

    def _lift(self, parent: int, name: str, path: str, inode: int) -> bool:
        """Moves that directory into the top of the tree; false when the system does not let us."""
        lifted = f".lifted-{os.urandom(8).hex()}"
        try:
            os.close(_open_below(parent, name, path, inode))  # what is mounted on it has gone then, and does not hinder
            os.rename(name, lifted, src_dir_fd=parent, dst_dir_fd=self._top)
        except OSError:
            return False  # its removal by the usual way says what is the matter
        self._lifted.append((lifted, inode))
        return True


def _open(parent: int, name: str) -> int:
    fd = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=parent)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return fd


def _open_below(parent: int, name: str, path: str, inode: int) -> int:
    """Opens a directory of the tree itself: what is mounted on it is unmounted first, however often.

    The kernel opens it and sees that it is no mount in one step, where it can.
    """
    if not _checks.LINUX:
        return _open_covered_by_none(parent, name, path, inode)
    while (fd := lib.ctrd_open_below(parent, os.fsencode(name))) == -errno.EXDEV:
        _unmount(parent, name, path)
    if fd >= 0:
        return fd
    if fd not in (-errno.ENOSYS, -errno.EPERM):  # before Linux 5.6; a filter of system calls
        raise OSError(-fd, os.strerror(-fd), path)
    _leave_no_mount(parent, name, path)
    return _open(parent, name)


def _open_covered_by_none(parent: int, name: str, path: str, inode: int) -> int:
    """The same by POSIX: what something is mounted on is refused, for the directory above has the number of what is
    covered. (A directory that is mounted on itself has both the same; what it shows is what lies under it.)
    """
    fd = _open(parent, name)
    here, above = os.fstat(fd), os.fstat(parent)
    if here.st_ino == inode and here.st_dev == above.st_dev:
        return fd
    os.close(fd)
    raise UnavailableError(f"could not remove {path!r}: something is mounted there (unmount it first)")


def _unmount(parent: int, name: str, path: str) -> None:
    proc.unmount(f"/proc/self/fd/{parent}/{name}", shown_as=path)


def _mount_id(parent: int, name: str) -> int:
    """The id of the mount that *name* lies on; a bind mount has one of its own though its device is its parent's."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return _mount_id_of(fd)
    finally:
        os.close(fd)


def _mount_id_of(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise UnavailableError("the kernel does not tell on which mount a directory lies: /proc must be mounted")


def _leave_no_mount(parent: int, name: str, path: str) -> None:
    """Unmounts whatever is mounted on *name*, however often. Afterwards it is a directory of the tree itself."""
    here = _mount_id_of(parent)
    while True:
        try:
            if _mount_id(parent, name) == here:
                return
        except FileNotFoundError:
            return
        _unmount(parent, name, path)


def _unlink(parent: int, name: str, path: str) -> None:
    while True:
        try:
            os.unlink(name, dir_fd=parent)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not _checks.LINUX:
                raise from_os_error(error, f"remove {path!r}") from error
            _unmount(parent, name, path)  # a file that something is mounted on
