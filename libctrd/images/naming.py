"""Which names the images of an archive get: the one that the caller gives, or those that the archive has.

Docker and containerd write a full name beside each image; the OCI layout itself knows only a "ref name", which is a
full name for some tools and only a tag for others.
"""

from __future__ import annotations

from collections.abc import Sequence

from libctrd.errors import InvalidArgumentError
from libctrd.images import documents, reference
from libctrd.images.archive import NAME_NOTE, Archive
from libctrd.images.documents import Descriptor, Index

_REF_NOTE = "org.opencontainers.image.ref.name"


def named(archive: Archive, given: str | None) -> list[tuple[str, Descriptor]]:
    """The images of *archive* as pairs of a full name and the descriptor of the image.

    Several images of one name are one image for several platforms, and get an index. With *given* the archive has to
    hold one image, or several that differ in their tags and *given* without a tag. Raises `InvalidArgumentError` when
    an image has no name, or a name that is none.
    """
    groups: dict[str, list[Descriptor]] = {}
    for entry in archive.images:
        group = groups.setdefault(_name(archive, entry, given), [])
        if entry.digest not in [other.digest for other in group]:
            group.append(entry)
    if not groups:
        raise InvalidArgumentError(f"{archive.what} holds no image: its list of images is empty")
    return [(name, _one(archive, entries)) for name, entries in groups.items()]


def _one(archive: Archive, entries: Sequence[Descriptor]) -> Descriptor:
    """The image that *entries* are together. What the archive wrote beside it is about its place there, and stays."""
    if len(entries) > 1:
        index = Index(manifests=list(entries), media_type=documents.OCI_INDEX)
        return archive.make(index, documents.OCI_INDEX)
    return Descriptor(media_type=entries[0].media_type, digest=entries[0].digest, size=entries[0].size)


def _name(archive: Archive, entry: Descriptor, given: str | None) -> str:
    full, ref = entry.note(NAME_NOTE), entry.note(_REF_NOTE)
    if given is not None:
        wanted = reference.parse(given)
        if ":" in given.rpartition("/")[2] or "@" in given:  # with a tag or digest of its own
            return str(wanted)
        tag = ""
        if full:
            tag = reference.parse(full).tag
        elif reference.is_tag(ref):
            tag = ref
        elif ref:
            tag = reference.parse(ref).tag
        return str(reference.Reference(wanted.host, wanted.path, tag or wanted.tag, ""))
    if full:
        return reference.normalise(full)
    if ref and ("/" in ref or ":" in ref):
        return reference.normalise(ref)
    raise InvalidArgumentError(
        f"{archive.what} does not tell the name of an image in it"
        + (f", only its tag {ref!r}" if ref else "")
        + ": give one (name=…, or --name)"
    )
