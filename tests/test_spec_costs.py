"""What a spec costs from `create` to a container that runs, in counts: it is encoded once, and never decoded (C5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from libctrd import _spec_json
from libctrd.client import Client
from libctrd.stdio import NULL

Make = Callable[..., dict[str, Any]]


class Counted:
    """An encoder that keeps what it was given."""

    def __init__(self, encoder: msgspec.json.Encoder) -> None:
        self._encoder = encoder
        self.given: list[Any] = []

    def encode(self, document: Any) -> bytes:
        self.given.append(document)
        return self._encoder.encode(document)


def large(spec: dict[str, Any]) -> dict[str, Any]:
    """*spec* with hundreds of variables and mounts; as JSON it is 35 to 40 KB long."""
    spec["process"]["env"] += [f"SERVICE_{n:03}_PORT_8080_TCP_ADDR=10.1.{n % 256}.17" for n in range(190)]
    spec["mounts"] += [
        {
            "destination": f"/tmp/{n:03}",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "size=4k", "mode=0755"],
        }
        for n in range(220)
    ]
    assert 35_000 < len(msgspec.json.encode(spec)) < 40_000
    return spec


@pytest.mark.local("others send the spec to a daemon, each in its own way")
def test_a_spec_is_encoded_once_and_never_decoded(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:  # C5
    decoded: list[Any] = []
    encoder = Counted(_spec_json._encoder())
    document = large(spec("exit 3"))
    mounts = document["mounts"]
    monkeypatch.setattr(_spec_json, "_encoder", lambda: encoder)
    monkeypatch.setattr(msgspec.json, "decode", lambda text, **_: decoded.append(text))
    container = client.create("large", document)
    container.start(NULL)
    assert container.wait(20).code == 3
    (given,) = encoder.given
    assert given["mounts"] is mounts, "nor was it copied on the way"
    assert decoded == []
