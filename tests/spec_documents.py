"""Documents for the tests of specs: whole ones, broken ones, and any data at all."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from libctrd import spec


def good() -> dict[str, Any]:
    return spec.default(["sleep", "1"], "/rootfs", memory="64m", cpus=0.5, pids_limit=10, hostname="box")


def put(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of *document* with *value* at *path*."""
    document = copy.deepcopy(document)
    at(document, path[:-1])[path[-1]] = value
    return document


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=10,
)
PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def places(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in *document* but itself."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    found = []
    for key, item in items:
        found += [(*path, key), *places(item, (*path, key))]
    return found


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    """What *document* has at *path*."""
    for step in path:
        document = document[step]
    return document


def written(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


FULL = put(
    put(
        put(good(), ("process", "rlimits"), [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
        ("hooks",),
        {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=1"], "timeout": 1}]},
    ),
    ("linux", "uidMappings"),
    [{"containerID": 0, "hostID": 100, "size": 10}],
)
PLACES = places(FULL)
OBJECTS = [path for path in PLACES if isinstance(at(FULL, path), dict)]
