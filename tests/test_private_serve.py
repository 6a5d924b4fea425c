"""What is special to a `ctrd serve` of ours; the rest is in test_daemon.py, test_daemon_watch.py, test_private.py."""

from __future__ import annotations

import os
import signal
import stat

import pytest
from containerd_kit import until
from daemon_kit import ServePlace, place_fixture

import libctrd
from libctrd.engine.daemon import Daemon
from libctrd.engine.privateserve import Serve

__all__ = ["place_fixture"]

serve = pytest.mark.parametrize("place", ["serve"], indirect=True)


# C23, C25
@serve
def test_its_socket_is_for_us_alone_and_it_says_that_it_is_well(place: ServePlace) -> None:
    daemon = place.daemon()
    daemon.start()
    assert stat.S_IMODE(os.stat(place.socket).st_mode) == 0o600
    probe = Serve().probe(place.directory)
    probe.ask(10)
    probe.close()


# C23
@serve
def test_the_runtime_that_it_was_started_with_is_that_of_whoever_names_none(place: ServePlace, rootfs: str) -> None:
    daemon = Daemon(Serve("runc"), place.directory)
    daemon.start()
    pid = place.start_container("c", rootfs, "sleep", "1000")
    assert place.reached().call("State", id="c").containers[0].runtime.endswith("/runc")
    os.kill(pid, signal.SIGKILL)
    daemon.stop()


# C23, C28
@serve
def test_what_ends_while_it_is_away_is_told_by_the_next(place: ServePlace, rootfs: str) -> None:
    daemon = place.daemon()
    daemon.start()
    first = daemon.pid
    assert first
    script = "trap 'exit 9' TERM; while :; do sleep 0.02; done"
    pid = place.start_container("c", rootfs, "sh", "-c", script)
    os.kill(first, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    until(lambda: daemon.pid not in (None, first), "another one")
    assert place.end_of("c", []) == 9
    assert place.served.stored() == [("start-container", "c", "", 0), ("exit", "c", "init", 9)]


# C23
def test_it_has_no_namespaces() -> None:
    with pytest.raises(libctrd.InvalidArgumentError, match="no namespaces"):
        libctrd.connect("serve:/nowhere", namespace="x")
