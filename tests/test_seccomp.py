"""The default profile: what it refuses, what runs under it, and that crun gets the same one compiled."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bpf_kit import verdict
from engine_kit import need_runtime
from host_kit import PYTHON, HostRoot, host_root

import libctrd
from libctrd import seccomp
from libctrd._spec_default import CAPABILITIES, MASKED_PATHS, READONLY_PATHS
from libctrd.client import Client
from libctrd.engine import filters, remembered
from libctrd.engine import runtime as runtime_module
from libctrd.engine.runtime import Runtime
from libctrd.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]
Make = Callable[..., dict[str, Any]]
WAIT = 60.0


def words(text: str) -> set[str]:
    """Those of a text."""
    return set(text.split())


KILLED = 128 + 31  # SIGSYS
REFUSED = words("""
    acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init finit_module fsconfig
    fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup
    ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr
    move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
    process_madvise query_module quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node
    setdomainname sethostname setns settimeofday stime swapoff swapon _sysctl sysfs syslog umount umount2 unshare
    uselib userfaultfd ustat vhangup vm86 vm86old
""")
"""What Docker's own profile refuses a container with the default capabilities, as its documentation lists it."""
DOCKER_CAPABILITIES = words("""
    AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID
    SYS_CHROOT
""")
RUNC_CAPABILITIES = words("AUDIT_WRITE KILL NET_BIND_SERVICE")  # of `runc spec`
DOCKER_MASKED = words("""
    /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi
    /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware
""")
DOCKER_READONLY = words("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
PROBE = """
    import ctypes, json, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, number, *arguments in json.loads(sys.argv[1]):
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
        found[name] = ctypes.get_errno() if result < 0 else 0
    print(json.dumps(found))
"""
X86_64 = {"mount": 165, "bpf": 321, "keyctl": 250, "unshare": 272, "setns": 308, "clone3": 435}
AARCH64 = {"mount": 40, "bpf": 280, "keyctl": 219, "unshare": 97, "setns": 268, "clone3": 435}


def allowed(profile: dict[str, Any]) -> set[str]:
    """The names that it allows at all."""
    return {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_it_refuses_at_least_what_docker_refuses() -> None:
    """By name, whatever the architecture."""
    assert allowed(seccomp.profile(["x86"])) & REFUSED == set()


def test_the_default_spec_drops_what_the_others_drop() -> None:
    """Of capabilities and paths."""
    ours = {name.removeprefix("CAP_") for name in CAPABILITIES}
    assert ours <= DOCKER_CAPABILITIES
    assert ours >= RUNC_CAPABILITIES
    assert set(MASKED_PATHS) >= DOCKER_MASKED
    assert set(READONLY_PATHS) >= DOCKER_READONLY


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_default_spec_hides_what_the_runtimes_own_hides(runtime: str, tmp_path: Path) -> None:
    """What `runc spec` and `crun spec` of this host mask and make read-only, they being as old or new as they are."""
    subprocess.run([need_runtime(runtime), "spec"], cwd=tmp_path, check=True)
    its = json.loads((tmp_path / "config.json").read_text())
    assert set(MASKED_PATHS) >= set(its["linux"]["maskedPaths"])
    assert set(READONLY_PATHS) >= set(its["linux"]["readonlyPaths"])
    assert libctrd.spec.default(["sh"], tmp_path)["process"]["noNewPrivileges"]
    assert its["process"]["noNewPrivileges"]


def test_each_call_stands_in_it_once() -> None:
    """A rule without arguments would make one with them void."""
    rules = seccomp.profile(["x86"])["syscalls"]
    free = [name for rule in rules if "args" not in rule for name in rule["names"]]
    bound = {name for rule in rules if "args" in rule for name in rule["names"]}
    assert len(free) == len(set(free))
    assert bound & set(free) == set()


def test_the_default_spec_has_it_and_the_callers_choice_counts(rootfs: str) -> None:
    """On by default, off by a flag, another one by a mapping; each time a dict of the caller's own."""
    made = libctrd.spec.default(["x"], rootfs)["linux"]["seccomp"]
    assert made == seccomp.profile()
    made["syscalls"].clear()
    assert libctrd.spec.default(["x"], rootfs)["linux"]["seccomp"] == seccomp.profile() != made
    assert "seccomp" not in libctrd.spec.default(["x"], rootfs, seccomp=False)["linux"]
    own = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert libctrd.spec.default(["x"], rootfs, seccomp=own)["linux"]["seccomp"] == own
    with pytest.raises(InvalidArgumentError, match="defaultAction"):
        libctrd.spec.default(["x"], rootfs, seccomp={})


def test_a_further_architecture_is_named() -> None:
    """Its programs may run then, and their calls of 32 bits are there."""
    both = seccomp.profile(["x86"])
    assert both["architectures"][-1] == "SCMP_ARCH_X86"
    assert "mmap2" in allowed(both)
    assert "mmap2" not in allowed(seccomp.profile()) or sys.maxsize < 2**32
    with pytest.raises(InvalidArgumentError, match="'pdp11' is not known"):
        seccomp.profile(["pdp11"])


# ---- what a container may do -----------------------------------------------------------------------------------------


@pytest.fixture
def host_rootfs(tmp_path: Path) -> HostRoot:
    """See `host_root`."""
    return host_root(tmp_path / "root")


def probe(client: Client, host: HostRoot, calls: list[Any], **settings: Any) -> dict[str, int]:
    """The errno of each call, by name, as a program in a container with all capabilities gets it."""
    rootfs, mounts = host
    spec = libctrd.spec.default(
        [PYTHON, "-c", textwrap.dedent(PROBE), json.dumps(calls)], rootfs, mounts=mounts, **settings
    )
    for kind in ("bounding", "effective", "permitted"):  # so that it is the profile that refuses
        spec["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
    done = libctrd.run(spec=spec, client=client, capture_output=True, timeout=WAIT)
    assert done.exit_code == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_what_reaches_the_host_is_refused(client: Client, host_rootfs: HostRoot) -> None:
    """Also to root with CAP_SYS_ADMIN; without the profile the kernel looks at the arguments, and finds them wrong."""
    numbers = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine())
    if numbers is None:
        pytest.skip(f"the numbers of the calls on {platform.machine()} are not known here")
    new_ipc = 0x08000000
    calls = [
        ["mount", numbers["mount"], 0, 0, 0, 0, 0],
        ["bpf", numbers["bpf"], -1, 0, 0],
        ["keyctl", numbers["keyctl"], -1, 0, 0],
        ["unshare", numbers["unshare"], new_ipc],
        ["setns", numbers["setns"], -1, 0],
        ["clone3", numbers["clone3"], 0, 0],
    ]
    found = probe(client, host_rootfs, calls)
    assert found == {**dict.fromkeys(found, errno.EPERM), "clone3": errno.ENOSYS}
    free = probe(client, host_rootfs, calls, seccomp=False)
    assert free["unshare"] == 0
    assert errno.EPERM not in (free["keyctl"], free["setns"], free["clone3"])


def test_a_new_namespace_is_refused_and_a_new_thread_is_not(client: Client, host_rootfs: HostRoot) -> None:
    """Both are clone: the filter looks at its flags. A socket to the host of a virtual machine is refused too."""
    script = """
        import ctypes, os, platform, socket, subprocess, threading
        done = []
        thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
        assert done and subprocess.run(["/usr/bin/env", "true"]).returncode == 0
        libc = ctypes.CDLL(None, use_errno=True)
        number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
        for flags in (0x10000000, 0x00020000, 0x40000000):
            pid = libc.syscall(number, flags | 17, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            assert pid == -1 and ctypes.get_errno() == 1, (flags, pid)
        with socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX):
            pass
        try:
            socket.socket(40, socket.SOCK_STREAM)
        except PermissionError:
            print("right")
    """
    rootfs, mounts = host_rootfs
    spec = libctrd.spec.default([PYTHON, "-c", textwrap.dedent(script)], rootfs, mounts=mounts)
    for kind in ("bounding", "effective", "permitted"):
        spec["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
    done = libctrd.run(spec=spec, client=client, capture_output=True, timeout=WAIT)
    assert (done.stdout, done.stderr) == (b"right\n", b"")


def test_a_program_in_go_runs(client: Client, host_rootfs: HostRoot) -> None:
    """Its runtime has threads, timers and signals of its own making."""
    program = shutil.which("containerd", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("containerd, a program in Go, is missing on this host: apt-get install containerd")
    rootfs, mounts = host_rootfs
    done = libctrd.run(
        [os.path.realpath(program), "config", "default"],
        rootfs=rootfs, mounts=mounts, client=client, capture_output=True, timeout=WAIT,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert b"[plugins]" in done.stdout


def test_a_shell_does_its_daily_work(client: Client, rootfs: str) -> None:
    """Busybox: files, pipes, signals, other users, a chroot."""
    script = """
        set -e
        mkdir /tmp/a; echo 3 > /tmp/a/b; ln -s b /tmp/a/c; chmod 600 /tmp/a/b; mkfifo /tmp/f; seq 5 | wc -l
        (sleep 100 & kill $!; wait $! || true) 2>/dev/null; chown 5:5 /tmp/a/b; ls -l /tmp/a >/dev/null
        rm -r /tmp/a; ps >/dev/null
        mkdir -p /tmp/r/bin; cp /bin/busybox /tmp/r/bin; busybox chroot /tmp/r /bin/busybox echo done
    """
    spec = libctrd.spec.default(["/bin/sh", "-c", textwrap.dedent(script)], rootfs)
    spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    done = libctrd.run(spec=spec, client=client, capture_output=True, timeout=WAIT)
    assert (done.stdout, done.stderr, done.exit_code) == (b"5\ndone\n", b"", 0)


def elf32() -> bytes:
    """A program of i386 that ends with 42: ``mov $1, %eax; mov $42, %ebx; int $0x80``."""
    code = b"\xb8\x01\0\0\0\xbb\x2a\0\0\0\xcd\x80"
    base, start = 0x08048000, 52 + 32
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = start + len(code)
    return head + struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000) + code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its other architecture is that of i386: this is no x86_64")
def test_a_program_of_32_bits_is_never_free(client: Client, rootfs: str, tmp_path: Path) -> None:
    """It is killed at its first call; where it was asked for, it runs, and under the same profile."""
    program = tmp_path / "program"
    program.write_bytes(elf32())
    program.chmod(0o755)
    mounts = [{"destination": "/tmp", "type": "bind", "source": str(tmp_path), "options": ["bind", "ro"]}]

    def code(seccomp_: Any) -> int:
        done = libctrd.run(
            ["/tmp/program"], rootfs=rootfs, mounts=mounts, seccomp=seccomp_, client=client, timeout=WAIT
        )
        return done.exit_code

    if code(False) != 42:
        pytest.skip("this kernel runs no programs of i386 (IA32_EMULATION)")
    assert code(True) == KILLED
    assert code(seccomp.profile(["x86"])) == 42


# ---- compiled --------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "riscv64": 0xC00000F3}  # AUDIT_ARCH_…


def compiled(profile: dict[str, Any]) -> bytes:
    """Our filter, or a skip."""
    text = filters.compile_filter(profile)
    if not text:
        pytest.skip("libseccomp2 is missing on this host: apt-get install libseccomp2")
    return base64.b64decode(text)


def test_the_compiled_filter_says_what_cruns_own_says(rootfs: str, tmp_path: Path) -> None:
    """Of every number, in every architecture, with arguments on both sides of each that counts."""
    found = runtime_module.find(need_runtime("crun"))
    spec = libctrd.spec.default(["/bin/true"], rootfs)
    spec["linux"].pop("resources", None)
    spec["linux"]["cgroupsPath"] = f"/ctrd-test-{os.urandom(4).hex()}"
    ours = compiled(spec["linux"]["seccomp"])
    (tmp_path / "config.json").write_bytes(libctrd.spec.encode(spec))
    root = tmp_path / "state"
    crun = [found.path, "--root", root]
    hide = "mount -t tmpfs none /sys/fs/cgroup/unified && " if found.hide_unified else ""
    script = (
        f'{hide}"$@" create --bundle {tmp_path} x </dev/null >/dev/null && cp {root}/x/seccomp.bpf {tmp_path}; '
        '"$@" delete --force x'
    )
    subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *crun], check=True, timeout=WAIT)
    theirs = (tmp_path / "seccomp.bpf").read_bytes()
    numbers = [*range(1200), 0x40000000, 0x40000001, 0x7FFFFFFF, 0xFFFFFFFF]
    looked_at = (0, 8, 9, 40, 41, 0x20000, 0x20008, 0x10000000, 0x40000000, 0x7E020000, 17, 0xFFFFFFFF, 1 << 33)
    verdicts = set()
    for architecture, number in itertools.product(ARCHITECTURES.values(), numbers):
        for value in looked_at:
            mine = verdict(ours, architecture, number, (value, value))
            assert mine == verdict(theirs, architecture, number, (value, value)), (
                hex(architecture),
                number,
                hex(value),
            )
            verdicts.add(mine)
    assert len(verdicts) == 4, "allowed, EPERM, ENOSYS and killed: all were met"


@pytest.mark.local("what crun is given")
def test_crun_gets_the_default_profile_compiled_and_no_other(client: Client, runtime: str, rootfs: str) -> None:
    """What it is given stays in the container's directory; a profile of the caller's own goes through as it is."""
    own = {"defaultAction": "SCMP_ACT_ALLOW"}
    for chosen, is_compiled in ((True, runtime == "crun"), (own, False)):
        spec = libctrd.spec.default(["/bin/true"], rootfs, seccomp=chosen)
        before = json.dumps(spec)
        container = client.create("given", spec)
        container.start(libctrd.NULL)
        given = json.loads(Path(container.bundle, "config.json").read_text())
        assert container.wait(WAIT).code == 0
        assert json.dumps(spec) == before, "the caller's spec stays as it was"
        assert (filters.ANNOTATION in given.get("annotations", {})) == is_compiled
        assert given["linux"].get("seccomp") == (None if is_compiled else spec["linux"]["seccomp"])


def test_it_is_compiled_once_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds it; what is damaged, or of another profile, is compiled again."""
    spec = {"linux": {"seccomp": seccomp.profile()}}
    crun = Runtime("/usr/bin/crun", True, version="crun version 1.8.1")
    wanted = base64.b64encode(compiled(seccomp.profile())).decode()
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(remembered, "_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr(filters, "compile_filter", lambda profile: calls.append(profile) or wanted)

    def given() -> str:
        monkeypatch.setattr(filters, "_text", None)  # as a new process has it
        annotation: str = filters.hand_over(crun, spec)["annotations"][filters.ANNOTATION]
        return annotation

    assert [given(), given(), given()] == [wanted] * 3
    assert len(calls) == 1
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("damaged")
    assert given() == wanted
    assert len(calls) == 2


def test_without_libseccomp_the_runtime_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec goes through as it is."""
    monkeypatch.setattr(remembered, "_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr(filters, "_text", None)
    monkeypatch.setattr(filters, "_LIBRARY", "libno-such-library.so.1")
    spec = {"linux": {"seccomp": seccomp.profile()}}
    assert filters.hand_over(Runtime("/usr/bin/crun", True, version="crun version 1.8.1"), spec) is spec


def test_a_runtime_without_seccomp_is_not_trusted_with_a_profile() -> None:
    """It would start the container as if none were there."""
    bare = Runtime("/opt/crun", True, version="crun version 1.8.1", lacks_seccomp=True)
    with pytest.raises(UnsupportedError, match="built without seccomp"):
        filters.hand_over(bare, {"linux": {"seccomp": seccomp.profile()}})
    spec: dict[str, Any] = {"linux": {}}
    assert filters.hand_over(bare, spec) is spec


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_takes_a_profile(ctrd: Ctrd, tmp_path: Path) -> None:
    """The default one, none, or one of a file; over what a bundle says only when it was asked for."""
    (tmp_path / "own.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    own = libctrd.spec.default(["grep", "Seccomp:", "/proc/self/status"], ctrd.rootfs, seccomp=False)
    (tmp_path / "config.json").write_bytes(libctrd.spec.encode(own))
    filtered, free = b"Seccomp:\t2\n", b"Seccomp:\t0\n"
    command = ("--", "grep", "Seccomp:", "/proc/self/status")
    assert ctrd.run(*command).stdout == filtered
    assert ctrd.run("--seccomp", "default", *command).stdout == filtered
    assert ctrd.run("--seccomp", "unconfined", *command).stdout == free
    assert ctrd.run("--seccomp", str(tmp_path / "own.json"), *command).stdout == filtered
    bundle = ("run", "--bundle", str(tmp_path))
    assert ctrd(*bundle).stdout == free
    assert ctrd(*bundle, "--seccomp", "default").stdout == filtered
    missing = ctrd.run("--seccomp", str(tmp_path / "none"), *command)
    assert missing.returncode != 0
    assert b"none" in missing.stderr
