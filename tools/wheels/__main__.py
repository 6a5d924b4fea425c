"""Builds the sdist and the wheels that are published, and proves that they can be built again to the byte."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
from pathlib import Path

from building import build
from sources import epoch, make_sdist
from targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
AUDITED = "auditwheel grants the platform, abi3audit the limited API, and modules and shim are as tools/wheels.md says"


def build_all(targets: list[Target], out: Path, cache: Path, seconds: int, parent: Path | None = None) -> list[Path]:
    """Builds the sdist, and of it a wheel for each of *targets*, into *out*; returns their paths."""
    with tempfile.TemporaryDirectory(prefix="ctrd-wheels-", dir=parent) as name:
        work = Path(name).resolve()
        (work / "sdist").mkdir()
        made = [make_sdist(ROOT, work / "sdist", out, seconds)]
        for target in targets:
            (work / target.name).mkdir()
            made.append(build(target, made[0], work / target.name, cache, out, seconds))
            print(made[-1].name, flush=True)
    return made


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(first: list[Path], second: list[Path]) -> list[str]:
    """The names of the files that are not the same to the byte, of two runs for the same targets."""
    assert [path.name for path in first] == [path.name for path in second]
    return [one.name for one, other in zip(first, second, strict=True) if digest(one) != digest(other)]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/build_wheels", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the directory for them (%(default)s)")
    parser.add_argument(
        "--target", action="append", choices=TARGETS, metavar="NAME", help=f"one of {', '.join(TARGETS)}; default: all"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "zig", help="the compiler's (%(default)s)")
    parser.add_argument(
        "--check-reproducible",
        action="store_true",
        help="builds all once more, in another directory and with an empty cache, and compares the bytes",
    )
    return parser.parse_args()


def main() -> int:
    """Exit code 0: all is built, has passed, and is the same once more where that was asked for."""
    os.umask(0o022)
    said = options()
    targets = [TARGETS[name] for name in said.target or TARGETS]
    seconds = epoch(ROOT)
    said.out.mkdir(parents=True, exist_ok=True)
    made = build_all(targets, said.out, said.cache.resolve(), seconds)
    for path in made:
        print(f"{digest(path)}  {path.name}")
    print(f"\nBuilt by the headers of CPython {platform.python_version()}, which counts for the bytes of the wheels.")
    print(f"Built into {said.out}: the sdist, and {len(targets)} of {len(TARGETS)} wheels, each audited: {AUDITED}.")
    if not said.check_reproducible:
        print("Not checked: whether they come out the same once more (--check-reproducible).")
        return 0
    with tempfile.TemporaryDirectory(prefix="again-and-elsewhere-") as name:
        print(f"\n==> once more, in {name}", flush=True)
        (again := Path(name) / "out").mkdir()
        other = differences(made, build_all(targets, again, Path(name) / "cache", seconds, Path(name)))
    for name in other:
        print(f"{name}: not the same to the byte when built in another directory")
    if not other:
        print(
            f"Reproducible: all {len(made)} files came out the same to the byte when they were built once more, "
            "in another directory and with an empty cache of the compiler."
        )
    return 1 if other else 0


if __name__ == "__main__":
    raise SystemExit(main())
