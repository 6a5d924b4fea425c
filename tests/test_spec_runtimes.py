"""The default spec in real runtimes, runc and crun, and in containerd: what a container that got it finds inside."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd_kit import Containerd, new_namespace

import libctrd
from libctrd import spec

# A crun that knows no hybrid of cgroup v1 and v2 runs where the v2 part is out of sight: in a mount namespace
# of its own with an empty tmpfs in its place.
HIDE_UNIFIED = 'umount /sys/fs/cgroup/unified && mount -t tmpfs none /sys/fs/cgroup/unified && exec "$@"'
Run = Callable[..., subprocess.CompletedProcess[str]]

_number = itertools.count()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that others may enter too, as a container without root must."""
    with tempfile.TemporaryDirectory(prefix="ctrd-spec-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def rootfs(place: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is missing (package busybox-static)")
    root = place / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "data"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture(params=["runc", "crun", "containerd"])
def run(request: pytest.FixtureRequest, place: Path) -> Run:
    """Runs a spec to its end with one of the runtimes."""
    if request.param == "containerd":
        daemon = request.getfixturevalue("containerd")
        return lambda document, uid=None: run_in_containerd(daemon, document, uid)
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is missing (package {request.param})")
    if os.geteuid() != 0:
        pytest.skip("not root: the default for root cannot be run")

    def run(document: dict[str, Any], uid: int | None = None) -> subprocess.CompletedProcess[str]:
        name = f"ctrd-spec-{os.getpid()}-{next(_number)}"
        bundle, state = place / name, place / f"state-{name}"
        for directory in (bundle, state):
            directory.mkdir()
        (bundle / "config.json").write_bytes(spec.encode(document))
        command = [program, "--root", str(state), "run", name]
        if uid is not None:
            os.chown(state, uid, uid)
            command = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", *command]
        if request.param == "crun" and os.path.ismount("/sys/fs/cgroup/unified"):
            command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", HIDE_UNIFIED, "sh", *command]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(state), "HOME": str(state)}
        return subprocess.run(
            command,
            cwd=bundle,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def run_in_containerd(
    daemon: Containerd, document: dict[str, Any], uid: int | None
) -> subprocess.CompletedProcess[str]:
    if uid is not None:
        pytest.skip("containerd runs as root, and so does what it runs")
    with libctrd.connect(daemon.address, namespace=new_namespace()) as client:
        done = libctrd.run(spec=document, capture_output=True, client=client)
    assert done.stdout is not None
    assert done.stderr is not None
    return subprocess.CompletedProcess([], done.exit_code, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def inside(run: Run, rootfs: Path) -> Callable[..., str]:
    """What a shell script prints in a container with the default spec and the given further arguments."""

    def inside(script: str, uid: int | None = None, **arguments: Any) -> str:
        document = spec.default(["sh", "-c", script], rootfs, **arguments)
        if uid is not None:
            for key in ("uidMappings", "gidMappings"):
                document["linux"][key][0]["hostID"] = uid
        done = run(document, uid)
        assert done.returncode == 0, done.stderr or done.stdout
        return done.stdout

    return inside


def test_the_exit_code_and_the_output_come_through(run: Run, rootfs: Path) -> None:
    done = run(spec.default(["sh", "-c", "echo out; echo err >&2; exit 7"], rootfs))
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_a_rootfs_or_bundle_behind_a_symbolic_link_runs(run: Run, place: Path, rootfs: Path) -> None:
    link = place / f"link-{next(_number)}"
    link.symlink_to(place)  # runc refuses a root.path with one in it
    assert run(spec.default(["echo", "direct"], link / rootfs.name)).stdout == "direct\n"
    document = spec.default(["echo", "bundle"])
    document["root"]["path"] = rootfs.name
    assert run(spec.resolve(document, link)).stdout == "bundle\n"
    document["root"]["path"] = str(link / rootfs.name)
    assert run(spec.resolve(document, "/")).stdout == "bundle\n"


def test_the_container_has_the_default_capabilities_and_cannot_gain_more(inside: Callable[..., str]) -> None:
    status = dict(line.split(":\t", 1) for line in inside("cat /proc/self/status").splitlines() if ":\t" in line)
    # capabilities(7): the numbers of the fourteen.
    numbers = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
    mask = f"{sum(1 << number for number in numbers):016x}"
    assert [status[key] for key in ("CapBnd", "CapEff", "CapPrm")] == [mask] * 3
    assert [status[key] for key in ("CapInh", "CapAmb")] == ["0" * 16] * 2
    assert status["NoNewPrivs"] == "1"


def test_a_user_other_than_root_has_no_capability(inside: Callable[..., str]) -> None:
    output = inside("id -u; id -g; id -G; grep -E 'Cap(Eff|Prm)' /proc/self/status", user=(1000, 50, [7, 8]))
    uid, gid, groups, *capabilities = output.splitlines()
    assert (uid, gid, set(groups.split())) == ("1000", "50", {"50", "7", "8"})
    assert [line.split()[1] for line in capabilities] == ["0" * 16] * 2


def test_masked_paths_are_empty_and_read_only_ones_cannot_be_written(inside: Callable[..., str]) -> None:
    masked = [path for path in spec.default()["linux"]["maskedPaths"] if os.path.lexists(path)]
    assert masked
    script = 'for path in "$@"; do [ -d $path ] && ls -A $path || cat $path; done'
    assert inside(f"set -- {' '.join(masked)}; {script}") == ""
    closed = ("/proc/sys/kernel/domainname", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run")
    for path in filter(os.path.exists, closed):
        assert "Read-only file system" in inside(f"(: >> {path}) 2>&1; true"), path


def test_the_container_sees_itself_alone(inside: Callable[..., str]) -> None:
    output = inside("echo $$; hostname; ls /sys/class/net; cat /proc/self/cgroup", hostname="box")
    pid, hostname, network, *cgroups = output.splitlines()
    assert (pid, hostname, network) == ("1", "box", "lo")
    assert {line.rpartition(":")[2] for line in cgroups} == {"/"}


def test_the_usual_devices_work_and_others_are_denied(inside: Callable[..., str]) -> None:
    works = "echo x > /dev/null; for name in zero urandom; do head -c 2 /dev/$name | wc -c; done"
    assert inside(f"{works}; test -w /dev/shm && echo shm").split() == ["2", "2", "shm"]
    denied = inside("mknod /dev/kmsg2 c 1 11 && cat /dev/kmsg2 2>&1; true")
    assert "Operation not permitted" in denied


def test_limits_are_those_of_the_cgroup(inside: Callable[..., str]) -> None:
    v1 = "memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us"
    v2 = "memory.max pids.max cpu.max"
    files = v2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else v1
    output = inside(f"cd /sys/fs/cgroup; cat {files}", memory="64m", pids_limit=20, cpus=0.5)
    assert output.split() == [str(64 << 20), "20", "50000", "100000"]


def test_a_container_over_its_limit_of_processes_cannot_fork(inside: Callable[..., str]) -> None:
    script = "(for i in 1 2 3 4 5 6 7 8 9; do sleep 9 & done) 2>&1; kill -9 -1; true"
    assert "fork" in inside(script, pids_limit=5)


@pytest.mark.parametrize("read_only", [False, True])
def test_the_root_can_be_read_only(inside: Callable[..., str], read_only: bool) -> None:
    output = inside("touch /data/probe 2>&1 && echo written; rm -f /data/probe", read_only=read_only)
    assert ("Read-only file system" if read_only else "written") in output


def test_environment_directory_and_mounts_are_the_callers(inside: Callable[..., str], place: Path) -> None:
    source = place / "source"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("from the host\n")
    scratch = f"/scratch-{os.urandom(4).hex()}"  # runc gives the mode of a directory that is there to what it mounts
    mounts = [
        spec.parse_mount(f"type=bind,source={source},target=/data,ro"),
        spec.parse_mount(f"type=tmpfs,target={scratch},tmpfs-size=1m,tmpfs-mode=1770"),
    ]
    shows = 'pwd; echo "$A"; cat /data/file; touch /data/x 2>&1 | grep -o Read-only'
    output = inside(
        f"{shows}; stat -c %a {scratch}; grep -c size=1024k.*mode=1770 /proc/mounts",
        env={"A": "x y"},
        cwd="/tmp",
        mounts=mounts,
    )
    assert output.splitlines() == ["/tmp", "x y", "from the host", "Read-only", "1770", "1"]


def test_no_limit_of_the_caller_is_raised(inside: Callable[..., str]) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    written = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    (line,) = (line for line in inside("cat /proc/self/limits").splitlines() if line.startswith("Max core"))
    assert line.split()[5] == written
    assert soft <= hard or hard == resource.RLIM_INFINITY


def test_without_root_on_the_host_the_caller_is_root_inside(inside: Callable[..., str]) -> None:
    limit = Path("/proc/sys/user/max_user_namespaces")
    if not limit.exists() or int(limit.read_text()) == 0:
        pytest.skip("user namespaces are switched off on this host")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing (package util-linux)")
    script = "id -u; head -n 1 /proc/self/uid_map; ls /sys/class/net; test -c /dev/null && ls -A /sys/firmware"
    uid, mapping, network = inside(script, uid=12345, rootless=True).splitlines()
    assert (uid, mapping.split(), network) == ("0", ["0", "12345", "1"], "lo")
