"""The keeper: it keeps what is unread in fifos until a reader has come and read to the end (C28).

Here without containers: fifos of the test are handed over to it as `ctrd serve` does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from examples_kit import examples
from field_kit import until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from serve_kit import WAIT, keepers

from libctrd.errors import InvalidArgumentError
from libctrd.serve.keeper import Keeper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the keeper is there for the local engine, on Linux")
KEPT = 256
"""As in pyx/shim_keep.c."""
PIPE = 1 << 16


class Place:
    """A state directory with a keeper, and fifos."""

    def __init__(self, top: Path) -> None:
        self.state = str(top / "state")
        os.makedirs(self.state)
        self.keeper = Keeper(self.state, self.state)
        self.fifos: list[str] = []
        self._top = top

    def written(self, data: bytes, path: str = "") -> str:
        """A fifo with *data* in it that the keeper alone holds."""
        path = path or self.fifo()
        end, writer = self.ends(path)
        assert os.write(writer, data) == len(data)
        os.close(writer)
        self.hand_over(end)
        return path

    def fifo(self) -> str:
        self.fifos.append(str(self._top / f"f{len(self.fifos)}"))
        os.mkfifo(self.fifos[-1])
        return self.fifos[-1]

    @staticmethod
    def ends(path: str) -> tuple[int, int]:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def hand_over(self, *ends: int) -> None:
        """Gives reading ends away, as a shim's are given away."""
        self.keeper._hand_over(list(ends))
        for end in ends:
            os.close(end)

    def pid(self) -> int:
        (pid,) = keepers(self.state)
        return pid

    def gone(self) -> None:
        """Returns once there is no keeper, and it has left nothing."""
        until(lambda: not keepers(self.state))
        assert os.listdir(self.state) == []

    def remove(self) -> None:
        for fifo in self.fifos:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fifo)
        self.gone()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.remove()


def to_end(path: str, block: int = PIPE) -> bytes:
    """What a reader gets whose open waits for a writer and whose reads wait for the end."""
    data = b""
    with open(path, "rb", buffering=0) as file:
        while got := file.read(block):
            data += got
    return data


def polled(path: str) -> bytes:
    """What a reader gets whose open does not wait, and who waits with poll(2) for data and for the end."""
    data = b""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        look = select.poll()
        look.register(fd, select.POLLIN)
        while True:
            ((_, mask),) = look.poll(WAIT * 1000) or [(fd, 0)]
            assert mask, "neither data nor the end"
            got = os.read(fd, 1000) if mask & select.POLLIN else b""
            if not got:
                assert mask & select.POLLHUP
                return data
            data += got
    finally:
        os.close(fd)


def is_idle(pid: int) -> bool:
    """Does it sleep in poll(2) without a limit, and go on doing so?"""
    process = psutil.Process(pid)
    until(lambda: process.status() == psutil.STATUS_SLEEPING)
    before = process.num_ctx_switches().voluntary
    threading.Event().wait(0.3)
    return process.num_ctx_switches().voluntary == before


@pytest.mark.parametrize("read", [to_end, polled])
def test_a_reader_that_comes_later_gets_all_and_the_end(place: Place, read: object) -> None:
    data = os.urandom(60 << 10)
    path = place.written(data)
    assert read(path) == data  # type: ignore[operator]
    place.gone()


def test_several_have_one_keeper_and_it_costs_little(place: Place) -> None:
    paths = [place.written(b"%d" % number) for number in range(30)]
    process = psutil.Process(place.pid())
    until(lambda: process.num_fds() == 30 + 6)  # one each; the null device, the directory, the socket, inotify
    assert process.memory_info().rss < 2 << 20
    assert is_idle(process.pid)
    for number, path in enumerate(paths):
        assert to_end(path) == b"%d" % number
    place.gone()


def test_what_a_reader_leaves_is_there_for_the_next_one(place: Place) -> None:
    path = place.written(b"x" * 1000)
    for _ in range(3):
        with open(path, "rb", buffering=0) as file:
            assert file.read(100) == b"x" * 100
            assert is_idle(place.pid())
        assert is_idle(place.pid())
    with open(path, "rb", buffering=0):
        pass  # he reads nothing at all
    assert polled(path) == b"x" * 700
    place.gone()


def test_a_reader_that_is_there_already_is_told_the_end_at_once(place: Place) -> None:
    path = place.fifo()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    place.written(b"abc", path)
    assert is_idle(place.pid())
    assert (os.read(reader, 100), os.read(reader, 100)) == (b"abc", b"")
    place.gone()
    os.close(reader)


def test_whoever_waits_in_his_open_comes_through(place: Place) -> None:
    """A shim that has ended leaves a fifo without a writer, and an open that waits for one."""
    path = place.fifo()
    end, writer = place.ends(path)
    os.write(writer, b"abc")
    os.close(writer)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(to_end(path)))
    reader.start()
    until(lambda: b"wait_for_partner" in Path(f"/proc/self/task/{reader.native_id}/wchan").read_bytes() or got)
    place.hand_over(end)
    reader.join(WAIT)
    assert got == [b"abc"]
    place.gone()


def test_while_somebody_may_write_it_is_kept_though_nothing_is_unread(place: Place) -> None:
    """A child that has kept the output of a process that has ended, or a terminal that is not all told."""
    path = place.fifo()
    end, writer = place.ends(path)
    place.hand_over(end)
    assert is_idle(place.pid())
    os.write(writer, b"more")
    assert is_idle(place.pid())
    os.close(writer)
    assert is_idle(place.pid())
    assert to_end(path) == b"more"
    place.gone()


def test_a_writer_that_ends_with_all_read_leaves_nothing_to_keep(place: Place) -> None:
    end, writer = place.ends(place.fifo())
    place.hand_over(end)
    os.close(writer)
    place.gone()


def test_a_fifo_that_is_given_to_the_next_container_is_one_stream(place: Place) -> None:
    path = place.written(b"first")
    end, writer = place.ends(path)  # the next one's shim: reader and writer
    assert is_idle(place.pid())
    os.write(writer, b", second")
    os.close(writer)
    assert is_idle(place.pid())
    place.hand_over(end)
    assert to_end(path) == b"first, second"
    place.gone()


@pytest.mark.parametrize("replaced", [False, True])
def test_what_nobody_can_reach_is_not_kept(place: Place, replaced: bool) -> None:
    path = place.written(b"x")
    if replaced:
        os.mkfifo(path + ".new")
        os.rename(path + ".new", path)
    else:
        os.unlink(path)
    place.gone()


def test_renamed_it_is_kept(place: Place) -> None:
    path = place.written(b"x")
    place.fifos.append(path + ".moved")
    os.rename(path, path + ".moved")
    assert to_end(path + ".moved") == b"x"


def test_the_oldest_goes_when_there_are_too_many(place: Place) -> None:
    paths = [place.written(b"%d" % number) for number in range(KEPT + 2)]
    for number in (2, 100, KEPT + 1):
        assert to_end(paths[number]) == b"%d" % number
    for path in paths[:2]:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(fd, 10) == b"", "it had to make room"
        os.close(fd)


def test_the_oldest_goes_when_it_is_too_much(place: Place) -> None:
    big = 1 << 20
    paths = []
    for _ in range(66):
        paths.append(place.fifo())
        end, writer = place.ends(paths[-1])
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, big)
        except PermissionError:
            pytest.skip("this user may not have so much in pipes: run it as root")
        assert os.write(writer, bytes(big)) == big
        os.close(writer)
        place.hand_over(end)
    sizes = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        sizes.append(len(os.read(fd, 4)))
        os.close(fd)
    assert sizes == [0, 0] + [4] * 64


def test_what_is_no_reading_end_of_a_fifo_is_refused(place: Place) -> None:
    path = place.fifo()
    end, writer = place.ends(path)
    pipe = os.pipe()
    for wrong in (writer, os.open("/dev/null", os.O_RDONLY)):
        with pytest.raises(InvalidArgumentError, match="keeper"):
            place.keeper._hand_over([wrong])
        os.close(wrong)
    place.gone()
    for fd in (end, *pipe):
        os.close(fd)


def test_one_that_was_killed_is_followed_by_another(place: Place) -> None:
    lost = place.written(b"lost")
    keeper = psutil.Process(place.pid())
    keeper.kill()
    until(lambda: not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE)  # it has closed all by then
    assert os.listdir(place.state) == ["keep.sock"]
    path = place.written(b"x")
    assert to_end(path) == b"x"
    fd = os.open(lost, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(fd, 10) == b""
    os.close(fd)
    place.gone()


def test_signals_do_not_end_it(place: Place) -> None:
    path = place.written(b"x")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        os.kill(place.pid(), number)
    assert is_idle(place.pid())
    assert to_end(path) == b"x"


def test_one_that_begins_when_the_last_one_ends(place: Place) -> None:
    """Hand-overs while the keeper comes to its end, again and again: none is lost."""
    for number in range(200):
        assert to_end(place.written(b"%d" % number)) == b"%d" % number


def test_many_hand_over_at_once(place: Place) -> None:
    paths = [place.fifo() for _ in range(64)]
    faults: list[BaseException] = []

    def one(number: int) -> None:
        try:
            for path in paths[number::8]:
                place.written(path.encode(), path)
                assert to_end(path) == path.encode()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            faults.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert faults == []
    place.gone()


_HAND_OVER = """
import os, sys
from libctrd.errors import CtrdError
from libctrd.serve.keeper import Keeper

try:
    Keeper(sys.argv[1], sys.argv[1])._hand_over([os.open(sys.argv[2], os.O_RDONLY | os.O_NONBLOCK)])
except CtrdError as error:
    print(error)
"""


def test_without_inotify_it_says_so(place: Place) -> None:
    """A user namespace has a limit of its own: that of the host is for whatever else runs here."""
    code = [sys.executable, "-c", _HAND_OVER, place.state, place.fifo()]
    limit = 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh", *code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    if "unshare" in done.stderr or "max_inotify_instances" in done.stderr:
        pytest.skip(f"no user namespace can be had here, to set a limit in: {done.stderr}")
    assert done.stdout.startswith(
        f"could not start the keeper in {place.state!r} (inotify_init see fs.inotify.max_user"
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    place.gone()


# ---- any order -------------------------------------------------------------------------------------------------------


class Orders(RuleBasedStateMachine):
    """Two fifos, each with a container's shim (who reads and writes it) at times, and two readers that come and go:
    nothing that was written and not read is ever lost, and no reader is left without the end.
    """

    place: Place
    WHICH = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.paths = [self.place.fifo() for _ in range(2)]
        self.shims: list[tuple[int, int] | None] = [None, None]
        self.readers: list[list[int]] = [[], []]
        self.unread = [0, 0]

    @rule(which=WHICH)
    def begin(self, which: int) -> None:
        if self.shims[which] is None:
            self.shims[which] = self.place.ends(self.paths[which])

    @rule(which=WHICH, size=st.integers(1, 5000))
    def write(self, which: int, size: int) -> None:
        shim = self.shims[which]
        if shim is not None and self.unread[which] + size < PIPE // 2:
            assert os.write(shim[1], bytes(size)) == size
            self.unread[which] += size

    @rule(which=WHICH, first=st.booleans())
    def end(self, which: int, first: bool) -> None:
        """The container ends; with *first* what was written is handed over before its end is there."""
        shim, self.shims[which] = self.shims[which], None
        if shim is None:
            return
        if first:
            self.place.hand_over(shim[0])
            os.close(shim[1])
        else:
            os.close(shim[1])
            if self.unread[which]:
                self.place.hand_over(shim[0])
            else:
                os.close(shim[0])

    @rule(which=WHICH)
    def come(self, which: int) -> None:
        if len(self.readers[which]) < 2:
            self.readers[which].append(os.open(self.paths[which], os.O_RDONLY | os.O_NONBLOCK))

    @precondition(lambda self: any(self.readers))
    @rule(which=WHICH, size=st.sampled_from((1, 100, PIPE)))
    def read(self, which: int, size: int) -> None:
        for reader in self.readers[which][:1]:
            with contextlib.suppress(BlockingIOError):  # somebody may still write
                got = len(os.read(reader, size))
                assert got == min(size, self.unread[which])
                self.unread[which] -= got

    @precondition(lambda self: any(self.readers))
    @rule(which=WHICH)
    def go(self, which: int) -> None:
        if self.readers[which]:
            os.close(self.readers[which].pop())

    def teardown(self) -> None:
        for which in (0, 1):
            self.end(which, False)
            for reader in self.readers[which]:
                os.close(reader)
            if self.unread[which]:
                assert len(polled(self.paths[which])) == self.unread[which]
        self.place.gone()


def test_fifos_in_any_order(place: Place) -> None:
    class Attack(Orders):
        pass

    Attack.place = place
    how = settings(
        deadline=None,
        database=None,
        max_examples=examples(60),
        stateful_step_count=40,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Attack, settings=how)
