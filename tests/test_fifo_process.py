"""What concerns the whole process (forks, signals, the limits of inotify): each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fifo_kit import path_fixture, steady_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("steady")

START = """
import os, signal, subprocess, sys, threading
from fifo_kit import READ, WRITE, Background, both, open_files, until, waiting
from libctrd import fifo as fifo_module
from libctrd.errors import ClosedError, UnavailableError
from libctrd.fifo import PORTABLE, Cancellation, open_fifo
path = sys.argv[1]
"""


def run(script: str, path: Path, *arguments: str, start: str = START) -> str:
    """Runs *script* in a Python of its own; returns what it printed."""
    folders = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(script), str(path), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fork_waits_for_no_thread_that_uses_fifos_and_the_relay_between_its_hooks(path: Path) -> None:
    """Python's hooks of others run between ours and the fork, and the thread that forks lets go of the GIL there."""
    script = """
    begun, done = threading.Event(), threading.Event()
    os.register_at_fork(before=lambda: (begun.set(), done.wait()))
    from libctrd import fifo, relay
    end, _ = os.pipe()

    def use():
        begun.wait()
        fifo._counts()
        relay.discard(end).cancel()
        done.set()

    threading.Thread(target=use, daemon=True).start()
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    print("forked")
    """
    assert run(script, path, start="import os, threading\n") == "forked\n"  # hooks that came last run first


def test_a_forked_child_starts_clean_and_can_wait_itself(path: Path) -> None:
    script = """
    writer = open_fifo(path, WRITE | os.O_CREAT)
    other = open_fifo(path + "2", READ | os.O_CREAT)
    cancel = Cancellation()
    writing, reading = Background(writer.write, b"parent"), Background(other.read)
    opening = Background(lambda: open_fifo(path + "4", os.O_RDONLY | os.O_CREAT, cancel=cancel))
    until(lambda: waiting() == 3 and fifo_module._counts()[0] == (0 if PORTABLE else 2))
    child = os.fork()
    if child == 0:
        links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n != "3"
                 and os.path.lexists(f"/proc/self/fd/{n}")]
        assert not [link for link in links if "eventfd" in link or "inotify" in link], links
        assert not fifo_module._kept()
        assert fifo_module._counts() == (0, 0, 0)
        before = len(open_files())
        cancel.cancel()            # wakes nobody here, and nobody there
        writer.close()
        other.close()
        assert len(open_files()) == before - (1 if PORTABLE else 2)     # where a writer has one before its reader comes
        third = Background(open_fifo, path + "3", os.O_WRONLY | os.O_CREAT)
        until(lambda: waiting() == 1 and fifo_module._counts()[0] == (0 if PORTABLE else 1))
        with open_fifo(path + "3", READ) as reader:
            third.result().write(b"child")
            assert reader.read(10) == b"child"
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert waiting() == 3
    with open_fifo(path, READ) as reader:
        assert reader.read(10) == b"parent"
    assert writing.result() == 6
    other.close()
    try:
        reading.result()
    except ClosedError:
        print("as before")
    open_fifo(path + "4", WRITE).close()
    opening.result().close()
    """
    assert run(script, path) == "as before\n"


def test_a_signal_handler_may_fork_while_a_fifo_is_read(path: Path) -> None:
    script = """
    reader, writer = both(path)
    number, children = reader.fileno(), []

    def fork(*arguments):
        children.append(os.fork())
        if children == [0]:
            reader.close()

    def disturb():
        until(waiting)
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: children)
        writer.write(b"to the parent")

    signal.signal(signal.SIGUSR1, fork)
    disturbing = Background(disturb)
    try:
        print(reader.read(100), flush=True)
    except ClosedError:
        os._exit(7 if children == [0] and not os.path.lexists(f"/proc/self/fd/{number}") else 1)
    disturbing.result()
    print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
    """
    assert run(script, path) == "b'to the parent'\n7\n"


@pytest.mark.parametrize("write_flag", [True, False])
def test_a_host_that_dies_of_sigpipe_does_not(path: Path, write_flag: bool) -> None:  # C15
    script = f"""
    fifo_module._switch(write_flag={write_flag})
    for disposition in (signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: print("handler")):
        signal.signal(signal.SIGPIPE, disposition)
        reader, writer = both(path)
        writer.write(b"x")
        reader.close()
        attempts = (
            lambda: writer.write(b"x"),
            lambda: writer.writev([b"x", b"y"]),
            lambda: writer.write_nowait(b"x"),
        )
        for attempt in attempts:
            try:
                attempt()
            except UnavailableError:
                print("told")
        writer.close()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    os.kill(os.getpid(), signal.SIGPIPE)       # one that is not ours to take away
    reader, writer = both(path)
    reader.close()
    try:
        writer.write(b"x")
    except UnavailableError:
        print(signal.sigpending() == signal.pthread_sigmask(signal.SIG_BLOCK, []) == {{signal.SIGPIPE}})
    """
    assert run(script, path) == "told\n" * 9 + "True\n"


def test_a_user_with_no_inotify_instance_left_waits_with_a_timer(path: Path) -> None:  # C17
    if os.geteuid() != 0:
        pytest.skip("only root may become a user whose inotify instances can be used up without harm to others")
    for folder in (path.parent, *path.parent.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    path.parent.chmod(0o777)
    script = """
    import cffi
    c = cffi.FFI()
    c.cdef("int inotify_init(void);")
    libc, held = c.dlopen(None), 0
    os.setgid(54321)
    os.setuid(54321)
    while libc.inotify_init() >= 0:
        held += 1
    assert held > 0
    writing = Background(lambda: open_fifo(path, os.O_WRONLY | os.O_CREAT))
    until(waiting)
    reader = open_fifo(path, READ)
    with writing.result() as writer:
        writer.write(b"x")
    assert reader.read() == b"x"
    reading = Background(lambda: open_fifo(path, os.O_RDONLY))
    until(waiting)
    os.close(os.open(path, os.O_WRONLY))
    print(reading.result().read(), fifo_module._counts()[0])
    """
    assert run(script, path) == "b'' 0\n"


FILL_QUEUE = """
import os, signal, sys
pid, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
os.kill(pid, signal.SIGSTOP)
while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
    pass
for _ in range(count):
    for name in (path + "2", path + "3"):
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
os.kill(pid, signal.SIGCONT)
sys.stdin.readline()
print(os.read(reader, 10))
"""


@pytest.mark.linux("inotify, and its queue")
def test_a_queue_of_events_that_overflows_loses_no_peer(path: Path) -> None:  # C17
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 200_000:
        pytest.skip(f"the queue of inotify holds {limit} events here: too many to fill")
    script = """
    writer, second, third = (open_fifo(path + name, WRITE | os.O_CREAT) for name in ("", "2", "3"))
    filler = subprocess.Popen(
        [sys.executable, "-c", sys.argv[2], str(os.getpid()), path, sys.argv[3]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    waits = [Background(fifo.wait_connected) for fifo in (second, third)]
    writing = Background(writer.write, b"x")
    until(lambda: fifo_module._counts()[0] == 3)
    filler.stdin.write("go\\n")
    filler.stdin.flush()
    assert writing.result() == 1
    for fifo, wait in zip((second, third), waits):
        fifo.close()
        try:
            wait.result()
        except ClosedError:
            pass
    print(filler.communicate("end\\n")[0], end="")
    """
    assert run(script, path, FILL_QUEUE, str(limit // 2 + 100)) == "b'x'\n"


def test_ctrl_c_is_never_slept_through(path: Path) -> None:  # C17
    script = """
    reader = open_fifo(path, READ | os.O_CREAT)
    signal.signal(signal.SIGINT, lambda number, frame: os.write(1, b"interrupted\\n"))
    print("ready", flush=True)
    reader.read(1)
    """
    folders = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(script), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(300):  # the moment at which each comes is anywhere around the start of the next wait
        process.send_signal(2)
        assert process.stdout.readline() == "interrupted\n"
    path.open("wb").close()
    assert process.wait(20) == 0
    process.stdout.close()
