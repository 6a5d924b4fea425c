"""What the tests of `libctrd.aio` share: a coroutine run in each kind of loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

WAIT = 60.0
Main = Coroutine[Any, Any, Any]


def asyncio_run(main: Main) -> None:
    asyncio.run(asyncio.wait_for(main, WAIT))


def uvloop_run(main: Main) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is missing: pip install uvloop")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main, WAIT))
    finally:
        loop.close()


@pytest.fixture(params=[asyncio_run, uvloop_run], ids=["asyncio", "uvloop"])
def in_loop(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine in each kind of loop."""
    run: Callable[[Main], None] = request.param
    return run
