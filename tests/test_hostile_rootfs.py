"""What a container, or whoever shares its root file system, plants there: links, mounts, trees without end.

Canaries lie outside; whatever is done while they are on the way must not touch them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Place
from field_kit import WAIT
from host_kit import PYTHON, host_root
from swap_kit import Canary, exchanging

import libctrd
from libctrd.client import Client
from libctrd.errors import CtrdError

pytestmark = [
    pytest.mark.local("the root file systems of the others are a daemon's affair"),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers of this suite need root: run it as root"),
]

NEIGHBOUR = 123459
"""A user who owns what is in a root file system, or shares it."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="ctrd-root-", dir="/run"))
    made.chmod(0o755)
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", str(made)], check=True)


@pytest.fixture
def canary(place: Path) -> Iterator[Canary]:
    made = Canary(place / "canary", "data")
    yield made
    made.check()
    made.close()


def _version(client: Client) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", client.info().runtime_version)
    assert found is not None
    return tuple(int(number) for number in found.groups())


def _moved_in(container: libctrd.Container, rootfs: Path) -> Path:
    """Has the caller keep the root file system in the container's own directory: the clean then meets what is in it."""
    where = Path(container.bundle, "rootfs")
    rootfs.rename(where)
    config = Path(container.bundle, "config.json")
    spec = json.loads(config.read_text())
    spec["root"]["path"] = str(where)
    config.write_text(json.dumps(spec))
    return where


def test_links_and_trees_without_end_that_it_plants_catch_no_clean(
    client: Client, place: Path, canary: Canary, engine: Place
) -> None:  # C2
    """Links to the host's root, to the canary, to what lies above; names of odd bytes; a tree 1,500 levels deep."""
    host = host_root(place / "rootfs")
    script = f"""
import os
canary = {str(canary.top)!r}
for number, target in enumerate(("/", "..", "../../..", canary, canary + "/data", "/proc/self/root")):
    os.symlink(target, f"/link{{number}}")
    os.mkdir(f"/in{{number}}")
    os.symlink(target, f"/in{{number}}/down")
os.mkdir(b"/\\xff\\n '\\"")
os.mkfifo("/fifo")
os.chdir("/")
for number in range(1500):
    os.mkdir("deep")
    os.symlink({str(canary.top)!r}, "aside")
    os.chdir("deep")
"""
    container = client.create("web", libctrd.spec.default([PYTHON, "-c", script], host.rootfs, mounts=host.mounts))
    _moved_in(container, Path(host.rootfs))
    container.start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.PIPE))
    assert container.stderr is not None
    assert (container.stderr.read(), container.wait(WAIT).code) == (b"", 0)
    assert os.listdir(engine.root) == []  # it is cleaned, and all of that with it


def test_a_mount_that_it_plants_is_not_descended_into(
    client: Client, runtime: str, place: Path, rootfs: str, canary: Canary, engine: Place
) -> None:  # C2
    """It mounts a volume of its own once more, in a place that is shared with the host and lies in its directory: for
    the clean that is a directory full of files like any other. The naive way empties the volume.
    """
    shutil.copytree(rootfs, place / "rootfs", symlinks=True)
    for name in ("shared", "volume"):
        (place / "rootfs" / name).mkdir()
    mounts = [
        {"destination": "/volume", "type": "bind", "source": str(canary.top), "options": ["bind"]},
        {"destination": "/shared", "type": "bind", "source": "?", "options": ["rbind", "rshared"]},
    ]
    script = "mkdir /shared/trap && mount --bind /volume /shared/trap && echo planted; sleep 1000"
    wanted = libctrd.spec.default(["/bin/sh", "-c", script], str(place / "rootfs"), seccomp=False)
    wanted["mounts"] += mounts
    wanted["linux"]["rootfsPropagation"] = "rshared"
    for kind in ("bounding", "effective", "permitted"):
        wanted["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
    container = client.create("web", wanted)
    where = _moved_in(container, place / "rootfs")
    mounts[1]["source"] = str(where / "shared")
    config = Path(container.bundle, "config.json")
    spec: dict[str, Any] = json.loads(config.read_text())
    spec["mounts"][-2:] = mounts
    config.write_text(json.dumps(spec))
    subprocess.run(["mount", "--bind", str(where / "shared"), str(where / "shared")], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(where / "shared")], check=True)
        container.start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.PIPE))
        assert container.stdout is not None
        assert container.stdout.read(8) == b"planted\n"
        trap = where / "shared/trap"
        # crun has a mount namespace of its own where it is not shown cgroup v2 beside v1: then nobody sees the trap.
        assert (trap / "data/precious").exists() or runtime == "crun", "the trap is set: the host sees it"
        container.clean(force=True)
        assert os.listdir(engine.root) == []
    finally:
        for path in ("trap", ""):
            subprocess.run(["umount", "-l", str(where / "shared" / path)], check=False, capture_output=True)


def test_names_in_a_volume_that_a_neighbour_exchanges_beside_a_start(
    client: Client, runtime: str, place: Path, rootfs: str, canary: Canary
) -> None:
    """He owns a volume in which other mounts have their places, and puts links to the canary there: a start fails, or
    succeeds in the right place. That is the runtimes' own doing, as were their old holes (CVE-2019-19921,
    CVE-2021-30465). runc makes empty directories and files elsewhere until 1.1.14: CVE-2024-45310.
    """
    makes_empty_ones = runtime == "runc" and _version(client) < (1, 1, 14)
    volume, file = place / "volume", place / "file"
    file.write_text("x")
    pairs = []
    for name in ("a", "b", "c"):
        (volume / name).mkdir(parents=True)
        (volume / f"{name}.link").symlink_to(canary.top / "data")
        pairs.append((str(volume / name), str(volume / f"{name}.link")))
    for path in [volume, *volume.iterdir()]:
        os.chown(path, NEIGHBOUR, NEIGHBOUR, follow_symlinks=False)
    shutil.copytree(rootfs, place / "rootfs", symlinks=True)
    (place / "rootfs/volume").mkdir()
    wanted = libctrd.spec.default(["/bin/true"], str(place / "rootfs"), seccomp=False)
    wanted["mounts"] += [
        {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["bind"]},
        {"destination": "/volume/a/new", "type": "bind", "source": str(place / "rootfs"), "options": ["bind"]},
        {"destination": "/volume/b/file", "type": "bind", "source": str(file), "options": ["bind"]},
        {"destination": "/volume/c/more", "type": "tmpfs", "source": "tmpfs", "options": []},
    ]
    through = 0
    for round in range(20):
        container = client.create("web", wanted)
        with exchanging(NEIGHBOUR, *(pairs if round % 2 else pairs[:1])), contextlib.suppress(CtrdError):
            container.start(libctrd.NULL)
            through += container.wait(WAIT).code == 0
        with contextlib.suppress(CtrdError):
            container.clean(force=True)
        if makes_empty_ones:
            canary.forgive_empty()
        canary.check()
        for name, made in (("a", "new"), ("b", "file"), ("c", "more")):  # what a start has made there
            if os.path.lexists(path := volume / name / made) and not (volume / name).is_symlink():
                path.rmdir() if path.is_dir() else path.unlink()
    assert through, "nobody ever came through: it is another thing that fails"
    assert file.read_text() == "x"


def test_a_tree_that_its_owner_exchanges_while_it_is_removed(place: Path, canary: Canary) -> None:  # C2
    """A checkpoint, say, in a directory of the caller's. Without `O_NOFOLLOW` for each directory the canary goes."""
    for _ in range(20):
        tree = place / "tree"
        pairs = []
        for name in ("a", "a/b", "a/b/c"):
            (tree / name).mkdir(parents=True)
            for number in range(20):
                (tree / name / f"file{number}").touch()
        for name in ("a", "a/b", "a/b/c"):
            (tree / f"{name}.link").symlink_to(canary.top / "data" if name != "a" else canary.top)
            pairs.append((str(tree / name), str(tree / f"{name}.link")))
        for path in [tree, *tree.rglob("*")]:
            os.chown(path, NEIGHBOUR, NEIGHBOUR, follow_symlinks=False)
        with exchanging(NEIGHBOUR, *pairs), contextlib.suppress(CtrdError):  # he puts new links into it all the time
            libctrd.directory.remove_tree(str(tree))
        libctrd.directory.remove_tree(str(tree))
        canary.check()
