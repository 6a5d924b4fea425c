"""Bad input to a client: ids, specs, streams, operations. Each is one clear line of the family, and leaves nothing."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from field_kit import WAIT, Make, nothing_in, refused

import libctrd
from libctrd import DETACHED, NULL, PIPE, Stdio
from libctrd.client import Client
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError

BAD_IDS = (
    *("", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b", "a\n", "\na", "a\nb", "a..b", "-a", "a-", ".a", "a--b"),
    *("a b", "ä", "a\u2028b", "\ud800", "a%s", "~", "a" * 77, "../" * 40, 5, None, b"bytes", ["a"]),
)


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", BAD_IDS, ids=repr)
def test_an_id_that_cannot_be_is_refused_before_it_touches_a_path(
    any_client: Client, spec: Make, state_dir: str, id: Any
) -> None:
    wanted = spec("true")
    listed = set(os.listdir(os.path.dirname(state_dir)))
    why = "77 characters" if id == "a" * 77 else "container id"
    for call in (
        lambda: any_client.create(id, wanted),
        lambda: any_client.get(id),
        lambda: any_client._engine.record(id),
        lambda: any_client._engine.snapshot(id),
        lambda: any_client._engine.delete(id, force=True),
    ):
        with refused(InvalidArgumentError, why, state=state_dir):
            call()
    assert set(os.listdir(os.path.dirname(state_dir))) == listed


@pytest.mark.parametrize("id", [id for id in BAD_IDS if id], ids=repr)
def test_run_refuses_an_id_that_cannot_be(any_client: Client, rootfs: str, state_dir: str, id: Any) -> None:
    with refused(InvalidArgumentError, "container id", state=state_dir):
        libctrd.run(["true"], rootfs=rootfs, id=id, client=any_client, stdout=NULL, stderr=NULL)


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
    any_client: Client, spec: Make, state_dir: str, path: tuple[str, ...], value: Any, named: str
) -> None:
    wanted = spec("true")
    inner = wanted
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    before = list(wanted)
    with refused(CtrdError, named, state=state_dir):
        any_client.create("web", wanted)
    assert list(wanted) == before
    any_client.create("web", spec("true")).clean()  # the id is free


@pytest.mark.parametrize("wanted", [None, [], "spec", {}, {"process": {}}, 3], ids=repr)
def test_what_is_no_spec_at_all_is_refused(any_client: Client, state_dir: str, wanted: Any) -> None:
    with refused(InvalidArgumentError, state=state_dir):
        any_client.create("web", wanted)


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


@pytest.mark.local("containerd has the spec itself")
def test_config_json_that_was_damaged_before_the_start_is_told(client: Client, spec: Make, state_dir: str) -> None:
    container = client.create("web", spec("true"))
    Path(container.bundle, "config.json").write_text("{")
    with refused(CtrdError, "web", state=state_dir):
        container.start()


# ---- what stands where a fifo is to be -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("what", ["a file", "a directory", "a link", "a broken link", "a link to a fifo", "a socket"])
def test_a_path_that_is_no_fifo_where_one_is_to_be(
    any_client: Client, spec: Make, state_dir: str, tmp_path: Path, stream: str, what: str
) -> None:  # C14
    container = any_client.create("web", spec("true"))
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
    any_client.create("web", spec("true")).clean()  # the id is free


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdio", [None, "PIPE", 5, 1.0, object(), b"", [1, 2, 3]], ids=lambda s: type(s).__name__)
def test_stdio_that_is_nothing_known_is_refused(any_client: Client, spec: Make, state_dir: str, stdio: Any) -> None:
    container = any_client.create("web", spec("exit 3"))
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
    any_client: Client, spec: Make, state_dir: str, options: dict[str, Any], named: str
) -> None:
    container = any_client.create("web", spec("true"))
    with refused(InvalidArgumentError, named):
        container.start(**options)
    assert container.status == "created"
    container.clean()
    assert nothing_in(state_dir)


@pytest.mark.cannot("api", "log output", raises=AssertionError)
@pytest.mark.parametrize("log", ["/no/such/directory/log", "/", "/dev/null/log"])
def test_a_log_that_cannot_be_written_is_told(any_client: Client, spec: Make, state_dir: str, log: str) -> None:
    container = any_client.create("web", spec("true"))
    with refused(CtrdError, log, state=state_dir):
        container.start(DETACHED, unattended="log", log=log)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "args"),
        ({"args": ["true"]}, "rootfs"),
        ({"rootfs": "/"}, "args"),
        ({"args": ["true"], "rootfs": "/", "spec": {}}, "one of"),
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
    any_client: Client, state_dir: str, options: dict[str, Any], named: str
) -> None:
    with refused(InvalidArgumentError, named, state=state_dir):
        libctrd.run(client=any_client, **options)
