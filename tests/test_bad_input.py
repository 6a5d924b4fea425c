"""Bad input to a client: ids, specs, streams, operations. Each is one clear line of the family, and leaves nothing."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from field_kit import WAIT, Make, nothing_in, refused

import libctrd
from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError

BAD_IDS = (
    *("", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b", "a\n", "\na", "a\nb", "a..b", "-a", "a-", ".a", "a--b"),
    *("a b", "ä", "a\u2028b", "\ud800", "a%s", "~", "a" * 77, "../" * 40, 5, None, b"bytes", ["a"]),
)


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", BAD_IDS, ids=repr)
def test_an_id_that_cannot_be_is_refused_before_it_touches_a_path(
    crun_client: Client, spec: Make, state_dir: str, id: Any
) -> None:
    wanted = spec("true")
    listed = set(os.listdir(os.path.dirname(state_dir)))
    why = "77 characters" if id == "a" * 77 else "container id"
    for call in (
        lambda: crun_client.create(id, wanted),
        lambda: crun_client.get(id),
        lambda: crun_client._engine.record(id),
        lambda: crun_client._engine.snapshot(id),
        lambda: crun_client._engine.delete(id, force=True),
    ):
        with refused(InvalidArgumentError, why, state=state_dir):
            call()
    assert set(os.listdir(os.path.dirname(state_dir))) == listed


@pytest.mark.parametrize("id", [id for id in BAD_IDS if id], ids=repr)
def test_run_refuses_an_id_that_cannot_be(crun_client: Client, rootfs: str, state_dir: str, id: Any) -> None:
    with refused(InvalidArgumentError, "container id", state=state_dir):
        libctrd.run(["true"], rootfs=rootfs, id=id, client=crun_client, stdout=NULL, stderr=NULL)


def test_an_id_of_76_characters_runs(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("a" * 76, spec("exit 5"))
    container.start()
    assert container.wait(WAIT).code == 5
    assert nothing_in(state_dir)


# ---- bundles and specs -----------------------------------------------------------------------------------------------


def test_a_bundle_without_config_json_is_not_found(tmp_path: Path) -> None:
    with refused(NotFoundError, "config.json", str(tmp_path)):
        libctrd.spec.load(tmp_path)


def test_a_bundle_with_malformed_json_says_where(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ociVersion": "1.0.2",\n "process": }')
    with refused(InvalidArgumentError, "config.json", "line 2"):
        libctrd.spec.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("process", "args"), [], "process.args"),
        (("process", "args"), ["sh", 3], "process.args[1]"),
        (("process", "args"), "sh", "process.args"),
        (("process", "args"), ["sh\0"], "process.args[0]"),
        (("process",), None, "process"),
        (("process", "cwd"), "relative", "process.cwd"),
        (("root",), None, "root"),
        (("root", "path"), "", "root.path"),
        (("root", "path"), 7, "root.path"),
        (("root", "path"), "/no/such/directory", "/no/such/directory"),
        (("root", "path"), "/bin/busybox", "not a directory"),
        (("root", "path"), "/dev/null/x", "/dev/null/x"),
        (("ociVersion",), 1, "ociVersion"),
        (("linux", "namespaces"), "all", "linux.namespaces"),
        (("mounts",), [{"source": "x"}], "mounts[0]"),
        (("x",), b"no json has bytes", "x"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else repr(value)[:30],
)
def test_a_spec_that_cannot_be_names_the_place(
    crun_client: Client, spec: Make, state_dir: str, path: tuple[str, ...], value: Any, named: str
) -> None:
    wanted = spec("true")
    inner = wanted
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    before = list(wanted)
    with refused(CtrdError, named, state=state_dir):
        crun_client.create("web", wanted)
    assert list(wanted) == before
    crun_client.create("web", spec("true")).clean()  # the id is free


@pytest.mark.parametrize("wanted", [None, [], "spec", {}, {"process": {}}, 3], ids=repr)
def test_what_is_no_spec_at_all_is_refused(crun_client: Client, state_dir: str, wanted: Any) -> None:
    with refused(InvalidArgumentError, state=state_dir):
        crun_client.create("web", wanted)


def test_a_rootfs_that_goes_between_create_and_start_is_told(
    client: Client, spec: Make, state_dir: str, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    wanted = spec("true")
    wanted["root"]["path"] = str(rootfs)
    container = client.create("web", wanted)
    rootfs.rmdir()
    with refused(CtrdError, "rootfs", state=state_dir):
        container.start()


def test_a_program_that_is_missing_is_told_by_its_name(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec(args=["/no/such/program"]))
    with refused(CtrdError, "/no/such/program", state=state_dir):
        container.start()


def test_config_json_that_was_damaged_before_the_start_is_told(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec("true"))
    Path(container.bundle, "config.json").write_text("{")
    with refused(CtrdError, "web", state=state_dir):
        container.start()


# ---- what stands where a fifo is to be -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("what", ["a file", "a directory", "a link", "a broken link", "a link to a fifo", "a socket"])
def test_a_path_that_is_no_fifo_where_one_is_to_be(
    crun_client: Client, spec: Make, state_dir: str, tmp_path: Path, stream: str, what: str
) -> None:  # C14
    container = crun_client.create("web", spec("true"))
    path = Path(container.bundle, f"init-{stream}")
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    os.mkfifo(tmp_path / "fifo")
    if what == "a file":
        path.write_text("what was here")
    elif what == "a directory":
        path.mkdir()
    elif what == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(container.bundle)  # the path may be too long for a socket
            listener.bind(path.name)
            os.chdir(tmp_path)
    else:
        leads_to = {"a link": precious, "a broken link": tmp_path / "no", "a link to a fifo": tmp_path / "fifo"}
        path.symlink_to(leads_to[what])
    with refused(CtrdError, str(path), state=state_dir):
        container.start()
    assert precious.read_text() == "keep me"
    assert not (tmp_path / "no").exists()
    crun_client.create("web", spec("true")).clean()  # the id is free


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdio", [None, "PIPE", 5, 1.0, object(), b"", [1, 2, 3]], ids=lambda s: type(s).__name__)
def test_stdio_that_is_nothing_known_is_refused(crun_client: Client, spec: Make, state_dir: str, stdio: Any) -> None:
    container = crun_client.create("web", spec("exit 3"))
    with refused(InvalidArgumentError, "stdio="):
        container.start(stdio)
    container.start()  # nothing had begun, so it can still be
    assert container.wait(WAIT).code == 3


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("given", [None, "PIPE", object(), io.BytesIO(), 1.5], ids=lambda s: type(s).__name__)
def test_a_stream_that_is_none_is_refused_by_its_name(stream: str, given: Any) -> None:
    with refused(InvalidArgumentError, f"{stream}="):
        Stdio(**{stream: given})


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("given", [-1, -2, 2**31, 2**70, True], ids=repr)
def test_a_number_that_is_no_descriptor_is_refused(stream: str, given: Any) -> None:
    with refused(InvalidArgumentError, f"{stream}="):
        Stdio(**{stream: given})


def test_a_closed_file_is_no_stream(tmp_path: Path) -> None:
    file = open(tmp_path / "x", "wb")  # noqa: SIM115 - it is closed here, on purpose
    file.close()
    with refused(InvalidArgumentError, "stdout="):
        Stdio(stdout=file)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"unattended": "log"}, "log=FILE"),
        ({"log": "/tmp/x"}, "log=FILE"),
        ({"unattended": "discard", "log": "/tmp/x"}, "log=FILE"),
        ({"auto_remove": True}, "auto_remove"),
        ({"auto_remove": True, "unattended": "discard"}, "auto_remove"),
        ({"auto_remove": True, "unattended": "hold", "stdio": DETACHED}, "auto_remove"),
        ({"unattended": "keep"}, "unattended="),
        ({"unattended": None}, "unattended="),
        ({"unattended": "log", "log": "/tmp/\0"}, "log="),
        ({"unattended": "log", "log": 7}, "log="),
        ({"unattended": "log", "log": ""}, "log="),
        ({"drain_timeout": -1.0}, "drain_timeout="),
        ({"drain_timeout": float("nan")}, "drain_timeout="),
        ({"drain_timeout": "soon"}, "drain_timeout="),
    ],
    ids=str,
)
def test_options_of_a_start_that_cannot_be_are_refused(
    crun_client: Client, spec: Make, state_dir: str, options: dict[str, Any], named: str
) -> None:
    container = crun_client.create("web", spec("true"))
    with refused(InvalidArgumentError, named):
        container.start(**options)
    assert container.status == "created"
    container.clean()
    assert nothing_in(state_dir)


@pytest.mark.parametrize("log", ["/no/such/directory/log", "/", "/dev/null/log"])
def test_a_log_that_cannot_be_written_is_told(crun_client: Client, spec: Make, state_dir: str, log: str) -> None:
    container = crun_client.create("web", spec("true"))
    with refused(CtrdError, log, state=state_dir):
        container.start(DETACHED, unattended="log", log=log)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "args"),
        ({"args": ["true"]}, "rootfs"),
        ({"rootfs": "/"}, "args"),
        ({"args": ["true"], "rootfs": "/", "spec": {}}, "either"),
        ({"args": ["true"], "spec": {}}, "args"),
        ({"spec": {}, "cwd": "/"}, "cwd"),
        ({"args": [], "rootfs": "/"}, "args"),
        ({"args": ["true"], "rootfs": "/", "input": b"", "stdin": 0}, "input="),
        ({"args": ["true"], "rootfs": "/", "capture_output": True, "stdout": NULL}, "capture_output="),
        ({"args": ["true"], "rootfs": "/", "stdout": PIPE}, "PIPE"),
        ({"args": ["true"], "rootfs": "/", "stdout": "x"}, "stdout="),
    ],
    ids=str,
)
def test_run_refuses_what_does_not_go_together(
    crun_client: Client, state_dir: str, options: dict[str, Any], named: str
) -> None:
    with refused(InvalidArgumentError, named, state=state_dir):
        libctrd.run(client=crun_client, **options)


# ---- operations in the wrong state -----------------------------------------------------------------------------------


def test_nothing_can_be_done_with_a_container_that_is_not_there(
    crun_client: Client, spec: Make, state_dir: str
) -> None:  # C20
    with refused(NotFoundError, "ghost", state=state_dir):
        crun_client.get("ghost")
    container = crun_client.create("ghost", spec("true"))
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


def test_nothing_but_a_start_can_be_done_before_the_start(crun_client: Client, spec: Make) -> None:  # C20
    container = crun_client.create("web", spec("exit 4", terminal=True))
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


def test_nothing_but_wait_and_clean_can_be_done_after_the_end(crun_client: Client, spec: Make, state_dir: str) -> None:
    container = crun_client.create("web", spec("exit 6", terminal=True))
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


def test_a_size_that_no_terminal_has_is_refused(crun_client: Client, spec: Make) -> None:
    container = crun_client.create("web", spec("read x; exit 3", terminal=True))
    container.start()
    for size in ((0, 24), (80, 0), (-1, 24), (80, 65536), (2**40, 24), (80.5, 24), ("80", 24), (None, 24), (True, 24)):
        with refused(InvalidArgumentError, "terminal"):
            container.resize(*size)
    container.resize(65535, 65535)
    assert container.stdin is not None
    container.stdin.write(b"\n")
    assert container.wait(WAIT).code == 3


def test_a_container_without_a_terminal_has_no_size(crun_client: Client, spec: Make) -> None:
    container = crun_client.create("web", spec("cat"))
    container.start()
    with refused(InvalidArgumentError, "'web' has no terminal"):
        container.resize(80, 24)
    assert container.stdin is not None
    container.stdin.close()
    assert container.wait(WAIT).code == 0


def test_a_signal_that_does_not_exist_is_refused(crun_client: Client, spec: Make) -> None:
    container = crun_client.create("web", spec("cat; exit 2"))
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
def test_a_listener_that_is_none_is_refused(crun_client: Client, listener: Any) -> None:
    with refused(InvalidArgumentError, "listener"):
        crun_client.subscribe(listener)


def test_a_listener_that_takes_too_little_ends_the_start(crun_client: Client, spec: Make, state_dir: str) -> None:
    class Wrong:
        def state_changed(self) -> None: ...

    crun_client.subscribe(Wrong())  # type: ignore[arg-type]
    container = crun_client.create("web", spec("cat"))
    with pytest.raises(TypeError):
        container.start()
    assert nothing_in(state_dir)


@pytest.mark.parametrize("arguments", ["--debug", [1], ["a\0b"], [None], b"--debug", 5, None], ids=repr)
def test_runtime_args_that_are_no_strings_are_refused(
    crun_client: Client, spec: Make, state_dir: str, arguments: Any
) -> None:  # C1
    with refused(InvalidArgumentError, "runtime_args=", state=state_dir):
        crun_client.create("web", spec("true"), runtime_args=arguments)


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


def test_a_closed_client_says_so(state_dir: str, spec: Make) -> None:
    with libctrd.connect(f"local:{state_dir}") as client:
        container = client.create("web", spec("true"))
        container.clean()
    for call in (lambda: client.create("web", spec("true")), lambda: client.get("web"), client.containers):
        with refused(libctrd.ClosedError, "closed", state=state_dir):
            call()
    client.close()


# ---- what another hand has damaged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"id": 5}', b"null", json.dumps({"id": "web"}).encode()], ids=repr
)
def test_a_damaged_record_is_told_and_the_others_go_on(
    crun_client: Client, spec: Make, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = crun_client.create("broken", spec("true")), crun_client.create("sound", spec("exit 3"))
    path = Path(broken.bundle, "state.json")
    before = path.read_bytes()
    path.write_bytes(damage)
    with libctrd.connect(crun_client.address) as other:
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


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"code": "x"}', b" " * 160], ids=repr)
def test_a_damaged_exit_record_is_told(crun_client: Client, spec: Make, state_dir: str, damage: bytes) -> None:
    with libctrd.connect(crun_client.address) as starter:
        starter.create("web", spec("exit 3")).start(DETACHED, unattended="discard")
    container = crun_client.get("web")
    assert container.wait(WAIT).code == 3
    path = Path(container.bundle, "exit.json")
    path.write_bytes(damage)
    with libctrd.connect(crun_client.address) as other:
        theirs = other.get("web")
        for call in (theirs.info, lambda: theirs.status, theirs.wait):
            with refused(CtrdError, "exit record", "damaged"):
                call()
        theirs.clean(force=True)  # it can be got rid of all the same
    assert nothing_in(state_dir)
