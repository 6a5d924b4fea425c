"""The check of a spec: is it one, and if not, every fault with its path in the document.

A good spec, the usual case, is seen to be good in C by its table (`_spec_schema`). Only when it is not, the table is
walked in Python to find the reasons. Rules that no shape tells (two namespaces of one kind, overlapping mappings) are
looked at in any case. What it is not: it never looks at the host; whether a path is there is another question.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeGuard

from libctrd._spec_json import fault, json_faults, kind, member, summary
from libctrd._spec_schema import DOCUMENT, SOME_TEXT
from libctrd.errors import InvalidArgumentError
from libctrd.shape import Choice, Fields, Flag, Many, Map, Number, Shape, Text


def validate(spec: dict[str, Any]) -> None:
    """Raises `InvalidArgumentError` unless *spec* is a spec that a container can be started from.

    Its ``faults`` name every fault, a line each, as ``process.args[2]: expected str, got int``; the message
    is one sentence with the first few. Fields that the specification does not have are not faults. Never
    raises anything else, whatever *spec* is. Source: OCI runtime specification (config.md, config-linux.md).
    """
    faults: list[str] = []
    fits = DOCUMENT.holds(spec)
    if not fits:
        _walk("", DOCUMENT, spec, faults)
    if isinstance(spec, dict):
        faults += _rules(spec)
    if not fits:
        known = {line.partition(": ")[0] for line in faults}
        faults += [line for line in json_faults(spec, strict=True) if line.partition(": ")[0] not in known]
    if faults:
        found = tuple(faults)
        raise InvalidArgumentError(f"the spec is not valid: {summary(found)}", faults=found)


# The rules that shapes cannot tell. They meet any document, so they look before they take.


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


# The walk along the table, for the reasons.


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(path: str, shape: Shape, value: Any, faults: list[str]) -> None:
    """Adds to *faults* what keeps *value* from that *shape*, but for what JSON cannot hold at all."""
    expected, given, inner = _PYTHON[type(shape)]
    if not isinstance(value, given) or (isinstance(value, bool) and given is int):
        faults.append(fault(path, f"expected {expected}, got {kind(value)}"))
    elif inner is not None:
        inner(path, shape, value, faults)


def _fields(path: str, shape: Fields, value: dict[Any, Any], faults: list[str]) -> None:
    for name, inner in shape.shapes.items():
        item = value.get(name)
        if item is not None:
            _walk(member(path, name), inner, item, faults)
        elif name in shape.required:
            faults.append(fault(member(path, name), "required"))


def _many(path: str, shape: Many, value: list[Any], faults: list[str]) -> None:
    if len(value) < shape.least:
        faults.append(fault(path, "must not be empty"))
    for number, item in enumerate(value):
        _walk(f"{path}[{number}]", shape.item, item, faults)


def _map(path: str, shape: Map, value: dict[Any, Any], faults: list[str]) -> None:
    for key, item in value.items():
        _walk(member(path, key), shape.item, item, faults)


def _number(path: str, shape: Number, value: int, faults: list[str]) -> None:
    if shape.least is not None and value < shape.least:
        faults.append(fault(path, f"must be at least {shape.least}, got {_short(value)}"))
    elif shape.most is not None and value > shape.most:
        faults.append(fault(path, f"must be at most {shape.most}, got {_short(value)}"))


def _text(path: str, shape: Text, value: str, faults: list[str]) -> None:
    if shape.says and not shape.resembles(value):
        told = shape.says if shape is SOME_TEXT else f"{shape.says}, got {_short(value)}"
        faults.append(fault(path, told))


def _choice(path: str, shape: Choice, value: str, faults: list[str]) -> None:
    if value not in shape.values:
        known = ", ".join(word or '""' for word in sorted(shape.values))
        faults.append(fault(path, f"must be one of {known}, got {_short(value)}"))


_PYTHON: dict[type[Shape], tuple[str, type | tuple[type, ...], Any]] = {
    Fields: ("object", dict, _fields),
    Many: ("array", (list, tuple), _many),
    Map: ("object", dict, _map),
    Flag: ("bool", bool, None),
    Number: ("int", int, _number),
    Text: ("str", str, _text),
    Choice: ("str", str, _choice),
}
"""What a shape is in Python: how it is called in a fault, its type, and who finds the faults in it."""
