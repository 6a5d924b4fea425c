"""Shapes: yes for what is JSON and of that shape, no for everything else, and never anything but yes or no."""

from __future__ import annotations

import enum
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from spec_documents import FULL, JSON_LIKE, PLACES, PLAIN_JSON, put

from libctrd import _spec_schema as schema
from libctrd._spec_json import json_faults
from libctrd.shape import Choice, Fields, Flag, Many, Map, Number, Shape, Text, is_plain


class Words(str):
    """A text, but of a class of its own."""


class Colour(enum.IntEnum):
    RED = 1


def nested(depth: int) -> list[Any]:
    document: list[Any] = []
    for _ in range(depth - 1):
        document = [document]
    return document


def circle() -> list[Any]:
    inner: list[Any] = []
    inner += [inner, inner]
    return inner


NOT_PLAIN: list[Callable[[], Any]] = [
    lambda: b"bytes",
    lambda: {"set"},
    lambda: Words("text"),
    lambda: Colour.RED,
    lambda: OrderedDict(a=1),
    lambda: object(),
    lambda: math.nan,
    lambda: -math.inf,
    lambda: "a\0b",
    lambda: "\ud800",
    lambda: {3: 4},
    lambda: {"a\0": 4},
    lambda: {Words("a"): 4},
    lambda: {"a": {"b": [b"deep"]}},
    lambda: ("a", {"b": ({"c"},)}),
    lambda: nested(65),
    circle,
]


@pytest.mark.parametrize("make", NOT_PLAIN)
def test_what_is_not_json_is_not_plain(make: Callable[[], Any]) -> None:
    assert not is_plain(make())
    assert not is_plain([make()])
    assert not Map(Text()).holds({"known": "x", "other": make()})
    assert not Fields({"known": Text()}).holds({"known": "x", "other": make()}), "nor is it where nobody asks for it"


@given(PLAIN_JSON)
@example(nested(64))
@example(("a", ("b", {"c": (1, 2.5, True, None, 2**80)})))
def test_what_is_json_is_plain_unless_no_system_takes_it(document: Any) -> None:
    assert is_plain(document) == (json_faults(document, strict=True) == [])


@given(JSON_LIKE)
def test_of_any_data_plain_is_what_has_no_fault(document: Any) -> None:
    assert is_plain(document) == (json_faults(document, strict=True) == [])


# Each text of the schema, and the regular expression that says the same.
TEXTS: dict[str, tuple[Text, str]] = {
    "any": (schema.ANY_TEXT, r""),
    "some": (schema.SOME_TEXT, r"(?s)."),
    "version": (schema.VERSION, r"\A1\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?\Z"),
    "path": (schema.PATH, r"\A/"),
    "path or none": (schema.PATH_OR_NONE, r"\A(?:/|\Z)"),
    "variable": (schema.VARIABLE, r"\A[^=]+="),
    "capability": (schema.CAPABILITY, r"\ACAP_[A-Z0-9_]+\Z"),
    "rlimit": (schema.RLIMIT, r"\ARLIMIT_[A-Z]+\Z"),
    "access": (schema.ACCESS, r"\A[rwm]{0,3}\Z"),
}
ODD = [
    *(
        "",
        "/",
        "a/",
        "=",
        "=a",
        "a=",
        "a",
        "ab==",
        "é=",
        "=é=",
        "CAP_",
        "CAP_A",
        "CAP_a",
        "CAP_É",
        "cap_A",
        "\n",
        "/\n",
    ),
    *("RLIMIT_", "RLIMIT_X", "RLIMIT_X1", "rwm", "rwmr", "rx", "rw\n", "1.0.2", "1.0", "1..2", "1.0.2-", "1.0.2-rc.1"),
    *("1.0.2+x-y", "2.0.0", "1.0.2.3", "1.0.²", "1.0.2-é", "11.0.2", "1.0.2\n", "1.-.2", "1.0.2+", "1.10.20", " 1.0.2"),
]


@pytest.mark.parametrize("name", TEXTS)
@given(text=st.sampled_from(ODD) | st.text(max_size=6) | st.text("CAP_RLIMT1.=/rwm0-+", max_size=12))
def test_a_text_is_what_the_expression_says(name: str, text: str) -> None:
    shape, pattern = TEXTS[name]
    expected = re.search(pattern, text) is not None
    assert shape.resembles(text) == expected
    assert shape.holds(text) == (expected and is_plain(text))


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (Flag(), [True, False], [0, 1, None, "true"]),
        (Number(), [0, -(2**70), 2**70], [True, 1.0, "1", None, Colour.RED]),
        (Number(0, 2**16 - 1), [0, 65535], [-1, 65536, 2**70, -(2**70)]),
        (Number(-(2**63)), [-(2**63), 2**70], [-(2**63) - 1]),
        (Choice("a", ""), ["a", ""], ["b", "A", None, Words("a"), ["a"], "a\0"]),
        (Many(Number(), 1), [[1], (1, 2)], [[], (), [1, "x"], {1}, "1", None, {"a": 1}]),
        (Many(Many(Flag())), [[], [[]], [[True], ()]], [[True], [[1]]]),
        (Map(Number()), [{}, {"a": 1}], [{"a": "1"}, {1: 1}, [], None]),
        (
            Fields({"a": Number(), "b": Text()}, ("a",)),
            [{"a": 1}, {"a": 1, "b": None}, {"a": 1, "c": {"any": [1.5]}}, {"a": 2, "b": "x"}],
            [{}, {"a": None}, {"b": "x"}, {"a": 1, "b": 2}, {"a": 1, 3: 4}, [], None],
        ),
    ],
)
def test_a_shape_holds_what_fits_it(shape: Shape, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not shape.holds(value)] == []
    assert [value for value in bad if shape.holds(value)] == []


def test_a_document_that_fits_may_be_as_deep_as_any_and_no_deeper() -> None:
    document = {**FULL, "future": nested(63)}
    assert schema.DOCUMENT.holds(document)
    assert not schema.DOCUMENT.holds({**FULL, "future": nested(64)})


@given(st.sampled_from(PLACES), JSON_LIKE)
def test_a_spec_holds_or_some_value_in_it_is_at_fault(path: tuple[str | int, ...], value: Any) -> None:
    document = put(FULL, path, value)
    if schema.DOCUMENT.holds(document):
        assert json_faults(document, strict=True) == []


def test_a_shape_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError):
        Many(None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        Shape().holds(1)
