"""The targets of the fuzzer with what it starts from, with what it has found, and with random bytes."""

from __future__ import annotations

import contextlib

import fuzz_containerd
import fuzz_targets
import pytest
from examples_kit import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from libctrd.errors import CtrdError

FOUND: dict[str, list[bytes]] = {
    "exit_records": [b'{"name":"x","code":7,"oom_killed":false,"seconds":1700000000000000,"nanoseconds":5}'],
    "event_log": [b'{"version":1}\n{"type":"exit","id":"","at":9}\n{"type":"exit","id":"","at":8}\n'],
    "events": [fuzz_containerd.joined(fuzz_containerd.event("exec-started", "TaskPaused", container_id="a"))],
    "containers": [
        fuzz_containerd.container(spec=fuzz_containerd.spec(b"no JSON")),
        fuzz_containerd.container(spec=fuzz_containerd.spec(b"[]")),
        fuzz_containerd.container(spec=fuzz_containerd.spec(b'{"process":[],"linux":{"cgroupsPath":5}}')),
    ],
}
"""What once raised something else."""


def take(name: str, data: bytes) -> None:
    """A target may refuse its bytes, in the words of libctrd, and nothing else."""
    with contextlib.suppress(CtrdError):
        fuzz_targets.TARGETS[name](data)


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_a_target_takes_what_it_starts_from_and_what_was_found(name: str) -> None:
    """And each of them cut off and with a byte changed."""
    assert fuzz_targets.SEEDS[name]
    for data in fuzz_targets.SEEDS[name] + FOUND.get(name, []):
        take(name, data)
        for place in range(0, len(data), max(1, len(data) // 40)):
            take(name, data[:place])
            take(name, data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])


def test_what_targets_start_from_leads_them_in() -> None:
    """A target that refuses all of its seeds would be driven for hours and would see nothing."""
    refused = set()
    for name, target in fuzz_targets.TARGETS.items():
        errors = 0
        for data in fuzz_targets.SEEDS[name]:
            try:
                target(data)
            except CtrdError:
                errors += 1
        if errors == len(fuzz_targets.SEEDS[name]):
            refused.add(name)
    assert refused == set()


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_a_target_takes_any_bytes(name: str) -> None:
    """Alone, and between the pieces of what it starts from."""
    seeds = st.sampled_from(fuzz_targets.SEEDS[name])

    @settings(max_examples=examples(60))
    @given(
        st.binary(max_size=200)
        | st.builds(lambda a, b, c: a[: len(a) // 2] + b + c[len(c) // 2 :], seeds, st.binary(max_size=9), seeds)
    )
    def try_them(data: bytes) -> None:
        take(name, data)

    try_them()
