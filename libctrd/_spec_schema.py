"""The fields of a spec, their types and their limits, as msgspec types: one table for both ways to check a
spec.

`Document` is what ``msgspec.convert`` is given (fast, in C, without a reason) and what `_spec_check` walks
along to name every fault. Fields that are not here are not looked at. ``None`` counts as not given, as both
Go and C runtimes have it. What it is not: objects that anyone works with; a spec stays a dict. Source: OCI
runtime specification 1.0 to 1.2 (config.md, config-linux.md).
"""

# Without `from __future__ import annotations`: of text msgspec would have to compile each annotation, at every start.
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field


def _text(pattern: str, says: str) -> Any:
    return Meta(pattern=pattern, extra={"says": says})


Uint: TypeAlias = Annotated[int, Meta(ge=0)]
Uint32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Uint16: TypeAlias = Annotated[int, Meta(ge=0, le=2**16 - 1)]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
AbsPath: TypeAlias = Annotated[str, _text(r"\A/", "must be an absolute path")]
Version: TypeAlias = Annotated[
    str,
    _text(r"\A1\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?\Z", "must be a version 1.x.y of the specification"),
]
EnvEntry: TypeAlias = Annotated[str, _text(r"\A[^=]+=", "must be NAME=value")]
Capability: TypeAlias = Annotated[str, _text(r"\ACAP_[A-Z0-9_]+\Z", "must be a capability's name, like CAP_KILL")]
RlimitName: TypeAlias = Annotated[str, _text(r"\ARLIMIT_[A-Z]+\Z", "must be a limit's name, like RLIMIT_NOFILE")]
Access: TypeAlias = Annotated[str, _text(r"\A[rwm]{0,3}\Z", "must be made of r, w and m")]


class _Part(Struct, gc=False):
    """A base for the objects of the table: made by the thousand and dropped at once, so not tracked."""


class ConsoleSize(_Part):
    height: Uint32
    width: Uint32


class User(_Part):
    uid: Uint32 | None = None
    gid: Uint32 | None = None
    umask: Uint32 | None = None
    additionalGids: list[Uint32] | None = None
    username: str | None = None


class Capabilities(_Part):
    bounding: list[Capability] | None = None
    effective: list[Capability] | None = None
    inheritable: list[Capability] | None = None
    permitted: list[Capability] | None = None
    ambient: list[Capability] | None = None


class Rlimit(_Part):
    type: RlimitName
    soft: Uint
    hard: Uint


class IoPriority(_Part):
    class_: str | None = field(default=None, name="class")
    priority: int | None = None


class Scheduler(_Part):
    policy: Text
    nice: int | None = None
    priority: int | None = None
    flags: list[str] | None = None
    runtime: Uint | None = None
    deadline: Uint | None = None
    period: Uint | None = None


class Process(_Part):
    args: Annotated[list[str], Meta(min_length=1)]
    cwd: AbsPath
    terminal: bool | None = None
    consoleSize: ConsoleSize | None = None
    user: User | None = None
    env: list[EnvEntry] | None = None
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] | None = None
    noNewPrivileges: bool | None = None
    apparmorProfile: str | None = None
    selinuxLabel: str | None = None
    oomScoreAdj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    ioPriority: IoPriority | None = None
    scheduler: Scheduler | None = None


class Root(_Part):
    path: Text
    readonly: bool | None = None


class IdMapping(_Part):
    containerID: Uint32
    hostID: Uint32
    size: Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Mount(_Part):
    destination: AbsPath
    type: str | None = None
    source: str | None = None
    options: list[str] | None = None
    uidMappings: list[IdMapping] | None = None
    gidMappings: list[IdMapping] | None = None


class Hook(_Part):
    path: AbsPath
    args: list[str] | None = None
    env: list[EnvEntry] | None = None
    timeout: Annotated[int, Meta(ge=1)] | None = None


class Hooks(_Part):
    prestart: list[Hook] | None = None
    createRuntime: list[Hook] | None = None
    createContainer: list[Hook] | None = None
    startContainer: list[Hook] | None = None
    poststart: list[Hook] | None = None
    poststop: list[Hook] | None = None


class Namespace(_Part):
    type: Literal["pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time"]
    path: Annotated[str, _text(r"\A(?:/|\Z)", "must be an absolute path")] | None = None


class Device(_Part):
    type: Literal["c", "b", "u", "p"]
    path: AbsPath
    major: Int64 | None = None
    minor: Int64 | None = None
    fileMode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(_Part):
    allow: bool
    type: Literal["a", "b", "c", "u", "p", ""] | None = None
    major: Int64 | None = None
    minor: Int64 | None = None
    access: Access | None = None


class Memory(_Part):
    limit: Int64 | None = None
    reservation: Int64 | None = None
    swap: Int64 | None = None
    kernel: Int64 | None = None
    kernelTCP: Int64 | None = None
    swappiness: Annotated[int, Meta(ge=0, le=200)] | None = None
    disableOOMKiller: bool | None = None
    useHierarchy: bool | None = None
    checkBeforeUpdate: bool | None = None


class Cpu(_Part):
    shares: Uint | None = None
    quota: Int64 | None = None
    burst: Uint | None = None
    period: Uint | None = None
    realtimeRuntime: Int64 | None = None
    realtimePeriod: Uint | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: Int64 | None = None


class Pids(_Part):
    limit: Int64 | None = None


class WeightDevice(_Part):
    major: Int64
    minor: Int64
    weight: Uint16 | None = None
    leafWeight: Uint16 | None = None


class ThrottleDevice(_Part):
    major: Int64
    minor: Int64
    rate: Uint


class BlockIO(_Part):
    weight: Uint16 | None = None
    leafWeight: Uint16 | None = None
    weightDevice: list[WeightDevice] | None = None
    throttleReadBpsDevice: list[ThrottleDevice] | None = None
    throttleWriteBpsDevice: list[ThrottleDevice] | None = None
    throttleReadIOPSDevice: list[ThrottleDevice] | None = None
    throttleWriteIOPSDevice: list[ThrottleDevice] | None = None


class HugepageLimit(_Part):
    pageSize: Text
    limit: Uint


class Priority(_Part):
    name: Text
    priority: Uint32


class Network(_Part):
    classID: Uint32 | None = None
    priorities: list[Priority] | None = None


class Rdma(_Part):
    hcaHandles: Uint32 | None = None
    hcaObjects: Uint32 | None = None


class Resources(_Part):
    devices: list[DeviceRule] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    blockIO: BlockIO | None = None
    hugepageLimits: list[HugepageLimit] | None = None
    network: Network | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None


class SyscallArg(_Part):
    index: Uint32
    value: Uint
    op: Text
    valueTwo: Uint | None = None


class Syscall(_Part):
    names: Annotated[list[Text], Meta(min_length=1)]
    action: Text
    errnoRet: Uint32 | None = None
    args: list[SyscallArg] | None = None


class Seccomp(_Part):
    defaultAction: Text
    defaultErrnoRet: Uint32 | None = None
    architectures: list[Text] | None = None
    flags: list[Text] | None = None
    listenerPath: str | None = None
    listenerMetadata: str | None = None
    syscalls: list[Syscall] | None = None


class TimeOffset(_Part):
    secs: Int64 | None = None
    nanosecs: Uint32 | None = None


class IntelRdt(_Part):
    closID: str | None = None
    l3CacheSchema: str | None = None
    memBwSchema: str | None = None
    enableCMT: bool | None = None
    enableMBM: bool | None = None


class Personality(_Part):
    domain: Text
    flags: list[str] | None = None


class Linux(_Part):
    namespaces: list[Namespace] | None = None
    uidMappings: list[IdMapping] | None = None
    gidMappings: list[IdMapping] | None = None
    timeOffsets: dict[str, TimeOffset] | None = None
    devices: list[Device] | None = None
    cgroupsPath: str | None = None
    rootfsPropagation: (
        Literal["", "shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"] | None
    ) = None
    resources: Resources | None = None
    sysctl: dict[str, str] | None = None
    seccomp: Seccomp | None = None
    maskedPaths: list[AbsPath] | None = None
    readonlyPaths: list[AbsPath] | None = None
    mountLabel: str | None = None
    intelRdt: IntelRdt | None = None
    personality: Personality | None = None


class Document(_Part):
    ociVersion: Version
    process: Process
    root: Root
    hostname: str | None = None
    domainname: str | None = None
    mounts: list[Mount] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None
