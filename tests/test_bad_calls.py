"""Bad calls on a client's containers: the wrong state, size, signal or listener, and records that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Place
from field_kit import WAIT, Make, nothing_in, refused

import libctrd
from libctrd import DETACHED
from libctrd.client import Client
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError, UnsupportedError

BAD_IDS = (
    *("", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b", "a\n", "\na", "a\nb", "a..b", "-a", "a-", ".a", "a--b"),
    *("a b", "ä", "a\u2028b", "\ud800", "a%s", "~", "a" * 77, "../" * 40, 5, None, b"bytes", ["a"]),
)


# ---- operations in the wrong state -----------------------------------------------------------------------------------


def test_nothing_can_be_done_with_a_container_that_is_not_there(
    any_client: Client, spec: Make, state_dir: str
) -> None:  # C20
    with refused(NotFoundError, "ghost", state=state_dir):
        any_client.get("ghost")
    container = any_client.create("ghost", spec("true"))
    container.clean()
    for call in (
        container.start,
        container.wait,
        container.info,
        lambda: container.signal("TERM"),
        container.pause,
        container.resume,
        lambda: container.resize(80, 24),
        container.spec,
    ):
        with refused(CtrdError, "ghost", state=state_dir):
            call()
    assert container.status == "stopped"
    container.clean()  # gone already is success (C2)


def test_nothing_but_a_start_can_be_done_before_the_start(any_client: Client, spec: Make) -> None:  # C20
    container = any_client.create("web", spec("exit 4", terminal=True))
    for call in (
        container.wait,
        lambda: container.signal("KILL"),
        container.pause,
        container.resume,
        lambda: container.resize(80, 24),
    ):
        with refused(InvalidArgumentError, "'web' was not started"):
            call()
    assert (container.status, container.pid) == ("created", 0)
    container.start()
    assert container.wait(WAIT).code == 4


def test_nothing_but_wait_and_clean_can_be_done_after_the_end(any_client: Client, spec: Make, state_dir: str) -> None:
    container = any_client.create("web", spec("exit 6", terminal=True))
    container.start()
    assert container.wait(WAIT).code == 6
    for call in (lambda: container.signal(9), container.pause, container.resume, lambda: container.resize(80, 24)):
        with refused(NotFoundError, "'web' is not running", state=state_dir):  # C20
            call()
    with refused(AlreadyExistsError, "'web' was started already", state=state_dir):
        container.start()
    assert container.wait(WAIT).code == 6, "again, with the same answer"
    container.clean()


def test_a_second_start_harms_nothing(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat; exit 8"))
    container.start()
    with refused(AlreadyExistsError, "'web' was started already"):
        container.start()
    with libctrd.connect(client.address) as other:
        theirs = other.get("web")
        with refused(AlreadyExistsError, "'web' was started already"):
            theirs.start()
    assert container.stdin is not None
    assert container.stdout is not None
    container.stdin.write(b"still here")
    container.stdin.close()
    assert container.stdout.read() == b"still here"
    assert container.wait(WAIT).code == 8


def test_an_id_that_is_active_is_refused_and_left_alone(client: Client, spec: Make) -> None:  # C19
    container = client.create("web", spec("cat; exit 8"))
    config = Path(container.bundle, "config.json")
    before = config.read_bytes()
    with libctrd.connect(client.address) as other:
        for creator in (client, other):
            with refused(AlreadyExistsError, "'web'"):
                creator.create("web", spec("exit 9"))
        container.start()
        for creator in (client, other):
            with refused(AlreadyExistsError, "'web'"):
                creator.create("web", spec("exit 9"))
    assert config.read_bytes() == before
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 8


def test_a_running_container_is_not_cleaned_by_accident(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat; exit 8"))
    container.start()
    with refused(InvalidArgumentError, "'web' is running"):
        container.clean()
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 8


# ---- sizes, signals, listeners -------------------------------------------------------------------------------------


def test_a_size_that_no_terminal_has_is_refused(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("read x; exit 3", terminal=True))
    container.start()
    for size in ((0, 24), (80, 0), (-1, 24), (80, 65536), (2**40, 24), (80.5, 24), ("80", 24), (None, 24), (True, 24)):
        with refused(InvalidArgumentError, "terminal"):
            container.resize(*size)
    container.resize(65535, 65535)
    assert container.stdin is not None
    container.stdin.write(b"\n")
    assert container.wait(WAIT).code == 3


def test_a_container_without_a_terminal_has_no_size(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("cat"))
    container.start()
    with refused(InvalidArgumentError, "'web' has no terminal"):
        container.resize(80, 24)
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 0


def test_a_signal_that_does_not_exist_is_refused(any_client: Client, spec: Make) -> None:
    container = any_client.create("web", spec("cat; exit 2"))
    container.start()
    for sig in (
        0,
        -1,
        -9,
        65,
        10**9,
        10**30,
        "",
        "NOPE",
        "SIG",
        "sigsigterm",
        "9\n",
        "TERM\n",
        None,
        9.0,
        b"TERM",
        True,
    ):
        with refused(InvalidArgumentError, "signal"):
            container.signal(sig)  # type: ignore[arg-type]
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 2, "none of them reached it"


@pytest.mark.parametrize("listener", [None, object(), print, lambda id, info: None, 3], ids=lambda v: type(v).__name__)
def test_a_listener_that_is_none_is_refused(any_client: Client, listener: Any) -> None:
    with refused(InvalidArgumentError, "listener"):
        any_client.subscribe(listener)


def test_a_listener_that_takes_too_little_ends_the_start(any_client: Client, spec: Make, state_dir: str) -> None:
    class Wrong:
        def state_changed(self) -> None: ...

    any_client.subscribe(Wrong())  # type: ignore[arg-type]
    container = any_client.create("web", spec("cat"))
    with pytest.raises(TypeError):
        container.start()
    assert nothing_in(state_dir)


@pytest.mark.parametrize("arguments", ["--debug", [1], ["a\0b"], [None], b"--debug", 5, None], ids=repr)
def test_runtime_args_that_are_no_strings_are_refused(
    any_client: Client, spec: Make, state_dir: str, arguments: Any
) -> None:  # C1
    with refused(InvalidArgumentError, "runtime_args=", state=state_dir):
        any_client.create("web", spec("true"), runtime_args=arguments)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("local", "no scheme"),
        ("local:relative", "not absolute"),
        ("local:/a\0b", "NUL"),
        ("tcp://x", "tcp://x"),
        ("://", "://"),
        (5, "address"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address: Any, named: str) -> None:
    with refused(CtrdError, named):
        libctrd.connect(address)


def test_a_closed_client_says_so(engine: Place, state_dir: str, spec: Make) -> None:
    with engine.connect() as client:
        container = client.create("web", spec("true"))
        container.clean()
    for call in (lambda: client.create("web", spec("true")), lambda: client.get("web"), client.containers):
        with refused(libctrd.ClosedError, "closed", state=state_dir):
            call()
    client.close()


# ---- what another hand has damaged -----------------------------------------------------------------------------------


@pytest.mark.local("containerd keeps the records of its containers itself")
@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"id": 5}', b"null", json.dumps({"id": "web"}).encode()], ids=repr
)
def test_a_damaged_record_is_told_and_the_others_go_on(
    any_client: Client, spec: Make, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = any_client.create("broken", spec("true")), any_client.create("sound", spec("exit 3"))
    path = Path(broken.bundle, "state.json")
    before = path.read_bytes()
    path.write_bytes(damage)
    with libctrd.connect(any_client.address) as other:
        assert [container.id for container in other.containers()] == ["sound"]
        assert "container broken is left out" in caplog.text
        with refused(CtrdError, "'broken'", "damaged"):
            other.get("broken")
    with refused(CtrdError, "'broken'", "damaged"):
        broken.info()
    sound.start()
    assert sound.wait(WAIT).code == 3
    path.write_bytes(before)
    broken.clean()


@pytest.mark.local("containerd keeps the records of its containers itself")
def test_the_record_of_a_later_version_is_left_alone(any_client: Client, spec: Make) -> None:
    container = any_client.create("later", spec("true"))
    path = Path(container.bundle, "state.json")
    before = path.read_bytes()
    path.write_bytes(json.dumps({**json.loads(before), "version": 2}).encode())
    with libctrd.connect(any_client.address) as other:
        with refused(UnsupportedError, "'later'", "a later libctrd"):
            other.get("later")
        with refused(UnsupportedError, "'later'", "a later libctrd"):
            other.create("later", spec("true"))
    assert path.exists()
    path.write_bytes(before)
    container.clean()


@pytest.mark.local("containerd keeps the records of its containers itself")
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"code": "x"}', b" " * 160], ids=repr)
def test_a_damaged_exit_record_is_told(any_client: Client, spec: Make, state_dir: str, damage: bytes) -> None:
    with libctrd.connect(any_client.address) as starter:
        starter.create("web", spec("exit 3")).start(DETACHED, unattended="discard")
    container = any_client.get("web")
    assert container.wait(WAIT).code == 3
    path = Path(container.bundle, "exit.json")
    path.write_bytes(damage)
    with libctrd.connect(any_client.address) as other:
        theirs = other.get("web")
        for call in (theirs.info, lambda: theirs.status, theirs.wait):
            with refused(CtrdError, "exit record", "damaged"):
                call()
        theirs.clean(force=True)  # it can be got rid of all the same
    assert nothing_in(state_dir)
