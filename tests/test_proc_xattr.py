"""Extended attributes, by Python and without: one that is built for musl has often no functions for them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from libctrd import _checks, _xattr

NAME = "user.ctrd"


@pytest.fixture(params=["by Python", "without"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A file, open, that has none yet."""
    if not hasattr(os, "setxattr"):
        pytest.skip("this Python cannot set attributes: nothing to look at")
    if request.param == "without":
        if _checks.PORTABLE:
            pytest.skip("the portable build has no call of its own for them: POSIX has none")
        monkeypatch.delattr(os, "getxattr")
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDONLY)
    yield fd
    os.close(fd)


def put(fd: int, value: bytes) -> None:
    try:
        os.setxattr(fd, NAME, value)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("the file system of the tests has no attributes")
        raise


@pytest.mark.parametrize("value", [b"y", b"", b"\0\x01 all of it \0", b"x" * 255])
def test_the_value_is_told_as_it_was_set(opened: int, value: bytes) -> None:
    put(opened, value)
    assert _xattr.get(opened, NAME) == value


def test_one_that_is_not_set_is_none(opened: int) -> None:
    assert _xattr.get(opened, NAME) is None


def test_what_cannot_be_told_is_an_error(opened: int, tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_PATH)  # held, and not open for any use
    for fd, name, expected in [(held, NAME, errno.EBADF), (opened, "", errno.ERANGE)]:
        with pytest.raises(OSError, match=re.escape(os.strerror(expected))) as caught:
            _xattr.get(fd, name)
        assert caught.value.errno == expected
    os.close(held)


def test_a_longer_value_is_not_cut(opened: int) -> None:
    put(opened, b"x" * 256)
    if hasattr(os, "getxattr"):
        assert _xattr.get(opened, NAME) == b"x" * 256
        return
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ERANGE))):
        _xattr.get(opened, NAME)
