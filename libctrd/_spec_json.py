"""Specs as JSON: what JSON can hold, where a document holds something else, and the one encoding of a start
(C5).

What it is not: it knows no field of a spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from libctrd.errors import InvalidArgumentError
from libctrd.shape import is_plain

if TYPE_CHECKING:
    import msgspec

MAX_DEPTH: Final = 64  # as `shape.is_plain` has it: no spec comes near
ENCODER_DEPTH: Final = 500  # the encoder itself gives up somewhere beyond

_PLAIN_KEY: Final = r"[A-Za-z_][A-Za-z0-9_-]*\Z"  # compiled when there is a fault to name
_NAMES: Final[dict[type, str]] = {
    dict: "object",
    list: "array",
    tuple: "array",
    bool: "bool",
    type(None): "null",
}
_ATOMS: Final = frozenset((str, int, bool, float, type(None)))


def kind(value: object) -> str:
    """What *value* is called in a fault: the name of its JSON type, else of its Python type."""
    return _NAMES.get(type(value), type(value).__name__)


def member(path: str, key: object) -> str:
    """The path of *key* of the object at *path* (the document itself is ``""``)."""
    if not isinstance(key, str) or not re.match(_PLAIN_KEY, key):
        return f"{path}[{key!a}]"
    return f"{path}.{key}" if path else key


def fault(path: str, problem: str) -> str:
    """One line that says what is wrong where."""
    return f"{path or 'spec'}: {problem}"


def json_faults(document: object, *, strict: bool) -> list[str]:
    """Every place where *document* holds what JSON cannot hold.

    *strict*: or what no system or runtime takes, a NUL in a text or nesting beyond reason. A part that is
    held at several places is looked at once.
    """
    faults: list[str] = []
    seen: set[int] = set()
    deepest = MAX_DEPTH if strict else ENCODER_DEPTH
    pending: list[tuple[str, Any, tuple[int, ...]]] = [("", document, ())]
    while pending:
        path, value, above = pending.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) in above:
                faults.append(fault(path, "holds itself"))
            elif len(above) >= deepest:
                faults.append(fault(path, f"nested more than {deepest} deep"))
            elif id(value) not in seen:
                seen.add(id(value))
                items = _named(path, value, faults, strict) if isinstance(value, dict) else _numbered(path, value)
                # The last is looked at first: turned round, the faults come in the order of the document.
                pending.extend(reversed([(where, item, (*above, id(value))) for where, item in items]))
        elif isinstance(value, Enum):  # stands for its value, to the encoder too
            pending.append((path, value.value, above))
        elif type(value) is str:
            _text_fault(path, value, "its text", faults, strict)
        elif type(value) is float:
            if not isfinite(value):
                faults.append(fault(path, f"{value} is not a JSON number"))
        elif type(value) not in _ATOMS:
            faults.append(fault(path, f"JSON cannot hold a {type(value).__name__}"))
    return faults


def _named(path: str, value: dict[Any, Any], faults: list[str], strict: bool) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        where = member(path, key)
        if type(key) is str:
            _text_fault(where, key, "its name", faults, strict)
        else:
            faults.append(fault(where, f"its name must be str, got {kind(key)}"))
        yield where, item


def _numbered(path: str, value: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{path}[{number}]", item) for number, item in enumerate(value))


def _text_fault(path: str, text: str, what: str, faults: list[str], strict: bool) -> None:
    if strict and "\0" in text:
        faults.append(fault(path, f"{what} holds a NUL byte"))
    try:
        text.encode()
    except UnicodeEncodeError:
        faults.append(fault(path, f"{what} is not Unicode (it holds a lone surrogate)"))


@cache
def _encoder() -> msgspec.json.Encoder:
    import msgspec  # when first needed: a caller that never starts a container does not pay for it

    return msgspec.json.Encoder()


def encode(spec: dict[str, Any], *, checked: bool = False) -> bytes:
    """*spec* as JSON in UTF-8, ready to be written as ``config.json``: the one encoding of a start (C5).

    `InvalidArgumentError` when it is no dict or holds what JSON cannot hold, by its path: an object of a
    class, a number that is not finite, a lone surrogate, itself. A NUL in a text is escaped (`validate` is
    who refuses it). *checked*: `validate` has passed it, so no number in it needs another look.
    """
    if not isinstance(spec, dict):
        raise InvalidArgumentError(f"a spec is a dict, not {type(spec).__name__}")
    try:
        text = _encoder().encode(spec)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _unfit(spec) from error
    # The encoder writes null for a number that is not finite, and a spec hardly ever holds a null of its own.
    if not checked and b"null" in text and not is_plain(spec) and json_faults(spec, strict=False):
        raise _unfit(spec)
    return text


def _unfit(spec: dict[str, Any]) -> InvalidArgumentError:
    found = tuple(json_faults(spec, strict=False)) or ("spec: it cannot be written as JSON",)
    return InvalidArgumentError(f"the spec cannot be written as JSON: {summary(found)}", faults=found)


def summary(faults: tuple[str, ...]) -> str:
    """The first few of *faults* and how many there are more."""
    shown = "; ".join(faults[:3])
    return shown if len(faults) <= 3 else f"{shown}; and {len(faults) - 3} more"
