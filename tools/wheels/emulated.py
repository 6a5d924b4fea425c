"""Programs for aarch64 on a host of another processor: by qemu-user, in namespaces of their own.

They start others of their kind by execve(2), so the kernel has to know how: binfmt_misc, which each user namespace has
for itself since Linux 6.7. Nothing changes for the host. Its own programs, such as the OCI runtime, run as they are.
Debian 13's qemu is the first that is up to it: that of Debian 12 has neither the child subreaper nor openat2(2).

The namespace of pids is there for /proc, which can be mounted by the user namespace that owns it alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from debian import Release

# The first bytes of an ELF file of 64 bits, little-endian, for aarch64, whichever system it says it is for.
MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
# All users but the last: a map of all is that of the first namespace, and by it runtimes know where they are. Elsewhere
# they leave alone what only the first may do, such as the devices of cgroup v1.
EVERYBODY = "0 0 4294967294"
ENTERED = b"\n"

_FORKS = "posix_spawn is a fork there, and returns before the program was executed: whether it was is not told"
LEFT_OUT = {
    "test_proc_identity.py::test_a_name_with_spaces_and_parentheses_confuses_nobody": _FORKS,
    "test_proc_spawn.py::test_a_program_that_cannot_start_is_named_with_what_to_do": _FORKS,
    "test_proc_spawn.py::test_arguments_over_the_limit_are_the_callers_fault": _FORKS,
    "test_relay_ends.py::test_busy_pipes_grow_and_are_given_back_where_they_are_not_free[with]": "pipes are free "
    "for root in the first user namespace alone",
    "test_sealed.py::test_the_runtime_does_not_begin_twice": "strace tells of the emulator's calls",
}
"""Tests that cannot pass there, by name, and why."""


def command(wanted: list[str], cache: Path) -> list[str]:
    """What runs the command *wanted* there: this file, with the path of qemu."""
    top = cache / "qemu"
    Release("trixie", "amd64", cache).extract(["qemu-user"], top)
    return [sys.executable, __file__, str(top / "usr/bin/qemu-aarch64"), *wanted]


def register(qemu: str) -> None:
    """Has the kernel start programs for aarch64 by *qemu*, which it keeps open (F): from any root file system."""
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    entry = b":ctrd-aarch64:M::" + MAGIC + b":" + MASK + b":" + os.fsencode(qemu) + b":FP"
    (BINFMT / "register").write_bytes(entry)


def main() -> int:
    """In the namespace (its arguments begin with a descriptor): registers and becomes the command. Before: makes it."""
    if sys.argv[1].startswith("fd:"):
        gate = int(sys.argv[1].removeprefix("fd:"))
        os.read(gate, 1)
        os.close(gate)
        register(sys.argv[2])
        os.execvp(sys.argv[3], sys.argv[3:])
    entered, inner = os.pipe()
    gate, opened = os.pipe()
    script = f'printf "\\n" >&{inner}; exec {inner}>&-; "$@"; exit $?'
    inside = [sys.executable, __file__, f"fd:{gate}", *sys.argv[1:]]
    # `unshare` can map one user by itself; all of them are mapped from outside. The shell is init there, and reaps.
    unshare = ["unshare", "--user", "--mount", "--pid", "--fork", "sh", "-c", script, "sh", *inside]
    with subprocess.Popen(unshare, pass_fds=(inner, gate)) as running:
        os.close(inner)
        os.close(gate)
        if os.read(entered, 1) == ENTERED:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{running.pid}/{name}").write_text(EVERYBODY)
            os.write(opened, b"\n")
        os.close(opened)
    return running.returncode


if __name__ == "__main__":
    raise SystemExit(main())
