"""A daemon's pid file, believed only where it names the very process that it was written for (C23).

The file holds the pid, in decimal. Beside it lies ``.start``: the boot and the line of ``/proc/PID/stat`` of the time
when it was written. A process counts if it lives, began when that line says, and runs the daemon's own command.
"""

from __future__ import annotations

import contextlib
import logging
import os

from libctrd import proc
from libctrd._checks import one_line
from libctrd.errors import InvalidArgumentError, from_os_error

log = logging.getLogger("libctrd")

# What a shell runs to write both files of its own process, which `exec` then turns into the daemon. $0 is the path.
RECORD = """umask 077
read -r boot </proc/sys/kernel/random/boot_id
read -r stat </proc/$$/stat
printf '%s\\n%s\\n' "$boot" "$stat" >"$0.start" && echo $$ >"$0" || exit 1
"""


class PidFile:
    """That at *path*, of a daemon that runs *command*: its program, and arguments that no other process has."""

    def __init__(self, path: str, command: list[str]) -> None:
        self.path = path
        self._start = f"{path}.start"
        self._command = command

    def read(self) -> proc.ProcessRef | None:
        """The process that it names, if that lives and is no stranger."""
        try:
            with open(self.path, "rb") as file:
                said = file.read(64)
            with open(self._start, "rb") as file:
                boot, _, stat = file.read(4096).partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, f"read the pid file {self.path!r}") from error
        try:
            if not said.strip().isdigit():
                raise ValueError
            ref = proc.ProcessRef(int(said), int(stat.rpartition(b")")[2].split()[19]))
        except (ValueError, IndexError):
            log.warning("the pid file %s is damaged and was ignored: %s", self.path, one_line(repr(said)))
            return None
        if boot.decode("ascii", "replace") != proc.boot_id():
            return None
        try:
            return ref if ref.alive() and self.is_for(ref.pid) else None
        except InvalidArgumentError:  # a number that is no process id
            return None

    def is_for(self, pid: int) -> bool:
        """Does *pid* run the daemon's command? A program with an interpreter has that before it."""
        program, *arguments = self._command
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")[:-1]
        except OSError:
            return False
        at = len(words) - len(arguments)
        return at > 0 and words[at:] == arguments and os.path.basename(words[at - 1]) == os.path.basename(program)

    def write(self, pid: int) -> proc.ProcessRef:
        """Writes it anew for the running process *pid*."""
        ref = proc.ProcessRef.of(pid)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            _replace(self._start, f"{proc.boot_id()}\n{file.readline()}")
        _replace(self.path, f"{pid}\n")
        return ref

    def remove(self) -> None:
        """Removes both files. What is not there is fine."""
        for path in (self.path, self._start):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _replace(path: str, text: str) -> None:
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
    except OSError as error:
        raise from_os_error(error, f"write {path!r}") from error
