"""The images of a containerd: listed, imported, pulled, removed, and made into containers' specs and snapshots.

An image comes in whole or not at all: it gets its name last, all that comes before stands under a lease, and what fails
leaves nothing behind. Its layers are looked at before they are unpacked (`libctrd.images.layers`). Contract row C26.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from libctrd.images.images import Image as Image
    from libctrd.images.images import Images as Images
    from libctrd.images.intake import Progress as Progress
    from libctrd.images.platforms import Platform as Platform
    from libctrd.images.reference import Reference as Reference

_HOMES = {
    "Image": "images",
    "Images": "images",
    "Progress": "intake",
    "Platform": "platforms",
    "Reference": "reference",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Loaded when first used: the modules below are also imported one by one, for a reference alone for instance.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"libctrd.images.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
