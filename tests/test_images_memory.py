"""What an import takes of memory: the archive passes, it does not pile up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from images_kit import Place, place
from oci_kit import Layer, Layout, filler, tar

__all__ = ["place"]  # a fixture of another file

MIB = 1 << 20
IMPORT = """
import subprocess, sys
from libctrd.engine.channel import Channel
from libctrd.images import Images

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

address, namespace, path, kind = sys.argv[1:]
images = Images(Channel(address, namespace))
images.list()
images.snapshotter
before = most()
if kind == "pipe":
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        images.import_archive(cat.stdout)
else:
    images.import_archive(path)
print(most() - before)
"""


def added(place: Place, tmp_path: Path, kind: str, packing: str, size: int) -> int:
    """The bytes by which a process that imports an archive of *size* bytes grows, at its peak."""
    part = filler(8 * MIB)
    files: dict[str, object] = {f"{number}": part[number:] + part[:number] for number in range(size // len(part))}
    layout = Layout()
    layout.name(layout.image([Layer(tar(files), packing)]), "big:1")  # type: ignore[arg-type]
    path = layout.archive(tmp_path / "big.tar")
    assert path.stat().st_size >= size
    command = [sys.executable, "-c", IMPORT, place.daemon.address, place.namespace, str(path), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    os.unlink(path)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# C26
@pytest.mark.parametrize(("kind", "packing"), [("path", "zstd"), ("pipe", ""), ("pipe", "zstd")])
def test_an_import_of_40_mib_adds_less_than_24_mib_of_memory(
    place: Place, tmp_path: Path, kind: str, packing: str
) -> None:
    assert added(place, tmp_path, kind, packing, 40 * MIB) < 24 * MIB


# C26
@pytest.mark.bar
@pytest.mark.parametrize("kind", ["path", "pipe"])
def test_an_import_of_200_mib_adds_less_than_32_mib_of_memory(place: Place, tmp_path: Path, kind: str) -> None:
    grown = added(place, tmp_path, kind, "", 200 * MIB)
    print(f"import of 200 MiB from a {kind} adds {grown / MIB:.1f} MiB")
    assert grown < 32 * MIB
