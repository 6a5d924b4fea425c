"""Archives that must not come in: each is refused in one clear sentence, and nothing of it stays."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from containerd_kit import Containerd
from images_kit import Place, import_piped, place
from oci_kit import OCI_MANIFEST, Layer, Layout, busybox, digest, header, simple, tar, write

from libctrd.engine.channel import Channel
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnavailableError, UnsupportedError
from libctrd.images import Images, Progress
from libctrd.images.store import Store

__all__ = ["place"]  # a fixture of another file

GOOD = Layer(tar({"good": b"x" * 20_000}))


def with_layer(layer: Layer) -> Layout:
    """An image whose first layer is good and whose second is *layer*."""
    layout = Layout()
    layout.name(layout.image([GOOD, layer]), "bad:1")
    return layout


def entry(name: str, **fields: object) -> Layer:
    """A layer with an entry that should not be there, after one that may."""
    return Layer(tar({"fine": b"x" * 2000, "bad": header(name, **fields)}))


def wrong_digest() -> Layout:
    layout = with_layer(Layer(tar({"a": b"1"})))
    name = digest(Layer(tar({"a": b"1"})).data)
    layout.blobs[name] = Layer(tar({"a": b"2"})).data  # as long, and a good layer by itself
    return layout


def cut_short() -> Layout:
    layout = with_layer(GOOD)
    layout.blobs[digest(GOOD.data)] = GOOD.data[:-10]
    return layout


def without_a_blob() -> Layout:
    layout = with_layer(Layer(tar({"a": b""})))
    del layout.blobs[digest(GOOD.data)]
    return layout


def without_diff_ids() -> Layout:
    layout = Layout()
    config = layout.add_json({"rootfs": {"diff_ids": []}}, "application/vnd.oci.image.config.v1+json")
    layers = [layout.add(GOOD.data, GOOD.media_type)]
    layout.name(
        layout.add_json({"schemaVersion": 2, "config": config, "layers": layers}, OCI_MANIFEST),
        "bad:1",
    )
    return layout


def as_manifest(data: bytes, media_type: str = OCI_MANIFEST, **changed: object) -> Layout:
    layout = Layout()
    layout.name({**layout.add(data, media_type), **changed}, "bad:1")
    return layout


def damaged(layer: Layer, start: int) -> Layer:
    data = layer.data[:start] + b"\xff" * 8 + layer.data[start + 8 :]
    return Layer(layer.plain, layer.packing, data=data)


CASES: dict[str, tuple[Callable[[], Layout], type[CtrdError], str]] = {
    "a wrong digest": (wrong_digest, InvalidArgumentError, r"layer sha256:\S+ of image .*bad:1.*digest"),
    "a blob cut short": (cut_short, InvalidArgumentError, r"layer sha256:\S+ has \d+ bytes in archive .*, not the \d+"),
    "a truncated gzip layer": (
        lambda: with_layer(Layer(GOOD.plain, data=GOOD.data[:-12])),
        InvalidArgumentError,
        r"layer sha256:\S+ of image \S+bad:1 is truncated: its gzip stream ends too early",
    ),
    "a truncated zstd layer": (
        lambda: with_layer(Layer(GOOD.plain, "zstd", data=Layer(GOOD.plain, "zstd").data[:-12])),
        InvalidArgumentError,
        r"is truncated: its zstd stream ends too early",
    ),
    "a truncated tar layer": (
        lambda: with_layer(Layer(GOOD.plain[:15_000], "")),
        InvalidArgumentError,
        r"is damaged or truncated: its tar cannot be read \(it ends too early\)",
    ),
    "a damaged gzip layer": (lambda: with_layer(damaged(GOOD, 30)), InvalidArgumentError, r"is damaged: its gzip"),
    "a damaged zstd layer": (
        lambda: with_layer(damaged(Layer(GOOD.plain, "zstd"), 12)),
        InvalidArgumentError,
        r"is damaged",
    ),
    "a layer that is no tar": (
        lambda: with_layer(Layer(b"nothing like a tar" * 100)),
        InvalidArgumentError,
        r"its tar cannot be read \(a header of it is none",
    ),
    "a layer with something after its end": (
        lambda: with_layer(Layer(GOOD.plain + b"and more")),
        InvalidArgumentError,
        r"something comes after its end",
    ),
    "another diff_id": (
        lambda: with_layer(Layer(tar({"a": b""}), diff_id="sha256:" + "1" * 64)),
        InvalidArgumentError,
        r"is not the one that the image's config tells of: its digest as plain tar is sha256:\S+, not sha256:1111",
    ),
    "too few diff_ids": (without_diff_ids, InvalidArgumentError, r"tells of 0 layers, and its manifest has 1"),
    "an unknown layer type": (
        lambda: with_layer(Layer(b"x", media_type="application/x-strange")),
        UnsupportedError,
        r"layer sha256:\S+ of image \S+bad:1 has the media type 'application/x-strange', which libctrd does not know",
    ),
    "an unknown config type": (
        lambda: simple("bad:1", config_type="application/vnd.cncf.helm.config.v1+json"),
        UnsupportedError,
        r"the config of image \S+bad:1 has the media type 'application/vnd.cncf.helm",
    ),
    "an unknown manifest type": (
        lambda: as_manifest(b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        UnsupportedError,
        r"image \S+bad:1 has the media type 'application/vnd.docker.distribution.manifest.v1",
    ),
    "a manifest that is no JSON": (lambda: as_manifest(b"{'"), InvalidArgumentError, r"the manifest .* cannot be read"),
    "a manifest without a config": (
        lambda: as_manifest(b'{"layers": []}'),
        InvalidArgumentError,
        r"missing required field `config`",
    ),
    "a manifest that is too large": (
        lambda: as_manifest(b"{}", size=5 << 20),
        InvalidArgumentError,
        r"said to have \d+ bytes: \d+ at most can be read",
    ),
    "a digest that is none": (
        lambda: as_manifest(b"{}", digest="sha256:../../../etc/passwd"),
        InvalidArgumentError,
        r"which is no SHA-256 digest",
    ),
    "a blob that is missing": (without_a_blob, NotFoundError, r"has no 'blobs/sha256/\S+', which it tells of"),
    "a name that leads out": (
        lambda: with_layer(entry("../../etc/cron.d/x")),
        InvalidArgumentError,
        r"layer \S+ of image \S+ has an entry '../../etc/cron.d/x': it leads out of the root \(path traversal\)",
    ),
    "a name that leads out half-way": (
        lambda: with_layer(entry("a/../../b")),
        InvalidArgumentError,
        r"path traversal",
    ),
    "an absolute name": (lambda: with_layer(entry("/etc/passwd")), InvalidArgumentError, r"an absolute path"),
    "a hard link that leads out": (
        lambda: with_layer(entry("a", type=tarfile.LNKTYPE, linkname="../../etc/shadow")),
        InvalidArgumentError,
        r"has a hard link 'a' to '../../etc/shadow': it leads out",
    ),
    "a hard link to an absolute path": (
        lambda: with_layer(entry("a", type=tarfile.LNKTYPE, linkname="/etc/shadow")),
        InvalidArgumentError,
        r"has a hard link 'a' to '/etc/shadow': an absolute path",
    ),
    "a whiteout of what lies above": (
        lambda: with_layer(entry("a/.wh...")),
        InvalidArgumentError,
        r"removes 'a/.wh...', which is no name",
    ),
    "a device node": (
        lambda: with_layer(entry("dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0)),
        InvalidArgumentError,
        r"layer \S+ of image \S+ has a device node, 'dev/sda' \(8:0\): .*allow_devices",
    ),
    "a character device": (
        lambda: with_layer(entry("mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1)),
        InvalidArgumentError,
        r"has a device node, 'mem' \(1:1\)",
    ),
}


# C26
@pytest.mark.parametrize("piped_in", [False, True], ids=["path", "pipe"])
@pytest.mark.parametrize("case", CASES)
def test_a_bad_image_is_refused_and_leaves_nothing(place: Place, tmp_path: Path, case: str, piped_in: bool) -> None:
    make, kind, text = CASES[case]
    path = make().archive(tmp_path / "bad.tar")
    if piped_in and case in ("a blob cut short", "a wrong digest"):
        text = "unexpected commit digest"  # the store finds it out, before anything else is known
    with pytest.raises(kind, match=text):
        import_piped(place, path) if piped_in else place.images.import_archive(path)
    assert place.is_empty()


# C26
def test_one_bad_image_keeps_the_others_of_its_archive_out(place: Place, tmp_path: Path) -> None:
    layout = simple("good:1")
    layout.name(layout.image([entry("../x")]), "bad:1")
    with pytest.raises(InvalidArgumentError, match="path traversal"):
        place.images.import_archive(layout.archive(tmp_path / "both.tar"))
    assert place.is_empty()


# C26
def test_the_images_that_were_there_stay(place: Place, tmp_path: Path) -> None:
    (image,) = place.images.import_archive(simple("bad:1").archive(tmp_path / "good.tar"))
    layout = Layout()
    layout.name(layout.image([Layer(tar(busybox())), entry("../x")]), "bad:1")
    with pytest.raises(InvalidArgumentError, match="path traversal"):
        place.images.import_archive(layout.archive(tmp_path / "bad.tar"))
    assert place.images.list() == [image]
    assert place.run(image, "/bin/echo", "as before") == "as before\n"


# C26
def test_device_nodes_come_in_when_they_are_allowed(place: Place, tmp_path: Path) -> None:
    device = Layer(tar({"null2": header("null2", type=tarfile.CHRTYPE, devmajor=1, devminor=3)}))
    layout = Layout()
    layout.name(layout.image([Layer(tar(busybox())), device]), "nodes:1")
    (image,) = place.images.import_archive(layout.archive(tmp_path / "nodes.tar"), allow_devices=True)
    assert place.run(image, "/bin/ls", "-l", "/null2").startswith("c")


# C26
@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda path: path, NotFoundError, r"could not open the image archive .*nothing.* \(open\): No such file"),
        (lambda path: path.parent, InvalidArgumentError, r"Is a directory \(give a tar of it\)"),
        (lambda path: written(path, b""), InvalidArgumentError, r"cannot be read as a tar: empty file"),
        (lambda path: written(path, b"no tar" * 1000), InvalidArgumentError, r"cannot be read as a tar"),
        (lambda path: written(path, b"\x1f\x8bno gzip"), InvalidArgumentError, r"its gzip stream cannot be read"),
        (lambda path: write(path, [("a", b"b")]), InvalidArgumentError, r"holds no image: it has neither oci-layout"),
        (lambda path: write(path, [("oci-layout", b"{}")]), InvalidArgumentError, r"imageLayoutVersion"),
        (
            lambda path: write(path, [("oci-layout", b'{"imageLayoutVersion": "9"}')]),
            InvalidArgumentError,
            r"an OCI layout of version '9'",
        ),
        (
            lambda path: write(path, [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]),
            InvalidArgumentError,
            r"without index.json",
        ),
        (lambda path: write(path, [("manifest.json", b"[{}]")]), InvalidArgumentError, r"missing required field"),
        (lambda path: write(path, [("manifest.json", b"[]")]), InvalidArgumentError, r"its list of images is empty"),
        (
            lambda path: write(path, [("manifest.json", json.dumps([{"Config": "c", "Layers": []}]).encode())]),
            NotFoundError,
            r"has no 'c', which it tells of",
        ),
        (lambda path: cut(simple("bad:1").archive(path)), InvalidArgumentError, r"cannot be read as a tar|no image"),
    ],
)
def test_what_is_no_archive_is_told(
    place: Place, tmp_path: Path, make: Callable[[Path], Path], kind: type[CtrdError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        place.images.import_archive(make(tmp_path / "nothing"), name="x")
    assert place.is_empty()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    return written(path, path.read_bytes()[:300_000])


# C26
def test_what_the_caller_got_wrong_is_told_before_anything_is_done(place: Place, tmp_path: Path) -> None:
    path = simple().archive(tmp_path / "image.tar")
    with pytest.raises(InvalidArgumentError, match=r"image reference 'Not Valid' is not valid"):
        place.images.import_archive(path, name="Not Valid")
    with pytest.raises(InvalidArgumentError, match=r"platform 'a/b/c/d' is not valid"):
        place.images.import_archive(path, platform="a/b/c/d")
    with pytest.raises(InvalidArgumentError, match=r"platform and all_platforms do not go together"):
        place.images.import_archive(path, platform="linux/amd64", all_platforms=True)
    with open(path, encoding="latin-1") as text, pytest.raises(InvalidArgumentError, match=r"is open as text"):
        place.images.import_archive(text)  # type: ignore[arg-type]
    assert place.is_empty()


# C26
def test_a_progress_that_raises_ends_the_import_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    def refuse(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.images.import_archive(simple().archive(tmp_path / "image.tar"), progress=refuse)
    assert place.is_empty()


# C26
def test_a_daemon_that_dies_in_an_import_is_told_and_nothing_half_imported_has_a_name(
    new_containerd: Callable[[], Containerd], tmp_path: Path
) -> None:
    daemon = new_containerd()
    place = Place(daemon)

    def kill(progress: Progress) -> None:
        if progress.done == progress.total:
            daemon.kill()

    with pytest.raises(UnavailableError, match=r"could not .* into the content store: "):
        place.images.import_archive(simple().archive(tmp_path / "image.tar"), progress=kill)
    daemon.start()
    place.channel.close()
    later = Channel(daemon.address, place.namespace)
    assert Images(later).list() == []
    Images(later).import_archive(tmp_path / "image.tar")
    later.close()


# C26
def test_a_name_that_cannot_be_had_leaves_the_others_as_they_were(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = place.images.import_archive(simple("first:1").archive(tmp_path / "old.tar"))
    layout = Layout()
    manifest = layout.image([GOOD])
    for name in ("first:1", "second:1", "third:1"):
        layout.name(manifest, name)
    put = Store.put

    def refuse(self: Store, name: str, *more: Any) -> Any:
        if "third" in name:
            raise UnavailableError("could not name it")
        return put(self, name, *more)

    monkeypatch.setattr(Store, "put", refuse)
    with pytest.raises(UnavailableError, match="could not name it"):
        place.images.import_archive(layout.archive(tmp_path / "new.tar"))
    assert place.images.list() == [old]
    assert place.run(old, "/bin/echo", "as before") == "as before\n"
