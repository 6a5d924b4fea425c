"""Signals by number and by name, as people type them and `libctrd.proc` sends them. This sends none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from libctrd._checks import short
from libctrd.errors import InvalidArgumentError

if TYPE_CHECKING:
    import signal


def signal_number(sig: int | str | signal.Signals) -> int:
    """The number of a signal, from 1 to ``SIGRTMAX``.

    *sig* is a number, or a name in any case, with or without ``SIG``: ``15``, ``"15"``, ``"TERM"``,
    ``"SIGTERM"``, ``"term"``, ``"RTMIN+3"``, ``"RTMAX-1"``. Real-time signals count from where the C library
    of this system starts them. Raises `InvalidArgumentError` for anything else; 0, the probe of kill(2), is
    no signal here. Source: signal(7).
    """
    import signal  # the enums behind it cost more than all else here, and few callers need them

    number: int | None = None
    if isinstance(sig, int) and not isinstance(sig, bool):
        number = int(sig)
    elif isinstance(sig, str) and sig.isascii():  # upper() makes ASCII of some letters that are not
        if sig.isdigit():
            number = int(sig) if len(sig) <= 4 else None  # int() refuses very many digits in its own way
        else:
            number = _named(sig.upper().removeprefix("SIG"), signal.Signals.__members__)
    if number is None or not 1 <= number <= signal.SIGRTMAX:
        raise InvalidArgumentError(
            f"{short(sig)} is no signal: use a number from 1 to {int(signal.SIGRTMAX)}, a name like 'TERM' "
            f"or 'SIGTERM', or 'RTMIN+N' or 'RTMAX-N' with N from 0 to {signal.SIGRTMAX - signal.SIGRTMIN}"
        )
    return number


def signal_name(number: int) -> str:
    """The name that `signal_number` takes back: ``"SIGTERM"``, ``"SIGRTMIN+3"``, ``"SIGRTMAX-1"``.

    A number in range that has no name, as the C library keeps some to itself, is its own: ``"32"``. Raises
    `InvalidArgumentError` for a number out of range.
    """
    import signal

    number = signal_number(number)
    try:
        return signal.Signals(number).name
    except ValueError:
        pass
    low, high = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    if low < number < high:
        return f"SIGRTMIN+{number - low}" if number - low <= high - number else f"SIGRTMAX-{high - number}"
    return str(number)


def _named(name: str, members: Mapping[str, int]) -> int | None:
    for base, sign in (("RTMIN", "+"), ("RTMAX", "-")):
        head, found, offset = name.partition(sign)
        if head == base and found and offset.isdigit() and len(offset) <= 4:
            number = members["SIG" + base] + int(sign + offset)
            return number if members["SIGRTMIN"] <= number <= members["SIGRTMAX"] else None
    return members.get("SIG" + name)
