"""Whether this host can run containers, and how to mend what is wrong: what `ctrd doctor` shows.

Each check looks at one thing and says what it found. Nothing is changed that a client would not do: a runtime that was
not tried since this boot is tried, and a state directory that is not there is made.
"""

from __future__ import annotations

import os
import resource
from typing import Final, Literal

from msgspec import Struct

from libctrd import _checks, directory, subids
from libctrd.engine import cgroups, criu, default_state_dir
from libctrd.engine import runtime as runtimes
from libctrd.errors import CtrdError

State = Literal["ok", "note", "fault"]

CONTAINERD: Final = ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock")
"""Where a containerd listens that nobody has named."""
FEW_DESCRIPTORS: Final = 1024
FEW_INSTANCES: Final = 128
FEW_BYTES: Final = 16 << 20
FEW_INODES: Final = 1024
A_KERNEL: Final = (5, 3)  # the first with pidfd_open(2)


class Finding(Struct, frozen=True):
    """What one check found. A ``fault`` keeps containers from running; a ``note`` only something of them."""

    check: str
    state: State
    found: str
    advice: str = ""


def examine(address: str | None = None) -> list[Finding]:
    """Makes all checks. *address* is that of an engine: of its directory, or of its socket besides. Raises nothing."""
    found: list[Finding] = []
    for check in CHECKS:
        found += check()
    found += state_directory(address.removeprefix("local:") if address and address.startswith("local:") else "")
    for socket in sockets(address):
        found += daemon(socket)
    return found


def system() -> list[Finding]:
    """The kernel."""
    names = os.uname()
    what = f"{names.sysname} {names.release}"
    if not _checks.LINUX:
        advice = "connect to a daemon on a Linux host, or run this there"
        return [Finding("system", "fault", f"{what}: the local engine is for Linux", advice)]
    if _release(names.release) < A_KERNEL:
        advice = f"use Linux {'.'.join(map(str, A_KERNEL))} or later"
        return [Finding("system", "fault", f"{what}: it has no pidfd_open(2)", advice)]
    return [Finding("system", "ok", what)]


def _release(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdigit())


def oci_runtimes() -> list[Finding]:
    """crun and runc: one of them has to work."""
    found, works = [], False
    for name in runtimes.PREFERRED:
        try:
            runtime = runtimes.find(name)
        except CtrdError as error:
            found.append(Finding(name, "note", str(error).partition(":")[0], f"install it (Debian: {name})"))
            continue
        works = works or runtime.works
        if not runtime.works:
            found.append(Finding(name, "note", f"{runtime.path} does not work: {runtime.why_not}", "see what it says"))
        elif runtime.lacks_seccomp:
            advice = "install one that was built with it: containers run without a filter of system calls"
            found.append(Finding(name, "note", f"{runtime.path}, {runtime.version}, without seccomp", advice))
        else:
            found.append(Finding(name, "ok", f"{runtime.path}, {runtime.version}"))
    if not works:
        advice = "install crun or runc (Debian: apt-get install crun)"
        found.append(Finding("runtime", "fault", "no OCI runtime works here", advice))
    return found


def control_groups() -> list[Finding]:
    """Limits, pause and stats need them."""
    if os.geteuid() != 0:
        advice = "run it as root for those; all else works"
        return [Finding("cgroups", "note", "without root: no limits, pause or stats", advice)]
    if cgroups.unified():
        return [Finding("cgroups", "ok", "v2")]
    try:
        controllers = sorted(name for name in os.listdir("/sys/fs/cgroup") if name != "unified")
    except OSError:
        controllers = []
    if not controllers:
        return [
            Finding("cgroups", "fault", "nothing is mounted at /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup")
        ]
    kind = "v1, and v2 beside it" if os.path.isdir("/sys/fs/cgroup/unified") else "v1"
    lacking = sorted({"memory", "cpu", "pids", "freezer", "devices"} - set(controllers))
    if lacking:
        advice = "mount them: limits, pause and stats of these are refused"
        return [Finding("cgroups", "note", f"{kind}, without {', '.join(lacking)}", advice)]
    return [Finding("cgroups", "ok", kind)]


SWITCHES: Final = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)
"""What keeps an ordinary user from user namespaces: a file in /proc/sys, its value, and how to change that."""


def namespaces() -> list[Finding]:
    """An ordinary user needs user namespaces."""
    if os.geteuid() == 0:
        return []
    for name, bad, advice in SWITCHES:
        if read(f"/proc/sys/{name}") == bad:
            return [Finding("namespaces", "fault", f"{name.replace('/', '.')} is {bad}", f"as root: {advice}")]
    missing = subids.missing()
    if missing:
        what, _, advice = missing.partition(": ")
        return [Finding("namespaces", "note", f"only one id can be mapped: {what}", advice)]
    return [Finding("namespaces", "ok", "user namespaces, with more than one id")]


def limits() -> list[Finding]:
    """What runs out with many containers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [Finding("descriptors", "ok", f"{soft} ({hard} at most)")]
    if soft < FEW_DESCRIPTORS:
        found = [Finding("descriptors", "note", f"{soft}: each container takes about 4", f"ulimit -n {hard}")]
    instances = read("/proc/sys/fs/inotify/max_user_instances")
    if instances.isdigit() and int(instances) < FEW_INSTANCES:
        advice = f"as root: sysctl fs.inotify.max_user_instances={FEW_INSTANCES * 8}"
        found.append(Finding("inotify", "note", f"{instances} instances: clients of one user share them", advice))
    elif instances:
        found.append(Finding("inotify", "ok", f"{instances} instances"))
    return found


def state_directory(path: str = "") -> list[Finding]:
    """Where the local engine keeps what it knows: *path*, or the default."""
    try:
        there = directory.check_state_dir(path or default_state_dir())
        room = os.statvfs(there)
    except (CtrdError, OSError) as error:
        return [Finding("state", "fault", str(error), "name another with --state-dir, or mend this one")]
    free = room.f_bavail * room.f_frsize
    if free < FEW_BYTES or (room.f_files and room.f_favail < FEW_INODES):
        left = f"{there}: {free >> 20} MiB and {room.f_favail} inodes are left"
        return [Finding("state", "fault", left, "remove something there, or name another with --state-dir")]
    return [Finding("state", "ok", f"{there}, {free >> 20} MiB free")]


def checkpoints() -> list[Finding]:
    """CRIU, which only checkpoints need."""
    reasons = []
    for name in runtimes.PREFERRED:
        try:
            criu.require(runtimes.locate(name))
        except CtrdError as error:
            reasons.append(str(error).removeprefix("CRIU cannot run here: "))
        else:
            return [Finding("checkpoints", "ok", f"CRIU, with {name}")]
    reason, _, advice = reasons[-1].rpartition(": ")
    if "install" not in advice and "create" not in advice:
        reason, advice = reasons[-1], "see what `criu check` says, and try a later version of CRIU"
    return [Finding("checkpoints", "note", f"none: {reason}", advice)]


def sockets(address: str | None) -> list[str]:
    """The sockets of daemons to look at: those that were named, and those that are there."""
    named = [address, os.environ.get("CTRD_ADDRESS"), os.environ.get("CONTAINERD_ADDRESS")]
    paths = [name.removeprefix("unix://") for name in named if name and not name.startswith(("local:", "containerd:"))]
    return list(dict.fromkeys([*paths, *(path for path in CONTAINERD if os.path.exists(path))]))


def daemon(path: str) -> list[Finding]:
    """A containerd, or what speaks as one."""
    from libctrd.engine import connect  # it brings gRPC along

    try:
        with connect(f"unix://{path}") as client:
            info = client.info()
    except CtrdError as error:
        return [Finding("containerd", "fault", str(error), "start it, or name the socket of one that runs")]
    return [Finding("containerd", "ok", f"{path}, {info.generation} {info.version}".rstrip())]


def read(path: str) -> str:
    """What stands in a file of the kernel's; "" when it has none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


CHECKS: Final = (system, oci_runtimes, control_groups, namespaces, limits, checkpoints)
