"""Decompression of a stream in bounded pieces: gzip, zstd or plain, told apart by their first bytes.

The first bytes count and not what a media type says, as in containerd itself. Whatever the ratio, a piece never has
more than `PIECE` bytes, so that a few kilobytes cannot become all of the memory. The zstd decoder is Python's own from
3.14 on, and ``backports.zstd`` before; it is loaded when the first zstd stream comes.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from libctrd.errors import InvalidArgumentError

PIECE: Final = 256 << 10
HEAD: Final = 4  # bytes that tell which it is
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f


def kind_of(head: bytes) -> str:
    """``"gzip"``, ``"zstd"`` or ``""`` (plain), from the first `HEAD` bytes."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return "zstd"
    return ""


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def plain(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """What *chunks* are when decompressed, piece by piece; each is taken only when it is needed.

    Several gzip members or zstd frames in a row are one stream. Raises `InvalidArgumentError`, which names *what*,
    when the stream is damaged or ends too early.
    """
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= HEAD:
            break
    kind = kind_of(head[:HEAD])
    if kind == "gzip":
        yield from _gunzip(head, source, what)
    elif kind == "zstd":
        yield from _unzstd(head, source, what)
    else:
        if head:
            yield head
        yield from source


def _gunzip(head: bytes, source: Iterator[bytes], what: str) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    data = head
    try:
        while True:
            while data:
                if decoder.eof:
                    if not data.strip(b"\0"):  # padding after the last member, which gzip passes over too
                        data = b""
                        break
                    decoder = zlib.decompressobj(wbits=31)
                piece = decoder.decompress(data, PIECE)
                data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                if piece:
                    yield piece
            more = next(source, None)
            if more is None:
                break
            data = more
    except zlib.error as error:
        raise InvalidArgumentError(f"{what} is damaged: its gzip stream cannot be read ({error})") from error
    while piece := decoder.decompress(decoder.unconsumed_tail, PIECE):
        yield piece
    if not decoder.eof:
        raise InvalidArgumentError(f"{what} is truncated: its gzip stream ends too early")


def _unzstd(head: bytes, source: Iterator[bytes], what: str) -> Iterator[bytes]:
    zstd = _zstd()
    decoder = zstd.ZstdDecompressor()
    data = head
    begun = False
    try:
        while True:
            while data or (begun and not decoder.eof and not decoder.needs_input):
                if decoder.eof:
                    decoder, begun = zstd.ZstdDecompressor(), False
                piece = decoder.decompress(data, PIECE)
                begun = True
                data = decoder.unused_data if decoder.eof else b""
                if piece:
                    yield piece
            more = next(source, None)
            if more is None:
                break
            data = more
    except zstd.ZstdError as error:
        raise InvalidArgumentError(f"{what} is damaged: its zstd stream cannot be read ({error})") from error
    if not decoder.eof:
        raise InvalidArgumentError(f"{what} is truncated: its zstd stream ends too early")
