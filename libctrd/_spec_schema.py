"""The fields of a spec, their types and their limits: one table for both ways to check a spec.

`DOCUMENT` tells whether a spec is one (fast, in C, without a reason), and `_spec_check` walks along it to name every
fault. Fields that are not here are not looked at. ``None`` counts as not given, as both Go and C runtimes have it. What
it is not: objects that anyone works with; a spec stays a dict. Source: OCI runtime specification 1.0 to 1.2 (config.md,
config-linux.md).
"""

from __future__ import annotations

from libctrd.shape import Choice, Fields, Flag, Many, Map, Number, Text

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = "0123456789"
_SUFFIX = frozenset(_UPPER + _UPPER.lower() + _DIGITS + ".+-")


def _is_version(text: str) -> bool:
    """``1.MINOR.PATCH``, and a suffix that begins with ``-`` or ``+``."""
    end = min((place for place in map(text.find, "-+") if place >= 0), default=len(text))
    numbers, suffix = text[:end].split("."), text[end + 1 :]
    if len(numbers) != 3 or numbers[0] != "1" or not all(n.isascii() and n.isdigit() for n in numbers):
        return False
    return end == len(text) or (suffix != "" and _SUFFIX.issuperset(suffix))


ANY_TEXT = Text()
SOME_TEXT = Text("must not be empty", least=1)
VERSION = Text("must be a version 1.x.y of the specification", like=_is_version)
PATH = Text("must be an absolute path", begins="/")
PATH_OR_NONE = Text("must be an absolute path", begins="/", empty=True)
VARIABLE = Text("must be NAME=value", after="=")
CAPABILITY = Text(
    "must be a capability's name, like CAP_KILL", begins="CAP_", only=_UPPER + _DIGITS + "_", least=len("CAP_x")
)
RLIMIT = Text("must be a limit's name, like RLIMIT_NOFILE", begins="RLIMIT_", only=_UPPER, least=len("RLIMIT_X"))
ACCESS = Text("must be made of r, w and m", only="rwm", most=3)

FLAG = Flag()
INT = Number()
UINT = Number(0)
UINT16 = Number(0, 2**16 - 1)
UINT32 = Number(0, 2**32 - 1)
INT64 = Number(-(2**63), 2**63 - 1)
POSITIVE = Number(1)
TEXTS = Many(ANY_TEXT)
SOME_TEXTS = Many(SOME_TEXT)
PATHS = Many(PATH)
VARIABLES = Many(VARIABLE)
CAPABILITIES = Many(CAPABILITY)

PROCESS = Fields(
    {
        "args": Many(ANY_TEXT, 1),
        "cwd": PATH,
        "terminal": FLAG,
        "consoleSize": Fields({"height": UINT32, "width": UINT32}, ("height", "width")),
        "user": Fields(
            {"uid": UINT32, "gid": UINT32, "umask": UINT32, "additionalGids": Many(UINT32), "username": ANY_TEXT}
        ),
        "env": VARIABLES,
        "capabilities": Fields(
            dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), CAPABILITIES)
        ),
        "rlimits": Many(Fields({"type": RLIMIT, "soft": UINT, "hard": UINT}, ("type", "soft", "hard"))),
        "noNewPrivileges": FLAG,
        "apparmorProfile": ANY_TEXT,
        "selinuxLabel": ANY_TEXT,
        "oomScoreAdj": Number(-1000, 1000),
        "ioPriority": Fields({"class": ANY_TEXT, "priority": INT}),
        "scheduler": Fields(
            {
                "policy": SOME_TEXT,
                "nice": INT,
                "priority": INT,
                "flags": TEXTS,
                "runtime": UINT,
                "deadline": UINT,
                "period": UINT,
            },
            ("policy",),
        ),
    },
    ("args", "cwd"),
)

MAPPINGS = Many(
    Fields({"containerID": UINT32, "hostID": UINT32, "size": Number(1, 2**32 - 1)}, ("containerID", "hostID", "size"))
)

MOUNT = Fields(
    {
        "destination": PATH,
        "type": ANY_TEXT,
        "source": ANY_TEXT,
        "options": TEXTS,
        "uidMappings": MAPPINGS,
        "gidMappings": MAPPINGS,
    },
    ("destination",),
)

HOOKS = Many(Fields({"path": PATH, "args": TEXTS, "env": VARIABLES, "timeout": POSITIVE}, ("path",)))

WEIGHTS = Many(Fields({"major": INT64, "minor": INT64, "weight": UINT16, "leafWeight": UINT16}, ("major", "minor")))
RATES = Many(Fields({"major": INT64, "minor": INT64, "rate": UINT}, ("major", "minor", "rate")))

RESOURCES = Fields(
    {
        "devices": Many(
            Fields(
                {
                    "allow": FLAG,
                    "type": Choice("a", "b", "c", "u", "p", ""),
                    "major": INT64,
                    "minor": INT64,
                    "access": ACCESS,
                },
                ("allow",),
            )
        ),
        "memory": Fields(
            {
                "limit": INT64,
                "reservation": INT64,
                "swap": INT64,
                "kernel": INT64,
                "kernelTCP": INT64,
                "swappiness": Number(0, 200),
                "disableOOMKiller": FLAG,
                "useHierarchy": FLAG,
                "checkBeforeUpdate": FLAG,
            }
        ),
        "cpu": Fields(
            {
                "shares": UINT,
                "quota": INT64,
                "burst": UINT,
                "period": UINT,
                "realtimeRuntime": INT64,
                "realtimePeriod": UINT,
                "cpus": ANY_TEXT,
                "mems": ANY_TEXT,
                "idle": INT64,
            }
        ),
        "pids": Fields({"limit": INT64}),
        "blockIO": Fields(
            {
                "weight": UINT16,
                "leafWeight": UINT16,
                "weightDevice": WEIGHTS,
                "throttleReadBpsDevice": RATES,
                "throttleWriteBpsDevice": RATES,
                "throttleReadIOPSDevice": RATES,
                "throttleWriteIOPSDevice": RATES,
            }
        ),
        "hugepageLimits": Many(Fields({"pageSize": SOME_TEXT, "limit": UINT}, ("pageSize", "limit"))),
        "network": Fields(
            {
                "classID": UINT32,
                "priorities": Many(Fields({"name": SOME_TEXT, "priority": UINT32}, ("name", "priority"))),
            }
        ),
        "rdma": Map(Fields({"hcaHandles": UINT32, "hcaObjects": UINT32})),
        "unified": Map(ANY_TEXT),
    }
)

SECCOMP = Fields(
    {
        "defaultAction": SOME_TEXT,
        "defaultErrnoRet": UINT32,
        "architectures": SOME_TEXTS,
        "flags": SOME_TEXTS,
        "listenerPath": ANY_TEXT,
        "listenerMetadata": ANY_TEXT,
        "syscalls": Many(
            Fields(
                {
                    "names": Many(SOME_TEXT, 1),
                    "action": SOME_TEXT,
                    "errnoRet": UINT32,
                    "args": Many(
                        Fields(
                            {"index": UINT32, "value": UINT, "op": SOME_TEXT, "valueTwo": UINT},
                            ("index", "value", "op"),
                        )
                    ),
                },
                ("names", "action"),
            )
        ),
    },
    ("defaultAction",),
)

LINUX = Fields(
    {
        "namespaces": Many(
            Fields(
                {
                    "type": Choice("pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time"),
                    "path": PATH_OR_NONE,
                },
                ("type",),
            )
        ),
        "uidMappings": MAPPINGS,
        "gidMappings": MAPPINGS,
        "timeOffsets": Map(Fields({"secs": INT64, "nanosecs": UINT32})),
        "devices": Many(
            Fields(
                {
                    "type": Choice("c", "b", "u", "p"),
                    "path": PATH,
                    "major": INT64,
                    "minor": INT64,
                    "fileMode": UINT32,
                    "uid": UINT32,
                    "gid": UINT32,
                },
                ("type", "path"),
            )
        ),
        "cgroupsPath": ANY_TEXT,
        "rootfsPropagation": Choice(
            *("", "shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable")
        ),
        "resources": RESOURCES,
        "sysctl": Map(ANY_TEXT),
        "seccomp": SECCOMP,
        "maskedPaths": PATHS,
        "readonlyPaths": PATHS,
        "mountLabel": ANY_TEXT,
        "intelRdt": Fields(
            {
                "closID": ANY_TEXT,
                "l3CacheSchema": ANY_TEXT,
                "memBwSchema": ANY_TEXT,
                "enableCMT": FLAG,
                "enableMBM": FLAG,
            }
        ),
        "personality": Fields({"domain": SOME_TEXT, "flags": TEXTS}, ("domain",)),
    }
)

DOCUMENT = Fields(
    {
        "ociVersion": VERSION,
        "process": PROCESS,
        "root": Fields({"path": SOME_TEXT, "readonly": FLAG}, ("path",)),
        "hostname": ANY_TEXT,
        "domainname": ANY_TEXT,
        "mounts": Many(MOUNT),
        "hooks": Fields(
            dict.fromkeys(
                ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), HOOKS
            )
        ),
        "annotations": Map(ANY_TEXT),
        "linux": LINUX,
    },
    ("ociVersion", "process", "root"),
)
