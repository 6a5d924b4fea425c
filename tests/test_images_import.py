"""Images that are imported into a containerd: archives of every kind, and what is there afterwards."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from images_kit import Place, import_piped, place
from oci_kit import Layer, Layout, busybox, docker_save, simple, tar

from libctrd.errors import InvalidArgumentError, NotFoundError
from libctrd.images import Progress, platforms

__all__ = ["place"]  # a fixture of another file

NAME = "docker.io/library/test:latest"


def three_layers(**image: object) -> Layout:
    """An image whose layers are packed in three ways."""
    layout = Layout()
    layers = [
        Layer(tar(busybox())),
        Layer(tar({"second": b"zstd"}), "zstd"),
        Layer(tar({"third": b"plain", "bin/.wh.ls": b""}), ""),
    ]
    layout.name(layout.image(layers, **image), NAME)  # type: ignore[arg-type]
    return layout


# C26
def test_an_imported_image_runs_with_all_its_layers(place: Place, tmp_path: Path) -> None:
    (image,) = place.images.import_archive(three_layers().archive(tmp_path / "image.tar"))
    assert image.name == NAME
    assert image.platforms == ("linux/amd64",)
    said = place.run(image, "/bin/sh", "-c", "cat second third; echo; ls; echo /bin/l*")
    assert said.startswith("zstdplain\n")
    assert "/bin/l*" in said, "the third layer removes ls"
    assert "complete (4/4)" in place.ctr("images", "check"), "the config and the layers"


# C26
@pytest.mark.parametrize("packing", ["", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["path", "file", "bytes", "pipe"])
def test_an_archive_comes_from_a_path_a_file_or_a_pipe_packed_or_not(
    place: Place, tmp_path: Path, kind: str, packing: str
) -> None:
    layout = three_layers()
    path = layout.archive(tmp_path / "image.tar", packing)
    if kind == "path":
        (image,) = place.images.import_archive(str(path))
    elif kind == "file":
        with open(path, "rb") as file:
            (image,) = place.images.import_archive(file)
            assert not file.closed
    elif kind == "bytes":
        (image,) = place.images.import_archive(io.BytesIO(path.read_bytes()))
    else:
        (image,) = import_piped(place, path)
    assert image.digest == layout.entries[0]["digest"]
    assert set(place.content()) == set(layout.blobs)


# C26
@pytest.mark.parametrize(
    ("kind", "packing", "layer_packing"),
    [("path", "", ""), ("pipe", "", ""), ("path", "", "zstd"), ("pipe", "", "gzip"), ("path", "gzip", "gzip")],
)
def test_what_docker_save_writes_is_imported_under_all_its_tags(
    place: Place, tmp_path: Path, kind: str, packing: str, layer_packing: str
) -> None:
    twice = Layer(tar({"twice": b"once"}), layer_packing)
    layers = [Layer(tar(busybox()), layer_packing), twice, twice]
    path = docker_save(tmp_path / "saved.tar", layers, ["test:1", "example.org/team/test:2"], packing=packing)
    images = place.images.import_archive(path) if kind == "path" else import_piped(place, path)
    assert [image.name for image in images] == ["docker.io/library/test:1", "example.org/team/test:2"]
    assert images[0].digest == images[1].digest
    assert place.run(images[1], "/bin/cat", "/twice") == "once"


# C26
def test_of_several_platforms_this_hosts_comes_in_and_the_index_is_kept(place: Place, tmp_path: Path) -> None:
    layout = Layout()
    ours = layout.image([Layer(tar(busybox()))], platform=str(platforms.host()))
    arm = layout.image([Layer(tar({"arm": b"v7"}))], platform="linux/arm/v7")
    index = layout.name(layout.index([arm, ours]), NAME)
    path = layout.archive(tmp_path / "image.tar")
    (image,) = place.images.import_archive(path)
    assert image.digest == index["digest"]
    assert image.platforms == (str(platforms.host()),)
    assert place.run(image, "/bin/echo", "ours") == "ours\n"
    assert len(place.content()) == 4, "the index, a manifest, a config and a layer"

    (image,) = place.images.import_archive(path, all_platforms=True)
    assert set(image.platforms) == {str(platforms.host()), "linux/arm/v7"}
    assert len(place.content()) == 7
    with pytest.raises(NotFoundError, match=r"has nothing for linux/s390x, only for linux/arm/v7, linux/"):
        place.images.import_archive(path, platform="linux/s390x")


# C26
def test_another_platform_can_be_asked_for(place: Place, tmp_path: Path) -> None:
    layout = Layout()
    manifests = [layout.image([Layer(tar({name: b""}))], platform=f"linux/{name}") for name in ("s390x", "ppc64le")]
    layout.name(layout.index(manifests, docker=True), NAME)
    (image,) = place.images.import_archive(layout.archive(tmp_path / "image.tar"), platform="linux/ppc64le")
    assert image.platforms == ("linux/ppc64le",)
    assert place.images.spec("test", rootless=False)["process"]["args"] == ["/bin/sh"]


# C26
def test_images_of_one_name_become_one_image_for_several_platforms(place: Place, tmp_path: Path) -> None:
    layout = Layout()
    for platform in ("linux/amd64", "linux/arm64"):
        layout.name(layout.image([Layer(tar({"for": platform.encode()}))], platform=platform), NAME)
    (image,) = place.images.import_archive(layout.archive(tmp_path / "image.tar"), all_platforms=True)
    assert image.media_type == "application/vnd.oci.image.index.v1+json"
    assert image.platforms == ("linux/amd64", "linux/arm64")


# C26
@pytest.mark.parametrize(
    ("name", "ref", "given", "expected"),
    [
        ("busybox:1", "1", None, "docker.io/library/busybox:1"),
        ("", "example.org/app:2", None, "example.org/app:2"),
        ("", "app:2", None, "docker.io/library/app:2"),
        ("", "2", "example.org/app", "example.org/app:2"),
        ("", "", "example.org/app", "example.org/app:latest"),
        ("busybox:1", "", "localhost:5000/mine", "localhost:5000/mine:1"),
        ("busybox:1", "", "mine:3", "docker.io/library/mine:3"),
    ],
)
def test_the_name_is_the_archives_or_the_one_given(
    place: Place, tmp_path: Path, name: str, ref: str, given: str | None, expected: str
) -> None:
    layout = Layout()
    layout.name(layout.image([Layer(tar({"a": b""}))]), name, ref)
    (image,) = place.images.import_archive(layout.archive(tmp_path / "image.tar"), name=given)
    assert image.name == expected


# C26
@pytest.mark.parametrize("ref", ["", "1.0"])
def test_an_image_without_a_name_wants_one(place: Place, tmp_path: Path, ref: str) -> None:
    layout = Layout()
    layout.name(layout.image([Layer(tar({"a": b""}))]), "", ref)
    with pytest.raises(InvalidArgumentError, match=r"does not tell the name of an image in it.*: give one"):
        place.images.import_archive(layout.archive(tmp_path / "image.tar"))
    assert place.is_empty()


# C26
def test_a_name_given_again_stands_for_the_new_image_and_the_old_one_goes(place: Place, tmp_path: Path) -> None:
    (old,) = place.images.import_archive(simple().archive(tmp_path / "old.tar"))
    (new,) = place.images.import_archive(three_layers().archive(tmp_path / "new.tar"))
    assert place.images.get("test").digest == new.digest != old.digest
    (other,) = place.images.import_archive(simple("other:1").archive(tmp_path / "other.tar"))
    place.images.remove(other.name)
    assert old.digest not in place.content()


# C26
def test_what_is_there_is_not_sent_again_and_says_so(place: Place, tmp_path: Path) -> None:
    path = three_layers().archive(tmp_path / "image.tar")
    first: list[Progress] = []
    again: list[Progress] = []
    place.images.import_archive(path, progress=first.append)
    place.images.import_archive(path, progress=again.append)
    layers = {step.digest: step.total for step in first}
    assert len(layers) == 3
    for digest, size in layers.items():
        steps = [step.done for step in first if step.digest == digest]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (0, size)
        assert not any(step.existed for step in first)
        assert [step.existed for step in again if step.digest == digest] == [False, True]


# C26
def test_what_another_namespace_has_is_shared(place: Place, tmp_path: Path) -> None:
    path = three_layers().archive(tmp_path / "image.tar")
    place.images.import_archive(path)
    other = Place(place.daemon)
    try:
        (image,) = other.images.import_archive(path)
        assert other.run(image, "/bin/cat", "/second") == "zstd"
    finally:
        other.close()
    assert place.run(place.images.get("test"), "/bin/cat", "/second") == "zstd"


# C26
def test_images_of_other_clients_are_listed_and_made_ready_when_a_container_wants_them(
    place: Place, tmp_path: Path
) -> None:
    path = three_layers(config={"User": "guest", "Cmd": ["id"]}).archive(tmp_path / "image.tar")
    place.ctr("images", "import", "--no-unpack", str(path))
    assert [image.name for image in place.images.list()] == [NAME]
    assert place.images.spec("test")["process"]["user"]["uid"] == 1000
    with place.images.leased() as lease:
        mounts = place.images.prepare("test", "mine", lease=lease)
        assert mounts
        assert "mine" in place.ctr("snapshots", "--snapshotter", place.images.snapshotter, "ls")
        place.images.unprepare("mine")
    place.images.unprepare("mine")


# C26
def test_an_image_is_removed_with_all_that_only_it_held(place: Place, tmp_path: Path) -> None:
    place.images.import_archive(three_layers().archive(tmp_path / "image.tar"))
    place.images.import_archive(simple("other:1").archive(tmp_path / "other.tar"))
    place.images.remove("test")
    assert place.run(place.images.get("other:1"), "/bin/echo", "still here") == "still here\n"
    place.images.remove("docker.io/library/other:1")
    assert place.is_empty()
    for ask in (place.images.get, place.images.remove, place.images.spec):
        with pytest.raises(
            NotFoundError, match=r"image docker.io/library/other:1 is not in namespace .*pull or import"
        ):
            ask("other:1")
