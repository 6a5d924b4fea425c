"""What is looked for in a layer, and how: whatever the packing and however its bytes are cut into pieces."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oci_kit import PACKERS, digest, filler, header, tar, zstd

from libctrd.errors import InvalidArgumentError
from libctrd.images import compression, layers


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


# C26
@given(st.binary(max_size=3000), st.sampled_from(sorted(PACKERS)), st.integers(1, 4000))
def test_every_packing_is_undone_in_whatever_pieces_it_comes(data: bytes, packing: str, size: int) -> None:
    if packing == "" and compression.kind_of(data[:4]):
        data = b"-" + data
    packed = PACKERS[packing](data)
    assert b"".join(compression.plain(pieces(packed, size), "it")) == data


# C26
@pytest.mark.parametrize("pack", [lambda data: gzip.compress(data), zstd.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_several_packed_streams_in_a_row_are_one(pack: object, size: int) -> None:
    data = filler(10_000)
    packed = b"".join(pack(part) for part in pieces(data, 3000))  # type: ignore[operator]
    assert b"".join(compression.plain(pieces(packed, size), "it")) == data


# C26
@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_every_cut_is_noticed(packing: str) -> None:
    packed = PACKERS[packing](filler(2000))
    for end in range(4, len(packed)):
        with pytest.raises(InvalidArgumentError, match=r"it is (truncated|damaged)"):
            list(compression.plain([packed[:end]], "it"))


# C26
@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_a_little_that_unpacks_to_very_much_stays_small_in_memory(packing: str) -> None:
    bomb = PACKERS[packing](b"\0" * (64 << 20))
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in compression.plain([bomb], "it"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert most < 4 << 20


# C26
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read_and_its_digest_comes_out(format: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in (("short", b"x" * 1000), ("d" * 90 + "/" + "n" * 90, b"y"), ("ünïcode", b"")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        archive.addfile(header("link", type=tarfile.SYMTYPE, linkname="../../anywhere/at/all"))
        archive.addfile(header("hard", type=tarfile.LNKTYPE, linkname="short"))
        archive.addfile(header("fifo", type=tarfile.FIFOTYPE))
    data = buffer.getvalue()
    for size in (1, 511, 513, 1 << 20):
        assert layers.check(pieces(data, size), "it") == digest(data)


# C26
@pytest.mark.parametrize("data", [b"", b"\0" * 512, b"\0" * 1024, b"\0" * 10240])
def test_an_empty_layer_is_one(data: bytes) -> None:
    assert layers.check([data], "it") == digest(data)
    assert layers.check([gzip.compress(data)], "it") == digest(data)


# C26
@pytest.mark.parametrize("name", ["./", ".", "/", "./a/../b", "a//b", "a/./b", ".wh.a", "a/.wh..wh..opq", "...", "..a"])
def test_harmless_names_are_fine(name: str) -> None:
    data = tar({"x": header(name)})
    assert layers.check([data], "it") == digest(data)


# C26
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), min_size=1, max_size=8).map("/".join))
def test_a_name_is_refused_if_and_only_if_it_leaves_the_root(name: str) -> None:
    depth, leaves = 0, name.startswith("/") and name.strip("/") != ""
    for part in name.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        leaves = leaves or depth < 0
    refused = False
    try:
        layers._check_path(name, "it", "an entry")
    except InvalidArgumentError:
        refused = True
    assert refused == leaves


# C26
def test_whatever_is_flipped_in_a_tar_no_error_but_ours_comes_out() -> None:
    good = tar({"a": b"x" * 700, "d" * 150: b"y", "link": "a", "dir": None})
    chance = random.Random(26)
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        end = chance.choice([len(data), chance.randrange(len(data))])
        try:
            assert layers.check([bytes(data[:end])], "it") == digest(bytes(data[:end]))
        except InvalidArgumentError:
            continue


# C26
def test_a_header_that_wants_much_memory_is_refused() -> None:
    buffer = io.BytesIO()
    entry = header("././@LongLink", type=tarfile.GNUTYPE_LONGNAME)
    entry.size = 1 << 30
    buffer.write(entry.tobuf(tarfile.GNU_FORMAT))
    buffer.write(b"x" * 4096)
    with pytest.raises(InvalidArgumentError, match=r"a header of it has \d+ bytes"):
        layers.check([buffer.getvalue()], "it")


# C26
def test_what_tarfile_takes_for_the_end_hides_nothing() -> None:
    device = tar({"x": header("sda", type=tarfile.BLKTYPE)})
    for between in (b"\1" * 512, b"\0" * 512, b"\0" * 1024):
        with pytest.raises(InvalidArgumentError, match=r"a header of it is none|something comes after its end"):
            layers.check([tar({"a": b"1"})[:1024] + between + device], "it")


# C26
def test_many_entries_take_no_more_memory_than_few() -> None:
    def most(count: int) -> int:
        data = tar({f"file{number}": b"" for number in range(count)})
        tracemalloc.start()
        try:
            layers.check(pieces(data, 1 << 16), "it")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most(100)
    assert most(20_000) < most(100) + (512 << 10)
