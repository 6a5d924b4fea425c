"""A CPython for musl: built from Debian's source of it with ``musl-gcc``, once; that of Debian is for glibc alone."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from debian import Release, run

VERSION = "3.13"
# gcc behind musl-gcc tells Debian's name for the platform, and not musl's.
COMPILER = """#!/bin/sh
for word; do
\t[ "$word" != --print-multiarch ] || { echo x86_64-linux-musl; exit; }
done
exec musl-gcc -idirafter KERNEL "$@"
"""


def kernel_headers(work: Path) -> Path:
    """The host's headers of Linux alone, which musl-gcc does not look for: Python would be without parts of `os`."""
    place = work / "kernel"
    place.mkdir()
    for name, found in (("linux", "linux"), ("asm-generic", "asm-generic"), ("asm", "x86_64-linux-gnu/asm")):
        (place / name).symlink_to(Path("/usr/include") / found)
    return place


def python(release: Release, cache: Path) -> Path:
    """Builds it and what it needs; returns the program. Takes some minutes, the first time.

    Of what takes further libraries it has `zlib`, and neither `ssl` nor `ctypes`.
    """
    top = cache / f"python{VERSION}-musl"
    program = top / f"bin/python{VERSION}"
    if program.exists():
        return program
    work = cache / "musl-build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    compiler = work / "cc"
    compiler.write_text(COMPILER.replace("KERNEL", str(kernel_headers(work))))
    compiler.chmod(0o755)
    jobs = f"-j{os.cpu_count() or 1}"
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "CC": str(compiler),
        "CPPFLAGS": f"-I{top}/include",
        "LDFLAGS": f"-L{top}/lib",
        "PKG_CONFIG": "false",  # it would tell of the host's libraries
    }
    for package, flags, options in (
        ("zlib", "-O2 -fPIC", ["--static"]),  # into a module
        (f"python{VERSION}", "", ["--disable-test-modules", "--without-ensurepip"]),
    ):
        with tarfile.open(release.sources(package, cache / "sources")) as archive:
            place = work / package
            archive.extractall(place, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))
        (source,) = place.iterdir()
        for command in (["./configure", f"--prefix={top}", *options], ["make", jobs], ["make", "install"]):
            run(command, cwd=source, env={**environment, "CFLAGS": flags})
    shutil.rmtree(work)
    return program
