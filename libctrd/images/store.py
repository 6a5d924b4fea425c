"""The image store of a daemon: which name stands for which image (``containerd.services.images.v1``, row C26)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from libctrd import protos
from libctrd.errors import AlreadyExistsError, NotFoundError
from libctrd.images.documents import Descriptor

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

_SERVICE: Final = "containerd.services.images.v1.Images"
_COLLECT: Final = 60.0  # seconds for a deletion that waits for the collector


class Store:
    """The names behind *channel*, in its namespace. Records are ``containerd.services.images.v1.Image``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._types = protos.package("containerd.services.images.v1")

    def list(self) -> list[Any]:
        """All records."""
        request = self._types.ListImagesRequest()
        return list(self._channel.call(f"{_SERVICE}/List", request, doing="list the images").images)

    def get(self, name: str) -> Any:
        """The record of *name*; `NotFoundError` when there is none."""
        request = self._types.GetImageRequest(name=name)
        return self._channel.call(f"{_SERVICE}/Get", request, doing=f"find the image {name!r}").image

    def find(self, name: str) -> Descriptor | None:
        """What *name* stands for; ``None`` when there is no such name."""
        try:
            return descriptor_of(self.get(name))
        except NotFoundError:
            return None

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str], lease: str) -> Any:
        """Has *name* stand for *target* from now on, whatever it stood for before; returns the record."""
        descriptor = protos.package("containerd.types").Descriptor(
            media_type=target.media_type, digest=target.digest, size=target.size
        )
        image = self._types.Image(name=name, target=descriptor, labels=dict(labels))
        doing = f"name the image {name!r}"
        try:
            request = self._types.CreateImageRequest(image=image)
            return self._channel.call(f"{_SERVICE}/Create", request, doing=doing, lease=lease).image
        except AlreadyExistsError:
            request = self._types.UpdateImageRequest(image=image)
            request.update_mask.paths.append("target")
            return self._channel.call(f"{_SERVICE}/Update", request, doing=doing, lease=lease).image

    def remove(self, name: str) -> None:
        """Removes *name*, and returns when what only it held was collected. `NotFoundError` when it is not there."""
        request = self._types.DeleteImageRequest(name=name, sync=True)
        self._channel.call(f"{_SERVICE}/Delete", request, doing=f"remove the image {name!r}", timeout=_COLLECT)

    def drop(self, name: str) -> None:
        """Removes *name* and leaves what it held to the collector; one that is not there is fine."""
        request = self._types.DeleteImageRequest(name=name)
        try:
            self._channel.call(f"{_SERVICE}/Delete", request, doing=f"remove the image {name!r}")
        except NotFoundError:
            return


def descriptor_of(record: Any) -> Descriptor:
    """The descriptor in a record."""
    target = record.target
    return Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
