"""Image references: what people type (``busybox``), and the full name that a daemon and a registry know it by.

The grammar is that of the OCI distribution specification ("Pulling manifests") and of the registries in the field: a
registry's host with a port, a path of lower-case words, a tag, a digest. ``busybox`` is short for
``docker.io/library/busybox:latest``. Nothing here asks anybody whether such an image exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from libctrd.errors import InvalidArgumentError

MAX_NAME: Final = 255  # characters of host and path together, as registries have it
DEFAULT_HOST: Final = "docker.io"
_OFFICIAL: Final = "library"
_LATEST: Final = "latest"

_HOST: Final = re.compile(
    r"(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)"
    r"(?::[0-9]{1,5})?\Z"
)
_WORD: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Reference:
    """A full image reference. ``tag`` is "" when only a digest was given, ``digest`` when only a tag was."""

    host: str  # "docker.io", "localhost:5000", "[::1]:5000"
    path: str  # "library/busybox"
    tag: str
    digest: str

    def __str__(self) -> str:
        return (
            f"{self.host}/{self.path}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, which cannot mean anything else, before the tag."""
        return self.digest or self.tag


def is_digest(text: str) -> bool:
    """Whether *text* is a SHA-256 digest, the one kind that containerd's content store keeps."""
    return _DIGEST.match(text) is not None


def is_tag(text: str) -> bool:
    """Whether *text* may be a tag, without a name before it."""
    return _TAG.match(text) is not None


def parse(text: str) -> Reference:
    """The full reference that *text* is short for.

    The first word before a ``/`` is a host when it has a ``.``, a ``:`` or an upper-case letter in it or is
    ``localhost``; else the image is Docker Hub's. Without a tag and a digest the tag is ``latest``. Raises
    `InvalidArgumentError`, which says what is wrong with *text*. Source: OCI distribution specification 1.1.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"an image reference is a str, not {type(text).__name__}")

    def refuse(reason: str) -> InvalidArgumentError:
        shown = text if len(text) <= 300 else text[:300] + "…"
        return InvalidArgumentError(
            f"image reference {shown!r} is not valid: {reason} (an example of one: registry.example.org/team/app:1.0)"
        )

    if not text:
        raise refuse("it is empty")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise refuse(f"{digest!r} is no digest: use sha256: and 64 digits of 0-9a-f")
    head, slash, rest = name.partition("/")
    if slash and (head == "localhost" or re.search(r"[.:A-Z]", head)):
        host, path = head, rest
        if not _HOST.match(host):
            raise refuse(f"{host!r} is no host with or without a port")
    else:
        host, path = DEFAULT_HOST, name
    path, colon, tag = path.partition(":")
    if colon and not is_tag(tag):
        raise refuse(f"{tag!r} is no tag: use 1 to 128 letters, digits, '_', '.' and '-', not '.' or '-' first")
    if host in _HUB:
        host = DEFAULT_HOST
        if "/" not in path:
            path = f"{_OFFICIAL}/{path}"
    for word in path.split("/"):
        if not _WORD.match(word):
            raise refuse(f"{word!r} in its name is not lower-case letters and digits with '.', '_' or '-' between")
    if len(host) + 1 + len(path) > MAX_NAME:
        raise refuse(f"its name has more than {MAX_NAME} characters")
    return Reference(host, path, tag or ("" if digest else _LATEST), digest)


def normalise(text: str) -> str:
    """The full name of the image *text*, as text: ``docker.io/library/busybox:latest`` for ``busybox``."""
    return str(parse(text))
