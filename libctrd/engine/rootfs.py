"""The root file system of a container of containerd: a directory, mounts, or a snapshot made for it from an image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from libctrd import protos
from libctrd.engine.base import Record
from libctrd.engine.channel import Channel
from libctrd.errors import NotFoundError

if TYPE_CHECKING:
    from libctrd.images import Images

SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"


class Rootfs:
    """Makes root file systems in the namespace of *channel*, and removes what it made."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._images: Images | None = None

    @property
    def images(self) -> Images:
        """The images of this containerd."""
        if self._images is None:
            from libctrd.images import Images  # who runs from directories does not pay for it

            self._images = Images(self._channel)
        return self._images

    @property
    def snapshotter(self) -> str:
        """The snapshotter in which images are unpacked here."""
        return self.images.snapshotter

    @contextlib.contextmanager
    def prepared(self, record: Record) -> Iterator[str]:
        """Makes the snapshot that *record* needs, under a lease whose name it gives: containerd collects what nothing
        refers to, and until the container does, that is the lease. When the body raises, the snapshot is removed.
        """
        if not record.image:
            yield ""
            return
        with self.images.leased() as lease:
            self.images.prepare(record.image, record.snapshot, lease=lease)
            try:
                yield lease
            except BaseException:
                self.images.unprepare(record.snapshot)
                raise

    def mounts(self, record: Record) -> list[Any]:
        """What the shim is to mount; nothing when the spec names a directory."""
        message = protos.message("containerd.types.Mount")
        if record.snapshot:
            request = protos.message("containerd.services.snapshots.v1.MountsRequest")(
                snapshotter=record.snapshotter, key=record.snapshot
            )
            doing = f"mount snapshot {record.snapshot!r} of container {record.id!r}"
            return list(self._channel.call(f"{SNAPSHOTS}/Mounts", request, doing=doing).mounts)
        return [message(type=mount.type, source=mount.source, options=mount.options) for mount in record.mounts]

    def remove(self, record: Record) -> None:
        """Removes the snapshot that was made for *record*, after the container."""
        if record.snapshot and (record.image or record.foreign):
            request = protos.message("containerd.services.snapshots.v1.RemoveSnapshotRequest")(
                snapshotter=record.snapshotter, key=record.snapshot
            )
            with contextlib.suppress(NotFoundError):
                self._channel.call(f"{SNAPSHOTS}/Remove", request, doing=f"remove snapshot {record.snapshot!r}")
