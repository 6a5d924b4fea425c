"""The keys by which a user leaves a container that goes on: looked for in what is typed, and never passed on (docker's
own are ctrl-p, ctrl-q)."""

from __future__ import annotations

from typing import Final

from libctrd.errors import InvalidArgumentError

DEFAULT: Final = "ctrl-p,ctrl-q"


def parse(text: str) -> bytes:
    """The bytes that the keys *text* send: ``ctrl-p,ctrl-q``, ``ctrl-],d``; none for an empty text.

    Raises `InvalidArgumentError` for what is no key.
    """
    return bytes(_byte(key, text) for key in text.split(",")) if text else b""


def _byte(key: str, text: str) -> int:
    name = key.lower().removeprefix("ctrl-")
    if name == key and len(key) == 1 and key.isascii() and key.isprintable():
        return ord(key)
    if name != key.lower() and len(name) == 1 and (name.isalpha() or name in "@[\\]^_") and name.isascii():
        return ord(name.upper()) & 0x1F
    raise InvalidArgumentError(
        f"detach keys {text!r}: {key!r} is no key; say letters or ctrl-LETTER, with commas between"
    )


class Keys:
    """Finds *wanted* in what is typed, in however many pieces it comes. What may be its beginning is held back."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        self._held = 0  # so many bytes of it were typed just now

    def typed(self, data: bytes) -> tuple[bytes, bool]:
        """What of *data*, and of what was held back, is to be passed on, and whether the keys were typed."""
        wanted, passed = self._wanted, bytearray()
        if not wanted:
            return data, False
        for byte in data:
            seen = wanted[: self._held] + bytes([byte])
            if seen == wanted:
                self._held = 0
                return bytes(passed), True
            # The longest beginning of the keys that the input ends with now.
            self._held = next(n for n in range(len(seen), -1, -1) if seen.endswith(wanted[:n]) and n < len(wanted))
            passed += seen[: len(seen) - self._held]
        return bytes(passed), False
