"""What the tests of the client share: a listener that keeps what it is told."""

from __future__ import annotations

from libctrd.state import StateInfo


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, StateInfo]] = []

    def state_changed(self, id: str, info: StateInfo) -> None:
        self.told.append((id, info))

    def of(self, id: str) -> list[str]:
        return [info.type for who, info in self.told if who == id]
