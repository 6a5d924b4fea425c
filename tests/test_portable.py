"""The two builds: which one this is, and that the portable one, and Python on illumos, get by without Linux (C27)."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from engine_kit import need
from fifo_kit import LONG
from portable_kit import sources

from libctrd import _checks, _proc, fifo, relay, shape
from libctrd.fifo import PORTABLE

LINUX_ONLY = (
    *("epoll_create1", "epoll_ctl", "epoll_wait", "eventfd", "eventfd_read", "eventfd_write"),
    *("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "splice", "tee", "vmsplice"),
    *("pipe2", "prctl", "pwritev2", "signalfd", "timerfd_create", "syscall", "umount2", "accept4", "dup3"),
)
"""Functions of the C library that POSIX has not, or only since 2024."""
SYSTEM_CALLS = (
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "inotify_init1", "inotify_add_watch"),
    *("splice", "tee", "pidfd_open", "pidfd_send_signal", "prctl"),
)


def test_the_build_is_the_one_that_is_meant() -> None:
    """A build of the portable flavour that took objects of Linux's, or the other way round, is seen here."""
    meant = os.environ.get("CTRD_TEST_PORTABLE") == "1"
    assert (meant, meant, meant) == (fifo.PORTABLE, relay.PORTABLE, _checks.PORTABLE)


@pytest.mark.skipif(not PORTABLE, reason="about the portable build")
@pytest.mark.parametrize("module", [fifo, relay, _proc], ids=lambda module: module.__name__)
def test_the_portable_build_names_nothing_of_linux(module: object) -> None:
    content = Path(module.__file__).read_bytes()  # type: ignore[attr-defined]
    assert [name for name in LINUX_ONLY if f"\0{name}\0".encode() in content] == []
    assert b"/proc/" not in content


EVERYTHING = """
import os, sys, threading
from libctrd import directory, proc, reactor, relay, stdio
from libctrd.fifo import open_fifo

place = sys.argv[1]
pipe = stdio.open_fifos(place, "init", terminal=False)
far = [os.open(f"{place}/init-{name}", os.O_RDWR) for name in ("stdin", "stdout", "stderr")]
assert pipe.stdin.write(b"in") == 2 and os.read(far[0], 9) == b"in"
out, err = relay.buffer(pipe.stdout), relay.discard(pipe.stderr)
source, sink = os.pipe(), os.pipe()
copying = relay.copy(source[0], sink[1])
os.write(source[1], b"piped")
assert os.read(sink[0], 9) == b"piped"
os.close(source[1])
for fd in far[1:]:
    os.write(fd, b"out")
    os.close(fd)
assert out.read() == b"out" and err.wait(9) and copying.wait(9)
late = open_fifo(f"{place}/late", os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT)
pushed = relay.copy(os.open("/etc/passwd", os.O_RDONLY), late)
reader = open_fifo(f"{place}/late", os.O_RDONLY)
assert reader.read() and pushed.wait(9)
fired, woken = threading.Event(), threading.Event()
reactor.shared().later(0.01, fired.set)
reactor.shared().watch(sink[0], lambda _: (reactor.shared().unwatch(sink[0]), woken.set()), 0)
os.close(sink[1])
assert fired.wait(9) and woken.wait(9)
assert proc.reap(proc.spawn(["true"])).code == 0
directory.remove_tree(place)
print("good")
"""


@pytest.mark.skipif(not PORTABLE, reason="about the portable build")
def test_the_portable_build_makes_no_call_that_is_linux_s_own(tmp_path: Path) -> None:
    need("/usr/bin/strace", "strace")
    log = tmp_path / "calls"
    trace = f"trace=openat,open,{','.join(SYSTEM_CALLS)}"
    command = ["strace", "-f", "-qq", "-o", log, "-e", "signal=none", "-e", trace]
    command += [sys.executable, "-c", EVERYTHING, tmp_path / "place"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6 * LONG)
    assert (done.stdout, done.returncode) == ("good\n", 0), done.stderr
    calls = [line for line in log.read_text().splitlines() if "open" not in line.split("(")[0] or '"/proc/' in line]
    assert calls == []


# ---- the C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["linux", "portable"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_c_written_by_hand_is_iso_c_without_a_warning(compiler: str, flavour: str) -> None:
    pyx = sources("pyx")
    need(f"/usr/bin/{compiler}", compiler)
    files = [pyx / "proc.c"] if flavour == "portable" else sorted(pyx.glob("*.c"))
    flags = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-DCTRD_PORTABLE={int(flavour == 'portable')}"]
    command = [compiler, *flags, "-Wno-unused-function", "-fsyntax-only", *files]  # Python calls those of proc.c
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(PORTABLE, reason="about Linux's own build: the portable one is built by clang, without a warning")
@pytest.mark.parametrize("module", [fifo, relay, shape], ids=lambda module: module.__name__)
def test_the_c_written_by_cython_has_no_warning(module: object) -> None:
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    flavour = "abi3" if ".abi3." in module.__file__ else "native"  # type: ignore[attr-defined]
    made = sorted(sources("build", f"linux-{flavour}").glob(f"cython-*/pyx/{name}.c"), key=os.path.getmtime)
    assert made, "it was built there"
    need("/usr/bin/gcc", "gcc")
    limited = ["-DPy_LIMITED_API=0x030B0000", "-include", sources("pyx", "limited.h")] if flavour == "abi3" else []
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-DCTRD_PORTABLE=0", *limited]
    includes = [f"-I{sources('pyx')}", f"-I{sysconfig.get_path('include')}"]
    done = subprocess.run(["gcc", *flags, *includes, "-fsyntax-only", made[-1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- illumos --------------------------------------------------------------------------------------------------------

PRETEND = """
import os, sys
sys.platform = "sunos5"
os.uname = lambda: os.uname_result(("SunOS", "host", "5.11", "illumos-0", "i86pc"))
"""


def on_illumos(script: str, *arguments: str) -> str:
    """The output of *script*, for which Python is one of illumos."""
    done = subprocess.run(
        [sys.executable, "-c", PRETEND + textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=6 * LONG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_on_illumos_what_needs_linux_says_so_and_names_both() -> None:  # C27
    said = on_illumos("""
    import libctrd
    from libctrd import proc
    for address in ("local:", "local:/var/run/x", "containerd:/var/run/x", "serve:/var/run/x"):
        try:
            libctrd.connect(address)
        except libctrd.UnsupportedError as error:
            print(error)
    try:
        proc.pidfd_open(1)
    except libctrd.UnsupportedError as error:
        print(error)
    """)
    lines = said.splitlines()
    assert len(lines) == 5
    assert all("needs Linux; this is SunOS 5.11" in line or "portable build" in line for line in lines)
    assert [line.split(" needs")[0] for line in lines] == [
        "the local engine (address local:)",
        "the local engine (address local:)",
        "a containerd of our own (address containerd:/DIR)",
        "a ctrd serve of our own (address serve:/DIR)",
        "pidfd_open",
    ]


def test_on_illumos_stderr_is_a_fifo_also_with_a_terminal(tmp_path: Path) -> None:  # C13 C27
    said = on_illumos(
        """
    import libctrd
    from libctrd.engine import default_state_dir
    pipe = libctrd.open_fifos(sys.argv[1], "init", True)
    print(type(pipe.stderr).__name__, sorted(os.listdir(sys.argv[1])), default_state_dir())
    """,
        str(tmp_path),
    )
    assert said == "Fifo ['init-stderr', 'init-stdin', 'init-stdout'] /var/run/ctrd\n"


RUN = """
import libctrd, msgspec
with libctrd.connect(sys.argv[1], namespace=sys.argv[3] or None) as client:
    for terminal in (False, True):
        spec = libctrd.spec.default(["sh", "-c", "read x; echo $x; exit 3"], sys.argv[2], terminal=terminal)
        container = client.create("one", spec)
        container.start(libctrd.PIPE)
        assert (type(container.stderr).__name__, container.stderr.path.endswith("init-stderr")) == ("Fifo", True)
        container.stdin.write(b"word\\n")
        said, error = container.stdout.read(), container.stderr.read()
        print(container.wait(30).code, said, error)
"""


@pytest.mark.cannot("local", "be had on illumos")
def test_on_illumos_a_daemon_is_spoken_to_at_its_address(engine: object, rootfs: str) -> None:  # C13 C27
    said = on_illumos(RUN, engine.address, rootfs, engine.namespace or "")  # type: ignore[attr-defined]
    assert said == "3 b'word\\n' b''\n3 b'word\\r\\nword\\r\\n' b''\n"
