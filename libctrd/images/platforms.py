"""Platforms: the system, processor and variant that an image is for, and which of several suits a host best.

Names are those of the OCI image index (``linux``, ``arm64``, ``v8``), which took them from Go.
"""

import os
from typing import Final

import msgspec

from libctrd.errors import InvalidArgumentError

_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
    "mips64": ("mips64le", ""),
}
_ALIASES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_IMPLIED: Final = {("arm64", "v8"): "", ("amd64", "v1"): ""}  # variants that say no more than the name does
_ARM_LEVELS: Final = ("v8", "v7", "v6", "v5")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image is for. ``variant`` is "" where the architecture has none that matters."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host() -> Platform:
    """This host's platform, from uname(2)."""
    name = os.uname()
    architecture, variant = _MACHINES.get(name.machine, (name.machine, ""))
    return Platform(name.sysname.lower(), architecture, variant)


def parse(text: str) -> Platform:
    """The platform that *text* names: ``linux/arm64``, ``linux/arm/v7``, or an architecture alone, for Linux.

    Raises `InvalidArgumentError` for anything else.
    """
    parts = text.lower().split("/") if isinstance(text, str) else []
    if len(parts) == 1:
        parts = ["linux", *parts]
    if not 2 <= len(parts) <= 3 or not all(part.replace("_", "").replace("-", "").isalnum() for part in parts):
        raise InvalidArgumentError(
            f"platform {text!r} is not valid: use OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, like linux/arm64"
        )
    system, architecture, variant = (*parts, "")[:3]
    return _plain(Platform(system, _ALIASES.get(architecture, architecture), variant))


def _plain(platform: Platform) -> Platform:
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = _IMPLIED.get((architecture, platform.variant), platform.variant)
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(platform.os, architecture, variant)


def rank(wanted: Platform, offered: Platform) -> int | None:
    """How well an image for *offered* runs on *wanted*: 0 is exactly, more is worse, ``None`` is not at all.

    A 32-bit ARM runs what was built for an older ARM. Nothing else is taken for what it is not.
    """
    wanted, offered = _plain(wanted), _plain(offered)
    if (wanted.os, wanted.architecture) != (offered.os, offered.architecture):
        return None
    if wanted.variant == offered.variant:
        return 0
    if wanted.architecture == "arm" and {wanted.variant, offered.variant} <= set(_ARM_LEVELS):
        older = _ARM_LEVELS.index(offered.variant) - _ARM_LEVELS.index(wanted.variant)
        return older if older > 0 else None
    return 1 if not wanted.variant or not offered.variant else None
