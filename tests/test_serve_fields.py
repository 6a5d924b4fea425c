"""Requests to `ctrd serve` that are good but for one field, to a container that runs: refused in the words that say
which, and nothing has changed (C25).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from engine_kit import need_runtime
from fuzz_kit import Target
from fuzz_messages import Requests

from libctrd import protos

UNKNOWN, NOT_FOUND = grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND
LONG = "x" * 5000


@pytest.fixture(scope="module")
def target(rootfs: str) -> Iterator[Target]:
    """A server in a directory of its own, with container `fuzz0` running, and process `p0` in it."""
    need_runtime("crun")
    target = Target(rootfs)
    try:
        target.begin()
        target.call("CreateContainer", id="fuzz0", **target.bundles["trap"].create)
        target.created["fuzz0"] += 1
        target.call("AddProcess", id="fuzz0", pid="p0", args=["sleep", "1000"], env=["PATH=/bin"])
        yield target
        target.settle()
    finally:
        target.end()


def state(target: Target) -> tuple[Any, ...]:
    """What there is and what was told; without the processes of its own."""
    listed = target.call("State").containers
    for container in listed:
        del container.pids[:]
    return listed, target.stored(), sorted(os.listdir(target.top)), os.listdir(target.home)


def refused(target: Target, call: str, fields: dict[str, Any]) -> grpc.RpcError:
    """The error of a good request but for *fields*; a value that a name with dots leads to is inside of another."""
    request = Requests(target).good(call)
    for name, value in fields.items():
        *way, last = name.split(".")
        at = request
        for part in way:
            at = getattr(at, part)
        at.ClearField(last)
        if isinstance(value, list):
            for one in value:
                getattr(at, last).add(**one) if isinstance(one, dict) else getattr(at, last).append(one)
        else:
            setattr(at, last, value.format(top=target.top) if isinstance(value, str) else value)
    method = protos.method(f"types.API/{call}")
    make = target.channel.unary_stream if method.receives_many else target.channel.unary_unary
    call_it = make(method.path)
    with pytest.raises(grpc.RpcError) as caught:
        list(call_it(request.SerializeToString(), timeout=60))
    return caught.value


PLACES = [
    ("relative", "not absolute"),
    ("./relative", "not absolute"),
    ("{top}/a\0b", "NUL"),
    ("\0", "NUL"),
]
NAMES = [("", "cannot be empty"), ("..", "not valid"), (".", "not valid"), ("a/b", "not valid"), ("a\0", "not valid")]
IDS = ["", "nobody", "..", "fuzz0\0", "fuzz0/", "./fuzz0", LONG]
CASES: list[tuple[str, dict[str, Any], str]] = [
    *[
        (call, {"checkpointDir": place}, words)
        for call in ("CreateCheckpoint", "DeleteCheckpoint", "ListCheckpoint")
        for place, words in PLACES
    ],
    *[("CreateContainer", {"checkpoint": "fuzz-check-1", "checkpointDir": place}, words) for place, words in PLACES],
    *[("CreateCheckpoint", {"checkpoint.name": name}, words) for name, words in NAMES],
    *[("DeleteCheckpoint", {"name": name}, words) for name, words in NAMES],
    *[("CreateContainer", {"checkpoint": name}, words) for name, words in NAMES[1:]],
    *[
        (
            call,
            {"id": id},
            "container id cannot be empty" if (call, id) == ("AddProcess", "") else "container not found",
        )
        for call in (
            "UpdateContainer",
            "Signal",
            "UpdateProcess",
            "AddProcess",
            "CreateCheckpoint",
            "DeleteCheckpoint",
            "Stats",
        )
        for id in IDS
    ],
    *[("State", {"id": id}, "container not found") for id in IDS[1:]],
    *[("ListCheckpoint", {"id": id}, "no such containers") for id in IDS],
    *[("CreateContainer", {"id": id}, "not valid") for id in (*IDS[:1], *IDS[2:-1])],
    ("CreateContainer", {"id": LONG}, "76 are allowed"),
    ("CreateContainer", {"id": "fuzz0"}, "file exists"),
    ("CreateContainer", {"bundlePath": ""}, "empty bundle path"),
    ("CreateContainer", {"bundlePath": "relative"}, "not absolute"),
    ("CreateContainer", {"bundlePath": "{top}\0"}, "NUL"),
    ("CreateContainer", {"bundlePath": "{top}/no"}, "no such file or directory"),
    ("CreateContainer", {"bundlePath": "/" + LONG}, "File name too long"),
    ("CreateContainer", {"bundlePath": "/" + "\U0001f433" * 900_000}, "File name too long"),
    ("CreateContainer", {"runtime": "no-such-runtime"}, "no OCI runtime 'no-such-runtime'"),
    ("CreateContainer", {"runtime": "{top}/file"}, "not an executable file"),
    ("CreateContainer", {"runtime": "a\0b"}, "no OCI runtime"),
    ("CreateContainer", {"runtime": "crun", "runtimeArgs": ["--no-such-option"]}, "exit code 64"),
    ("CreateContainer", {"runtime": "crun", "runtimeArgs": ["a\0b"]}, "NUL"),
    *[
        (call, {stream: place}, words)
        for call in ("CreateContainer", "AddProcess")
        for stream in ("stdin", "stdout", "stderr")
        for place, words in (
            ("relative", f"{stream} 'relative' is not absolute"),
            ("{top}/a\0b", "NUL"),
            ("{top}/no", "no such file or directory"),
            ("{top}/file", "Invalid argument"),
            ("{top}/link", "symbolic link"),
        )
    ],
    *[("Signal", {"pid": pid}, "process not found for container") for pid in ("", "nobody", "p0\0", "..", LONG)],
    *[("Signal", {"signal": number}, "there is no signal") for number in (65, 1 << 31, (1 << 32) - 1)],
    *[("UpdateProcess", {"pid": pid}, "process not found for container") for pid in ("", "nobody", "p0\0", "..", LONG)],
    *[("UpdateProcess", {side: 65536}, "65535 is the most") for side in ("width", "height")],
    ("UpdateContainer", {"status": "gone"}, "unknown container status "),
    ("UpdateContainer", {"status": "running\0"}, "unknown container status "),
    ("UpdateContainer", {"resources.cpusetCpus": "none"}, "oci runtime error"),
    ("UpdateContainer", {"resources.cpusetCpus": "0\0"}, "NUL"),
    ("UpdateContainer", {"resources.blkioWeight": (1 << 64) - 1}, "blockIO.weight"),
    ("UpdateContainer", {"resources.cpuPeriod": 1}, "oci runtime error"),
    ("AddProcess", {"pid": ""}, "process id cannot be empty"),
    ("AddProcess", {"pid": "init"}, "file exists"),
    ("AddProcess", {"pid": "p0"}, "file exists"),
    *[("AddProcess", {"pid": pid}, "not valid") for pid in ("..", "a/b", "p1\0", "a b")],
    ("AddProcess", {"pid": LONG}, "76 are allowed"),
    ("AddProcess", {"args": []}, "name a program"),
    ("AddProcess", {"args": ["no-such-program"]}, "executable file not found"),
    ("AddProcess", {"args": ["true", "a\0b"]}, "process.args[1]"),
    ("AddProcess", {"env": ["PATH=/bin", "A"]}, "process.env[1]"),
    ("AddProcess", {"env": ["A=\0"]}, "process.env[0]"),
    ("AddProcess", {"cwd": "relative"}, "process.cwd"),
    ("AddProcess", {"cwd": "/\0"}, "process.cwd"),
    ("AddProcess", {"cwd": "/no/such"}, "no such file or directory"),
    ("AddProcess", {"capabilities": ["kill"]}, "process.capabilities"),
    ("AddProcess", {"rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}, "process.rlimits[0].type"),
    ("AddProcess", {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}, "process.rlimits[0].soft"),
    ("ListCheckpoint", {"checkpointDir": "{top}/no"}, "no such file or directory"),
    ("ListCheckpoint", {"checkpointDir": "{top}/file"}, "not a directory"),
    ("Events", {"timestamp.nanos": -1}, "invalid parameter: a time with -1 nanoseconds"),
    ("Events", {"timestamp.nanos": 1_000_000_000}, "invalid parameter: a time with 1000000000 nanoseconds"),
    ("Events", {"timestamp.seconds": 253_402_300_800}, "invalid parameter: a time with"),
    ("Events", {"timestamp.seconds": -62_135_596_801}, "invalid parameter: a time with"),
    ("Events", {"timestamp.seconds": 0}, "without setting a valid Timestamp"),
]


def name(value: Any) -> str | None:
    return ascii(value)[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(("call", "fields", "words"), CASES, ids=name)
def test_one_field_that_is_wrong(target: Target, call: str, fields: dict[str, Any], words: str) -> None:
    before = state(target)
    error = refused(target, call, fields)
    assert error.code() is (NOT_FOUND if words == "no such containers" else UNKNOWN), error
    assert words.lower() in (error.details() or "").lower()
    assert len(error.details() or "") < 2100, "a text that a client can print"
    assert state(target) == before


def test_good_ones_are_good(target: Target) -> None:
    """What the cases above have one field of changed; checkpoints need more of a host than any."""
    good = Requests(target).good
    for call in ("CreateContainer", "UpdateContainer", "Signal", "UpdateProcess", "AddProcess", "State", "Stats"):
        assert target.attempt(call, good(call).SerializeToString()) is grpc.StatusCode.OK, call
    for call in ("DeleteCheckpoint", "ListCheckpoint", "GetServerVersion"):
        assert target.attempt(call, good(call).SerializeToString()) is grpc.StatusCode.OK, call
    assert len(target.stored("fuzz0")) >= 2


def test_descriptions_of_checkpoints_that_are_damaged(target: Target) -> None:
    """Anybody may have put them there: a fifo, what is nested too deeply, what is no text."""
    place = Path(target.top, "damaged")
    for checkpoint, content in {"deep": b'{"a":' + b"[" * 100_000, "latin": b'{"name": "\xff"}', "no": None}.items():
        (place / checkpoint).mkdir(parents=True)
        if content is None:
            os.mkfifo(place / checkpoint / "config.json")
        else:
            (place / checkpoint / "config.json").write_bytes(content)
    found = target.call("ListCheckpoint", id="fuzz0", checkpointDir=str(place)).checkpoints
    assert [(one.name, one.tcp) for one in found] == [("deep", True), ("latin", True), ("no", True)]
