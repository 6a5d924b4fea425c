"""What tests of images share: a namespace of the suite's containerd that must be as empty after a test as before."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd_kit import SNAPSHOTTERS, Containerd, new_namespace, nothing_left
from oci_kit import Layout
from registry_kit import Fake

from libctrd import protos
from libctrd.engine.channel import Channel
from libctrd.images import Image, Images


class Place:
    """A namespace of a daemon, with its images."""

    def __init__(self, daemon: Containerd) -> None:
        self.daemon = daemon
        self.namespace = new_namespace()
        self.channel = Channel(daemon.address, self.namespace)
        self.images = Images(self.channel)

        self._ran = False

    def ctr(self, *words: str) -> str:
        return self.daemon.ctr(*words, namespace=self.namespace)

    def content(self) -> list[str]:
        """The digests of all blobs."""
        package = protos.package("containerd.services.content.v1")
        method = "containerd.services.content.v1.Content/List"
        answers = self.channel.stream(method, package.ListContentRequest(), doing="list")
        return [info.digest for answer in answers for info in answer.info]

    def is_empty(self) -> bool:
        """Whether nothing of any image is here: no name, no blob, no snapshot, no lease, nothing half-written.

        Asked over the wire and not by ctr, which takes half a second for it.
        """

        def answer(service: str, call: str, request: str, **fields: str) -> Any:
            package = f"containerd.services.{service.lower()}.v1"
            message = getattr(protos.package(package), request)(**fields)
            return self.channel.call(f"{package}.{service}/{call}", message, doing=f"list {service}")

        assert [image.name for image in answer("Images", "List", "ListImagesRequest").images] == []
        assert self.content() == []
        assert [status.ref for status in answer("Content", "ListStatuses", "ListStatusesRequest").statuses] == []
        assert [lease.id for lease in answer("Leases", "List", "ListRequest").leases] == []
        package = protos.package("containerd.services.snapshots.v1")
        for snapshotter in SNAPSHOTTERS:
            request = package.ListSnapshotsRequest(snapshotter=snapshotter)
            answers = self.channel.stream("containerd.services.snapshots.v1.Snapshots/List", request, doing="list")
            assert [info.name for answer in answers for info in answer.info] == []
        return True

    def run(self, image: Image, *command: str) -> str:
        """What *command* prints in a container of the image, which ctr runs."""
        self._ran = True
        id = f"c{uuid.uuid4().hex[:8]}"
        return self.ctr(
            *("run", "--rm", "--runc-root", self.daemon.runc_root, "--snapshotter", self.images.snapshotter),
            *("--cgroup", f"/{os.path.basename(self.daemon.directory)}/{self.namespace}/{id}"),
            *(image.name, id, *command),
        )

    def close(self) -> None:
        """Removes what is here. Nothing may be left then, of containers that ran neither."""
        for image in self.images.list():
            self.images.remove(image.name)
        assert self.is_empty()
        if self._ran:
            nothing_left(self.daemon, self.namespace)
        self.channel.close()


@pytest.fixture
def place(containerd: Containerd) -> Iterator[Place]:
    """A place that is empty, and at the end must be so again once its images were removed."""
    place = Place(containerd)
    yield place
    place.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Fake]]:
    """Makes registries of our own for a layout, gone at the end."""
    made: list[Fake] = []

    def make(layout: Layout, tls: tuple[Path, Path] | None = None) -> Fake:
        made.append(Fake(layout, tls))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


def import_piped(place: Place, path: Path) -> list[Image]:
    """Imports what a pipe gives: the file is read by another process, which must be able to give all of it."""
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        images = place.images.import_archive(cat.stdout)
    assert cat.returncode == 0
    return images
