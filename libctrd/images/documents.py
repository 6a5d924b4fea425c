"""The JSON documents of an image: index, manifest and config, with their media types, read strictly.

Both families in the field are read, OCI's and Docker's (schema 2); which one a document is of is its media type's to
say. What libctrd does not know stays out of the structs, and nothing is ever written back from them: a document keeps
the bytes that its digest is of. Source: OCI image specification 1.1; Docker's "image manifest version 2, schema 2".
"""

import hashlib
from typing import Any, Final, TypeVar

import msgspec

from libctrd.errors import InvalidArgumentError, UnsupportedError
from libctrd.images.platforms import Platform
from libctrd.images.reference import is_digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS: Final = (OCI_CONFIG, DOCKER_CONFIG)
ZSTD_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
LAYERS: Final = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    ZSTD_LAYER,
    DOCKER_LAYER,
    f"{DOCKER_LAYER}.gzip",
    f"{DOCKER_LAYER}.zstd",
)
MOST: Final = 4 << 20  # bytes of one document: what registries take (distribution specification, "Pushing manifests")
_ATTESTATION: Final = "vnd.docker.reference.type"

T = TypeVar("T")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Points to a blob: what it is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    @property
    def is_attestation(self) -> bool:
        """Whether it is no image to run but what a builder says of one."""
        return (self.annotations or {}).get(_ATTESTATION, "") != "" or (
            self.platform is not None and self.platform.os == "unknown"
        )

    def note(self, name: str) -> str:
        """The annotation *name*, "" where there is none."""
        return (self.annotations or {}).get(name, "")


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """One image for several platforms, or all images of an OCI layout."""

    manifests: list[Descriptor]
    schema_version: int = 2
    media_type: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image for one platform."""

    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 2
    media_type: str = ""


class RootFS(msgspec.Struct, frozen=True):
    """The digests of the layers as plain tar, lowest first."""

    diff_ids: list[str] = []
    type: str = ""


class Settings(msgspec.Struct, frozen=True, rename="pascal"):
    """How the image wants to be run. Any of it may be null in the field."""

    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None


class Config(msgspec.Struct, frozen=True):
    """The image config: platform, layers, and how to run it."""

    rootfs: RootFS = RootFS()
    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: Settings | None = None

    @property
    def platform(self) -> Platform:
        """What the image is for."""
        return Platform(self.os or "linux", self.architecture, self.variant)


def digest_of(data: bytes) -> str:
    """The digest of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def short(digest: str) -> str:
    """*digest* as messages show it: enough to find it by."""
    return digest[:19]


def encode(document: Any) -> bytes:
    """*document* as JSON, always the same bytes for the same document."""
    return msgspec.json.encode(document, order="deterministic")


def decode(data: bytes, kind: type[T], what: str) -> T:
    """*data* as a *kind*. `InvalidArgumentError` names *what* it was and the first place that is wrong."""
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{what} cannot be read: {error}") from error
    except RecursionError as error:
        raise InvalidArgumentError(f"{what} cannot be read: it is nested too deeply") from error
    if isinstance(document, Index):
        for descriptor in document.manifests:
            check_descriptor(descriptor, what)
    elif isinstance(document, Manifest):
        for descriptor in (document.config, *document.layers):
            check_descriptor(descriptor, what)
    elif isinstance(document, Config):
        for diff_id in document.rootfs.diff_ids:
            if not is_digest(diff_id):
                raise InvalidArgumentError(f"{what} has a diff_id {diff_id!r} that is no SHA-256 digest")
    return document


def check_descriptor(descriptor: Descriptor, what: str) -> None:
    """That the digest and the size of *descriptor*, found in *what*, can be."""
    if not is_digest(descriptor.digest):
        raise InvalidArgumentError(f"{what} has the digest {descriptor.digest!r}, which is no SHA-256 digest")
    if not 0 <= descriptor.size < 1 << 50:
        raise InvalidArgumentError(f"{what} has a blob of {descriptor.size} bytes: no size can be so")


def check_document(descriptor: Descriptor, data: bytes, what: str) -> bytes:
    """Returns *data* when it is what *descriptor* says; else `InvalidArgumentError`."""
    if len(data) != descriptor.size:
        raise InvalidArgumentError(f"{what} has {len(data)} bytes, not the {descriptor.size} that it is said to have")
    if digest_of(data) != descriptor.digest:
        raise InvalidArgumentError(
            f"{what} is damaged: its digest is {digest_of(data)}, not {descriptor.digest}, which it is known by"
        )
    return data


def check_kind(descriptor: Descriptor, known: tuple[str, ...], what: str) -> None:
    """Refuses *descriptor*, called *what*, with `UnsupportedError` when its media type is none of *known*, and with
    `InvalidArgumentError` when it is a document larger than any may be. Asked before anything of it is fetched."""
    if descriptor.media_type not in known:
        raise UnsupportedError(
            f"{what} has the media type {descriptor.media_type!r}, which libctrd does not know: it takes OCI images "
            f"and Docker's (schema 2), with layers that are plain, gzip or zstd tar"
        )
    if known is not LAYERS and descriptor.size > MOST:
        raise InvalidArgumentError(f"{what} is said to have {descriptor.size} bytes: {MOST} at most can be read")
