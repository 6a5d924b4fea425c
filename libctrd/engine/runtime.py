"""Which OCI runtime to use here, found out once a boot: crun if it works, else runc, or the one that is named."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
import os
import threading
from typing import Any, Final

import msgspec
from msgspec import Struct

from libctrd import proc
from libctrd import spec as specs
from libctrd._log import log
from libctrd.engine import shim
from libctrd.errors import CtrdError, NotFoundError, RuntimeFailedError, UnavailableError
from libctrd.locks import Locks

PREFERRED = ("crun", "runc")
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MISSING = "/no-such-program"
_FORMAT = 2  # of the file of what is remembered: other versions of libctrd that run here have files of their own


class Runtime(Struct, frozen=True):
    """A runtime that was tried: its path, whether it works here, and whether cgroup v2 must be hidden from it."""

    path: str
    works: bool
    hide_unified: bool = False
    version: str = ""
    why_not: str = ""


_decoder = msgspec.json.Decoder(dict[str, Runtime])  # see `libctrd._spec_check`


def locate(name: str) -> str:
    """The absolute path of the runtime *name* (a path, or a name to be looked for).

    Raises `NotFoundError` when there is none, `UnavailableError` when it may not be executed.
    """
    places = (os.environ.get("PATH", "") + ":" + _SEARCH).split(":")
    for path in [name] if os.sep in name else [os.path.join(place, name) for place in places if place]:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    if os.sep in name and os.path.exists(name):
        raise UnavailableError(f"the OCI runtime {name!r} is not an executable file: check its mode")
    raise NotFoundError(f"there is no OCI runtime {name!r}: install crun or runc, or name the path of another")


def find(name: str | None) -> Runtime:
    """The runtime *name*, or the first of `PREFERRED` that works. Raises `NotFoundError` when none does."""
    if name is not None:
        return _tried(locate(name))
    reasons = []
    for candidate in PREFERRED:
        try:
            path = locate(candidate)
        except NotFoundError:
            reasons.append(f"{candidate} is not installed")
            continue
        runtime = _tried(path)
        if runtime.works:
            return runtime
        reasons.append(f"{runtime.path}: {runtime.why_not}")
    raise NotFoundError(f"no OCI runtime works on this host ({'; '.join(reasons)}): install crun or runc")


def version(path: str) -> str:
    """The first line that ``RUNTIME --version`` prints."""
    lines = output_of(path, "--version").splitlines()
    return lines[0] if lines else ""


def output_of(*command: str) -> str:
    """What *command* prints, to its standard output or error: the beginning of it, for it is short."""
    reader, writer = os.pipe()
    try:
        pid = proc.spawn(list(command), fds={1: writer, 2: writer}, env=shim.environment_for_runtime())
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        with open(reader, encoding="utf-8", errors="replace") as output:
            return output.read(4096)
    except BaseException:  # Ctrl-C above all: one that does not end is not left behind
        proc.kill(pid, "KILL")
        raise
    finally:
        proc.reap(pid)


# ---- remembering ----------------------------------------------------------------------------------------------------


def _tried(path: str) -> Runtime:
    """What was found out about *path* since this boot, or is found out now."""
    status = os.stat(path)
    program = f"{path}:{status.st_mtime_ns}:{status.st_size}"
    with _trying.holding(program):
        if program not in _known:
            boot = proc.boot_id()
            key = f"{program}:{boot}"
            found = _remembered().get(key) or _try(path)
            with _lock:
                known = {k: v for k, v in _remembered().items() if k.endswith(boot)}
                if key not in known:
                    _remember(known | {key: found})
                _known[program] = found
        return _known[program]


_known: dict[str, Runtime] = {}  # by program: a process sees one boot
# Held while a runtime is tried: whoever else wants to know of that one waits, instead of trying it too. It may take its
# minute, so nobody waits who asks for another.
_trying = Locks()
_lock = threading.Lock()  # held while what was found out is written down


def _memory() -> str:
    directory = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(directory, f"ctrd.runtimes.{_FORMAT}.json") if directory else ""


def _remembered() -> dict[str, Runtime]:
    try:
        with open(_memory(), "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return {}
            return _decoder.decode(file.read())
    except (OSError, msgspec.MsgspecError):
        return {}  # nothing is known yet; what is damaged is found out again


def _remember(known: dict[str, Runtime]) -> None:
    memory = _memory()
    if not memory:
        return
    temporary = f"{memory}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(known))
        os.rename(temporary, memory)
    except OSError as error:
        log.debug("what was found out about OCI runtimes could not be kept in %s: %s", memory, error)


# ---- trying ---------------------------------------------------------------------------------------------------------


def _try(path: str) -> Runtime:
    """Starts a container whose program is missing: a runtime that complains of just that has done all the rest."""
    why_not = ""
    for hide in (False, True):
        said = _start_nothing(path, hide)
        if _MISSING in said or "no such file" in said.lower():
            return Runtime(path, True, hide, version(path))
        why_not = why_not or said
        if "hybrid" not in said:
            break
    return Runtime(path, False, why_not=why_not)


def _start_nothing(path: str, hide_unified: bool) -> str:
    """What *path* says to the start of a container whose program is missing."""
    import tempfile  # once a boot, and costly to import

    from libctrd import spec

    with tempfile.TemporaryDirectory(prefix="ctrd-try-") as directory:
        rootfs = os.path.join(directory, "rootfs")
        os.mkdir(rootfs, 0o755)
        config = spec.default([_MISSING], rootfs)
        id = "ctrd-try-" + os.path.basename(directory).removeprefix("ctrd-try-").replace("_", "x")
        if os.geteuid() == 0:
            config["linux"]["cgroupsPath"] = f"/{id}"
        with open(os.path.join(directory, "config.json"), "wb") as file:
            file.write(spec.encode(config))
        arguments = [
            "--state",
            directory,
            "--bundle",
            directory,
            "--root",
            os.path.join(directory, "runtime"),
        ]
        arguments += ["--flags", "u" if hide_unified else "-", id, "--", path]
        try:
            starter = shim.Shim(directory, arguments)
            starter.started()
        except RuntimeFailedError as error:
            return error.output or str(error)
        except CtrdError as error:
            return str(error)
        shim.request(directory, "undo")  # it claims to have started a program that is not there
        starter.ended()
        return "it starts programs that do not exist"


_KNOWN: Final = ("crun version 1.", "runc version 1.")


def leaves_little(runtime: Runtime, spec: dict[str, Any]) -> bool:
    """Is it known of *runtime* what it leaves behind, and does the spec ask for nothing that it must undo itself: no
    hook, no Intel RDT, no foreign pids?
    """
    plain = not spec.get("hooks") and "intelRdt" not in spec["linux"] and specs.own_namespace(spec, "pid")
    return plain and runtime.version.startswith(_KNOWN)
