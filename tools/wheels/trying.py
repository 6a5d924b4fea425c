"""Tries wheels where they will run: each in an environment of its own, with the tests of fifos, relay and shim.

The host is one for containers (root, crun, runc, busybox). For a Python that is not the host's, its packages are
installed from wheels alone, for its version and platform: so what is tried is what pip would choose there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path

import debian
import emulated
import musl
import tomllib
from debian import Release
from packaging.requirements import Requirement
from targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
FIFOS = ("test_fifo*.py", "test_relay*.py")
SHIM = ("test_proc*.py", "test_local.py", "test_local_exec.py", "test_sealed.py", "test_shape.py")
# What tests take besides libctrd; grpcio-tools, which the tests of the messages take, has to be compiled in places.
NOT_NEEDED = ("grpcio-tools",)
GLIBCS = ("2_36", "2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17")


@dataclass
class Place:
    """Somewhere that a wheel is tried."""

    name: str
    target: Target
    version: str
    """Of CPython, such as ``3.13``."""
    program: Path
    is_hosts: bool = False
    """It can make virtual environments itself."""
    is_emulated: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    """Tests that cannot pass there, by name, and why."""


def version_of(program: str) -> str:
    """The version of the CPython *program* when it can make environments, and the wheels are for it; else ""."""
    code = "import sys, sysconfig, ensurepip; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], "
    code += "sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    match = re.fullmatch(r"cpython 3\.(\d+) 0\n", done.stdout)
    return f"3.{match[1]}" if done.returncode == 0 and match and int(match[1]) >= 11 else ""


def hosts(more: list[str]) -> Iterator[Place]:
    """Every CPython of the host: those of the PATH, and *more*."""
    seen = set()
    names = [f"{place}/python3.{minor}" for place in os.get_exec_path() for minor in range(11, 30)]
    for program in [sys.executable, *more, *(name for name in names if os.access(name, os.X_OK))]:
        if (version := version_of(program)) and version not in seen:
            seen.add(version)
            target = TARGETS[f"manylinux2014_{os.uname().machine}"]
            yield Place(f"host-{version}", target, version, Path(program), is_hosts=True)


def debians(suite: str, cache: Path) -> Iterator[Place]:
    """Every CPython of a release of Debian."""
    release = Release(suite, "amd64", cache)
    for version in release.pythons():
        program = debian.python(release, version, cache)
        yield Place(f"{suite}-{version}", TARGETS["manylinux2014_x86_64"], version, program)


def places(wanted: list[str], more: list[str], cache: Path) -> Iterator[Place]:
    """Those of the groups *wanted*; each is made when its turn has come."""
    for group in wanted:
        if group == "this":
            yield next(hosts([]))
        elif group == "host":
            yield from hosts(more)
        elif group == "aarch64":
            release = Release("trixie", "arm64", cache)
            program = debian.python(release, "3.13", cache)
            target = TARGETS["manylinux2014_aarch64"]
            yield Place("aarch64-3.13", target, "3.13", program, is_emulated=True, left_out=emulated.LEFT_OUT)
        elif group == "musl":
            program = musl.python(Release("trixie", "amd64", cache), cache)
            target = TARGETS["musllinux_1_2_x86_64"]
            yield Place(f"musl-{musl.VERSION}", target, musl.VERSION, program)
        else:
            yield from debians(group, cache)


def requirements(wheel: Path, version: str) -> list[str]:
    """What libctrd asks for on that version of Python, and what its tests do."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    with (ROOT / "pyproject.toml").open("rb") as stream:
        said += tomllib.load(stream)["project"]["optional-dependencies"]["test"]
    asked = [Requirement(text) for text in said]
    # pip itself would judge the markers by the Python that runs it.
    environment = {"python_version": version, "python_full_version": f"{version}.0", "extra": ""}
    asked = [one for one in asked if not one.marker or one.marker.evaluate(environment)]
    return [f"{one.name}{one.specifier}" for one in asked if one.name not in NOT_NEEDED]


def install(place: Place, wheel: Path, work: Path) -> tuple[list[str], dict[str, str]]:
    """Installs *wheel* and what the tests take; returns the command that runs that Python, and its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    wanted = requirements(wheel, place.version)
    if place.is_hosts:
        debian.run([str(place.program), "-m", "venv", str(work / "venv")], env=environment)
        python = str(work / "venv/bin/python")
        debian.run([python, "-m", "pip", "install", "--quiet", str(wheel), *wanted], env=environment)
        environment["PATH"] = f"{work}/venv/bin:{environment['PATH']}"
        return [python], environment
    target, libraries = place.target, work / "libraries"
    tags = ["musllinux_1_1", "musllinux_1_2"] if target.is_musl else [f"manylinux_{glibc}" for glibc in GLIBCS]
    chosen = [f"--platform={tag}_{target.machine}" for tag in tags if target.is_musl or tag != "manylinux2014"]
    if not target.is_musl:
        chosen.append(f"--platform=manylinux2014_{target.machine}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"--target={libraries}"]
    pip += [f"--python-version={place.version}", "--implementation=cp", *chosen]
    debian.run([*pip, *wanted], env=environment)
    debian.run([*pip, "--no-deps", "--upgrade", str(wheel)], env=environment)
    environment["PYTHONPATH"] = str(libraries)
    return [str(place.program)], environment


def attempt(place: Place, wheel: Path, only_fifos: bool, cache: Path, keep: list[str]) -> str:
    """Runs the tests in *place*; returns pytest's closing line, which begins with "FAILED" when something failed."""
    with tempfile.TemporaryDirectory(prefix="ctrd-try-") as name:
        work = Path(name)
        command, environment = install(place, wheel, work)
        suite = work / "suite"
        shutil.copytree(ROOT / "tests", suite / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", suite)
        chosen = FIFOS if only_fifos else (*FIFOS, *SHIM)
        files = sorted(str(path.relative_to(suite)) for glob in chosen for path in (suite / "tests").glob(glob))
        command += ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={work}/tmp", *files, *keep]
        command += [f"--deselect=tests/{test}" for test in place.left_out]
        if place.is_emulated:
            environment["CTRD_TEST_SLOW"] = "10"
            command = emulated.command([*command, "--timeout=600"], cache)
        lines: list[str] = []
        with subprocess.Popen(
            command, cwd=suite, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                print(line, end="", flush=True)
                lines += [line.strip()] if line.strip() else []
    for test, reason in place.left_out.items():
        print(f"left out: {test}: {reason}")
    return f"{'' if running.returncode == 0 else 'FAILED '}{lines[-1].strip('= ') if lines else 'nothing was said'}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/try_wheels", description=__doc__)
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="the directory with them (%(default)s)")
    parser.add_argument(
        "--where",
        action="append",
        choices=("this", "host", "bookworm", "trixie", "sid", "aarch64", "musl"),
        help="this: the Python that runs this; host: every CPython of the PATH; a release of Debian: each of its; "
        "aarch64: Debian's, emulated; musl: one built for it. May be repeated; default: all but `this`",
    )
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="one more of the host's")
    parser.add_argument("--only-fifos", action="store_true", help="not those of the shim, which take minutes")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "try", help="what is kept (%(default)s)")
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --")
    return parser.parse_args()


def main() -> int:
    """Exit code 0: all tests have passed wherever they were run."""
    os.umask(0o022)
    said = options()
    cache = said.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    told = []
    for place in places(said.where or ["host", "bookworm", "trixie", "sid", "aarch64", "musl"], said.python, cache):
        found = [path for path in said.wheels.glob("*.whl") if place.target.name in path.stem.split("-")[-1].split(".")]
        if len(found) != 1:
            sys.exit(f"{len(found)} wheels for {place.target.name} in {said.wheels}: tools/build_wheels makes one")
        print(f"\n==> {place.name}: {found[0].name}", flush=True)
        told.append((place.name, attempt(place, found[0].resolve(), said.only_fifos, cache, said.pytest)))
    print()
    for name, line in told:
        print(f"{name}: {line}")
    return 1 if any(line.startswith("FAILED") for _, line in told) else 0


if __name__ == "__main__":
    raise SystemExit(main())
