"""What may be in a layer: its tar is looked at while its bytes pass by, before a daemon unpacks it.

Refused are names and hard links that lead out of the root file system, device nodes (unless they are allowed), and a
tar that is damaged or truncated. A layer's digest as plain tar, the diff_id of the image's config, comes out at the
end. Nothing is unpacked here and little is kept: the headers are read by the standard library's ``tarfile``, and what
it would pass over in silence (a header that is none, something after the end) is refused too, so that nothing
can be hidden from it that another reader of the same tar would see.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, Final, cast

from libctrd.errors import InvalidArgumentError
from libctrd.images import compression

_MOST_READ: Final = 1 << 20  # bytes of one header with its long names, as in Go's reader
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


class _Malformed(Exception):
    """What tarfile would take for the end and is none."""


class _Entry(tarfile.TarInfo):
    """A header. One that is none is an error and not, as in tarfile, an end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Entry:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.EOFHeaderError("end of file") from error  # type: ignore[attr-defined]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise _Malformed(f"a header of it is none: {error}") from error


class _Forward:
    """The plain tar as a file that is only read on, and hashed on the way; skipping reads too."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._at = 0
        self.hash = hashlib.sha256()

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        if offset < self._at:
            raise _Malformed("an entry of it lies before the one that was read")
        while self._at < offset and self._more():
            self._take(offset - self._at)
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_READ:
            raise _Malformed(f"a header of it has {size} bytes")
        parts: list[memoryview] = []
        while size and self._more():
            part = self._take(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def rest(self) -> Iterator[memoryview]:
        """All that is left."""
        while self._more():
            yield self._take(len(self._rest))

    def _more(self) -> bool:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self.hash.update(piece)
            self._rest = memoryview(piece)
        return True

    def _take(self, size: int) -> memoryview:
        part, self._rest = self._rest[:size], self._rest[size:]
        self._at += len(part)
        return part


def check(chunks: Iterable[bytes], what: str, *, allow_devices: bool = False) -> str:
    """Reads *chunks*, a layer as it is kept (gzip, zstd or plain tar), to the end; returns its diff_id.

    Each chunk is taken when it is needed, so that *chunks* may send it on first. Raises `InvalidArgumentError`, which
    names *what* and the entry, for anything that may not be in a layer. Source: OCI image specification, layer.md.
    """
    file = _Forward(compression.plain(chunks, what))
    try:
        # Not mode "r|", whose reader has buffers of its own: this one tells how far it has come.
        with tarfile.TarFile(fileobj=cast(IO[bytes], file), mode="r", tarinfo=_Entry, errors="surrogateescape") as tar:
            entry = tar.firstmember  # type: ignore[attr-defined]
            while entry is not None:
                _check_entry(entry, what, allow_devices)
                tar.members.clear()  # type: ignore[attr-defined]  # else each of a million entries stays in memory
                entry = tar.next()
            for part in file.rest():
                if bytes(part).strip(b"\0"):
                    raise _Malformed("something comes after its end")
    except (_Malformed, tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        text = "it ends too early" if "unexpected end" in str(error) else str(error)
        raise InvalidArgumentError(f"{what} is damaged or truncated: its tar cannot be read ({text})") from error
    return "sha256:" + file.hash.hexdigest()


def _check_entry(entry: tarfile.TarInfo, what: str, allow_devices: bool) -> None:
    _check_path(entry.name, what, "an entry")
    if entry.islnk():
        _check_path(entry.linkname, what, f"a hard link {_shown(entry.name)} to")
    name = entry.name.rstrip("/").rpartition("/")[2]
    if name.startswith(_WHITEOUT) and name != _OPAQUE and name[len(_WHITEOUT) :] in ("", ".", ".."):
        raise InvalidArgumentError(f"{what} removes {_shown(entry.name)}, which is no name (path traversal)")
    if not allow_devices and (entry.ischr() or entry.isblk()):
        raise InvalidArgumentError(
            f"{what} has a device node, {_shown(entry.name)} ({entry.devmajor}:{entry.devminor}): images are not to "
            f"bring any along; allow_devices takes it all the same"
        )


def _check_path(path: str, what: str, role: str) -> None:
    """Refuses a path that is absolute or leaves the root; ``/`` and what returns into the root are harmless."""
    if path.startswith("/") and path.strip("/"):
        raise InvalidArgumentError(f"{what} has {role} {_shown(path)}: an absolute path (path traversal)")
    if "\0" in path:
        raise InvalidArgumentError(f"{what} has {role} {_shown(path)}, with a NUL in it")
    depth = 0
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            raise InvalidArgumentError(f"{what} has {role} {_shown(path)}: it leads out of the root (path traversal)")


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:200] + "…")
