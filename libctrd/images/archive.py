"""Image archives: the tar of an OCI layout or of ``docker save``, as a source that an image can come in from.

A file that can be sought in is scanned once for where its members lie, and each blob is then read when it is wanted. A
pipe, or an archive that is compressed as a whole, comes only once: what may be a blob goes into the content store
as it comes, under the lease, and the image is put together from there. Either way no copy is made and little is held
in memory. Which names the images in it get is `libctrd.images.naming`'s to say; links in the archive are followed
within it, as ``docker save`` makes them. Source: OCI image specification, image-layout.md; Docker's image
specification 1.2.
"""

import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, TypeAlias, cast

import msgspec

from libctrd.errors import InvalidArgumentError, NotFoundError, from_os_error
from libctrd.images import compression, documents
from libctrd.images.content import FRAME, Content
from libctrd.images.documents import Config, Descriptor, Index, Manifest, short
from libctrd.images.intake import Progress, Report
from libctrd.images.reference import is_digest

File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
NAME_NOTE: Final = "io.containerd.image.name"
_LAYOUT: Final = "oci-layout"
_INDEX: Final = "index.json"
_DOCKER: Final = "manifest.json"
_BLOBS: Final = "blobs/sha256/"
_KEPT: Final = (_LAYOUT, _INDEX, _DOCKER)
_LAYER_TYPES: Final = {"": "", "gzip": ".gzip", "zstd": ".zstd"}
_MOST_LINKS: Final = 40


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """One image in the manifest.json of ``docker save``."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


class _Blob(msgspec.Struct, frozen=True):
    """What is known of a member that may be a blob."""

    size: int
    offset: int = 0  # where it lies, in a file that can be sought in
    digest: str = ""  # in the store, for one that came by


class Archive:
    """An open archive: a source (`libctrd.images.intake.Source`), with the descriptors of the images in it."""

    parallel = 1

    def __init__(self, file: IO[bytes], name: str, content: Content, lease: str, report: Report | None) -> None:
        self.what = f"archive {name}"
        self._file = file
        self._content = content
        self._members: dict[str, _Blob] = {}
        self._links: dict[str, str] = {}
        self._small: dict[str, bytes] = {}
        self._made: dict[str, bytes] = {}  # documents that are ours, by digest
        self._where: dict[str, str] = {}  # members of docker save, by digest
        self._kinds: dict[str, str] = {}  # how members that came by are compressed
        try:
            head = file.read(compression.HEAD)
            if not isinstance(head, bytes):
                raise InvalidArgumentError(f"{self.what} is open as text: open it as bytes ('rb')")
            seekable = file.seekable()
            if seekable:
                file.seek(-len(head), os.SEEK_CUR)
            self._seekable = seekable and not compression.kind_of(head)
            if self._seekable:
                self._scan()
            else:
                self._stream(b"" if seekable else head, lease, report)
        except (tarfile.TarError, EOFError, ValueError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(
                f"{self.what} cannot be read as a tar: {error} (give the tar of an OCI layout or of docker save, be it "
                f"plain, gzip or zstd)"
            ) from error
        except OSError as error:
            raise from_os_error(error, f"read {self.what} (read)") from error
        self.images = self._find()

    # ---- members -----------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                name = posixpath.normpath(entry.name)
                if entry.issym() or entry.islnk():
                    self._link(name, entry)
                elif entry.isreg() and not entry.issparse():
                    self._members[name] = _Blob(entry.size, entry.offset_data)
        for name in _KEPT:
            if name in self._members:
                self._small[name] = self._limited(name)

    def _limited(self, name: str) -> bytes:
        size = self._members[name].size
        if size > documents.MOST:
            raise InvalidArgumentError(f"{name} of {self.what} has {size} bytes: {documents.MOST} at most can be read")
        return b"".join(self._read(name))

    def _link(self, name: str, entry: tarfile.TarInfo) -> None:
        start = posixpath.dirname(name) if entry.issym() else ""
        self._links[name] = posixpath.normpath(posixpath.join(start, entry.linkname))

    def _stream(self, head: bytes, lease: str, report: Report | None) -> None:
        def chunks() -> Iterator[bytes]:
            if head:
                yield head
            while chunk := self._file.read(FRAME):
                yield chunk

        stream = _Pieces(compression.plain(chunks(), self.what))
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=compression.PIECE) as tar:
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                name = posixpath.normpath(entry.name)
                if entry.issym() or entry.islnk():
                    self._link(name, entry)
                elif entry.isreg() and not entry.issparse():
                    member = tar.extractfile(entry)
                    assert member is not None  # it is a regular file
                    self._came(name, entry.size, member, lease, report)
            for _ in stream.rest():
                pass  # whoever writes the other end of a pipe is not to be stopped before it has written all

    def _came(self, name: str, size: int, member: IO[bytes], lease: str, report: Report | None) -> None:
        """A member of a stream: kept when it is one that tells of the rest, else written into the store."""
        if name in _KEPT:
            if size > documents.MOST:
                raise InvalidArgumentError(f"{name} of {self.what} has {size} bytes: {documents.MOST} is the most")
            self._small[name] = member.read(size)
            return
        if not size:
            return
        expected = f"sha256:{name.removeprefix(_BLOBS)}" if name.startswith(_BLOBS) else ""
        if expected and not is_digest(expected):
            return
        done, digest = 0, hashlib.sha256()
        with self._content.write(f"{name!r} of {self.what}", digest=expected, size=size, lease=lease) as writer:
            while done < size:
                chunk = member.read(min(FRAME, size - done))
                if not chunk:
                    raise InvalidArgumentError(f"{self.what} is truncated: it ends in {name!r}")
                if not done:
                    self._kinds[name] = compression.kind_of(chunk[: compression.HEAD])
                digest.update(chunk)
                if not writer.exists:
                    writer.write(chunk)
                done += len(chunk)
                if report is not None:
                    report(Progress(expected or name, "file", done, size, existed=writer.exists))
            if not writer.exists:
                writer.commit({})
        self._members[name] = _Blob(size, digest=f"sha256:{digest.hexdigest()}")

    def _resolve(self, name: str) -> str:
        """The member that *name* is, links followed. `NotFoundError` when there is none."""
        path = posixpath.normpath(name)
        for _ in range(_MOST_LINKS):
            if path in self._members:
                return path
            if path not in self._links:
                break
            path = self._links[path]
        raise NotFoundError(f"{self.what} has no {name!r}, which it tells of: it is not complete")

    def _read(self, name: str) -> Iterator[bytes]:
        """The bytes of the member *name*, which `_resolve` gave."""
        blob = self._members[name]
        if not self._seekable:
            yield from self._content.read(blob.digest, blob.size)
            return
        at, end = blob.offset, blob.offset + blob.size
        try:
            while at < end:
                self._file.seek(at)  # each time: the file is the caller's, and so may its position be
                chunk = self._file.read(min(FRAME, end - at))
                if not chunk:
                    raise InvalidArgumentError(f"{self.what} is truncated: it ends in {name!r}")
                at += len(chunk)
                yield chunk
        except OSError as error:
            raise from_os_error(error, f"read {self.what} (read)") from error

    # ---- as a source -------------------------------------------------------------------------------------------------

    def _member_of(self, descriptor: Descriptor) -> str:
        return self._where.get(descriptor.digest) or self._resolve(_BLOBS + descriptor.digest.partition(":")[2])

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """The document that *descriptor* is of, whole, with its digest checked."""
        data = self._made.get(descriptor.digest)
        if data is None:
            name = self._member_of(descriptor)
            if self._members[name].size != descriptor.size:
                raise InvalidArgumentError(
                    f"{what} has {self._members[name].size} bytes in {self.what}, not the {descriptor.size} that it "
                    f"is said to have"
                )
            data = b"".join(self._read(name))
        return documents.check_document(descriptor, data, what)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of the blob, piece by piece."""
        name = self._member_of(descriptor)
        if self._members[name].size != descriptor.size:
            raise InvalidArgumentError(
                f"layer {short(descriptor.digest)} has {self._members[name].size} bytes in {self.what}, not the "
                f"{descriptor.size} that it is said to have"
            )
        return self._read(name)

    def interrupt(self) -> None:
        """Nothing of it is read in other threads."""

    # ---- what is in it -----------------------------------------------------------------------------------------------

    def _find(self) -> list[Descriptor]:
        """The images in the archive. As containerd, it takes the OCI layout where there are both."""
        if _LAYOUT in self._small:
            layout = documents.decode(self._small[_LAYOUT], _Layout, f"{_LAYOUT} of {self.what}")
            if layout.image_layout_version != "1.0.0":
                raise InvalidArgumentError(
                    f"{self.what} is an OCI layout of version {layout.image_layout_version!r}: only 1.0.0 is known"
                )
            if _INDEX not in self._small:
                raise InvalidArgumentError(f"{self.what} is an OCI layout without {_INDEX}")
            index = documents.decode(self._small[_INDEX], Index, f"{_INDEX} of {self.what}")
            return [entry for entry in index.manifests if not entry.is_attestation]
        if _DOCKER in self._small:
            what = f"{_DOCKER} of {self.what}"
            return [
                entry
                for saved in documents.decode(self._small[_DOCKER], list[_Saved], what)
                for entry in self._saved(saved)
            ]
        raise InvalidArgumentError(
            f"{self.what} holds no image: it has neither {_LAYOUT} (OCI) nor {_DOCKER} (docker save) at its top"
        )

    def make(self, document: Any, media_type: str) -> Descriptor:
        """A descriptor of *document*, which is not in the archive and from now on is part of the source."""
        data = documents.encode(document)
        digest = documents.digest_of(data)
        self._made[digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def _saved(self, saved: _Saved) -> list[Descriptor]:
        """Makes the manifest that ``docker save`` leaves out; one descriptor for each name that the image has."""
        config = self._identify(saved.config, documents.DOCKER_CONFIG)
        what = f"the config {short(config.digest)} of {self.what}"
        diff_ids = documents.decode(self.document(config, what), Config, what).rootfs.diff_ids
        if len(diff_ids) != len(saved.layers):
            raise InvalidArgumentError(f"{what} tells of {len(diff_ids)} layers, and {_DOCKER} of {len(saved.layers)}")
        layers = []
        for name, diff_id in zip(saved.layers, diff_ids, strict=True):
            member = self._resolve(name)
            kind = self._kinds.get(member, "")
            if self._seekable:
                kind = compression.kind_of(next(self._read(member), b"")[: compression.HEAD])
            media_type = documents.DOCKER_LAYER + _LAYER_TYPES[kind]
            # A plain layer's digest is its diff_id, or it will be refused when it passes: no need to read it twice.
            layers.append(self._identify(name, media_type, "" if kind else diff_id))
        media_type = documents.DOCKER_MANIFEST
        made = self.make(Manifest(config=config, layers=layers, media_type=media_type), media_type)
        names = saved.repo_tags or [""]
        return [
            Descriptor(
                media_type=media_type,
                digest=made.digest,
                size=made.size,
                annotations={NAME_NOTE: name} if name else None,
            )
            for name in names
        ]

    def _identify(self, name: str, media_type: str, known: str = "") -> Descriptor:
        """The descriptor of the member *name*, with its digest as it is *known*, found in the store, or computed."""
        member = self._resolve(name)
        blob = self._members[member]
        digest = blob.digest or known
        if not digest:
            found = hashlib.sha256()
            for chunk in self._read(member):
                found.update(chunk)
            digest = f"sha256:{found.hexdigest()}"
        self._where[digest] = member
        return Descriptor(media_type=media_type, digest=digest, size=blob.size)


class _Pieces(io.RawIOBase):
    """Pieces of a stream as a file that tarfile can read on in."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        parts: list[memoryview] = []
        while size and (self._rest or self._next()):
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def rest(self) -> Iterator[bytes]:
        """All pieces that are left."""
        return self._pieces

    def _next(self) -> bool:
        piece = next(self._pieces, None)
        self._rest = memoryview(piece or b"")
        return piece is not None


@contextmanager
def opened(source: File, content: Content, lease: str, report: Report | None = None) -> Iterator[Archive]:
    """The archive in *source*, a path or a file that is open for reading bytes, which stays open and is the caller's.

    Blobs of one that comes only once go to *content*, under *lease*. Raises `NotFoundError` when there is no such
    file, `UnavailableError` when it cannot be read, `InvalidArgumentError` when it is no image archive.
    """
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, "name", "")
        yield Archive(
            source, repr(name) if isinstance(name, str) and name else "(an open file)", content, lease, report
        )
        return
    path = os.fspath(source)
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below, when its errors are not ours to explain
    except OSError as error:
        hint = "give a tar of it" if os.path.isdir(path) else ""
        raise from_os_error(error, f"open the image archive {path!r} (open)", hint) from error
    with file:
        yield Archive(cast(IO[bytes], file), repr(path), content, lease, report)
