"""Which OCI runtime to use here, found out once a boot: crun if it works, else runc, or the one that is named."""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
import errno
import os
import threading
from typing import Any, Final

import msgspec
from msgspec import Struct

from libctrd import proc
from libctrd import spec as specs
from libctrd._checks import one_line
from libctrd.engine import remembered, shim
from libctrd.errors import NotFoundError, RuntimeFailedError, UnavailableError, from_os_error
from libctrd.locks import Locks

PREFERRED = ("crun", "runc")
_MOST = 32  # that are remembered, for every command reads them
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MISSING = "/no-such-program"
_MEMORY = (
    "runtimes.3.json"  # the number is its format's: other versions of libctrd that run here have files of their own
)


class Runtime(Struct, frozen=True):
    """A runtime that was tried: its path, whether it works here, whether cgroup v2 must be hidden from it, and
    whether it was built without seccomp, so that it would start containers as if no profile were there.
    """

    path: str
    works: bool
    hide_unified: bool = False
    version: str = ""
    why_not: str = ""
    lacks_seccomp: bool = False


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


_places: dict[tuple[str, str], str] = {}  # by name and PATH


def _located(name: str) -> str:
    """The same, looked for once: each start asks thrice. One that has gone since is looked for again."""
    key = (name, os.environ.get("PATH", ""))
    path = _places.get(key, "")
    if not path or not os.access(path, os.X_OK):
        path = _places[key] = locate(name)
    return path


def find(name: str | None) -> Runtime:
    """The runtime *name*, or the first of `PREFERRED` that works. Raises `NotFoundError` when none does."""
    if name is not None:
        return _tried(_located(name))
    reasons = []
    for candidate in PREFERRED:
        try:
            path = _located(candidate)
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
                    _remember(dict([*known.items(), (key, found)][-_MOST:]))
                _known[program] = found
        return _known[program]


_known: dict[str, Runtime] = {}  # by program: a process sees one boot
# Held while a runtime is tried: whoever else wants to know of that one waits, instead of trying it too. It may take its
# minute, so nobody waits who asks for another.
_trying = Locks()
_lock = threading.Lock()  # held while what was found out is written down


def _remembered() -> dict[str, Runtime]:
    try:
        return _decoder.decode(remembered.read(_MEMORY))
    except msgspec.MsgspecError:
        return {}  # nothing is known yet; what is damaged is found out again


def _remember(known: dict[str, Runtime]) -> None:
    remembered.write(_MEMORY, msgspec.json.encode(known))


# ---- trying ---------------------------------------------------------------------------------------------------------


def _try(path: str) -> Runtime:
    """Starts a container whose program is missing: a runtime that complains of just that has done all the rest.

    What is found out is remembered until the next boot. So nothing is, where it was the host that had no room just now,
    or somebody killed the runtime: `UnavailableError` then.
    """
    why_not = ""
    for hide in (False, True):
        try:
            said = _start_nothing(path, hide)
        except OSError as error:
            raise from_os_error(error, f"make a container to try the OCI runtime {path!r} with") from error
        if _MISSING in said or "no such file" in said.lower():
            told = output_of(path, "--version")
            lacks = told.startswith(_KNOWN) and "seccomp" not in told.lower()
            return Runtime(path, True, hide, told.partition("\n")[0], lacks_seccomp=lacks)
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
        if hide_unified and os.geteuid() != 0:
            from libctrd.engine import rootless

            arguments += rootless.maps_of_shim()
        arguments += ["--flags", "u" if hide_unified else "-", id, "--", path]
        try:
            starter = shim.Shim(directory, arguments)
            starter.started()
        except RuntimeFailedError as error:
            said = error.output or str(error)
            if (error.exit_code or 0) in _KILLED or any(word in said.lower() for word in _PASSING):
                why = one_line(said)
                raise UnavailableError(f"could not try the OCI runtime {path!r}: {why}: try again") from error
            return said
        shim.request(directory, "undo")  # it claims to have started a program that is not there
        starter.ended()
        return "it starts programs that do not exist"


_KILLED = range(129, 193)  # by a signal
_PASSING = tuple(
    os.strerror(number).lower()
    for number in (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
)
"""What runtimes say of a host that has no room at this moment."""
_KNOWN: Final = ("crun version 1.", "runc version 1.")


def leaves_little(runtime: Runtime, spec: dict[str, Any]) -> bool:
    """Is it known of *runtime* what it leaves behind, and does the spec ask for nothing that it must undo itself: no
    hook, no Intel RDT, no foreign pids?
    """
    plain = not spec.get("hooks") and "intelRdt" not in spec["linux"] and specs.own_namespace(spec, "pid")
    return plain and runtime.version.startswith(_KNOWN)
