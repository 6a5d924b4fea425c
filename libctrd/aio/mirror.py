"""What the objects of `libctrd.aio` have in common: each stands for one of `libctrd`, whose methods it calls."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from libctrd._checks import seconds_of
from libctrd.aio.loop import CALLS, off, reached
from libctrd.errors import DeadlineError
from libctrd.locks import Milestone

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Mirror:
    """An object of `libctrd` as a loop sees it."""

    __slots__ = ("_sync",)

    def __init__(self, sync: Any) -> None:
        self._sync = sync

    def __repr__(self) -> str:
        return f"<aio {repr(self._sync)[1:]}"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._sync is self._sync

    def __hash__(self) -> int:
        return hash(self._sync)


def mirrored(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """*method* of what is mirrored, as a coroutine: called by one of the few threads for that."""

    @functools.wraps(method)
    async def call(self: Any, /, *args: P.args, **options: P.kwargs) -> R:
        return await off(CALLS, partial(method, self._sync, *args, **options))

    return call


async def until(milestone: Milestone, timeout: float | None, what: str) -> None:
    seconds_of(timeout, "timeout=")
    if milestone.is_set():
        return
    try:
        await asyncio.wait_for(reached(milestone), timeout)
    except asyncio.TimeoutError:
        raise DeadlineError(f"{what} did not end within {timeout:g} s") from None
