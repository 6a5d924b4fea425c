"""Checkpoints of the local engine: what CRIU needs, what a runtime calls it with, and what it says when it fails (C20).

The runtime drives CRIU; here is asked first whether it can run at all, for a dump that fails in the middle says little.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from libctrd._checks import one_line
from libctrd.engine import cgroups
from libctrd.engine import runtime as runtimes
from libctrd.errors import RuntimeFailedError, UnsupportedError, from_os_error

_ELSEWHERE: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_LOGS: Final = ("dump.log", "restore.log")
_ALLOWED: Final = ("--tcp-established", "--ext-unix-sk")


def require(runtime: str) -> None:
    """Raises `UnsupportedError`, with the reason, when *runtime* cannot checkpoint or restore anything here."""
    said = runtimes.output_of(runtime, "--version")
    if "crun" in said and "+CRIU" not in said:
        raise UnsupportedError(
            f"CRIU cannot run here: {runtime} was built without it: create the container with runtime='runc'"
        )
    criu = shutil.which("criu", path=os.pathsep.join((os.environ.get("PATH", ""), _ELSEWHERE)))
    if criu is None:
        raise UnsupportedError("CRIU cannot run here: there is no program criu: install it")
    # "Looks good." is its last word when all is well; what is wrong it says in lines that begin with "Error".
    said = runtimes.output_of(criu, "check")
    errors = [line.partition("): ")[2] or line for line in said.splitlines() if line.startswith("Error")]
    if errors:
        raise UnsupportedError(f"CRIU cannot run here: {one_line('; '.join(errors))}")


def require_restore(runtime: str) -> None:
    """Like `require`, for a restore: crun can do none where cgroup v1 and v2 are side by side."""
    require(runtime)
    if os.path.basename(runtime) == "crun" and os.path.isdir(cgroups.UNIFIED):
        raise UnsupportedError(
            "CRIU cannot run here: crun restores nothing where cgroup v1 and v2 are side by side: "
            "create the container with runtime='runc'"
        )


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
    """*error* with what CRIU itself has written into its log in the directory *work*."""
    told = []
    for name in _LOGS:
        try:
            with open(os.path.join(work, name), encoding="utf-8", errors="replace") as file:
                told += [line.partition("): ")[2] or line for line in file if "Error" in line]
        except OSError:
            continue  # it did not come so far
    if not told:
        return error
    text = f"{error}: CRIU says: {one_line('; '.join(line.strip() for line in told[-3:]))}"
    return RuntimeFailedError(text, output=error.output, exit_code=error.exit_code)
