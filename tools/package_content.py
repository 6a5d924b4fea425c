"""Looks into an sdist and a wheel: is all in them that has to be, and nothing that must not?

``package_content.py CLONE SDIST WHEEL`` prints a line for each, and exits with 1 and every fault on stderr.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

# What of the clone is for the clone alone.
CLONE_ONLY = (".ci/", ".gitignore")
# What is compiled: a module that starts with this, and has a suffix of the platform.
COMPILED = ("fifo", "relay", "shape", "_proc")
# What is installed outside of the package, below the prefix.
SHARED = (
    *("share/man/man1/ctrd.1", "share/bash-completion/completions/ctrd"),
    *("share/zsh/site-functions/_ctrd", "share/fish/vendor_completions.d/ctrd.fish"),
)
EXECUTABLE = 0o111


def tracked(clone: Path) -> set[str]:
    """The files of the clone that git knows."""
    listed = subprocess.run(["git", "-C", clone, "ls-files", "-z"], capture_output=True, check=True, text=True).stdout
    return {name for name in listed.split("\0") if name and not name.startswith(CLONE_ONLY)}


def sdist_faults(clone: Path, sdist: Path) -> list[str]:
    """Every tracked file must be in it; of others only what the build writes by itself."""
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers() if m.isfile()}
    wanted = tracked(clone)
    faults = [f"{name} is missing" for name in sorted(wanted - members.keys())]
    for name in sorted(members.keys() - wanted):
        if name not in ("PKG-INFO", "setup.cfg") and not name.startswith("libctrd.egg-info/"):
            faults.append(f"{name} does not belong there")
    for name in sorted(wanted & members.keys()):
        if bool((clone / name).stat().st_mode & EXECUTABLE) != bool(members[name].mode & EXECUTABLE):
            faults.append(f"{name} has lost or gained its run bit")
    print(f"{sdist.name}: {len(members)} files")
    return faults


def wheel_faults(clone: Path, wheel: Path) -> list[str]:
    """Every Python file, stub and mark of the package, every compiled module, what is shared, and its run bit."""
    with zipfile.ZipFile(wheel) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    wanted = {name for name in tracked(clone) if name.startswith("libctrd/")}
    faults = [f"{name} is missing" for name in sorted(wanted - modes.keys())]
    for module in COMPILED:
        if not any(name.startswith(f"libctrd/{module}.") and name.endswith(".so") for name in modes):
            faults.append(f"the compiled module {module} is missing")
    data = f"{'-'.join(wheel.name.split('-')[:2])}.data/data/"
    faults += [f"{name} is missing" for name in SHARED if data + name not in modes]
    shim = modes.get("libctrd/ctrd-shim")
    if shim is None:
        faults.append("libctrd/ctrd-shim is missing")
    elif shim & EXECUTABLE != EXECUTABLE:
        faults.append("libctrd/ctrd-shim may not be executed by everyone")
    for name in sorted(modes):
        shared = name.startswith(data) and name.removeprefix(data) in SHARED
        inside = name.startswith(("libctrd/", f"{data.removesuffix('.data/data/')}.dist-info/"))
        if not (shared or inside) or name.endswith((".c", ".h", ".pyx", ".pxd", ".pyc")):
            faults.append(f"{name} does not belong there")
    print(f"{wheel.name}: {len(modes)} files")
    return faults


def main() -> int:
    clone, sdist, wheel = map(Path, sys.argv[1:])
    faults = [f"{sdist.name}: {fault}" for fault in sdist_faults(clone, sdist)]
    faults += [f"{wheel.name}: {fault}" for fault in wheel_faults(clone, wheel)]
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
