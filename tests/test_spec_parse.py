"""The texts of people that become pieces of a spec: sizes, users and mounts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from spec_documents import good

from libctrd import spec
from libctrd.errors import InvalidArgumentError

# Texts of people


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("64m", 64 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("1 kb", 1024),
        ("10b", 10),
        ("0.1k", 102),
        ("1P", 1 << 50),
        (7, 7),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_size_is_read(text: str | int, size: int) -> None:
    assert spec.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1.m", ".5g", "1e3", "64x", "٣", "9000p", -1, True, 1.5, None, "1\0"])
def test_what_is_no_size_is_refused_by_name(text: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 2**40), st.sampled_from(["", "k", "M", "gib", "KB"]))
def test_sizes_are_powers_of_1024(number: int, unit: str) -> None:
    power = " kmgt".index(unit[:1].lower() or " ")
    assume(number * 1024**power < 2**63)
    assert spec.parse_size(f"{number}{unit}") == number * 1024**power


@pytest.mark.parametrize(
    ("user", "parsed"),
    [
        ("1000", {"uid": 1000, "gid": 0}),
        ("1000:50", {"uid": 1000, "gid": 50}),
        (7, {"uid": 7, "gid": 0}),
        ((1, 2), {"uid": 1, "gid": 2}),
        ((1, 2, [3, 4]), {"uid": 1, "gid": 2, "additionalGids": [3, 4]}),
    ],
)
def test_a_user_is_read(user: Any, parsed: dict[str, Any]) -> None:
    assert spec.parse_user(user) == parsed


@pytest.mark.parametrize(
    "user",
    [
        "",
        "root",
        "1:",
        ":1",
        "1:2:3",
        "-1",
        "4294967295",
        -1,
        True,
        (1,),
        (1, 2, 3),
        (1, 2, "3"),
        (1, 2, [3], 4),
        1.5,
    ],
)
def test_what_is_no_user_is_refused_by_name(user: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse_user(user)
    assert repr(user) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        (
            "type=bind,source=/a,target=/b,ro",
            {"destination": "/b", "type": "bind", "source": "/a", "options": ["rbind", "rprivate", "ro"]},
        ),
        (
            "src=/a,dst=/b,bind-propagation=rslave,readonly=false,options=nosuid:nodev",
            {
                "destination": "/b",
                "type": "bind",
                "source": "/a",
                "options": ["rbind", "rslave", "nosuid", "nodev"],
            },
        ),
        (
            'type=bind,"source=/a,b",destination=/c d,bind-nonrecursive',
            {"destination": "/c d", "type": "bind", "source": "/a,b", "options": ["bind", "rprivate"]},
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777",
            {
                "destination": "/t",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "noexec", "size=1048576", "mode=1777"],
            },
        ),
        (
            "type=mqueue,target=/q",
            {"destination": "/q", "type": "mqueue", "source": "mqueue", "options": []},
        ),
    ],
)
def test_a_mount_is_read(text: str, mount: dict[str, Any]) -> None:
    assert spec.parse_mount(text) == mount
    spec.default(mounts=[mount])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "target"),
        ("type=bind,source=/a", "target"),
        ("type=bind,target=/b", "source"),
        ("type=bind,source=/a,target=b", "absolute"),
        ("type=volume,source=v,target=/b", "volumes"),
        ("type=bind,src=/a,source=/b,target=/c", "source is given twice"),
        ("type=bind,src=/a,target=/c,colour=red", "'colour'"),
        ("type=bind,src=/a,target=/c,ro=maybe", "'maybe'"),
        ("type=bind,src,target=/c", "source needs a value"),
        ("type=bind,src=/a,target=/c,bind-propagation=up", "bind-propagation is one of"),
        ("type=bind,src=/a,target=/c,tmpfs-size=1m", "tmpfs-size is for type=tmpfs only"),
        ("type=tmpfs,target=/c,tmpfs-mode=9", "octal"),
        ("type=tmpfs,target=/c,tmpfs-size=lots", "'lots'"),
        ("type=tmpfs,target=/c,source=/x", "tmpfs has no source"),
        ('type=bind,"src=/a', "not valid"),
        ("type=tmpfs,target=/c\0", "one line"),
    ],
)
def test_what_is_no_mount_is_refused_with_the_reason(text: str, named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse_mount(text)
    assert named in str(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"(type|src|target|ro|options|tmpfs-size)=[a-z/:,0-9\"]*", fullmatch=True))
def test_a_parsed_mount_is_always_a_valid_one(text: str) -> None:
    try:
        mount = spec.parse_mount(text)
    except InvalidArgumentError:
        return
    spec.validate({**good(), "mounts": [mount]})
