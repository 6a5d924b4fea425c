"""Images for tests, made here: layers of busybox, manifests, indexes, OCI layouts and archives of ``docker save``.

A `Layout` is a set of blobs with an index; what is wrong with an image is made wrong by hand, so that its digests fit
everywhere but at the one place a test is about.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUSYBOX = "/bin/busybox"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
PACKERS = {"": bytes, "gzip": lambda data: gzip.compress(data, 1, mtime=0), "zstd": zstd.compress}

Descriptor = dict[str, Any]
File = bytes | str | tarfile.TarInfo | None
"""What a file of a layer is: bytes, the text of a symbolic link, a directory (``None``), or a whole header."""


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(files: Mapping[str, File]) -> bytes:
    """A tar of *files* by their names, always the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, what in files.items():
            entry = what if isinstance(what, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = what if isinstance(what, bytes) else b""
            if what is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(what, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, what
            elif isinstance(what, bytes):
                entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str, **fields: Any) -> tarfile.TarInfo:
    """A header with *fields* as they are, for entries that no layer should have."""
    entry = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


def busybox() -> dict[str, File]:
    """The files of a root file system to run things in."""
    binary = Path(BUSYBOX).read_bytes()
    applets = ("sh", "true", "echo", "cat", "id", "env", "pwd", "ls", "sleep")
    return {
        **dict.fromkeys(("bin", "etc", "tmp", "proc", "sys", "dev", "root")),
        "bin/busybox": binary,
        **{f"bin/{applet}": "busybox" for applet in applets},
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/tmp:/bin/sh\n",
        "etc/group": b"root:x:0:\nguest:x:1001:\naudio:x:29:guest,root\nvideo:x:44:guest\n",
    }


@dataclass
class Layer:
    """A layer: its files as a tar, packed one way or another. ``data`` and ``diff_id`` may be set to lie."""

    plain: bytes
    packing: str = "gzip"
    docker: bool = False
    media_type: str = ""
    data: bytes = b""
    diff_id: str = ""

    def __post_init__(self) -> None:
        self.data = self.data or PACKERS[self.packing](self.plain)
        self.diff_id = self.diff_id or digest(self.plain)
        if not self.media_type:
            dot = "." if self.docker else "+"
            base = DOCKER_LAYER if self.docker else OCI_LAYER
            self.media_type = base + (dot + self.packing if self.packing else "")


@dataclass
class Layout:
    """Blobs by their digests, and the entries of the top index."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    entries: list[Descriptor] = field(default_factory=list)

    def add(self, data: bytes, media_type: str, **more: Any) -> Descriptor:
        """Adds a blob; returns its descriptor."""
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def add_json(self, document: Any, media_type: str, **more: Any) -> Descriptor:
        return self.add(json.dumps(document).encode(), media_type, **more)

    def image(
        self,
        layers: Sequence[Layer],
        *,
        platform: str = "linux/amd64",
        config: Mapping[str, Any] | None = None,
        docker: bool = False,
        config_type: str = "",
    ) -> Descriptor:
        """Adds an image for one platform; returns its manifest's descriptor."""
        system, architecture, *variant = platform.split("/")
        document: dict[str, Any] = {
            "os": system,
            "architecture": architecture,
            **({"variant": variant[0]} if variant else {}),
            "config": dict({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]} if config is None else config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": self.add_json(document, config_type or (DOCKER_CONFIG if docker else OCI_CONFIG)),
            "layers": [self.add(layer.data, layer.media_type) for layer in layers],
        }
        return self.add_json(
            manifest,
            manifest["mediaType"],  # type: ignore[arg-type]
            platform={"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})},
        )

    def index(self, manifests: Sequence[Descriptor], *, docker: bool = False) -> Descriptor:
        """Adds an index of *manifests*; returns its descriptor."""
        media_type = DOCKER_LIST if docker else OCI_INDEX
        return self.add_json({"schemaVersion": 2, "mediaType": media_type, "manifests": list(manifests)}, media_type)

    def name(self, entry: Descriptor, name: str = "", ref: str = "") -> Descriptor:
        """Puts *entry* into the top index, named in containerd's way (*name*) or the layout's own (*ref*)."""
        notes = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": ref}
        notes = {key: value for key, value in notes.items() if value}
        self.entries.append({**entry, **({"annotations": notes} if notes else {})})
        return entry

    def members(self) -> dict[str, bytes]:
        """The files of the layout by their names: the ones that tell of the rest last, as streaming writers do."""
        return {
            **{f"blobs/sha256/{name[7:]}": data for name, data in self.blobs.items()},
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": self.entries}).encode(),
        }

    def archive(self, path: Path, packing: str = "") -> Path:
        """Writes the layout as a tar to *path*."""
        return write(path, self.members().items(), packing)


def write(path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]], packing: str = "") -> Path:
    """Writes a tar of *members* to *path*, packed as a whole."""
    path.write_bytes(PACKERS[packing](tar(dict(members))))
    return path


def docker_save(path: Path, layers: Sequence[Layer], tags: Sequence[str], *, packing: str = "") -> Path:
    """Writes what ``docker save`` writes of one image: layers as plain tar (or as they are packed), no manifest.

    The second of two equal layers is a link to the first.
    """
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    data = json.dumps(config).encode()
    name = f"{digest(data)[7:]}.json"
    members: dict[str, File] = {}
    names, first = [], {}
    for number, layer in enumerate(layers):
        directory = hashlib.sha256(f"{number}".encode()).hexdigest()
        names.append(f"{directory}/layer.tar")
        members[f"{directory}/VERSION"] = b"1.0"
        known = first.setdefault(layer.diff_id, names[-1])
        members[names[-1]] = layer.data if known == names[-1] else f"../{known}"
    members[name] = data
    members["manifest.json"] = json.dumps([{"Config": name, "RepoTags": list(tags), "Layers": names}]).encode()
    path.write_bytes(PACKERS[packing](tar(members)))
    return path


def simple(name: str = "docker.io/library/test:latest", **image: Any) -> Layout:
    """A layout with one image of busybox, to be run."""
    layout = Layout()
    layout.name(layout.image([Layer(tar(busybox()))], **image), name)
    return layout


def filler(size: int) -> bytes:
    """Bytes that do not compress, the same each time."""
    return hashlib.shake_128(os.fsencode(f"filler {size}")).digest(size)
