"""``ctrd images`` and ``ctrd run --image``, as people type them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import Ctrd
from images_kit import Place, place, serve
from oci_kit import Layer, Layout, busybox, simple, tar
from registry_kit import PASSWORD, USER, Fake, status

__all__ = ["place", "serve"]  # fixtures of another file


@pytest.fixture
def ctrd(place: Place) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs ctrd in the place to its end."""

    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once for all tests, not by each process
    environment["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), f"ctrd-tests-{os.getuid()}")

    def run(*args: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
        settings.setdefault("env", environment)
        if "input" not in settings:
            settings.setdefault("stdin", subprocess.DEVNULL)
        program = [sys.executable, "-m", "libctrd.cli", "--address", place.daemon.address]
        command = [*program, "--namespace", place.namespace, *args]
        return subprocess.run(command, capture_output=True, timeout=60, **settings)  # type: ignore[call-overload,no-any-return]

    return run


Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


def done(command: subprocess.CompletedProcess[bytes]) -> str:
    """What it printed; it did not fail, and had nothing to complain of."""
    assert (command.returncode, command.stderr) == (0, b"")
    return command.stdout.decode()


# C26
def test_images_are_imported_listed_run_and_removed(ctrd: Command, place: Place, tmp_path: Path) -> None:
    layout = simple("test:1", config={"Entrypoint": ["/bin/echo", "said"], "Cmd": ["nothing"], "Env": ["PATH=/bin"]})
    path = layout.archive(tmp_path / "image.tar")
    assert done(ctrd("images", "import", str(path))) == "docker.io/library/test:1\n"
    assert done(ctrd("images", "import", "-", "--name", "other:2", input=path.read_bytes())).endswith("other:2\n")

    assert done(ctrd("images", "ls", "-q")).split() == ["docker.io/library/other:2", "docker.io/library/test:1"]
    head, row, _ = done(ctrd("images", "ls")).splitlines()
    assert head.split() == ["NAME", "DIGEST", "SIZE", "CREATED", "PLATFORMS"]
    assert row.split()[:4] == ["docker.io/library/other:2", layout.entries[0]["digest"][:19], "1.0", "MiB"]
    assert row.endswith("linux/amd64")
    (listed, _) = json.loads(done(ctrd("images", "ls", "--format", "json")))
    assert listed["digest"] == layout.entries[0]["digest"]

    assert done(ctrd("run", "--image", "test:1")) == "said nothing\n"
    assert done(ctrd("run", "--image", "test:1", "--", "this")) == "said this\n"

    removed = ctrd("images", "rm", "test:1", "none:1", "other:2")
    assert removed.stdout.decode().split() == ["docker.io/library/test:1", "docker.io/library/other:2"]
    assert removed.returncode == 125
    assert removed.stderr.decode().count("\n") == 1
    assert b"image docker.io/library/none:1 is not in namespace" in removed.stderr
    assert place.is_empty()


# C26
def test_a_container_of_an_image_is_who_and_where_the_image_says(ctrd: Command, place: Place, tmp_path: Path) -> None:
    config = {"User": "guest", "WorkingDir": "/tmp", "Env": ["PATH=/bin", "A=image", "B=image"], "Cmd": ["sh"]}
    ctrd("images", "import", str(simple("test:1", config=config).archive(tmp_path / "image.tar")))
    said = done(ctrd("run", "--image", "test:1", "--env", "B=mine", "--", "sh", "-c", "id; pwd; echo $A $B"))
    assert said == "uid=1000(guest) gid=1001(guest) groups=29(audio),44(video),1001(guest)\n/tmp\nimage mine\n"


# C26
def test_the_writes_of_a_container_are_its_own_and_gone_with_it(ctrd: Command, place: Place, tmp_path: Path) -> None:
    ctrd("images", "import", str(simple("test:1").archive(tmp_path / "image.tar")))
    done(ctrd("run", "--image", "test:1", "--", "sh", "-c", "echo changed > /etc/passwd; rm /bin/ls"))
    assert "guest" in done(ctrd("run", "--image", "test:1", "--", "cat", "/etc/passwd"))
    failed = ctrd("run", "--image", "test:1", "--", "no-such-program")
    assert failed.returncode != 0
    snapshots = place.ctr("snapshots", "--snapshotter", place.images.snapshotter, "ls").splitlines()[1:]
    assert [line for line in snapshots if line.strip() and "Committed" not in line] == []


# C26
def test_an_image_is_pulled_with_the_password_from_stdin(
    ctrd: Command, place: Place, serve: Callable[..., Fake]
) -> None:
    fake = serve(simple())
    ref = fake.tag(fake.layout.entries[0], "app:1")
    fake.instead("/manifests/", status(401, {"WWW-Authenticate": 'Basic realm="here"'}), times=1)
    said = ctrd("images", "pull", "--by", "ctrd", "--user", USER, ref, input=PASSWORD.encode() + b"\n")
    assert done(said) == f"{ref}\n"
    assert fake.asked("/blobs/")[-1]["Authorization"].startswith("Basic ")
    failed = ctrd("images", "pull", "--user", USER, ref)
    assert Ctrd.failure(failed) == "ctrd: no password came from standard input: give it there, in one line\n"


# C26
@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("pull", "Not/Valid"), r"image reference 'Not/Valid' is not valid"),
        (("pull", "127.0.0.1:1/app"), r"127.0.0.1:1"),
        (("pull", "--timeout", "0", "--by", "ctrd", "127.0.0.1:1/app"), r"timeout is a number of seconds above 0"),
        (("import", "/no/such/file"), r"could not open the image archive '/no/such/file' (open): No such file"),
        (("import", "/dev/null"), r"cannot be read as a tar"),
        (("import",), r"Missing argument 'FILE' (see `ctrd images import --help`)"),
        (("rm", "none"), r"image docker.io/library/none:latest is not in namespace"),
        (("nothing",), r"No such command 'nothing' (see `ctrd images --help`)"),
    ],
)
def test_what_fails_is_told_in_one_line(ctrd: Command, place: Place, args: tuple[str, ...], text: str) -> None:
    assert text in Ctrd.failure(ctrd("images", *args))
    assert place.is_empty()


# C26
def test_an_engine_without_images_says_so(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "libctrd.cli", "--state-dir", str(tmp_path / "state")]
    failed = subprocess.run([*program, "images", "ls"], capture_output=True, timeout=60)
    assert "images" in Ctrd.failure(failed)


# C26
@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_on_a_terminal_alone(place: Place, tmp_path: Path, quiet: bool) -> None:
    layout = Layout()
    layout.name(layout.image([Layer(tar(busybox()), "")]), "test:1")
    path = layout.archive(tmp_path / "image.tar")
    ours, theirs = os.openpty()
    try:
        program = [sys.executable, "-m", "libctrd.cli", "--address", place.daemon.address]
        command = [*program, "--namespace", place.namespace, "images", "import", *(["-q"] if quiet else []), str(path)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        said = subprocess.run(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, timeout=60, env=environment)
        assert said.stdout == b"docker.io/library/test:1\n"
        os.set_blocking(ours, False)
        shown = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(ours, 1 << 16):
                shown += data
    finally:
        os.close(ours)
        os.close(theirs)
    if quiet:
        assert shown == b""
    else:
        text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", shown.decode())
        assert re.search(r"importing .* (\d\.\d)/\1 MiB", text), text
