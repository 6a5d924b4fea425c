"""``ctrd exec``: further processes in a container that runs, each by a command of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]


@pytest.fixture
def job(ctrd: Ctrd) -> Iterator[str]:
    """A container that runs, with variables of its own."""
    id = ctrd.detached("while :; do sleep 1; done", "--env", "OWN=its own", "--env", "BOTH=first")
    yield id
    assert ctrd("rm", "--force", id).returncode == 0


def test_it_prints_all_and_exits_as_the_process_does(ctrd: Ctrd, job: str) -> None:  # C21, C28
    done = ctrd("exec", job, "--", "sh", "-c", "seq 100000; echo $OWN, $BOTH, $MORE >&2; exit 7", "--")
    assert (done.returncode, done.stderr) == (7, b"its own, first,\n")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 100001)).encode()


def test_env_goes_over_that_of_the_container_and_the_rest_is_the_containers(ctrd: Ctrd, job: str) -> None:  # C21
    script = "echo $OWN, $BOTH, $MORE from $(id -u) in $(pwd)"
    done = ctrd("exec", "--env", "BOTH=second", "--env", "MORE=new", job, "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"its own, second, new from 0 in /\n", b"")
    done = ctrd("exec", "--user", "1000:50", "--cwd", "/tmp", job, "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"its own, first, from 1000 in /tmp\n", b"")


def test_our_input_is_its_input_when_that_is_asked_for(ctrd: Ctrd, job: str) -> None:  # C21
    assert ctrd("exec", "-i", job, "cat", input=b"in and out").stdout == b"in and out"
    assert ctrd("exec", job, "cat", input=b"nobody reads it").stdout == b""


def test_a_detached_one_is_left_to_itself_under_its_name(ctrd: Ctrd, job: str) -> None:  # C9, C21
    done = ctrd("exec", "--detach", "--name", "more", job, "--", "sh", "-c", "echo done > /tmp/mark; sleep 1000")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"more\n", b"")
    look = "until test -s /tmp/mark; do usleep 1000; done; rm /tmp/mark; ps | grep -c 'sleep 1000$'"
    assert ctrd("exec", job, "sh", "-c", look).stdout == b"1\n"
    assert "more" in ctrd.failure(ctrd("exec", "--name", "more", job, "true"))


def test_what_cannot_be_is_one_line(ctrd: Ctrd, job: str) -> None:  # C20, C21
    for arguments in ((job,), (job, "--")):
        assert "nothing to run" in ctrd.failure(ctrd("exec", *arguments))
    assert "no-such-thing" in ctrd.failure(ctrd("exec", job, "no-such-thing"))
    assert "nobody" in ctrd.failure(ctrd("exec", "nobody", "true"))
    assert "-d" in ctrd.failure(ctrd("exec", "-d", "-i", job, "cat"))
    ctrd("kill", job)
    ctrd("wait", job)
    assert "not running" in ctrd.failure(ctrd("exec", job, "true"))
