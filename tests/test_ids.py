"""Ids: what may name a container, and what never reaches a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd import ids
from libctrd.errors import InvalidArgumentError


@pytest.mark.parametrize("name", ["a", "Z9", "web-1", "a.b_c-d", "0", "x" * 76])
def test_a_plain_name_is_an_id(name: str) -> None:
    assert ids.check(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/b", "..", ".", "a..b", "-a", "a-", "a\0b", "a\n", "\na", "a b", "é", "x" * 77, "a.-b", "_", "a\\b"],
)
def test_anything_else_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ids.check(name)
    assert "container id" in str(caught.value)
    assert "\n" not in str(caught.value), "one line, whatever the name holds"


def test_what_is_no_string_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not bytes"):
        ids.check(b"web")  # type: ignore[arg-type]


@given(st.text(max_size=90))
def test_an_accepted_id_is_one_harmless_path_component(name: str) -> None:
    try:
        ids.check(name)
    except InvalidArgumentError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,76}", name)
    assert name[0].isalnum()
    assert name[-1].isalnum()
    assert ".." not in name


def test_generated_ids_are_valid_and_differ() -> None:
    made = {ids.generate() for _ in range(1000)}
    assert len(made) == 1000
    assert all(ids.check(name) for name in made)
