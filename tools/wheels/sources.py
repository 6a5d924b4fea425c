"""The sdist: the same to the byte from the same sources, wherever and whenever it is made.

As a program, ``sources.py ROOT OUT``, it makes that of ROOT in the directory OUT. The Python that runs it has to have
what a build takes, and ``build``.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# What a clone may hold that is no source: MANIFEST.in takes whole directories, so a copy must be without it.
BUILT = shutil.ignore_patterns("__pycache__", "*.py[co]", "*.so", "*.egg-info", "ctrd-shim")
BUILT_AT_TOP = shutil.ignore_patterns(".*", "build", "dist", "quickstart", "PKG-INFO", "setup.cfg")
EXECUTABLE = 0o111


def epoch(root: Path) -> int:
    """The time, in seconds since 1970, that all files get: that of the commit, or of the sdist that *root* was.

    ``SOURCE_DATE_EPOCH`` overrides it (reproducible-builds.org/specs/source-date-epoch).
    """
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        if not given.isdecimal():
            sys.exit(f"SOURCE_DATE_EPOCH={given} is no number of seconds since 1970: set it to one, or leave it out")
        return int(given)
    unpacked = root / "PKG-INFO"
    if unpacked.exists():
        return int(unpacked.stat().st_mtime)
    command = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"no time for the files of an sdist of {root}: it is neither an sdist nor a clone that git can read "
            f"({error}): set SOURCE_DATE_EPOCH"
        )


def copy(root: Path, to: Path) -> None:
    """Copies the sources, without what was built among them."""

    def ignore(directory: str, names: list[str]) -> set[str]:
        return BUILT(directory, names) | (BUILT_AT_TOP(directory, names) if Path(directory) == root else set())

    shutil.copytree(root, to, symlinks=True, ignore=ignore)


def repack(made: bytes, seconds: int) -> bytes:
    """A ``.tar.gz`` with the same files as *made*: sorted, of that time, of nobody, their only mode the run bit."""
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(made), mode="r:gz") as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.linkname, entry.size, entry.mtime = member.type, member.linkname, member.size, seconds
            entry.mode = 0o755 if member.isdir() or member.mode & EXECUTABLE else 0o644
            new.addfile(entry, old.extractfile(member) if member.isfile() else None)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=9, mtime=seconds) as stream:
        stream.write(plain.getvalue())
    return packed.getvalue()


def make_sdist(root: Path, work: Path, out: Path, seconds: int) -> Path:
    """Makes the sdist of *root* by its declared build backend, in a copy below *work*; returns its path in *out*."""
    clean, dist = work / "clean", work / "dist"
    copy(root, clean)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(dist), str(clean)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        sys.exit(f"no sdist could be made of {root}:\n{made.stdout}{made.stderr}")
    (archive,) = dist.iterdir()
    path = out / archive.name
    path.write_bytes(repack(archive.read_bytes(), seconds))
    return path


def unpack(sdist: Path, to: Path) -> Path:
    """Unpacks *sdist* below *to*; returns the directory in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(to, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (top,) = to.iterdir()
    return top


def main() -> None:
    """The program: its arguments are the sources and the directory for the sdist."""
    os.umask(0o022)
    root, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ctrd-sdist-") as work:
        print(make_sdist(root, Path(work), out, epoch(root)))


if __name__ == "__main__":
    main()
