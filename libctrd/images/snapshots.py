"""Snapshots: the layers of an image unpacked on top of each other, and the writable one that a container gets.

Each layer's snapshot is known by its chain id, which is made of the diff_ids from the lowest layer up to it, so that
images share what they have in common. A layer is unpacked under a name of its own, its digest compared, and only then
committed: a half-unpacked one never has the name that others look for. Contract row C26; the wires are
``containerd.services.snapshots.v1`` and ``.diff.v1``. Source of the chain id: OCI image specification, config.md.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from libctrd import protos
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.images import leases
from libctrd.images.documents import ZSTD_LAYER, Descriptor, short

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

_PREFERRED: Final = ("overlayfs", "native")
_SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"
_PATIENCE: Final = 60.0
_UNPACKING: Final = 300.0  # seconds for a layer, however small: what it holds when unpacked is not known before
_SLOWEST: Final = 1 << 20  # bytes of a layer a second, unpacked by a host that is still alive


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain id of each layer, lowest first; the last is the image's."""
    chain: list[str] = []
    for diff_id in diff_ids:
        text = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append("sha256:" + hashlib.sha256(text.encode()).hexdigest() if text else diff_id)
    return chain


def default_snapshotter(channel: Channel) -> str:
    """The snapshotter to use: overlayfs where the daemon says that it works, else native, else any that works."""
    types = protos.package("containerd.services.introspection.v1")
    request = types.PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    method = "containerd.services.introspection.v1.Introspection/Plugins"
    plugins = channel.call(method, request, doing="ask the daemon for its snapshotters").plugins
    works = [plugin.id for plugin in plugins if not plugin.HasField("init_err")]
    for name in (*_PREFERRED, *sorted(works)):
        if name in works:
            return str(name)
    raise UnsupportedError(f"the containerd at {channel.address} has no snapshotter that works: see its log for why")


class Snapshots:
    """The snapshots of the snapshotter *name* behind *channel*, in its namespace."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._types = protos.package("containerd.services.snapshots.v1")
        self.name = name

    def _call(self, method: str, request: Any, doing: str, lease: str = "", timeout: float = _PATIENCE) -> Any:
        return self._channel.call(f"{_SERVICE}/{method}", request, doing=doing, lease=lease, timeout=timeout)

    def exists(self, key: str) -> bool:
        """Whether there is a snapshot *key*."""
        request = self._types.StatSnapshotRequest(snapshotter=self.name, key=key)
        try:
            self._call("Stat", request, f"look for the snapshot {key!r}")
        except NotFoundError:
            return False
        return True

    def keys(self) -> list[str]:
        """The keys of all snapshots of the namespace."""
        doing = "list the snapshots"
        request = self._types.ListSnapshotsRequest(snapshotter=self.name)
        call = self._channel.stream(f"{_SERVICE}/List", request, doing=doing, timeout=_PATIENCE)
        return [info.name for answer in call for info in answer.info]

    def prepare(self, key: str, parent: str, lease: str = "") -> list[Any]:
        """Makes the writable snapshot *key* on top of *parent*; returns its mounts (``containerd.types.Mount``)."""
        request = self._types.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        return list(self._call("Prepare", request, f"prepare the snapshot {key!r}", lease).mounts)

    def mounts(self, key: str) -> list[Any]:
        """The mounts of the snapshot *key*, which is not committed."""
        request = self._types.MountsRequest(snapshotter=self.name, key=key)
        return list(self._call("Mounts", request, f"ask for the mounts of the snapshot {key!r}").mounts)

    def remove(self, key: str) -> None:
        """Removes the snapshot *key*; one that is not there is fine."""
        request = self._types.RemoveSnapshotRequest(snapshotter=self.name, key=key)
        try:
            self._call("Remove", request, f"remove the snapshot {key!r}")
        except NotFoundError:
            return

    @contextmanager
    def view(self, parent: str, lease: str) -> Iterator[list[Any]]:
        """The mounts of a read-only snapshot of *parent*, removed at the end of the block."""
        key = f"libctrd-view-{secrets.token_hex(8)}"
        request = self._types.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        mounts = self._call("View", request, f"look into the snapshot {short(parent)}", lease).mounts
        try:
            yield list(mounts)
        finally:
            self.remove(key)

    def unpack(self, layers: Sequence[Descriptor], diff_ids: Sequence[str], lease: str) -> str:
        """Unpacks *layers*, lowest first, as far as they are not; returns the chain id of the top.

        `InvalidArgumentError` when a layer is not what its diff_id says. What was unpacked stays under *lease*.
        """
        if diff_ids:
            # Held before it is looked for: one that is there cannot go between the look and the label that keeps it.
            leases.hold(self._channel, lease, f"snapshots/{self.name}", chain_ids(diff_ids)[-1])
        parent = ""
        for layer, diff_id, chain in zip(layers, diff_ids, chain_ids(diff_ids), strict=True):
            if not self.exists(chain):
                self._unpack(layer, diff_id, chain, parent, lease)
            parent = chain
        return parent

    def _unpack(self, layer: Descriptor, diff_id: str, chain: str, parent: str, lease: str) -> None:
        key = f"libctrd-unpack-{secrets.token_hex(8)}-{chain}"
        mounts = self.prepare(key, parent, lease)
        try:
            applied = self._apply(layer, mounts, lease)
            if applied != diff_id:
                raise InvalidArgumentError(
                    f"layer {short(layer.digest)} is not the one that its image's config tells of: unpacked its digest "
                    f"is {applied}, not {diff_id}"
                )
            request = self._types.CommitSnapshotRequest(snapshotter=self.name, name=chain, key=key)
            self._call("Commit", request, f"keep the unpacked layer {short(layer.digest)}", lease)
        except AlreadyExistsError:
            self.remove(key)  # somebody else unpacked the same layer meanwhile
        except BaseException:
            try:
                self.remove(key)
            except CtrdError as error:
                # The first failure is what the caller is to hear; the lease's end takes the snapshot along.
                logging.getLogger(__name__).warning("%s", error)
            raise

    def _apply(self, layer: Descriptor, mounts: list[Any], lease: str) -> str:
        types, diff = protos.package("containerd.types"), protos.package("containerd.services.diff.v1")
        # 1.6 knows zstd under OCI's name alone, and looks at the bytes for the rest.
        media_type = ZSTD_LAYER if layer.media_type.endswith("zstd") else layer.media_type
        descriptor = types.Descriptor(media_type=media_type, digest=layer.digest, size=layer.size)
        answer = self._channel.call(
            "containerd.services.diff.v1.Diff/Apply",
            diff.ApplyRequest(diff=descriptor, mounts=mounts),
            doing=f"unpack the layer {short(layer.digest)}",
            timeout=_UNPACKING + layer.size / _SLOWEST,
            lease=lease,
        )
        return str(answer.applied.digest)
