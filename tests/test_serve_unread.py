"""Readers that come when a container of `ctrd serve` has ended: they get all that is unread, and the end (C25, C28)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from engine_kit import on_host
from field_kit import until
from serve_kit import Bundle, Served, keepers, script, served
from test_serve_keeper import is_idle, polled, to_end

__all__ = ["served"]  # the fixture

SIZE = 60 << 10
BIG = f"i=0; while [ $i -lt 960 ]; do echo {'x' * 63}; i=$((i + 1)); done"
"""Writes SIZE bytes, with busybox' sh alone."""
SLEEP = "while :; do sleep 0.05; done"
PATH = ["PATH=/bin"]
Read = Callable[[str], bytes]
one_runtime = pytest.mark.parametrize("served", ["crun"], indirect=True)
each_reader = pytest.mark.parametrize("read", [to_end, polled])


def ended(served: Served, code: int, process: str = "init") -> None:
    until(lambda: ("exit", "c", process, code) in served.stored())


@each_reader
def test_a_reader_that_comes_a_second_later(served: Served, rootfs: str, read: Read) -> None:
    """The exit is told at once, the id is free, and nothing is left of the container but what is unread."""
    bundle = served.bundle("b", script(f"{BIG}; echo bad >&2; exit 7", rootfs))
    served.call("CreateContainer", id="c", **bundle.create)
    ended(served, 7)
    assert served.call("State").containers == []
    assert served.refused("State", id="c").details() == "containerd: container not found"
    assert os.listdir(served.state) == [".serve"]
    (keeper,) = keepers(served.state)
    assert on_host(served.state)["cgroups"] == []
    assert is_idle(keeper)
    assert psutil.Process(keeper).memory_info().rss < 2 << 20
    time.sleep(1)  # it is this late that he comes
    assert read(bundle.fifos["stderr"]) == b"bad\n"
    assert len(read(bundle.fifos["stdout"])) == SIZE
    until(lambda: not keepers(served.state))


@one_runtime
def test_what_was_read_to_the_end_is_not_kept(served: Served, rootfs: str) -> None:
    """Nor is there anything to keep of one that has told nothing, or whose output nobody asked for."""
    silent, no_fifos = script("exit 1", rootfs), script("echo x; exit 1", rootfs)
    for bundle in (served.bundle("silent", silent), served.bundle("none", no_fifos, fifos=False)):
        served.call("CreateContainer", id="c", **bundle.create)
        until(lambda: served.stored()[-1][0] == "exit")
        assert keepers(served.state) == []


@one_runtime
def test_a_reader_that_is_slow(served: Served, rootfs: str) -> None:
    """He is there from the beginning, and reads when all is over: more than the fifo holds has held the container."""
    bundle = served.bundle("b", script(f"{BIG}; {BIG}; exit 5", rootfs))
    out = bundle.read("stdout")
    served.call("CreateContainer", id="c", **bundle.create)
    first = b""

    def ends() -> bool:
        nonlocal first
        if served.stored()[-1][0] == "exit":
            return True
        if len(first) < SIZE:
            with contextlib.suppress(BlockingIOError):
                first += os.read(out, 4096)
        return False

    until(ends)
    os.set_blocking(out, True)
    rest = b""
    while data := os.read(out, 4096):
        rest += data
    assert len(first + rest) == 2 * SIZE
    os.close(out)
    until(lambda: not keepers(served.state))


@each_reader
def test_a_further_process(served: Served, rootfs: str, read: Read) -> None:
    """Its name is free at once, too; what each has told is kept, also when the container is gone."""
    init = served.bundle("init", script(SLEEP, rootfs))
    served.call("CreateContainer", id="c", **init.create)
    bundles = [served.bundle(f"p{number}", {}) for number in range(3)]
    for number, bundle in enumerate(bundles):
        fields = {"args": ["sh", "-c", f"{BIG}; echo bad >&2; exit {number}"], "env": PATH, **bundle.fifos}
        served.call("AddProcess", id="c", pid="p", **fields)
        ended(served, number, "p")
    assert len(read(bundles[0].fifos["stdout"])) == SIZE
    served.call("Signal", id="c", pid="init", signal=signal.SIGKILL)
    ended(served, 137)
    for bundle in bundles:
        assert read(bundle.fifos["stderr"]) == b"bad\n"
    for bundle in bundles[1:]:
        assert len(read(bundle.fifos["stdout"])) == SIZE
    until(lambda: not keepers(served.state))


# A terminal's own buffer and the shim's hold some KiB more than the fifo: so much that there is something in them.
TERMINAL = 67 << 10


def told_to_a_terminal(size: int) -> str:
    """A script that tells *size* bytes, which no line discipline changes."""
    return f"stty raw; i=0; while [ $i -lt {size >> 6} ]; do printf {'x' * 64}; i=$((i + 1)); done"


@each_reader
@pytest.mark.parametrize("further", [False, True])
def test_a_terminal(served: Served, rootfs: str, read: Read, further: bool) -> None:
    """More than the fifo holds: the rest of it is still with the terminal when its process has ended."""
    bundle = served.bundle("b", script(f"{told_to_a_terminal(TERMINAL)}; exit 6", rootfs, terminal=True))
    if further:
        init = served.bundle("init", script(SLEEP, rootfs), fifos=False)
        served.call("CreateContainer", id="c", **init.create)
        args = ["sh", "-c", f"{told_to_a_terminal(TERMINAL)}; exit 6"]
        served.call("AddProcess", id="c", pid="p", args=args, env=PATH, terminal=True, **bundle.fifos)
        ended(served, 6, "p")
    else:
        served.call("CreateContainer", id="c", **bundle.create)
        ended(served, 6)
    assert len(read(bundle.fifos["stdout"])) == TERMINAL
    until(lambda: not keepers(served.state))
    if further:
        served.call("Signal", id="c", pid="init", signal=signal.SIGKILL)
        ended(served, 137)


@one_runtime
def test_a_terminal_that_nobody_will_read(served: Served, rootfs: str) -> None:
    bundle = served.bundle("b", script(f"{told_to_a_terminal(TERMINAL)}; exit 6", rootfs, terminal=True))
    served.call("CreateContainer", id="c", **bundle.create)
    ended(served, 6)
    assert len(on_host(served.state)["processes"]) == 3, "the server, who writes the rest, who keeps what is written"
    os.unlink(bundle.fifos["stdout"])
    until(lambda: len(on_host(served.state)["processes"]) == 1)


# ---- over a restart --------------------------------------------------------------------------------------------------


def unread(served: Served, rootfs: str) -> Bundle:
    """One whose container, which runs, leaves something in it to be read when it is told to end (SIGTERM)."""
    bundle = served.bundle("b", script(f"trap '{BIG}; exit 7' TERM; echo set >&2; {SLEEP}", rootfs))
    err = bundle.read("stderr")
    served.call("CreateContainer", id="c", **bundle.create)
    os.set_blocking(err, True)
    assert os.read(err, 10) == b"set\n"
    os.close(err)
    return bundle


@one_runtime
@each_reader
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_ends_after_the_exit(
    served: Served, rootfs: str, read: Read, number: signal.Signals, again: bool
) -> None:
    bundle = unread(served, rootfs)
    served.call("Signal", id="c", pid="init", signal=signal.SIGTERM)
    ended(served, 7)
    served.stop(number)
    if again:
        served.start()
    assert len(read(bundle.fifos["stdout"])) == SIZE
    until(lambda: not keepers(served.state))


@one_runtime
@each_reader
def test_a_server_that_was_killed_before_the_exit(served: Served, rootfs: str, read: Read) -> None:
    bundle, further = unread(served, rootfs), served.bundle("p", {})
    args = ["sh", "-c", f"sleep 0.3; {BIG}; exit 8"]
    served.call("AddProcess", id="c", pid="p", args=args, env=PATH, **further.fifos)
    pid = served.call("State", id="c").containers[0].processes[0].systemPid
    served.stop(signal.SIGKILL)
    time.sleep(0.5)  # by then the further process has ended, or does so when the next server is there
    os.kill(pid, signal.SIGTERM)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    served.start()
    ended(served, 7)
    ended(served, 8, "p")
    assert len(read(bundle.fifos["stdout"])) == SIZE
    assert len(read(further.fifos["stdout"])) == SIZE
    until(lambda: not keepers(served.state))


@one_runtime
def test_a_server_that_is_killed_while_it_removes_a_container(served: Served, rootfs: str) -> None:
    """At any moment of it: what is unread is kept once, by whoever comes to it."""
    for moment in range(12):
        bundle = served.bundle(f"b{moment}", script(f"{BIG}; exit 7", rootfs))
        served.call("CreateContainer", id="c", **bundle.create)
        time.sleep(moment / 500)  # the moment is what is tried
        served.stop(signal.SIGKILL)
        served.start()
        until(lambda: served.stored()[-1][0] == "exit")
        assert len(to_end(bundle.fifos["stdout"])) == SIZE
    until(lambda: not keepers(served.state))


@one_runtime
def test_output_that_nobody_can_keep_is_told_and_holds_nothing_up(served: Served, rootfs: str) -> None:
    """A keeper that was stopped answers nobody."""
    first, second = (served.bundle(name, script("echo x; exit 7", rootfs)) for name in ("first", "second"))
    served.call("CreateContainer", id="c", **first.create)
    ended(served, 7)
    (keeper,) = keepers(served.state)
    os.kill(keeper, signal.SIGSTOP)
    served.call("CreateContainer", id="d", **second.create)
    until(lambda: ("exit", "d", "init", 7) in served.stored())
    os.kill(keeper, signal.SIGCONT)
    assert to_end(first.fifos["stdout"]) == b"x\n"
