"""Image references and platforms: what people type, and the one thing that it stands for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd.errors import InvalidArgumentError
from libctrd.images import platforms, reference
from libctrd.images.platforms import Platform
from libctrd.images.reference import Reference, parse

DIGEST = "sha256:" + "0a" * 32

words = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
hosts = st.one_of(
    st.just("localhost"),
    st.from_regex(r"(?:[a-z0-9]{1,8}\.){1,3}[a-z]{2,5}(?::[0-9]{1,5})?", fullmatch=True),
    st.from_regex(r"[a-zA-Z0-9]{1,8}:[0-9]{1,5}", fullmatch=True),
    st.just("[::1]:5000"),
)
paths = st.lists(words, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


# C26
@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("localhost/x", "localhost/x:latest"),
        (f"localhost:5000/x:tag@{DIGEST}", f"localhost:5000/x:tag@{DIGEST}"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        ("[::1]:5000/x/y", "[::1]:5000/x/y:latest"),
        ("ghcr.io/a/b/c__d-e.f:V1.2-x", "ghcr.io/a/b/c__d-e.f:V1.2-x"),
    ],
)
def test_a_short_name_stands_for_a_full_one(text: str, full: str) -> None:
    assert reference.normalise(text) == full


# C26
@given(hosts, paths, st.one_of(st.just(""), tags), st.sampled_from(["", DIGEST]))
def test_a_full_name_is_itself(host: str, path: str, tag: str, digest: str) -> None:
    name = Reference(host, path, tag or ("" if digest else "latest"), digest)
    assert parse(str(name)) == name
    assert name.target == (digest or name.tag)


# C26
@given(st.text(max_size=60))
def test_whatever_is_typed_is_a_reference_or_a_clear_error(text: str) -> None:
    said = ""
    try:
        name = parse(text)
    except InvalidArgumentError as error:
        said = str(error)
    else:
        assert parse(str(name)) == name
        assert re.fullmatch(r"[A-Za-z0-9._\-:@/\[\]]+", str(name))
    assert said == "" or said.startswith(f"image reference {text!r} is not valid: ")
    assert "\n" not in said


# C26
@given(paths, st.text(min_size=1, max_size=20))
def test_nothing_after_a_tag_or_digest_gets_through(path: str, junk: str) -> None:
    for text in (f"{path}:tag{junk}", f"{path}@{DIGEST}{junk}"):
        try:
            name = parse(text)
        except InvalidArgumentError:
            continue
        assert str(name).endswith(junk)
        assert "@" not in text or junk == ""


# C26
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("Upper", "'Upper' in its name"),
        ("a//b", "'' in its name"),
        ("localhost/", "'' in its name"),
        ("x:", "'' is no tag"),
        ("x:" + "t" * 129, "is no tag"),
        ("x@sha256:12", "is no digest"),
        ("x@md5:" + "a" * 32, "is no digest"),
        ("-host.org/x", "is no host"),
        ("host.org:123456/x", "is no host"),
        ("../x", "is no host"),
        ("a/../b", "'..' in its name"),
        ("x" * 300, "more than 255 characters"),
        ("a b", "'a b' in its name"),
        ("a\n", "in its name"),
        ("a:b\n", "is no tag"),
        ("user:pass@host.org/x", "is no digest"),
    ],
)
def test_what_is_no_reference_is_told(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)):
        parse(text)
    with pytest.raises(InvalidArgumentError, match=r"a str, not int"):
        parse(5)  # type: ignore[arg-type]


# C26
@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("Windows/AMD64", Platform("windows", "amd64")),
    ],
)
def test_a_platform_has_several_names(text: str, platform: Platform) -> None:
    assert platforms.parse(text) == platform
    assert platforms.parse(str(platform)) == platform


# C26
def test_the_best_platform_is_the_same_then_one_that_also_runs() -> None:
    def rank(wanted: str, offered: Platform) -> int | None:
        return platforms.rank(platforms.parse(wanted), offered)

    assert rank("linux/amd64", Platform("linux", "amd64")) == 0
    assert rank("linux/arm64", Platform("linux", "arm64", "v8")) == 0
    assert rank("linux/arm/v7", Platform("linux", "arm", "v6")) == 1
    assert rank("linux/arm/v7", Platform("linux", "arm", "v5")) == 2
    assert rank("linux/arm/v6", Platform("linux", "arm", "v7")) is None
    assert rank("linux/amd64", Platform("linux", "amd64", "v3")) == 1
    assert rank("linux/amd64/v2", Platform("linux", "amd64", "v3")) is None
    assert rank("linux/amd64", Platform("linux", "386")) is None
    assert rank("linux/amd64", Platform("windows", "amd64")) is None
    assert rank(str(platforms.host()), platforms.host()) == 0


# C26
@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "/amd64", "linux/a b", "linux//v7"])
def test_what_is_no_platform_is_told(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"is not valid: use OS/ARCHITECTURE"):
        platforms.parse(text)
