"""The settings of a further process: which of its caller's count, and which are the container's (C21)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd import spec
from libctrd.errors import InvalidArgumentError

KINDS = ("bounding", "effective", "inheritable", "permitted")
OWN = {
    "terminal": True,
    "consoleSize": {"width": 80, "height": 24},
    "user": {"uid": 7, "gid": 8, "additionalGids": [9]},
    "args": ["init"],
    "env": ["A=1", "PATH=/bin"],
    "cwd": "/srv",
    "capabilities": {kind: ["CAP_CHOWN"] for kind in (*KINDS, "ambient")},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 5}],
    "noNewPrivileges": True,
    "apparmorProfile": "own-profile",
    "selinuxLabel": "own_u:own_r:own_t:s0",
    "oomScoreAdj": 100,
    "com.example.future": {"kept": [1]},
}

names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=8)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
ids = st.integers(0, 2**32 - 2)
SETTINGS = {
    "env": st.dictionaries(names, words, max_size=4),
    "cwd": words.map(lambda word: "/" + word),
    "user": st.tuples(ids, ids, st.lists(ids, max_size=3)),
    "capabilities": st.lists(st.sampled_from(["CAP_KILL", "CAP_SYS_ADMIN", "CAP_CHOWN"]), unique=True),
    "rlimits": st.lists(st.just({"type": "RLIMIT_CORE", "hard": 3, "soft": 2}), max_size=1),
    "apparmor": st.text("abc-", min_size=1, max_size=8),
    "selinux": st.text("abc_:", min_size=1, max_size=8),
    "no_new_privileges": st.booleans(),
}
settings_given = st.fixed_dictionaries({}, optional=SETTINGS)
arguments = st.lists(words, min_size=1, max_size=4).filter(lambda args: args[0])


def document(**own: Any) -> dict[str, Any]:
    return {**spec.default(["init"], "/"), "process": {**copy.deepcopy(OWN), **own}}


def wanted(settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings of the caller change, by the words of the contract."""
    changed: dict[str, Any] = {}
    if settings.get("env"):
        changed["env"] = [f"{name}={value}" for name, value in settings["env"].items()]
    if "user" in settings:
        uid, gid, groups = settings["user"]
        changed["user"] = {"uid": uid, "gid": gid, "additionalGids": groups}
    if "capabilities" in settings:
        changed["capabilities"] = dict.fromkeys(KINDS, settings["capabilities"])
    others = {"cwd": "cwd", "rlimits": "rlimits", "apparmor": "apparmorProfile", "selinux": "selinuxLabel"}
    others["no_new_privileges"] = "noNewPrivileges"
    return {**changed, **{others[name]: value for name, value in settings.items() if name in others}}


@given(args=arguments, terminal=st.booleans(), settings=settings_given)
def test_the_callers_settings_go_over_those_of_the_container(
    args: list[str], terminal: bool, settings: dict[str, Any]
) -> None:  # C21
    container = document()
    before = copy.deepcopy(container)
    process = spec.further(container, args, terminal=terminal, **settings)
    expected = {**OWN, **wanted(settings), "args": args, "terminal": terminal}
    del expected["consoleSize"]
    assert process == expected
    assert container == before, "the container's own is not touched"


@given(args=arguments, terminal=st.booleans(), settings=settings_given)
def test_what_comes_out_shares_nothing_that_can_be_changed_with_the_callers_arguments(
    args: list[str], terminal: bool, settings: dict[str, Any]
) -> None:
    given_args = list(args)
    process = spec.further(document(), given_args, terminal=terminal, **settings)
    given_args.append("more")
    if "rlimits" in settings:
        settings["rlimits"].append({})
    assert process["args"] == args
    assert {} not in process["rlimits"]


def test_an_empty_env_is_as_good_as_none() -> None:  # C21
    for empty in ({}, [], (), None):
        assert spec.further(document(), ["x"], env=empty)["env"] == OWN["env"]


def test_a_user_is_uid_gid_and_further_gids_together() -> None:  # C21
    assert spec.further(document(), ["x"], user=(1, 2))["user"] == {"uid": 1, "gid": 2}
    assert spec.further(document(), ["x"], user="5:6")["user"] == {"uid": 5, "gid": 6}


def test_no_capabilities_at_all_can_be_given() -> None:  # C21
    assert spec.further(document(), ["x"], capabilities=[])["capabilities"] == {kind: [] for kind in KINDS}


def test_a_container_without_process_settings_has_none_to_give() -> None:  # C21
    bare = document()
    del bare["process"]
    process = spec.further(bare, ["x"])
    assert process == {"args": ["x"], "terminal": False, "cwd": "/", "user": {"uid": 0, "gid": 0}}


@pytest.mark.parametrize(
    ("args", "settings", "named"),
    [
        ("sh", {}, "list"),
        ([], {}, "process.args"),
        (["sh", 3], {}, "process.args[1]"),
        (["sh\0"], {}, "process.args[0]"),
        (None, {}, "list"),
        (["sh"], {"cwd": "relative"}, "process.cwd"),
        (["sh"], {"cwd": 3}, "process.cwd"),
        (["sh"], {"env": ["NOVALUE"]}, "NOVALUE"),
        (["sh"], {"env": ["=x"]}, "="),
        (["sh"], {"user": "root"}, "root"),
        (["sh"], {"user": (-1, 0)}, "-1"),
        (["sh"], {"rlimits": [{"type": 5}]}, "process.rlimits[0]"),
        (["sh"], {"no_new_privileges": "yes"}, "noNewPrivileges"),
    ],
    ids=str,
)
def test_what_cannot_be_names_the_place(args: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.further(document(), args, **settings)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
