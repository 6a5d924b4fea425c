"""`libctrd.testing`, as its users have it: a run of pytest of their own, with its own conftest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_kit import nothing_left
from engine_kit import Place

from libctrd.client import Client
from libctrd.errors import DeadlineError, InvalidArgumentError, NotFoundError
from libctrd.testing import Containers

WAIT = 60.0


@pytest.fixture
def made(any_client: Client) -> Iterator[Containers]:
    made = Containers(any_client)
    yield made
    made.stop()
    assert any_client.containers() == []


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_a_line_is_waited_for_on_either_stream(made: Containers, rootfs: str) -> None:
    web = made.run(sh("echo early; read x < /dev/null; usleep 200000; echo up at 80 >&2; sleep 1000"), rootfs=rootfs)
    assert web.wait_for_line(r"up at (\d+)")[1] == "80"
    assert web.wait_for_line("early", 0)[0] == "early", "lines that came before count"
    assert (web.stdout, web.stderr) == ("early\n", "up at 80\n")
    with pytest.raises(DeadlineError, match=r"'never' within 0\.1 s; the last it printed: early / up at 80"):
        web.wait_for_line("never", 0.1)


def test_a_part_of_a_line_does_not_count_before_it_is_whole_or_the_last(made: Containers, rootfs: str) -> None:
    web = made.run(sh("printf begun; usleep 300000; echo ' and ended'; printf last; exit 3"), rootfs=rootfs)
    assert web.wait_for_line("begun.*")[0] == "begun and ended"
    assert web.wait_for_line("^last$")
    with pytest.raises(NotFoundError, match="never said 'nothing'; the last it printed: begun and ended / last"):
        web.wait_for_line("nothing")
    assert web.wait().code == 3


def test_a_port_is_waited_for_in_the_network_of_the_container(made: Containers, rootfs: str) -> None:
    """It is listened at inside, where nobody outside could connect to it."""
    web = made.run(sh("usleep 200000; exec nc -l -p 4711"), rootfs=rootfs)
    with pytest.raises(DeadlineError, match=r"listened at port 4712 within 0\.05 s; it has printed nothing"):
        web.wait_for_port(4712, 0.05)
    web.wait_for_port(4711)
    with pytest.raises(InvalidArgumentError, match="is no port"):
        web.wait_for_port(70_000)
    ended = made.run(["/bin/false"], rootfs=rootfs)
    with pytest.raises(NotFoundError, match="ended and never listened at 80"):
        ended.wait_for_port(80)


def test_a_command_in_it_is_checked(made: Containers, rootfs: str) -> None:
    web = made.run(sh("sleep 1000"), rootfs=rootfs)
    assert web.check(sh("echo fine")) == "fine\n"
    with pytest.raises(pytest.fail.Exception, match="ended with 4: wrong"):
        web.check(sh("echo wrong >&2; exit 4"))
    killer = threading.Timer(0.1, web.container.signal, ("KILL",))
    killer.start()
    assert web.wait().code == 137
    killer.join()


USER_TESTS = """
    import pytest


    def test_good(containers):
        web = containers.run(["/bin/sh", "-c", "echo ready; sleep 1000"], rootfs={rootfs!r}, id="good")
        web.wait_for_line("ready")
        assert web.container.status == "running"


    def test_bad(containers):
        web = containers.run(["/bin/sh", "-c", "echo all is lost >&2; sleep 1000"], rootfs={rootfs!r}, id="bad")
        web.wait_for_line("lost")
        assert False


    def test_each_has_its_own(containers):
        assert containers.started == [] == containers.client.containers()
"""


def test_its_users_see_what_a_container_printed_and_find_nothing_left(
    engine: Place, rootfs: str, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["libctrd.testing"]\n')
    (tmp_path / "test_web.py").write_text(textwrap.dedent(USER_TESTS.format(rootfs=rootfs)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    named = {**os.environ, "CTRD_TEST_ADDRESS": engine.address}
    if engine.namespace:
        named["CONTAINERD_NAMESPACE"] = engine.namespace
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=named, cwd=tmp_path)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "stderr of container bad" in done.stdout
    assert "all is lost\n" in done.stdout
    assert "container good" not in done.stdout
    nothing_left(engine.root)


@pytest.mark.local("about its own directory")
def test_without_an_address_there_is_a_directory_that_goes(rootfs: str, tmp_path: Path, state_dir: str) -> None:
    before = set(os.listdir("/run"))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["libctrd.testing"]\n')
    (tmp_path / "test_web.py").write_text(textwrap.dedent(USER_TESTS.format(rootfs=rootfs)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), "-k", "good or own"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert {name for name in set(os.listdir("/run")) - before if name.startswith("ctrd-pytest-")} == set()
