"""From an image's config to a container's spec: what the image says, what the caller says, and who is who in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from libctrd import protos
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.images import config
from libctrd.images.config import Accounts
from libctrd.images.documents import Settings

PASSWD = """root:x:0:0:root:/root:/bin/sh
guest:x:1000:1001::/:/bin/sh
# a comment, and lines that are none
broken:x:
nobody:x:65534:65534:::
1234:x:77:77:a name of digits::
"""
GROUP = """root:x:0:
guest:x:1001:
audio:x:29:guest,root
video:x:44: guest , root
no:members:x
wheel:x:10:root
"""
KNOWN = Accounts(PASSWD, GROUP)


def made(settings: Settings, args: list[str] | None = None, known: Accounts = KNOWN, **more: Any) -> dict[str, Any]:
    return config.to_spec(settings, args, lambda: known, "the-image", rootless=False, **more)


# C26
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "args", "expected"),
    [
        (["a"], ["b"], None, ["a", "b"]),
        (["a"], ["b"], [], ["a"]),
        (["a"], ["b"], ["c", "d"], ["a", "c", "d"]),
        (None, ["b"], None, ["b"]),
        (None, ["b"], ["c"], ["c"]),
        (["a"], None, None, ["a"]),
    ],
)
def test_what_runs_is_the_entrypoint_and_then_the_callers_or_the_images_words(
    entrypoint: list[str] | None, cmd: list[str] | None, args: list[str] | None, expected: list[str]
) -> None:
    assert made(Settings(entrypoint=entrypoint, cmd=cmd), args)["process"]["args"] == expected


# C26
def test_an_image_that_does_not_say_what_to_run_wants_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match=r"image the-image does not say what to run"):
        made(Settings())
    assert made(Settings(), ["true"])["process"]["args"] == ["true"]


# C26
def test_the_callers_word_counts_before_the_images() -> None:
    settings = Settings(cmd=["a"], env=["PATH=/mine", "A=1", "broken", "=x"], working_dir="/tmp", stop_signal="QUIT")
    spec = made(settings)
    assert spec["process"]["env"] == ["PATH=/mine", "A=1"]
    assert spec["process"]["cwd"] == "/tmp"
    assert spec["root"] == {"path": "rootfs", "readonly": False}
    assert spec["annotations"] == {"org.opencontainers.image.stopSignal": "QUIT"}
    spec = made(settings, env={"A": "2", "B": "3"}, cwd="/", hostname="here", read_only=True)
    assert spec["process"]["env"] == ["PATH=/mine", "A=2", "B=3"]
    assert (spec["process"]["cwd"], spec["hostname"], spec["root"]["readonly"]) == ("/", "here", True)
    assert made(Settings(cmd=["a"]))["process"]["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


# C26
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [0, 29, 44, 10])),
        ("root", (0, 0, [0, 29, 44, 10])),
        ("guest", (1000, 1001, [1001, 29, 44])),
        ("1000", (1000, 1001, [1001, 29, 44])),
        ("guest:audio", (1000, 29, [29])),
        ("guest:5", (1000, 5, [5])),
        ("4000", (4000, 0, [0])),
        ("4000:4001", (4000, 4001, [4001])),
        ("1234", (77, 77, [77])),
    ],
)
def test_users_and_groups_are_those_of_the_image(user: str, expected: tuple[int, int, list[int]]) -> None:
    assert config.resolve(user, lambda: KNOWN, "i") == expected
    who = made(Settings(cmd=["a"], user=user))["process"]["user"]
    assert (who["uid"], who["gid"], who["additionalGids"]) == expected
    assert made(Settings(cmd=["a"], user="nobody"), user=user)["process"]["user"] == who


# C26
@pytest.mark.parametrize(
    ("user", "kind", "text"),
    [
        ("who", NotFoundError, r"user 'who' is not in /etc/passwd of image i"),
        ("guest:who", NotFoundError, r"group 'who' is not in /etc/group of image i"),
        ("guest:", InvalidArgumentError, r"user 'guest:' of image i is not valid"),
        ("99999999999", NotFoundError, r"is not in /etc/passwd"),
        ("-1", NotFoundError, r"is not in /etc/passwd"),
    ],
)
def test_a_user_that_the_image_does_not_have_is_told(user: str, kind: type[CtrdError], text: str) -> None:
    with pytest.raises(kind, match=text):
        config.resolve(user, lambda: KNOWN, "i")


# C26
def test_numbers_and_root_need_no_look_into_the_image() -> None:
    def blind() -> Accounts:
        raise UnsupportedError("no directories")

    assert config.resolve("", blind, "i") == (0, 0, [0])
    assert config.resolve("root", blind, "i") == (0, 0, [0])
    assert config.resolve("5:6", blind, "i") == (5, 6, [6])
    for user in ("guest", "5:audio", "root:audio"):
        with pytest.raises(
            UnsupportedError, match=r"its files cannot be read from here \(no directories\): give numbers"
        ):
            config.resolve(user, blind, "i")


# ---- the files of an image -------------------------------------------------------------------------------------------


def overlay(*tops: Path) -> list[Any]:
    """The mounts of an overlay of *tops*, the uppermost first."""
    mount = protos.package("containerd.types").Mount
    return [mount(type="overlay", options=["index=off", "lowerdir=" + ":".join(map(str, tops))])]


def layer(path: Path, **files: str) -> Path:
    (path / "etc").mkdir(parents=True)
    for name, text in files.items():
        (path / "etc" / name).write_text(text)
    return path


# C26
def test_the_uppermost_file_counts_and_a_removed_one_is_not_there(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", passwd="low", group="low")
    high = layer(tmp_path / "high", passwd="high")
    (tmp_path / "empty").mkdir()
    assert config.accounts_in(overlay(tmp_path / "empty", high, low)) == Accounts("high", "low")
    bind = protos.package("containerd.types").Mount(type="bind", source=str(low))
    assert config.accounts_in([bind]) == Accounts("low", "low")
    assert config.accounts_in(overlay(tmp_path / "empty")) == Accounts(None, None)
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "etc").write_text("no directory")
    assert config.accounts_in(overlay(gone, low)) == Accounts(None, None)


# C26
@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts can be made by root alone")
def test_whiteouts_and_opaque_directories_hide_what_lies_below(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", passwd="low", group="low")
    white = layer(tmp_path / "white")
    os.mknod(white / "etc/passwd", 0o20000, 0)
    assert config.accounts_in(overlay(white, low)) == Accounts(None, "low")
    opaque = layer(tmp_path / "opaque", group="high")
    os.setxattr(opaque / "etc", "trusted.overlay.opaque", b"y")
    assert config.accounts_in(overlay(opaque, low)) == Accounts(None, "high")
    os.setxattr(opaque / "etc", "trusted.overlay.opaque", b"n")
    assert config.accounts_in(overlay(opaque, low)) == Accounts("low", "high")


# C26
def test_no_link_leads_to_files_of_the_host(tmp_path: Path) -> None:
    host = layer(tmp_path / "host", passwd="secret", group="secret")
    top = tmp_path / "top"
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").symlink_to(host / "etc/passwd")
    with pytest.raises(UnsupportedError, match=r"/etc/passwd is no regular file"):
        config.accounts_in(overlay(top))
    link = tmp_path / "link"
    link.mkdir()
    (link / "etc").symlink_to(host / "etc")
    assert config.accounts_in(overlay(link)) == Accounts(None, None)
    fifo = layer(tmp_path / "fifo")
    os.mkfifo(fifo / "etc/passwd")
    assert config.accounts_in(overlay(fifo)) == Accounts(None, None)


# C26
def test_what_is_not_made_of_directories_here_cannot_be_looked_into(tmp_path: Path) -> None:
    mount = protos.package("containerd.types").Mount
    for mounts in ([], [mount(type="ext4", source="/dev/x")], overlay(tmp_path / "none")):
        with pytest.raises(UnsupportedError):
            config.accounts_in(mounts)
