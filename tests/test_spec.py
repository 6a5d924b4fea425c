"""libctrd.spec with no runtime: what it makes, reads, asks and writes."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from examples_kit import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_documents import FULL, JSON_LIKE, OBJECTS, PLAIN_JSON, put

from libctrd import spec
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnavailableError

# The default spec


def test_the_default_is_valid_and_plain_json() -> None:
    document = spec.default()
    spec.validate(document)
    assert json.loads(spec.encode(document)) == document
    assert document["process"]["args"] == ["sh"]
    assert "cgroupsPath" not in document["linux"]
    assert "rlimits" not in document["process"]


def test_the_rootfs_is_absolute_from_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = spec.default(rootfs=Path("some/../rootfs"))
    monkeypatch.chdir("/")
    assert document["root"]["path"] == str(tmp_path / "rootfs")


def test_a_terminal_brings_term_and_nothing_else_does() -> None:
    assert "TERM=xterm" in spec.default(terminal=True)["process"]["env"]
    assert not [entry for entry in spec.default()["process"]["env"] if entry.startswith("TERM=")]


@pytest.mark.parametrize("env", [{"A": "1", "PATH": "/x"}, ["A=0", "PATH=/x", "A=1"]])
def test_the_callers_environment_goes_over_the_default_one(env: Any) -> None:
    assert spec.default(env=env)["process"]["env"] == ["PATH=/x", "A=1"]


def test_a_mount_of_the_caller_replaces_the_default_one_at_its_place() -> None:
    mine = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1m"]}
    mounts = spec.default(mounts=[mine])["mounts"]
    assert [mount for mount in mounts if mount["destination"] == "/dev/shm"] == [mine]
    assert mounts[-1] is not mine


def test_a_relative_source_of_a_bind_mount_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = {"destination": "/data", "source": "data", "options": ["rbind"]}
    assert spec.default(mounts=[mine])["mounts"][-1]["source"] == str(tmp_path / "data")
    assert mine["source"] == "data"


def test_two_defaults_share_nothing_that_can_change() -> None:
    first, before = spec.default(), spec.encode(spec.default())
    first["process"]["capabilities"]["bounding"].clear()
    first["mounts"][0]["options"].clear()
    first["linux"]["namespaces"].clear()
    first["linux"]["maskedPaths"].clear()
    assert spec.encode(spec.default()) == before


def test_without_root_it_maps_the_caller_and_leaves_out_what_he_cannot_do() -> None:
    document = spec.default(rootless=True)
    spec.validate(document)
    assert spec.own_namespace(document, "user")
    assert document["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert document["linux"]["gidMappings"] == [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    assert "resources" not in document["linux"]
    assert "gid=5" not in str(document["mounts"])
    assert spec.default(rootless=True, memory="1m")["linux"]["resources"] == {"memory": {"limit": 2**20}}


@pytest.mark.parametrize("rootless", [False, True])
def test_rootless_is_found_out_from_the_effective_uid(rootless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if rootless else 0)
    assert spec.own_namespace(spec.default(), "user") is rootless
    if rootless:
        assert spec.host_root(spec.default())[0] == 1000


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"args": "sh"}, "args"),
        ({"args": []}, "process.args: must not be empty"),
        ({"args": ["sh", 3]}, "process.args[1]: expected str, got int"),
        ({"args": ["a\0b"]}, "process.args[0]"),
        ({"rootfs": 3}, "rootfs"),
        ({"rootfs": "a\0b"}, "root.path"),
        ({"terminal": "yes"}, "process.terminal: expected bool, got str"),
        ({"env": "A=1"}, "environment"),
        ({"env": ["A"]}, "'A'"),
        ({"env": {"A=B": "1"}}, "'A=B'"),
        ({"env": {"A": 1}}, "'A'"),
        ({"env": {"": "1"}}, "''"),
        ({"cwd": "tmp"}, "process.cwd: must be an absolute path"),
        ({"user": "nobody"}, "'nobody'"),
        ({"user": "1", "rootless": True}, "only root is mapped"),
        ({"hostname": 3}, "hostname: expected str"),
        ({"memory": 0}, "memory"),
        ({"memory": "x"}, "'x'"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": math.nan}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"cpus": 1e300}, "cpus"),
        ({"pids_limit": 0}, "pids_limit"),
        ({"pids_limit": "5"}, "pids_limit"),
        ({"mounts": "type=bind"}, "mounts"),
        ({"mounts": ["type=bind"]}, "mounts[0]"),
        ({"mounts": [{}]}, "].destination: required"),
        ({"read_only": 1}, "root.readonly: expected bool"),
    ],
)
def test_an_argument_that_cannot_be_is_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.default(**wrong)
    assert named in str(caught.value)


@settings(max_examples=examples(50))
@given(
    args=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=4),
    terminal=st.booleans(),
    env=st.dictionaries(st.from_regex(r"[A-Z]{1,5}", fullmatch=True), st.from_regex(r"[a-z=]{0,5}", fullmatch=True)),
    memory=st.none() | st.integers(1, 2**63 - 1),
    cpus=st.none() | st.floats(0.01, 1e6),
    pids_limit=st.none() | st.integers(1, 2**31),
    rootless=st.booleans(),
)
def test_every_default_is_valid_and_comes_back_from_json(**arguments: Any) -> None:
    document = spec.default(rootfs="/r", **arguments)
    spec.validate(document)
    assert json.loads(spec.encode(document)) == document


# Reading


def test_load_takes_a_bundle_or_its_config(tmp_path: Path) -> None:  # C4
    document = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "org.example.future": {"a": [1, None, 2.5]},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert spec.load(tmp_path) == document
    assert spec.load(str(tmp_path / "config.json")) == document


def test_load_says_what_is_missing(tmp_path: Path) -> None:  # C4
    for path in (tmp_path, tmp_path / "no" / "bundle"):
        with pytest.raises(NotFoundError, match=r"config\.json") as caught:
            spec.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{\n  "a": 1,\n  "b": x\n}', "line 3, column 8"),
        (b'{\n  "a": 1,\n}', "line 3, column 1"),
        (b'{"a"', "line 1, column 5: Input data was truncated"),
        (b'{"\xc3\xa9\xc3\xa9": x}', "line 1, column 8"),
        (b"", "line 1, column 1"),
        (b'{\n"a": "\xff"}', "line 2: not UTF-8"),
        (b"[1]", "array"),
        (b"3", "int"),
        (b"null", "null"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "line 1, column 7"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
    ],
)
def test_load_says_where_a_file_is_malformed(text: bytes, named: str, tmp_path: Path) -> None:  # C4
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InvalidArgumentError) as caught:
        spec.load(tmp_path)
    assert named in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_load_refuses_what_is_no_file_and_never_waits_for_it(tmp_path: Path) -> None:  # C4
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InvalidArgumentError, match="not a regular file"):
        spec.load(tmp_path)
    (tmp_path / "sub" / "config.json").mkdir(parents=True)
    with pytest.raises(CtrdError, match=r"config\.json"):
        spec.load(tmp_path / "sub")
    with pytest.raises(InvalidArgumentError, match="NUL"):
        spec.load("a\0b")


def test_load_says_when_it_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # C4
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "no")  # root may read all, so the refusal is ours

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnavailableError, match=r"config\.json.*Permission denied.*owner and mode") as caught:
        spec.load(tmp_path)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_load_says_when_a_link_leads_nowhere_or_in_a_circle(tmp_path: Path) -> None:  # C4
    (tmp_path / "config.json").symlink_to("config.json")
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        spec.load(tmp_path)


@given(st.binary(max_size=60))
def test_load_never_raises_anything_else(text: bytes) -> None:  # C4
    path = f"/proc/self/fd/{(fd := os.memfd_create('spec'))}"
    try:
        os.write(fd, text)
        try:
            assert isinstance(spec.load(path), dict)
        except InvalidArgumentError as error:
            assert path in str(error)  # noqa: PT017
    finally:
        os.close(fd)


def test_resolve_makes_relative_paths_absolute_and_copies_only_what_changes(tmp_path: Path) -> None:
    document = {
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/a", "source": "data/../a", "options": ["bind"]},
            {"destination": "/b", "source": "b", "type": "bind"},
            {"destination": "/c", "source": "/c", "options": ["rbind"]},
            {"destination": "/d", "source": "tmpfs", "type": "tmpfs"},
        ],
        "linux": {},
    }
    before = copy.deepcopy(document)
    resolved = spec.resolve(document, tmp_path)
    assert document == before
    assert resolved["root"] == {"path": str(tmp_path / "rootfs"), "readonly": True}
    sources = [mount["source"] for mount in resolved["mounts"]]
    assert sources == [str(tmp_path / "a"), str(tmp_path / "b"), "/c", "tmpfs"]
    assert resolved["linux"] is document["linux"]
    assert resolved["mounts"][2] is document["mounts"][2]
    assert spec.resolve(resolved, "/elsewhere") is resolved


def test_check_rootfs_names_what_is_wrong(tmp_path: Path) -> None:
    spec.check_rootfs({"root": {"path": str(tmp_path)}})
    with pytest.raises(NotFoundError, match=r"root\.path .*missing"):
        spec.check_rootfs({"root": {"path": str(tmp_path / "missing")}})
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match=r"root\.path .*file.*not a directory"):
        spec.check_rootfs({"root": {"path": str(tmp_path / "file")}})
    for root in ({}, {"path": ""}, {"path": 3}, {"path": "\0"}, None):
        with pytest.raises(InvalidArgumentError, match=r"root\.path"):
            spec.check_rootfs({"root": root})


# Writing


@given(st.dictionaries(st.text(max_size=5), PLAIN_JSON, max_size=4))
def test_what_is_encoded_comes_back_the_same(document: dict[str, Any]) -> None:  # C5
    assert json.loads(spec.encode(document)) == document


@given(st.sampled_from(OBJECTS), PLAIN_JSON)
def test_unknown_fields_survive(path: tuple[str | int, ...], value: Any) -> None:  # C5
    document = put(FULL, (*path, "x-unknown"), value)
    assert json.loads(spec.encode(document)) == document


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "JSON cannot hold a object"),
        (math.nan, "nan is not a JSON number"),
        (-math.inf, "-inf is not a JSON number"),
        ("\ud800", "not Unicode"),
        (1j, "JSON cannot hold a complex"),
        ({(1, 2): 3}, "its name must be str"),
    ],
)
def test_encode_names_the_place_of_what_json_cannot_hold(value: Any, named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.encode({"a": [1, {"b": value}], "n": None})
    assert caught.value.faults[0].startswith("a[1].b")
    assert named in str(caught.value)


def test_encode_keeps_a_null_and_escapes_a_nul() -> None:
    assert spec.encode({"a": None, "b": "x\0y/dev/null", "c": [None, None]}) == (
        b'{"a":null,"b":"x\\u0000y/dev/null","c":[null,null]}'
    )
    with pytest.raises(InvalidArgumentError, match="not list"):
        spec.encode([])  # type: ignore[arg-type]


def test_encode_takes_deep_documents_and_refuses_bottomless_ones() -> None:
    def nested(depth: int) -> dict[str, Any]:
        document: dict[str, Any] = {"n": None}
        for _ in range(depth):
            document = {"a": document}
        return document

    assert json.loads(spec.encode(nested(200))) == nested(200)
    with pytest.raises(InvalidArgumentError, match="nested"):
        spec.encode(nested(100_000))


# Asking


@pytest.mark.parametrize(
    ("uids", "expected"),
    [
        ([], 0),
        ([{"containerID": 0, "hostID": 1000, "size": 1}], 1000),
        ([{"containerID": 1, "hostID": 5, "size": 9}, {"containerID": 0, "hostID": 7, "size": 1}], 7),
        ([{"containerID": 0, "hostID": 5, "size": 0}, {"containerID": 0, "hostID": 7, "size": 1}], 7),
        ([{"containerID": 0, "hostID": 3, "size": 1}, {"containerID": 0, "hostID": 7, "size": 1}], 3),
        ([{"containerID": 1, "hostID": 5, "size": 1}], 0),
        (["junk", {"containerID": 0}], 0),
        (None, 0),
    ],
)
def test_root_on_the_host_is_where_the_first_mapping_that_holds_it_leads(uids: Any, expected: int) -> None:  # C19
    gids = [{"containerID": 0, "hostID": 44, "size": 1}]
    linux = {"namespaces": [{"type": "user"}], "uidMappings": uids, "gidMappings": gids}
    assert spec.host_root({"linux": linux}) == (expected, 44)


def test_mappings_without_a_user_namespace_map_nobody() -> None:  # C19
    mappings = [{"containerID": 0, "hostID": 44, "size": 1}]
    assert spec.host_root({"linux": {"uidMappings": mappings, "gidMappings": mappings}}) == (0, 0)
    assert spec.host_root({}) == (0, 0)


def test_a_namespace_is_the_containers_own_when_listed_without_a_path() -> None:
    document = {
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}, {"type": "ipc", "path": ""}]}
    }
    kinds = ("pid", "network", "ipc", "mount")
    assert [spec.own_namespace(document, kind) for kind in kinds] == [True, False, True, False]
    assert not spec.own_namespace({}, "pid")
    assert not spec.own_namespace({"linux": {"namespaces": [3]}}, "pid")


@given(JSON_LIKE)
def test_asking_never_fails_on_any_data(value: Any) -> None:
    for document in ({"linux": value}, {"linux": {"namespaces": value}}, {"root": value, "mounts": value}):
        spec.host_root(document)
        spec.own_namespace(document, "pid")
        spec.resolve(document, "/b")


# The cost


def test_importing_it_imports_neither_the_encoder_nor_the_schema() -> None:
    code = "import sys, libctrd.spec; print([m for m in sys.modules if 'msgspec' in m or '_schema' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
