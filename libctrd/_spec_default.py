"""The default spec: what a container gets when its caller says no more than what to run and where.

It is safe (no privilege can be gained, the host's own settings are masked or read-only, devices are denied
but for the harmless ones) and useful (a terminal, shared memory and message queues work; root in the
container can install packages). What it is not: a policy for any runtime in particular.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Final, Literal

from libctrd._spec_parse import User, parse_env, parse_size, parse_user
from libctrd.errors import InvalidArgumentError
from libctrd.seccomp import profile

OCI_VERSION: Final = "1.0.2"  # all that is used below is in it, and every runtime in the field takes it

# What Docker and containerd give: enough to be root over the container's own files, users and ports.
CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
# Files and trees of /proc and /sys that tell of, or act on, the host. The runtimes skip what is not there.
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_THERMAL: Final = "/sys/devices/system/cpu/cpu{}/thermal_throttle"  # by which other containers' work can be told
_TTY: Final = 5  # the group that terminals belong to
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD: Final = 100_000  # µs, the kernel's own default
CPU_QUOTA_MIN: Final = 1_000  # µs, the least that the kernel takes

_MAJOR_MINOR: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))


def _mounts(has_tty_group: bool) -> list[dict[str, Any]]:
    """The file systems of the container.

    Where group 5 (tty) is not mapped, devpts cannot be given to it. A sysfs of its own
    can be mounted there too, since the network namespace is the container's own: it shows no device of the
    host's network, as a bind mount of the host's would.
    """
    quiet = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *(["gid=5"] if has_tty_group else [])]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": list(quiet)},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(quiet)},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [*quiet, "relatime", "ro"],
        },
    ]


@functools.cache
def _thermal() -> tuple[str, ...]:
    """Of each processor, where there is one."""
    paths = (_THERMAL.format(number) for number in range(os.cpu_count() or 1))
    return tuple(path for path in paths if os.path.exists(path))


def _mappings(id_map: str | None) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Those of a user namespace for this user."""
    from libctrd import subids  # only without root

    if id_map not in (None, "one", "many"):
        raise InvalidArgumentError(f"id_map {id_map!r} is not valid: it is 'one', 'many' or None")
    if id_map == "many":
        subids.require()
    return subids.mappings(id_map == "many" or (id_map is None and not subids.missing()))


def _is_mapped(id: int, mappings: list[dict[str, int]]) -> bool:
    return any(0 <= id - mapping["containerID"] < mapping["size"] for mapping in mappings)


def _check_mapped(given: Any, who: dict[str, Any], uids: list[dict[str, int]], gids: list[dict[str, int]]) -> None:
    groups = (who["gid"], *(who.get("additionalGids") or ()))
    if not _is_mapped(who["uid"], uids) or not all(_is_mapped(gid, gids) for gid in groups):
        only = "only root is mapped then" if len(uids) == 1 else "it is none of those that are mapped"
        raise InvalidArgumentError(f"user {given!r} cannot be had without root on the host: {only}")
    if who.get("additionalGids") and len(gids) == 1:
        raise InvalidArgumentError(f"user {given!r} cannot be had without root on the host: it could not set groups")


def _devices() -> list[dict[str, Any]]:
    """The device cgroup: nothing, then making nodes (harmless in itself), then the nodes that every container
    has: null, zero, full, random, urandom, tty, console, ptmx and the terminals of /dev/pts."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for major, minor in _MAJOR_MINOR:
        rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules


def _resources(rootless: bool, memory: int | str | None, cpus: float | None, pids_limit: int | None) -> dict[str, Any]:
    resources: dict[str, Any] = {} if rootless else {"devices": _devices()}
    if memory is not None:
        limit = parse_size(memory)
        if limit == 0:
            raise InvalidArgumentError("memory 0 is not valid: give the bytes it may use, or None for no limit")
        resources["memory"] = {"limit": limit}
    if cpus is not None:
        if not isinstance(cpus, (int, float)) or isinstance(cpus, bool) or not isfinite(cpus):
            raise InvalidArgumentError(f"cpus {cpus!r} is not valid: give a number of processors, like 1.5")
        quota = round(cpus * CPU_PERIOD)
        if not CPU_QUOTA_MIN <= quota < 2**43:  # 2**43 µs: where the kernel's own arithmetic ends
            raise InvalidArgumentError(
                f"cpus {cpus!r} is not valid: use at least {CPU_QUOTA_MIN / CPU_PERIOD}, or None for no limit"
            )
        resources["cpu"] = {"quota": quota, "period": CPU_PERIOD}
    if pids_limit is not None:
        if not isinstance(pids_limit, int) or isinstance(pids_limit, bool) or not 1 <= pids_limit < 2**63:
            raise InvalidArgumentError(
                f"pids_limit {pids_limit!r} is not valid: it is at least 1, or None for no limit"
            )
        resources["pids"] = {"limit": pids_limit}
    return resources


def _with_own(defaults: list[dict[str, Any]], own: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """*defaults* with the caller's mounts after them; one of the caller's takes the place of a default
    one."""
    if isinstance(own, (str, bytes, Mapping)) or not isinstance(own, Iterable):
        raise InvalidArgumentError(
            f"mounts is a list of mount objects, not {type(own).__name__} (see spec.parse_mount)"
        )
    mine = []
    for number, mount in enumerate(own):
        if not isinstance(mount, Mapping):
            raise InvalidArgumentError(
                f"mounts[{number}]: expected an object, got {type(mount).__name__} (see spec.parse_mount)"
            )
        mine.append(absolute_source(dict(mount), os.getcwd()))
    taken = [mount.get("destination") for mount in mine]
    return [mount for mount in defaults if mount["destination"] not in taken] + mine


def absolute_source(mount: dict[str, Any], base: str) -> dict[str, Any]:
    """*mount*, or a copy of it with its source below *base*, when it is a bind mount from a relative
    source."""
    source, options = mount.get("source"), mount.get("options")
    binds = mount.get("type") == "bind" or (
        isinstance(options, (list, tuple)) and ("bind" in options or "rbind" in options)
    )
    if not binds or not isinstance(source, str) or not source or source.startswith("/"):
        return mount
    return {**mount, "source": os.path.normpath(os.path.join(base, source))}


def real_path(path: str) -> str:
    """*path* made absolute, with its symbolic links followed: runc refuses a root file system that is behind one."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL: `validate` tells of that
        return os.path.abspath(path)


def default(
    args: Sequence[str] = ("sh",),
    rootfs: str | os.PathLike[str] = "rootfs",
    *,
    terminal: bool = False,
    env: Mapping[str, str] | Iterable[str] | None = None,
    cwd: str = "/",
    user: User | None = None,
    hostname: str | None = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids_limit: int | None = None,
    mounts: Iterable[Mapping[str, Any]] = (),
    read_only: bool = False,
    rootless: bool | None = None,
    id_map: Literal["one", "many"] | None = None,
    seccomp: bool | Mapping[str, Any] = True,
) -> dict[str, Any]:
    """A safe and useful spec that runs *args* in *rootfs*: a plain OCI 1.x dict, the caller's to change.

    - *args*: the program and its arguments; *cwd*: its directory, absolute, in the container; *terminal*: it
      gets one.
    - *rootfs*: the root file system, made absolute now, without symbolic links; *read_only*: it cannot be written.
    - *env*: a mapping or ``NAME=value`` texts, over the default ``PATH`` (and ``TERM``, with a terminal).
    - *user*: ``"UID[:GID]"``, a uid or ``(uid, gid[, additional gids])``; root when not given.
    - *hostname*: the host's own when not given.
    - *memory*: the most it may use, in bytes or like ``"64m"``; *cpus*: processors' worth of time, like
      ``1.5``; *pids_limit*: the most processes. ``None`` is no limit.
    - *mounts*: further OCI mounts (`parse_mount` makes one from a text); one at a default's place replaces
      it, and a relative source of a bind mount is made absolute now.
    - *rootless*: for a caller without root, with a user namespace that maps the caller to root; found out from the
      effective uid when ``None``. *id_map* ``"one"`` maps nobody else, ``"many"`` the caller's subordinate ids too
      (subuid(5)), as users and groups from 1 on; when it is ``None``, many are mapped where newuidmap(1) can do it.
    - *seccomp*: the system calls it may make: those of `libctrd.seccomp.profile`, of a profile of yours, or all
      (``False``).

    It has fresh namespaces (pid, network with a loopback device only, ipc, uts, mount, cgroup), the
    capabilities that Docker gives, no way to gain more, no rlimits of its own (raising one needs a privilege
    that the caller may lack) and no cgroup path: the engine sets that for each container.
    `InvalidArgumentError` when an argument cannot be. Source: OCI runtime specification 1.0.2 (config.md,
    config-linux.md).
    """
    from libctrd._spec_check import validate  # loaded when first needed: it is the costlier half

    if rootless is None:
        rootless = os.geteuid() != 0
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise InvalidArgumentError(f"args is a list of the program and its arguments, like [{args!r}]")
    variables = {"PATH": PATH, **({"TERM": "xterm"} if terminal else {})}
    if env is not None:
        variables.update(parse_env(env))
    try:
        root = real_path(os.fspath(rootfs))
    except TypeError as error:
        raise InvalidArgumentError(f"rootfs is a path, not {type(rootfs).__name__}") from error
    who = parse_user(0 if user is None else user)
    uids, gids = _mappings(id_map) if rootless else ([], [])
    if rootless:
        _check_mapped(user, who, uids, gids)
    kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"] + (["user"] if rootless else [])
    linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in kinds]}
    if rootless:
        linux["uidMappings"], linux["gidMappings"] = uids, gids
    resources = _resources(rootless, memory, cpus, pids_limit)
    if resources:
        linux["resources"] = resources
    linux["maskedPaths"] = [*MASKED_PATHS, *_thermal()]
    linux["readonlyPaths"] = list(READONLY_PATHS)
    if seccomp is not False:
        linux["seccomp"] = profile() if seccomp is True else seccomp
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": terminal,
            "user": who,
            "args": list(args),
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": cwd,
            "capabilities": {
                "bounding": list(CAPABILITIES),
                "effective": list(CAPABILITIES),
                "permitted": list(CAPABILITIES),
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": read_only},
        "mounts": _with_own(_mounts(not rootless or _is_mapped(_TTY, gids)), mounts),
        "linux": linux,
    }
    if hostname is not None:
        spec["hostname"] = hostname
    validate(spec)
    return spec
