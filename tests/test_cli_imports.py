"""What ``ctrd run`` imports, by name and by number: it is most of what the command takes, and may not grow unnoticed.

Counts and names, no times: those are measured by ``tools/bench/run imports``.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Ctrd

pytest_plugins = ["cli_kit"]
pytestmark = pytest.mark.local("what an engine over a socket imports is gRPC's")

OURS = """
    _checks _log _proc _signals _spawn _spec_check _spec_default _spec_exec _spec_json _spec_parse _spec_schema
    _worker _xattr asking changes cli cli.deferred cli.exits cli.group cli.options cli.output cli.parts cli.run
    cli.signals cli.starting client container directory engine engine.base engine.cgroups engine.filters
    engine.further engine.latecomer engine.local engine.localops engine.orphans engine.remembered engine.runtime
    engine.sealed engine.shim errors events fifo handling ids locks owning proc process reactor relay seccomp shape
    spec starting state stdio telling
"""
"""Every module of libctrd that it needs. One more takes some 0.15 ms of each `ctrd run`: is it for the rare case?"""

OTHERS = {"_cffi_backend", "click", "msgspec"}

UNWANTED = """
    array ast asyncio csv ctypes dataclasses dis email glob hashlib importlib.metadata json
    linecache locale logging multiprocessing pathlib pickle random rich selectors shlex shutil socket ssl string
    subprocess tempfile termios token tokenize traceback tty typing_extensions unittest urllib
"""
"""Of the standard library and of others: what takes long, and what a run has no use for."""

MOST = 150
"""Modules in all that it adds to those of a bare interpreter: 137 with Python 3.11."""


@pytest.fixture
def imported(ctrd: Ctrd) -> set[str]:
    """The modules that `ctrd run` has loaded by its end, and a bare Python has not."""
    code = textwrap.dedent(f"""
        import sys
        before = set(sys.modules)  # an editable installation brings some along
        from libctrd.cli import main
        code = main(["--state-dir", {ctrd.state_dir!r}, "run", "--rootfs", {ctrd.rootfs!r}, "true"])
        loaded = {{name for name, module in sys.modules.items() if module and "__getattr__" not in vars(module)
                  or name.startswith(("libctrd", "click"))}}
        print(*sorted(loaded - before))
        sys.exit(code)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, capture_output=True, text=True, env=ctrd.environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_the_run_imports_these_modules_of_ours_and_no_more(imported: set[str]) -> None:
    ours = {name.removeprefix("libctrd.") for name in imported if name.startswith("libctrd.")}
    ours.discard("_proc.lib")  # no file: cffi makes it of `_proc`
    assert sorted(ours - set(OURS.split())) == [], "imported now, and not before"
    assert sorted(set(OURS.split()) - ours) == [], "not imported any more: take it out of the list"


def test_the_run_imports_nothing_that_it_has_no_use_for(imported: set[str]) -> None:
    others = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"libctrd"}
    others = {name for name in others if "cython" not in name}  # what compiled modules have in common, made in memory
    assert others == OTHERS
    assert sorted(imported & set(UNWANTED.split())) == []


def test_the_run_imports_no_more_modules_than_it_did(imported: set[str]) -> None:
    assert len(imported) <= MOST


def test_what_is_deferred_comes_when_it_is_used() -> None:
    code = textwrap.dedent("""
        import sys, threading
        from libctrd.cli.deferred import defer
        for name in ("inspect", "textwrap", "no_such_module", "sys"):
            defer(name)
        import inspect, textwrap
        assert "ast" not in sys.modules
        assert sys.modules["sys"] is sys
        assert "no_such_module" not in sys.modules
        found = []
        begin = threading.Barrier(8)
        def look():
            begin.wait()
            found.append(inspect.cleandoc("  x\\n  y") + inspect.Parameter.__name__)
        threads = [threading.Thread(target=look) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == ["x\\nyParameter"] * 8
        assert "ast" in sys.modules
        from textwrap import dedent
        assert dedent("  x") == "x"
        try:
            inspect.no_such_name
        except AttributeError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("module 'inspect' has no attribute 'no_such_name'\n", "")


def test_what_is_done_without_can_be_had_afterwards(tmp_path: Path) -> None:
    (tmp_path / "extension.py").write_text("value = 1\n")
    code = textwrap.dedent(f"""
        import sys
        from libctrd.cli.deferred import without
        sys.path.insert(0, {str(tmp_path)!r})
        with without("extension"):
            try:
                import extension
            except ImportError:
                print("none")
        import extension
        with without("extension"):
            import extension
            print(extension.value)
    """)
    done = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("none\n1\n", "")
