"""The messages of containerd's wire: that they are there, are what the .proto files say, and keep to themselves."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone

import pytest
from portable_kit import sources

from libctrd import protos


# C26
def test_the_committed_descriptors_are_those_of_the_proto_files() -> None:
    subprocess.run([sys.executable, sources("tools", "gen_protos.py"), "--check"], check=True)


# C26
def test_a_message_has_the_numbers_of_the_wire() -> None:
    tasks = protos.package("containerd.services.tasks.v1")
    request = tasks.CreateTaskRequest(container_id="a", stdout="b")
    assert request.SerializeToString() == b"\x0a\x01a\x2a\x01b"
    assert tasks.CreateTaskRequest.FromString(b"\x0a\x01a\x2a\x01b") == request


# C26
def test_an_enum_can_be_compared_with_what_a_message_says() -> None:
    types = protos.package("containerd.v1.types")
    assert types.Process(status=types.Status.PAUSED).status == types.Status.PAUSED == 4


# C26
def test_a_name_that_is_not_on_the_wire_is_an_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match=r"containerd\.types\.Nothing"):
        _ = protos.package("containerd.types").Nothing


# C26
def test_any_carries_what_it_is_given_and_pack_leaves_the_type_without_prefix() -> None:
    spec = protos.any("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}")
    assert (spec.type_url, spec.value, protos.unpack(spec)) == (
        "types.containerd.io/opencontainers/runtime-spec/1/Spec",
        b"{}",
        None,
    )
    options = protos.package("containerd.runc.v1").Options(binary_name="runc")
    packed = protos.pack(options)
    assert packed.type_url == "containerd.runc.v1.Options"
    assert protos.unpack(packed) == options


# C26
@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (-62135596800, 0, None),
        (0, 0, None),
        (1, 5000, datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=timezone.utc)),
        (1 << 60, 0, None),
    ],
)
def test_never_is_no_moment(seconds: int, nanos: int, expected: datetime | None) -> None:
    timestamp = protos.message("google.protobuf.Timestamp")(seconds=seconds, nanos=nanos)
    assert protos.moment(timestamp) == expected
