"""The check of a spec: is it one, and if not, every fault with its path in the document.

A good spec, the usual case, is seen to be good in C by its table (`_spec_schema`). Only when it is not, the
table is walked in Python to find the reasons. Rules that no type can tell (two namespaces of one kind,
overlapping mappings) are looked at in any case. What it is not: it never looks at the host; whether a path is
there is another question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final, TypeAlias, TypeGuard

import msgspec
from msgspec import inspect

from libctrd._spec_json import fault, is_clean, json_faults, kind, member, summary
from libctrd._spec_schema import Document
from libctrd.errors import InvalidArgumentError

# msgspec looks a type over when it is first used, and crashes when two threads are first at the same time. An import is
# one thread's alone; so it is done here, and likewise wherever a decoder of ours stands beside its type.
msgspec.json.Decoder(Document)

Walk: TypeAlias = Callable[[str, Any, list[str]], None]


def validate(spec: dict[str, Any]) -> None:
    """Raises `InvalidArgumentError` unless *spec* is a spec that a container can be started from.

    Its ``faults`` name every fault, a line each, as ``process.args[2]: expected str, got int``; the message
    is one sentence with the first few. Fields that the specification does not have are not faults. Never
    raises anything else, whatever *spec* is. Source: OCI runtime specification (config.md, config-linux.md).
    """
    faults: list[str] = []
    problem = ""
    try:
        msgspec.convert(spec, Document)
    except (msgspec.ValidationError, RecursionError) as error:
        problem = str(error)
        _document()("", spec, faults)
    if isinstance(spec, dict):
        faults += _rules(spec)
    if not is_clean(spec):
        known = {line.partition(": ")[0] for line in faults}
        faults += [line for line in json_faults(spec, strict=True) if line.partition(": ")[0] not in known]
    if problem and not faults:
        faults.append(fault("", problem))
    if faults:
        found = tuple(faults)
        raise InvalidArgumentError(f"the spec is not valid: {summary(found)}", faults=found)


# The rules that types cannot tell. They meet any document, so they look before they take.


def _objects(holder: Any, key: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects, with their places, in the list *key* of *holder*."""
    listed = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(listed, (list, tuple)):
        return []
    return [(number, item) for number, item in enumerate(listed) if isinstance(item, dict)]


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _rules(spec: dict[str, Any]) -> Iterator[str]:
    process, linux = spec.get("process"), spec.get("linux")
    yield from _once("linux.namespaces", _objects(linux, "namespaces"))
    yield from _once("process.rlimits", _objects(process, "rlimits"))
    for number, rlimit in _objects(process, "rlimits"):
        soft, hard = rlimit.get("soft"), rlimit.get("hard")
        if _is_int(soft) and _is_int(hard) and soft > hard:
            yield fault(f"process.rlimits[{number}].soft", f"must not be over the hard limit, {hard}, got {soft}")
    for key in ("uidMappings", "gidMappings"):
        yield from _apart(f"linux.{key}", _objects(linux, key))
    for number, device in _objects(linux, "devices"):
        for key in ("major", "minor"):
            if device.get("type") in ("c", "b", "u") and device.get(key) is None:
                yield fault(f"linux.devices[{number}].{key}", "required for a device")


def _once(path: str, objects: list[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for number, item in objects:
        name = item.get("type")
        if isinstance(name, str) and seen.setdefault(name, number) != number:
            yield fault(f"{path}[{number}].type", f"{name} is given already, at {path}[{seen[name]}]")


def _apart(path: str, objects: list[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """Mappings must not overlap on either side (user_namespaces(7))."""
    for side in ("containerID", "hostID"):
        ranges = []
        for number, mapping in objects:
            first, size = mapping.get(side), mapping.get("size")
            if _is_int(first) and _is_int(size):
                ranges.append((first, first + size, number))
        ranges.sort()
        for (_, end, one), (first, _, other) in pairwise(ranges):
            if first < end:
                yield fault(f"{path}[{other}].{side}", f"overlaps with {path}[{one}]")


# The walk along the table, for the reasons. One small function for each type of the table, made once.


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expected(path: str, what: str, value: Any) -> str:
    return fault(path, f"expected {what}, got {kind(value)}")


@cache
def _document() -> Walk:
    return _walk(inspect.type_info(Document))


def _walk(node: inspect.Type) -> Walk:
    return _MAKERS[type(node)](node)


def _struct(node: Any) -> Walk:
    fields = [(item.encode_name, item.required, _walk(_given(item.type))) for item in node.fields]

    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, dict):
            faults.append(_expected(path, "object", value))
            return
        for name, required, inner in fields:
            item = value.get(name)
            if item is not None:
                inner(member(path, name), item, faults)
            elif required:
                faults.append(fault(member(path, name), "required"))

    return walk


def _given(node: inspect.Type) -> inspect.Type:
    """The type of a field without its ``None``: who walks has seen already that something is there."""
    if isinstance(node, inspect.UnionType):
        (node,) = (item for item in node.types if not isinstance(item, inspect.NoneType))
    return node


def _list(node: Any) -> Walk:
    inner = _walk(node.item_type)

    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, (list, tuple)):
            faults.append(_expected(path, "array", value))
            return
        if len(value) < (node.min_length or 0):
            faults.append(fault(path, "must not be empty"))
        for number, item in enumerate(value):
            inner(f"{path}[{number}]", item, faults)

    return walk


def _dict(node: Any) -> Walk:
    inner = _walk(node.value_type)

    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, dict):
            faults.append(_expected(path, "object", value))
            return
        for key, item in value.items():
            inner(member(path, key), item, faults)

    return walk


def _bool(node: Any) -> Walk:
    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, bool):
            faults.append(_expected(path, "bool", value))

    return walk


def _int(node: Any) -> Walk:
    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not _is_int(value):
            faults.append(_expected(path, "int", value))
        elif node.ge is not None and value < node.ge:
            faults.append(fault(path, f"must be at least {node.ge}, got {_short(value)}"))
        elif node.le is not None and value > node.le:
            faults.append(fault(path, f"must be at most {node.le}, got {_short(value)}"))

    return walk


def _str(node: Any, says: str = "") -> Walk:
    matches = re.compile(node.pattern).search if node.pattern is not None else None

    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, str):
            faults.append(_expected(path, "str", value))
        elif len(value) < (node.min_length or 0):
            faults.append(fault(path, "must not be empty"))
        elif matches is not None and not matches(value):
            faults.append(fault(path, f"{says}, got {_short(value)}"))

    return walk


def _says(node: Any) -> Walk:
    return _str(node.type, node.extra["says"])


def _literal(node: Any) -> Walk:
    known = ", ".join(value or '""' for value in node.values)

    def walk(path: str, value: Any, faults: list[str]) -> None:
        if not isinstance(value, str):
            faults.append(_expected(path, "str", value))
        elif value not in node.values:
            faults.append(fault(path, f"must be one of {known}, got {_short(value)}"))

    return walk


_MAKERS: Final[dict[type, Callable[[Any], Walk]]] = {
    inspect.StructType: _struct,
    inspect.ListType: _list,
    inspect.DictType: _dict,
    inspect.BoolType: _bool,
    inspect.IntType: _int,
    inspect.StrType: _str,
    inspect.LiteralType: _literal,
    inspect.Metadata: _says,
}
