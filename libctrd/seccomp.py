"""The seccomp profile of the default spec: the system calls that a container may make (a list of what is allowed).

What is not in it gets EPERM, as if a privilege were missing; `clone3` gets ENOSYS, for its flags lie in memory that a
filter cannot see, and C libraries then fall back to `clone`. It is for programs of the host's own architecture: a
filter for another one costs as much again at each call, and programs of an architecture that is not named are killed.

Refused are, with the reason: what loads code into the kernel or replaces it (``init_module``, ``kexec_load``,
``bpf``, ``perf_event_open``), what changes mounts or namespaces (``mount``, ``unshare``, ``setns`` and all that came
with ``fsopen``), the kernel's keyrings, which are not the container's own (``keyctl``), the host's clock, power,
swap, accounting and hardware (``clock_settime``, ``reboot``, ``iopl``), files by their handle, which passes by the
root of the container (``open_by_handle_at``), the placement of memory, and large interfaces by which containers were
left often (``io_uring_setup``, ``userfaultfd``, sockets of AF_VSOCK).

Source: OCI runtime specification 1.0.2 (config-linux.md, seccomp), seccomp(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from libctrd.errors import InvalidArgumentError

# The reason stands with each group; those that only other architectures or later kernels have are left out by the
# runtimes where there are none.
GROUPS: Final = {
    "its own files, by path and by descriptor": """
        access chdir chmod chown creat faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchownat
        file_getattr file_setattr fstat fstatfs getcwd getdents getdents64 lchown link linkat lstat mkdir mkdirat
        mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename renameat
        renameat2 rmdir stat statfs statx symlink symlinkat truncate umask unlink unlinkat utime utimensat utimes
        futimesat chroot
    """,
    "their extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """,
    "reading, writing, and what becomes of it": """
        close close_range copy_file_range dup dup2 dup3 fadvise64 fallocate fcntl fdatasync flock fsync ftruncate
        ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile
        splice sync sync_file_range sync_file_range2 syncfs tee vmsplice write writev cachestat io_cancel
        io_destroy io_getevents io_pgetevents io_setup io_submit
    """,
    "waiting for descriptors": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll pselect6 select
        signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
    """,
    "memory of its own": """
        brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect mremap
        mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
    """,
    "processes and threads; of clone see below": """
        arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu
        getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set kill
        membarrier pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
        set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid tgkill tkill uname
        sysinfo times vfork wait4 waitid waitpid
    """,
    "a debugger of its own processes, which the kernel checks": "process_vm_readv process_vm_writev ptrace",
    "who it is": """
        getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups setregid
        setresgid setresuid setreuid setuid
    """,
    "less than it may": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    "signals": """
        pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_tgsigqueueinfo sigaltstack
    """,
    "clocks that are read, and timers": """
        adjtimex alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime
    """,
    "words between its processes: its IPC namespace is its own": """
        futex futex_requeue futex_wait futex_waitv futex_wake mq_getsetattr mq_notify mq_open mq_timedreceive
        mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt
        shmget
    """,
    "the network; of socket see below": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmsg send
        sendmmsg sendmsg sendto setsockopt shutdown socketpair
    """,
    "random numbers": "getrandom",
    "of one architecture only": """
        breakpoint cacheflush riscv_flush_icache riscv_hwprobe set_tls swapcontext s390_guarded_storage
        s390_runtime_instr
    """,
}
# As their C libraries call them on 32 bits, where that is asked for.
_OF_32_BITS: Final = """
    _llseek _newselect chown32 clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 arm_fadvise64_64
    fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32
    getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64
    mq_timedsend_time64 nice ppoll_time64 pselect6_time64 recvmmsg_time64 rt_sigtimedwait_time64
    sched_rr_get_interval_time64 semtimedop_time64 sendfile64 setfsgid32 setfsuid32 setgid32 setgroups32 setregid32
    setresgid32 setresuid32 setreuid32 setuid32 sigaction signal sigpending sigprocmask sigreturn sigsuspend socketcall
    stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit
    utimensat_time64
"""
_NAMESPACES: Final = 0x7E020000  # every CLONE_NEW… that clone takes: mount, cgroup, uts, ipc, user, pid, net
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32 bits of it, both with uname of 2.6; to ask
_AF_VSOCK: Final = 40  # a socket to the host of a virtual machine
_ENOSYS: Final = 38
ARCHITECTURES: Final = {
    name: name.upper()
    for name in (
        *("aarch64", "arm", "loongarch64", "mips", "mips64", "mipsel", "mipsel64", "ppc", "ppc64", "ppc64le"),
        *("riscv64", "s390", "s390x", "x32", "x86", "x86_64"),
    )
}
"""What `profile` may be asked for: the names of ``uname -m`` and libseccomp, and those of the specification."""
_ON_32_BITS: Final = ("x86", "arm", "s390", "mips", "mipsel", "ppc")


def profile(architectures: Iterable[str] = ()) -> dict[str, Any]:
    """A ``linux.seccomp`` of a spec, the caller's to change.

    *architectures*: names out of `ARCHITECTURES`, such as ``("x86",)``, of which programs may run besides those of the
    host's own. Each adds as much again to what the filter costs. Raises `InvalidArgumentError` for another name.
    """
    asked = list(architectures) if not isinstance(architectures, str) else [architectures]
    unknown = [name for name in asked if name not in ARCHITECTURES]
    if unknown:
        known = ", ".join(ARCHITECTURES)
        raise InvalidArgumentError(f"the architecture {unknown[0]!r} is not known to seccomp: use one of {known}")
    machine = os.uname().machine
    calls = [_allow(names) for names in _groups]
    if any(name in _ON_32_BITS for name in asked) or _is_of_32_bits(machine):
        calls.append(_allow(_OF_32_BITS.split()))
    flags = 1 if machine.startswith("s390") else 0  # which argument of clone they are
    calls.append({**_allow(["clone"]), "args": [_argument(flags, _NAMESPACES, "SCMP_CMP_MASKED_EQ", 0)]})
    calls.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    calls.append({**_allow(["socket"]), "args": [_argument(0, _AF_VSOCK, "SCMP_CMP_NE")]})
    calls += [{**_allow(["personality"]), "args": [_argument(0, which, "SCMP_CMP_EQ")]} for which in _PERSONALITIES]
    found: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO"}  # EPERM, when nothing else is said
    if asked:
        own = [machine] if machine in ARCHITECTURES else []
        found["architectures"] = [f"SCMP_ARCH_{ARCHITECTURES[name]}" for name in dict.fromkeys([*own, *asked])]
    return {**found, "syscalls": calls}


_groups: Final = [names.split() for names in GROUPS.values()]


def _is_of_32_bits(machine: str) -> bool:
    return machine in (*_ON_32_BITS, "i386", "i586", "i686") or machine.startswith(("armv6", "armv7"))


def _allow(names: list[str]) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW"}


def _argument(index: int, value: int, op: str, second: int | None = None) -> dict[str, Any]:
    two = {} if second is None else {"valueTwo": second}
    return {"index": index, "value": value, **two, "op": op}
