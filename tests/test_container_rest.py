"""What else a container says of itself, and what becomes of it when somebody is quicker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libctrd import NULL
from libctrd.client import Client
from libctrd.errors import ClosedError, UnavailableError
from libctrd.state import INIT

WAIT = 60.0
Make = Callable[..., dict[str, Any]]


def test_what_it_says_of_itself(any_client: Client, spec: Make) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    container = any_client.create("web", spec("sleep 1000"))
    assert repr(container) == f"<Container 'web' of {any_client.address}>"
    assert before <= container.created_at <= datetime.now(timezone.utc) + timedelta(seconds=1)
    assert container.undelivered() == {}, "it was never started"
    container.start(NULL)
    assert container.undelivered() == {}
    assert [(process.name, process.pid) for process in container.processes()] == [(INIT, container.pid)]
    container.clean(force=True)


def test_a_wait_ends_when_its_client_is_closed(engine: Any, spec: Make) -> None:
    with engine.connect() as keeper:
        other = engine.connect()
        container = other.create("web", spec("sleep 1000"))
        container.start(NULL)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                container.wait(WAIT)
            except ClosedError as error:
                raised.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        other.close()
        waiting.join(WAIT)
        assert len(raised) == 1
        assert "'web'" in str(raised[0])
        keeper.get("web").clean(force=True)


@pytest.mark.local("what its records are")
def test_one_whose_records_are_damaged_is_cleaned_by_force_alone(any_client: Client, spec: Make) -> None:  # C2
    container = any_client.create("web", spec("true"))
    Path(container.bundle, "exit.json").write_bytes(b"no record")
    with pytest.raises(UnavailableError, match="damaged"):
        container.clean()
    assert os.path.isdir(container.bundle)
    container.clean(force=True)
    assert not os.path.exists(container.bundle)


def test_a_time_limit_that_comes_after_the_end_kills_nobody(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("exit 7"))
    container.start(NULL)
    assert container.wait(WAIT).code == 7
    late = threading.Event()
    container._kill_late(late)
    assert any_client._lanes.drain(WAIT)
    assert not late.is_set()


@pytest.mark.local("its directory is ours by then")
def test_of_another_programs_container_only_an_empty_directory_goes(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("true"))
    bundle = container.bundle
    container._record = msgspec.structs.replace(container._record, foreign=True)
    container._leave_bundle()
    assert os.path.exists(os.path.join(bundle, "config.json"))
    container._record = msgspec.structs.replace(container._record, foreign=False)
    container.clean()
    os.mkdir(bundle)
    container._leave_bundle()
    assert os.path.exists(bundle), "it is ours"
    container._record = msgspec.structs.replace(container._record, foreign=True)
    container._leave_bundle()
    assert not os.path.exists(bundle)
