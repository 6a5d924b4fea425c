"""``ctrd logs`` and the options of a log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]
pytestmark = pytest.mark.local("its shim writes the log")

STAMP = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00"


def test_a_log_goes_on_without_a_client_and_is_shown_by_another(ctrd: Ctrd, tmp_path: Path) -> None:
    log = ["--log", "log", "--log-format", "json", "--log-size", "1m", "--log-files", "3"]
    script = "echo one; echo two >&2; usleep 200000; printf last; exit 3"
    assert ctrd.run("-d", "--id", "web", *log, "sh", "-c", script, cwd=tmp_path).returncode == 0
    followed = ctrd("logs", "-f", "web")
    assert (followed.stdout, followed.stderr, followed.returncode) == (b"one\nlast", b"two\n", 0)
    stamped = ctrd("logs", "--timestamps", "web")
    assert re.fullmatch(STAMP + rb" one\n" + STAMP + rb" last", stamped.stdout)
    assert ctrd("logs", "--tail", "1", "web").stdout == b"last"
    assert ctrd("logs", "--since", "2099-01-01T00:00:00Z", "web").stdout == b""
    assert ctrd("logs", "--since", "1h", "web").stdout == b"one\nlast"
    assert "is no time" in ctrd.failure(ctrd("logs", "--since", "soon", "web"))
    assert ctrd("rm", "web").returncode == 0
    assert "there is no container 'web'" in ctrd.failure(ctrd("logs", "web"))
    assert (tmp_path / "log").exists()


def test_who_reads_what_is_followed_may_go(ctrd: Ctrd, tmp_path: Path) -> None:
    """Nothing comes any more that would tell by SIGPIPE."""
    log = ["--log", str(tmp_path / "log")]
    assert ctrd.run("-d", "--id", "web", *log, "sh", "-c", "echo one; exec sleep 1000").returncode == 0
    following = ctrd.popen("logs", "-f", "web")
    assert following.stdout is not None
    assert following.stdout.readline() == b"one\n"
    following.stdout.close()
    assert following.wait(30) == 0
    assert ctrd("rm", "--force", "web").returncode == 0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--log-format", "json"], "give --log FILE too"),
        (["--log-size", "1m"], "give --log FILE too"),
        (["--log", "log", "--log-size", "much"], "size 'much' is not valid"),
        (["--log", "log", "--log-files", "0"], "0 is not in the range"),
        (["--log", "log", "--unattended", "hold"], "leave --unattended out"),
    ],
)
def test_options_that_cannot_be_are_refused(given: list[str], why: str, ctrd: Ctrd, tmp_path: Path) -> None:
    assert why in ctrd.failure(ctrd.run("-d", *given, "true", cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_one_without_a_log_is_told_how_to_have_one(ctrd: Ctrd) -> None:
    assert ctrd.run("-d", "--id", "web", "true").returncode == 0
    assert "has no log: start it with unattended='log' (ctrd run -d --log FILE)" in ctrd.failure(ctrd("logs", "web"))
    assert ctrd("wait", "web").returncode == 0
    assert ctrd("rm", "web").returncode == 0
