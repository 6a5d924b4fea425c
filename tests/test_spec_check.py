"""The check of specs: every fault, each at its place, and nothing else raised whatever it is given."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_documents import FULL, JSON_LIKE, PLACES, good, put, written

from libctrd import spec
from libctrd.errors import InvalidArgumentError


def faults(document: Any) -> tuple[str, ...]:
    """The faults that `validate` finds in *document*; none when it is valid."""
    try:
        spec.validate(document)
    except InvalidArgumentError as error:
        found = error.faults
    else:
        return ()
    assert found
    return found


# Checking

WRONG: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("ociVersion",), "2.0.0", "ociVersion: must be a version 1.x.y"),
    (("ociVersion",), None, "ociVersion: required"),
    (("process", "args", 1), 3, "process.args[1]: expected str, got int"),
    (("process", "args"), [], "process.args: must not be empty"),
    (("process", "args"), "sh", "process.args: expected array, got str"),
    (("process",), None, "process: required"),
    (("process", "cwd"), "tmp", "process.cwd: must be an absolute path, got 'tmp'"),
    (("process", "terminal"), 1, "process.terminal: expected bool, got int"),
    (("process", "consoleSize"), {"height": 1}, "process.consoleSize.width: required"),
    (("process", "user", "uid"), -1, "process.user.uid: must be at least 0, got -1"),
    (("process", "user", "uid"), True, "process.user.uid: expected int, got bool"),
    (("process", "user", "gid"), 2**32, "process.user.gid: must be at most 4294967295"),
    (("process", "env", 0), "PATH", "process.env[0]: must be NAME=value"),
    (("process", "capabilities", "bounding", 3), "KILL", "process.capabilities.bounding[3]: must be a cap"),
    (
        ("process", "rlimits"),
        [{"type": "NOFILE", "soft": 1, "hard": 1}],
        "process.rlimits[0].type: must be a limit",
    ),
    (
        ("process", "rlimits"),
        [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}],
        "process.rlimits[0].soft: must not be over the hard limit, 1, got 2",
    ),
    (
        ("process", "rlimits"),
        [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
        "process.rlimits[1].type: RLIMIT_CPU is given already, at process.rlimits[0]",
    ),
    (("root", "path"), "", "root.path: must not be empty"),
    (("root",), {}, "root.path: required"),
    (("root",), [], "root: expected object, got array"),
    (("hostname",), "a\0b", "hostname: its text holds a NUL byte"),
    (("mounts", 3, "destination"), "x", "mounts[3].destination: must be an absolute path"),
    (("mounts", 3), None, "mounts[3]: expected object, got null"),
    (("mounts", 0, "options"), [1.5], "mounts[0].options[0]: expected str, got float"),
    (("annotations",), {"a.b/c": 1}, "annotations['a.b/c']: expected str, got int"),
    (("annotations",), {"a\0": "x"}, "annotations['a\\x00']: its name holds a NUL byte"),
    (("hooks",), {"prestart": [{"path": "x"}]}, "hooks.prestart[0].path: must be an absolute path"),
    (
        ("hooks",),
        {"poststop": [{"path": "/x", "timeout": 0}]},
        "hooks.poststop[0].timeout: must be at least 1",
    ),
    (("linux", "namespaces", 0, "type"), "pids", "linux.namespaces[0].type: must be one of cgroup, ipc"),
    (("linux", "namespaces", 1, "type"), "pid", "linux.namespaces[1].type: pid is given already"),
    (("linux", "namespaces", 1, "path"), "x", "linux.namespaces[1].path: must be an absolute path"),
    (("linux", "uidMappings"), [{"containerID": 0, "hostID": 0}], "linux.uidMappings[0].size: required"),
    (
        ("linux", "gidMappings"),
        [{"containerID": 0, "hostID": 0, "size": 2}, {"containerID": 1, "hostID": 5, "size": 1}],
        "linux.gidMappings[1].containerID: overlaps with linux.gidMappings[0]",
    ),
    (("linux", "resources", "memory", "limit"), "64m", "linux.resources.memory.limit: expected int, got str"),
    (("linux", "resources", "memory", "limit"), 1.0, "linux.resources.memory.limit: expected int, got float"),
    (
        ("linux", "resources", "devices", 0, "access"),
        "x",
        "linux.resources.devices[0].access: must be made of r, w",
    ),
    (("linux", "devices"), [{"type": "c", "path": "/dev/x", "minor": 1}], "linux.devices[0].major: required"),
    (("linux", "maskedPaths", 2), "proc", "linux.maskedPaths[2]: must be an absolute path"),
    (("linux", "rootfsPropagation"), "other", "linux.rootfsPropagation: must be one of"),
    (("linux", "seccomp"), {}, "linux.seccomp.defaultAction: required"),
    (("future",), {"deep": [b"x"]}, "future.deep[0]: JSON cannot hold a bytes"),
    (("future",), math.inf, "future: inf is not a JSON number"),
    (("future",), {3: 4}, "future[3]: its name must be str, got int"),
    (("future",), "\ud800", "future: its text is not Unicode"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_a_fault_is_named_with_its_path(path: tuple[str | int, ...], value: Any, expected: str) -> None:
    (found,) = faults(put(good(), path, value))
    assert found.startswith(expected)


def test_every_fault_is_named_at_once() -> None:
    document = good()
    expected = []
    for path, value, line in WRONG:
        if path in (("process", "args", 1), ("mounts", 3, "destination"), ("hostname",), ("root", "path")):
            document = put(document, path, value)
            expected.append(line)
    found = faults(document)
    assert len(found) == len(expected) == 4
    for line in expected:
        assert any(text.startswith(line) for text in found)
    with pytest.raises(InvalidArgumentError, match="and 1 more"):
        spec.validate(document)


def test_unknown_fields_are_no_faults_and_null_is_not_given() -> None:
    document = {**good(), "vm": {"x": 1}, "org.example": None, "hooks": None}
    document["process"]["rlimits"] = None
    document["linux"]["future"] = {"deep": [{}]}
    assert faults(document) == ()


@pytest.mark.parametrize("document", [None, [], "spec", 3, b"{}", object()])
def test_what_is_no_object_is_no_spec(document: Any) -> None:
    (found,) = faults(document)
    assert found.startswith("spec: expected object, got ")


def test_a_document_that_holds_itself_is_told_and_not_followed() -> None:
    document = good()
    circle: list[Any] = []
    circle += [circle, circle]
    document["future"] = circle
    assert faults(document) == ("future[0]: holds itself", "future[1]: holds itself")
    with pytest.raises(InvalidArgumentError, match="holds itself"):
        spec.encode(document)


@given(JSON_LIKE)
def test_validate_raises_nothing_else_on_any_data(document: Any) -> None:
    faults(document)


@given(st.sampled_from(PLACES), JSON_LIKE)
def test_a_spec_with_any_data_at_any_place_is_valid_or_has_faults_there(
    path: tuple[str | int, ...], value: Any
) -> None:
    document = put(FULL, path, value)
    found = faults(document)
    where = written(path)
    for line in found:
        at = line.partition(": ")[0]
        # At the place or below it; or beside it, where it now clashes with a sibling.
        assert at.startswith((where, written(path[:-1]))) or where.startswith("linux.namespaces"), (
            where,
            line,
        )
    if not found:
        assert faults(json.loads(spec.encode(document))) == ()


@given(st.sampled_from(PLACES))
def test_a_value_of_a_wrong_type_is_told_at_its_place(path: tuple[str | int, ...]) -> None:
    (found,) = faults(put(FULL, path, 1.5))
    assert found.startswith(f"{written(path)}: expected ")
    assert found.endswith(", got float")
