"""Checkpoints of the local engine: what CRIU needs, what a runtime calls it with, and what it says when it fails (C20).

The runtime drives CRIU; here is asked first whether it can run at all, for a dump that fails in the middle says little.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from libctrd._checks import one_line
from libctrd.engine import cgroups, shim
from libctrd.engine import runtime as runtimes
from libctrd.errors import InvalidArgumentError, RuntimeFailedError, UnsupportedError, from_os_error

_ELSEWHERE: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_LOGS: Final = ("dump.log", "restore.log")
_ALLOWED: Final = ("--tcp-established", "--ext-unix-sk")

_NOISE: Final = ("rlimit:", "cg: cgroupd:")
"""What CRIU calls an error though it goes on, or says after the one that matters."""
_STREAMS: Final = "ctrd-streams.json"
_KEY: Final = re.compile(r"file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]")
_NAMES: Final = ("stdin", "stdout", "stderr")
_streams_decoder = msgspec.json.Decoder(dict[str, int])


def require(runtime: str) -> None:
    """Raises `UnsupportedError`, with the reason, when *runtime* cannot checkpoint or restore anything here."""
    said = runtimes.output_of(runtime, "--version")
    if "crun" in said and "+CRIU" not in said:
        raise UnsupportedError(
            f"CRIU cannot run here: {runtime} was built without it: create the container with runtime='runc'"
        )
    # Where v2 is hidden from crun a container of it is in the topmost cgroup of v2, and CRIU takes in all that is
    # below: a restore would make it all again, the cgroups of every other container too.
    if runtimes.find(runtime).hide_unified or ("crun" in said and os.path.isdir(cgroups.UNIFIED)):
        raise UnsupportedError(
            "CRIU cannot run here: with crun it cannot tell the cgroups of a container where v1 and v2 are side by "
            "side: create the container with runtime='runc'"
        )
    criu = shutil.which("criu", path=os.pathsep.join((os.environ.get("PATH", ""), _ELSEWHERE)))
    if criu is None:
        raise UnsupportedError("CRIU cannot run here: there is no program criu: install it")
    # "Looks good." is its last word when all is well; what is wrong it says in lines that begin with "Error".
    said = runtimes.output_of(criu, "check")
    errors = [line.partition("): ")[2] or line for line in said.splitlines() if line.startswith("Error")]
    if errors:
        raise UnsupportedError(f"CRIU cannot run here: {one_line('; '.join(errors))}")


def prepare(id: str, path: str) -> None:
    """Makes the directory *path* for a checkpoint. Raises `AlreadyExistsError` for one that is there."""
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise from_os_error(error, f"checkpoint container {id!r}: make the directory {path!r} (mkdir)") from error


def words(path: str, work: str, *, runtime: str, leave_running: bool) -> list[str]:
    """What a runtime is called with to write a checkpoint, up to the id."""
    namespaces = () if os.path.basename(runtime) == "crun" else ("--empty-ns", "network")
    leave = ("--leave-running",) if leave_running else ()
    return ["checkpoint", "--image-path", path, "--work-path", work, *_ALLOWED, *namespaces, *leave]


def explained(error: RuntimeFailedError, work: str) -> RuntimeFailedError:
    """*error* with what CRIU itself has written into its log in the directory *work*: the first that went wrong."""
    told: list[str] = []
    for name in _LOGS:
        try:
            with open(os.path.join(work, name), encoding="utf-8", errors="replace") as file:
                told += [line.partition("): ")[2] or line for line in file if "Error" in line]
        except OSError:
            continue  # it did not come so far
    told = [line.strip() for line in told if not line.startswith(_NOISE)]
    if not told:
        return error
    text = f"{error}: CRIU says: {one_line('; '.join(told[:3]))}"
    return RuntimeFailedError(text, output=error.output, exit_code=error.exit_code)


# ---- the fifos -------------------------------------------------------------------------------------------------------
#
# The fifos of a container lie outside of what it sees, so CRIU cannot write down how to open them again. It is told
# that they are external ("file[MOUNT:INODE]", both in hexadecimal), and at a restore which of the descriptors that the
# runtime passes on as 0, 1 and 2 stands for each. What is unread in the fifo of stdin is part of the checkpoint; what
# was written to the others lies in the old fifos still, for whoever reads those.


def streams(pids: Iterable[int], fifos: dict[tuple[int, int], int]) -> dict[str, int]:
    """Those of *fifos* that the processes *pids* have open from outside, as CRIU names them, each with its descriptor
    at a restore. *fifos* has that by device and inode. A descriptor stands for one fifo only: CRIU uses it up.
    """
    found: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            mounts = _mounts(pid)
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError, KeyError, ValueError):  # it was closed
                    about = os.stat(f"/proc/{pid}/fd/{name}")
                    number = fifos.get((about.st_dev, about.st_ino))
                    mount = _mount_of(pid, name) if number is not None else 0
                    if number is not None and mount not in mounts and number not in found.values():
                        found[f"file[{mount:x}:{about.st_ino:x}]"] = number
    return found


def _mounts(pid: int) -> set[int]:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
        return {int(line.split()[0]) for line in file}


def _mount_of(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/fdinfo/{name}", encoding="utf-8") as file:
        return int(dict(line.split(":", 1) for line in file)["mnt_id"])


@contextlib.contextmanager
def configured(directory: str, option: str, keys: dict[str, int]) -> Iterator[None]:
    """For the time of one call of the runtime: CRIU is told of the fifos, after what the caller's own file tells it."""
    path = os.path.join(directory, shim.CRIU_FILE)
    said = {"external": "external {0}", "inherit-fd": "inherit-fd fd[{1}]:{0}"}[option]
    own = os.environ.get(shim.CRIU_VARIABLE)
    try:
        text = ""
        if own:
            with contextlib.suppress(FileNotFoundError), open(own, encoding="utf-8") as file:
                text = file.read() + "\n"
        text += "".join(said.format(key, number) + "\n" for key, number in keys.items())
        with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
    except OSError as error:
        raise from_os_error(error, f"write the options for CRIU, {path!r}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the container is gone
            os.unlink(path)


def keep(path: str, keys: dict[str, int]) -> None:
    """Writes beside the checkpoint in *path* which fifos a restore from it has to have."""
    name = os.path.join(path, _STREAMS)
    try:
        with open(name, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(keys))
    except OSError as error:
        raise from_os_error(error, f"write {name!r}") from error


def kept(path: str, given: tuple[str, str, str]) -> dict[str, int]:
    """What `keep` has written; nothing for a checkpoint that was made by other hands.

    *given* are the fifos of the start, "" for ``/dev/null``. Raises `InvalidArgumentError` when the checkpoint wants
    one that is not there, for CRIU puts nothing else into its place; and for a file that is damaged.
    """
    name = os.path.join(path, _STREAMS)
    try:
        with open(name, "rb") as file:
            keys = _streams_decoder.decode(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise from_os_error(error, f"read {name!r}") from error
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"the checkpoint {path!r} is damaged: {name!r}: {error}") from error
    if not all(_KEY.fullmatch(key) and number in (0, 1, 2) for key, number in keys.items()):
        raise InvalidArgumentError(f"the checkpoint {path!r} is damaged: {name!r} names no fifos")
    missing = sorted({_NAMES[number] for number in keys.values() if not given[number]})
    if missing:
        raise InvalidArgumentError(
            f"the checkpoint {path!r} was made with {' and '.join(missing)} in use: start from it with PIPE, not NULL"
        )
    return keys
