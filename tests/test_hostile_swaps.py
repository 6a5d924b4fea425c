"""Names that are exchanged beside each step, by who owns the place: nothing that they lead to is touched, nobody hangs.

Who may do so is said in SECURITY.md: the user who is a container's root on the host owns its bundle (C19), and whoever
writes in a root file system owns what is in it. The naive way, `open(os.path.join(bundle, name))`, fails each of the
steps within a few rounds: files of the canary are removed, made, read or written. (So did libctrd before there were
`directory.held` and the shim's `hold`.)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_kit import Place
from field_kit import WAIT, Make
from swap_kit import Canary, exchanging

import libctrd
from libctrd import directory
from libctrd.client import Client
from libctrd.container import Container
from libctrd.errors import CtrdError

pytestmark = [
    pytest.mark.local("the others hand the paths to a daemon, whose affair they are then"),
    pytest.mark.skipif(os.geteuid() != 0, reason="it acts as other users: run the suite as root"),
]

OWNER = 123457
ROUNDS = 20


@pytest.fixture
def open_place(rootfs: str) -> Iterator[Path]:
    """A directory that every user may enter, with a root file system in it."""
    place = Path(tempfile.mkdtemp(prefix="ctrd-swap-", dir="/run"))
    place.chmod(0o755)
    shutil.copytree(rootfs, place / "rootfs", symlinks=True)
    yield place
    subprocess.run(["rm", "-rf", "--one-file-system", str(place)], check=True)


@pytest.fixture
def mapped(open_place: Path) -> Make:
    """Makes the spec of a container whose root is the user `OWNER`."""

    def make(script: str) -> dict[str, Any]:
        spec = libctrd.spec.default(["/bin/sh", "-c", script], str(open_place / "rootfs"))
        spec["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            spec["linux"][kind] = [{"containerID": 0, "hostID": OWNER, "size": 1}]
        # sysfs is for who owns the network namespace, and devpts' usual group is not mapped
        for mount in spec["mounts"]:
            mount["options"] = [option for option in mount.get("options", ()) if not option.startswith("gid=")]
        return spec

    return make


@pytest.fixture
def canary(open_place: Path) -> Iterator[Canary]:
    made = Canary(open_place / "canary", "web", "state/web")
    yield made
    made.check()
    made.close()


def test_a_container_whose_root_is_another_user_runs(client: Client, mapped: Make) -> None:  # C19
    """Without anybody who swaps: what the tests below would else not be about."""
    container = client.create("web", mapped("cat; exit 5"))
    container.start(libctrd.PIPE)
    more = container.exec(["id", "-u"], name="more")
    assert more.stdout is not None
    assert more.stdout.read() == b"0\n"
    assert more.wait(WAIT).code == 0
    assert container.stdin is not None
    assert container.stdout is not None
    container.stdin.write(b"hello\n")
    container.stdin.close()
    assert container.stdout.read() == b"hello\n"
    assert container.wait(WAIT).code == 5
    assert not os.path.exists(container.bundle)


def _start(container: Container) -> None:
    container.start(libctrd.Stdio(libctrd.DETACHED, libctrd.DETACHED, libctrd.DETACHED))


def _attach(container: Container) -> None:
    with libctrd.connect(container._client.address) as other:
        other.get(container.id).attach(libctrd.Stdio(libctrd.PIPE, libctrd.PIPE, libctrd.PIPE)).detach()


def _exec(container: Container) -> None:
    container.exec(["true"], name="more").wait(WAIT)


class Step(NamedTuple):
    """What is attacked, how often for one container, and whether it has to be started before."""

    do: Callable[[Container], object]
    times: int = 1
    started: bool = True


STEPS = {
    "start": Step(_start, started=False),
    "exec": Step(_exec, 5),
    "attach": Step(_attach, 10),
    "pause": Step(lambda container: (container.pause(WAIT), container.resume(WAIT))),
    "spec": Step(lambda container: container.spec(), 20),
    "clean": Step(lambda container: container.clean(), started=False),
    "clean by force": Step(lambda container: container.clean(force=True)),
}


def test_swaps_beside_a_create(client: Client, engine: Place, mapped: Make, canary: Canary) -> None:  # C2, C19
    """It is made in the right place, or there is a clear error; and then nothing of it is left in ours."""
    place = directory.for_root(engine.root, OWNER, OWNER)
    attack = _attack(place, canary)
    made = 0
    with exchanging(OWNER, *attack) as swaps:
        for _ in range(4 * ROUNDS):
            try:
                container = client.create("web", mapped("true"))
            except CtrdError:
                continue
            made += 1
            with contextlib.suppress(CtrdError):
                container.clean()
    canary.check()
    assert swaps[0] > ROUNDS
    assert made, "nobody ever came through: there was nothing to be swapped"
    assert client.containers() == []


def _attack(place: str, canary: Canary) -> list[tuple[str, str]]:
    """What `OWNER` exchanges with links to the canary, which are made: the bundle, the directory that it lies in, and
    in the bundle the spec and a fifo.
    """
    web = os.path.join(place, "web")
    pairs = []
    for path, target in (
        (place, canary.top),
        (web, canary.top / "web"),
        (f"{web}/config.json", canary.top / "web/config.json"),
        (f"{web}/init-stdout", canary.top / "web/init-stdout"),
        (f"{web}/more-stdout", canary.top / "web/more-stdout"),
    ):
        link = f"{path}.link"
        if os.path.isdir(os.path.dirname(link)):
            with contextlib.suppress(FileExistsError):
                os.symlink(target, link)
                os.chown(link, OWNER, OWNER, follow_symlinks=False)
            pairs.append((path, link))
    return pairs


@pytest.mark.parametrize("step", STEPS)
def test_swaps_beside_a_step(client: Client, engine: Place, mapped: Make, canary: Canary, step: str) -> None:  # C2, C16
    """Whoever succeeds has done so in the right place; the others get an error; cleaned are all."""
    attacked, through = STEPS[step], 0
    place = directory.for_root(engine.root, OWNER, OWNER)
    for round in range(ROUNDS):
        container = client.create("web", mapped("sleep 1000"))
        if attacked.started:
            _start(container)
        pairs = _attack(place, canary)
        with exchanging(OWNER, *(pairs if round % 2 else [pairs[round // 2 % len(pairs)]])):
            for _ in range(attacked.times):
                with contextlib.suppress(CtrdError):
                    attacked.do(container)
                    through += 1
        canary.check()
        with contextlib.suppress(CtrdError):  # the owner may have left what cannot be removed by that name: it is his
            container.clean(force=True)
        assert client.containers() == []
        directory.remove_tree(os.path.join(place, "web"), follow=False)
    assert through, "nobody ever came through: it is another thing that fails"


def test_the_spec_in_a_bundle_that_another_user_owns_is_not_believed(
    client: Client, mapped: Make, open_place: Path
) -> None:  # C5, C21
    """Who is the container's root on the host writes another one in its place: root on all of the host, say."""
    container = client.create("web", mapped("echo good; sleep 1000"))
    theirs = json.loads(Path(container.bundle, "config.json").read_text())
    theirs["process"]["args"] = ["/bin/sh", "-c", "echo evil"]
    theirs["process"]["env"] = ["EVIL=yes"]
    theirs["linux"]["namespaces"] = []
    script = f"rm -f {container.bundle}/config.json; cat >{container.bundle}/config.json"
    words = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", "sh", "-c", script]
    subprocess.run(words, input=json.dumps(theirs), text=True, check=True, cwd="/")
    container.start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.NULL))
    assert container.stdout is not None
    assert container.stdout.read(5) == b"good\n"
    assert container.spec()["process"]["args"][-1] == "echo good; sleep 1000"
    more = container.exec(["sh", "-c", "echo $EVIL."], libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.NULL))
    assert more.stdout is not None
    assert more.stdout.read() == b".\n"
    container.clean(force=True)
