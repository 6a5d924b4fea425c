"""What a running container costs: private memory and threads of its shim and in its client, against other shims."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from unittest import mock

import daemon
from bare import hidden, write_bundle
from measure import Bar, Result, Series
from starts import PODMAN_LIMITS, disperse, spec_given

import libctrd
from libctrd.engine import runtime as runtimes
from libctrd.engine import shim as shims

DYNAMIC_KIB = 200.0  # private memory of a shim, linked to the C library
STATIC_KIB = 80.0  # and static, against musl
MANY = 20
PYX = Path(__file__).parents[2] / "pyx"


def private_kib(pid: int) -> float:
    """What goes with the process when it goes: Private_Clean and Private_Dirty of ``smaps_rollup``, proc(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))))


def status(pid: int, name: str) -> int:
    """A number of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(name)


def processes(program: str, argument: str) -> list[int]:
    """The pids of the processes whose program has that name, and one of whose arguments is that, or a path below it."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if os.path.basename(arguments[0]) == program.encode():
            wanted = argument.encode()
            if any(given == wanted or given.startswith(wanted + b"/") for given in arguments):
                found.append(int(directory.name))
    return found


def shim_of(bundle: str) -> int:
    """The pid of the shim that serves *bundle*. Not simply the parent of ``init``: for a moment that is the runtime."""
    found = processes("ctrd-shim", bundle)
    if len(found) != 1:
        raise SystemExit(f"{len(found)} shims serve {bundle}")
    return found[0]


def measure(rootfs: str, directory: Path) -> list[Result]:
    result = Result(
        "shim", f"private memory of a running container's shim, and its threads: one, then {MANY}", row="P8"
    )
    spec = libctrd.spec.default(["/bin/sleep", "3600"], rootfs)
    for kind, limit, program in _kinds(directory):
        if not program:
            result.without.append(f"a {kind} shim: there is no musl-gcc: apt-get install musl-tools")
            continue
        with mock.patch.object(shims, "PROGRAM", program):
            _measure_ours(result, kind, limit, spec, directory)
    _measure_containerd(result, rootfs, directory)
    _measure_conmon(result, rootfs)
    return [result]


def _kinds(directory: Path) -> list[tuple[str, float, str]]:
    """The two ways in which the shim is linked, built from its sources: one for distributions, one for wheels."""
    sources = sorted(PYX.glob("shim*.c"))
    found = []
    for kind, limit, compiler, flags in (
        ("dynamic", DYNAMIC_KIB, "cc", ("-O2", "-s", "-pie", "-fPIE", "-Wl,-z,relro,-z,now")),
        ("static", STATIC_KIB, "musl-gcc", (f"@{PYX / 'static.opts'}",)),
    ):
        program = directory / kind / "ctrd-shim"
        if shutil.which(compiler) is None:
            found.append((kind, limit, ""))
            continue
        program.parent.mkdir()
        subprocess.run([compiler, *flags, "-o", program, *sources], check=True)
        found.append((kind, limit, str(program)))
    return found


def _measure_ours(result: Result, kind: str, limit: float, spec: dict[str, object], directory: Path) -> None:
    with libctrd.connect(f"local:{directory / kind / 'state'}") as client:
        try:
            pids = []
            threads = 0
            for number in range(MANY):
                container = client.create(f"shim{number}", spec)
                container.start(libctrd.PIPE)
                pids.append(shim_of(container.bundle))
                if number == 0:
                    alone = Series(f"one {kind} shim, alone", "KiB", [private_kib(pids[0])])
                    before, threads = private_kib(os.getpid()), threading.active_count()
            many = Series(f"each of {MANY} {kind} shims", "KiB", [private_kib(pid) for pid in pids])
            client_share = (private_kib(os.getpid()) - before) / (MANY - 1)
            most_threads = max(status(pid, "Threads") for pid in pids)
            more_threads = threading.active_count() - threads
        finally:
            disperse(client)
    result.series += [alone, many]
    result.facts.append(f"{kind}: the client's share is {client_share:.1f} KiB a container")
    most = max(alone.values + many.values) + max(client_share, 0.0)
    result.bars += [
        Bar(f"{kind}, with the client's share: less than {limit:g} KiB", f"{most:.0f} KiB", most < limit),
        Bar("one thread in the shim", str(most_threads), most_threads == 1),
        Bar("none in the client", str(more_threads), more_threads == 0),
    ]


def _measure_containerd(result: Result, rootfs: str, directory: Path) -> None:
    if missing := daemon.missing():
        result.without.append(f"containerd-shim-runc-v2: {missing}")
        return
    with (
        libctrd.connect(f"local:{directory / 'sample'}") as client,
        tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir="/run") as state,
        daemon.Daemon(directory, state) as host,
    ):
        given = spec_given(client, libctrd.spec.default(["/bin/sleep", "3600"], rootfs))
        config = write_bundle(directory / "task", given, "/ctrd-bench-task") / "config.json"
        subprocess.run(host.run_command(directory, config, "--detach"), check=True, stdin=subprocess.DEVNULL)
        try:
            (pid,) = processes("containerd-shim-runc-v2", host.socket)
            result.series.append(Series("containerd-shim-runc-v2", "KiB", [private_kib(pid)]))
            result.facts.append(f"containerd-shim-runc-v2 has {status(pid, 'Threads')} threads")
        finally:
            ctr = [host.ctr, "--address", host.socket, "--namespace", daemon.NAMESPACE]
            subprocess.run([*ctr, "tasks", "rm", "--force", config.stem], check=True, capture_output=True)
            subprocess.run([*ctr, "containers", "rm", config.stem], check=True)


def _measure_conmon(result: Result, rootfs: str) -> None:
    if shutil.which("podman") is None:
        result.without.append("conmon: there is no podman: apt-get install podman")
        return
    hide = runtimes.find(None).hide_unified
    name = f"ctrd-bench-{os.getpid()}"
    arguments = [*PODMAN_LIMITS, "--network", "none", "--name", name, "--rootfs", rootfs, "/bin/sleep", "3600"]
    script = " && ".join(
        (
            f"podman run -d {shlex.join(arguments)} >/dev/null",
            f"podman inspect -f '{{{{.State.ConmonPid}}}}' {name}",
            "read end",
            f"podman rm -ft0 {name} >/dev/null",
        )
    )
    command = hidden(["sh", "-c", script], hide)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as podman:
        assert podman.stdout is not None
        told = podman.stdout.readline()
        if told.strip().isdigit():
            result.series.append(Series("conmon", "KiB", [private_kib(int(told))]))
        else:
            result.without.append("conmon: podman could not start a container here, see above")
        podman.communicate("end\n")
