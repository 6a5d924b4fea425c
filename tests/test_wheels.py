"""What tools/build_wheels refuses to publish, and that what it makes does not depend on when and where.

The wheels themselves are built, audited and tried by tools/check-wheel: that takes the compiler, and a minute or two.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from portable_kit import sources

pytest.importorskip("elftools", reason="the tools that check wheels read ELF files with pyelftools")
sys.path.insert(0, str(sources("tools", "wheels")))
import emulated
import faults
import sources as sdists
from targets import TARGETS, Target

MACHINE = os.uname().machine
if f"manylinux2014_{MACHINE}" not in TARGETS:
    pytest.skip(f"no wheel is built for {MACHINE}", allow_module_level=True)
GLIBC, MUSL = TARGETS[f"manylinux2014_{MACHINE}"], TARGETS[f"musllinux_1_2_{MACHINE}"]
OTHER = next(target for target in TARGETS.values() if target.machine != MACHINE and not target.is_musl)
QUIET = "int answer(void) { return 42; }"


def gcc(tmp_path: Path, code: str, *options: str) -> bytes:
    """What gcc makes of *code*, by default a shared object with nothing in it that is not asked for."""
    source, made = tmp_path / "code.c", tmp_path / "made"
    source.write_text(code)
    subprocess.run(["gcc", "-s", *options, "-o", str(made), str(source)], check=True)
    return made.read_bytes()


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., bytes]:
    """Makes a shared object."""

    def make(code: str = QUIET, *options: str) -> bytes:
        return gcc(tmp_path, code, "-shared", "-fPIC", "-nostartfiles", *options)

    return make


# ---- a module --------------------------------------------------------------------------------------------------------


def test_a_module_that_asks_for_little_is_good(module: Callable[..., bytes]) -> None:
    assert list(faults.module_faults(module(), GLIBC)) == []


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("-Wl,--enable-new-dtags,-rpath,/opt/lib", "has a RUNPATH"),
        ("-Wl,--disable-new-dtags,-rpath,/opt/lib", "has an RPATH"),
    ],
)
def test_a_module_may_not_bring_a_path_of_libraries(module: Callable[..., bytes], option: str, fault: str) -> None:
    assert list(faults.module_faults(module(QUIET, option), GLIBC)) == [fault]


def test_a_module_may_not_ask_for_other_libraries(module: Callable[..., bytes]) -> None:
    data = module(QUIET, "-Wl,--no-as-needed", "-lm")
    assert list(faults.module_faults(data, GLIBC)) == ["needs libm.so.6"]


def test_a_function_newer_than_the_oldest_glibc_is_refused(module: Callable[..., bytes]) -> None:
    code = 'int memfd_create(const char *, unsigned);\nint make(void) { return memfd_create("", 0); }'  # glibc 2.27
    (fault,) = faults.module_faults(module(code), GLIBC)
    assert fault == "calls memfd_create of GLIBC_2.27: use syscall(2), or an older one"


def test_one_that_the_linked_glibc_does_not_have_at_all_is_refused(module: Callable[..., bytes]) -> None:
    code = "int call_of_tomorrow(void);\nint make(void) { return call_of_tomorrow(); }"
    (fault,) = faults.module_faults(module(code), GLIBC)
    assert fault == "calls call_of_tomorrow, which glibc 2.17 does not have: use syscall(2)"


def test_what_python_has_and_what_may_be_missing_is_no_fault(module: Callable[..., bytes]) -> None:
    code = """
    int PyErr_CheckSignals(void), _PyBytes_Resize(void), newer(void) __attribute__((weak));
    int call(void) { return PyErr_CheckSignals() + _PyBytes_Resize() + (newer ? newer() : 0); }
    """
    assert list(faults.module_faults(module(code), GLIBC)) == []


def test_a_function_newer_than_the_oldest_musl_is_refused(module: Callable[..., bytes]) -> None:
    code = "int statx(void), open(void);\nint call(void) { return statx() + open(); }"
    (fault,) = faults.module_faults(module(code, "-nostdlib"), MUSL)
    assert fault == "calls statx, which musl 1.2.0 does not have: use syscall(2)"


def test_musl_is_asked_for_by_the_name_that_its_loader_has(module: Callable[..., bytes], tmp_path: Path) -> None:
    names = {"libc.so": ["needs libc.so"], MUSL.musl: []}
    for name, found in names.items():
        (tmp_path / "libc").write_bytes(module("", "-nostdlib", f"-Wl,-soname,{name}"))
        data = module(QUIET, "-nostdlib", "-Wl,--no-as-needed", str(tmp_path / "libc"))
        assert list(faults.module_faults(data, MUSL)) == found


def test_a_module_for_another_processor_is_refused(module: Callable[..., bytes]) -> None:
    (fault,) = faults.module_faults(module(QUIET, "-nostdlib"), OTHER)
    assert fault.startswith("is for EM_")


# ---- the shim --------------------------------------------------------------------------------------------------------


def test_the_shim_has_to_be_static_and_stripped(tmp_path: Path) -> None:
    main = "int main(void) { return 0; }"
    assert list(faults.shim_faults(gcc(tmp_path, main, "-static"), GLIBC)) == []
    assert list(faults.shim_faults(gcc(tmp_path, main), GLIBC)) == ["is not linked static: it needs a loader"]
    plain = tmp_path / "plain"
    subprocess.run(["gcc", "-static", "-o", plain, tmp_path / "code.c"], check=True)
    assert list(faults.shim_faults(plain.read_bytes(), GLIBC)) == ["is not stripped"]


# ---- a wheel ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(module: Callable[..., bytes], tmp_path: Path) -> Callable[..., Path]:
    """Makes a wheel of one module under the names of all, and a shim of that mode."""
    shim, so = gcc(tmp_path, "int main(void) { return 0; }", "-static"), module()

    def make(name: str = f"libctrd-1-cp311-abi3-manylinux_2_17_{MACHINE}.{GLIBC.name}", mode: int = 0o755) -> Path:
        path = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member in [*(f"libctrd/{one}.abi3.so" for one in faults.MODULES), faults.SHIM]:
                entry = zipfile.ZipInfo(member)
                entry.external_attr = (mode if member == faults.SHIM else 0o755) << 16
                archive.writestr(entry, shim if member == faults.SHIM else so)
        return path

    return make


def of(path: Path, target: Target = GLIBC, built_in: str = "/nowhere") -> list[str]:
    return [fault.removeprefix(f"{path.name}: ") for fault in faults.wheel_faults(path, target, Path(built_in))]


def test_a_wheel_as_it_has_to_be_is_good(wheel: Callable[..., Path]) -> None:
    assert of(wheel()) == []


def test_a_wheel_that_does_not_keep_to_the_limited_api_is_refused(wheel: Callable[..., Path]) -> None:
    native = wheel(f"libctrd-1-cp313-cp313-{GLIBC.name}")
    assert of(native) == ["is for cp313-cp313 and not for cp311-abi3: it does not keep to the limited API"]


def test_a_wheel_for_another_platform_is_refused(wheel: Callable[..., Path]) -> None:
    newer = wheel(f"libctrd-1-cp311-abi3-manylinux_2_36_{MACHINE}")
    assert of(newer) == [f"is for manylinux_2_36_{MACHINE} and not for {GLIBC.name}"]


def test_the_shim_in_a_wheel_keeps_its_run_bit(wheel: Callable[..., Path]) -> None:
    assert of(wheel(mode=0o644)) == ["libctrd/ctrd-shim has not the mode 0755"]


def test_what_is_missing_or_one_too_many_is_told(wheel: Callable[..., Path], tmp_path: Path) -> None:
    full, odd = wheel(), tmp_path / "odd" / wheel().name
    odd.parent.mkdir()
    with zipfile.ZipFile(full) as old, zipfile.ZipFile(odd, "w") as new:
        for entry in old.infolist():
            if "relay" not in entry.filename:
                new.writestr(entry, old.read(entry))
        new.writestr("libctrd/relay.cpython-311.so", b"")
    assert of(odd) == [
        "libctrd/relay.abi3.so is missing",
        "libctrd/relay.cpython-311.so does not belong there",
    ]


def test_the_place_of_the_build_may_not_be_told(wheel: Callable[..., Path], module: Callable[..., bytes]) -> None:
    path, name = wheel(), f"libctrd/{faults.MODULES[0]}.abi3.so"
    place = module('const char *place(void) { return "/tmp/the/build/tree/code.c"; }')
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, place if entry.filename == name else data)
    assert of(path, built_in="/tmp/the/build") == [f"{name} names the directory in which it was built"]


# ---- what is not claimed ---------------------------------------------------------------------------------------------


def test_nothing_claims_to_do_without_the_gil() -> None:
    """The transitions of a fifo are guarded by it: a Python without one turns it on when it imports such a module.

    Who says otherwise says it by the tag of a wheel, a classifier, a directive of Cython or a slot of the module.
    """
    assert not re.search(r"cp3\d+t", faults.TAG)
    assert "Free Threading" not in sources("pyproject.toml").read_text(encoding="utf-8")
    compiled = [path for path in sources("pyx").iterdir() if path.suffix in (".pyx", ".pxd", ".pxi", ".h", ".c")]
    built = [sources("setup.py"), sources("tools", "flavour.py"), sources("tools", "build_proc.py")]
    for path in [*compiled, *built]:
        said = re.findall("freethreading_compatible|Py_mod_gil|SetGIL", path.read_text(encoding="utf-8"))
        assert said == [], path


# ---- trying them -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_somewhere_is_a_test_by_that_name() -> None:
    for name in emulated.LEFT_OUT:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


# ---- the sdist -------------------------------------------------------------------------------------------------------


def packed(names: list[str], seconds: int, owner: int) -> bytes:
    """A ``.tar.gz`` in that order, with a program in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uid, entry.uname = len(name), seconds, owner, f"user{owner}"
            entry.mode = 0o775 if name.endswith("/run") else 0o664
            archive.addfile(entry, io.BytesIO(name.encode()))
    return stream.getvalue()


def test_an_sdist_does_not_depend_on_time_order_or_owner() -> None:
    names = ["a/one", "a/two", "a/run"]
    first = sdists.repack(packed(names, 1_700_000_000, 0), 1_600_000_000)
    assert first == sdists.repack(packed(names[::-1], 1_710_000_000, 1000), 1_600_000_000)
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert [(m.name, m.mode, m.mtime, m.uid, m.uname) for m in archive] == [
            ("a/one", 0o644, 1_600_000_000, 0, ""),
            ("a/run", 0o755, 1_600_000_000, 0, ""),
            ("a/two", 0o644, 1_600_000_000, 0, ""),
        ]


def test_the_time_is_the_commits_the_sdists_or_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    assert sdists.epoch(tmp_path) == 1234567890
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(SystemExit, match="SOURCE_DATE_EPOCH=yesterday is no number of seconds"):
        sdists.epoch(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="neither an sdist nor a clone that git can read"):
        sdists.epoch(tmp_path)
    (tmp_path / "PKG-INFO").touch()
    os.utime(tmp_path / "PKG-INFO", (1_500_000_000, 1_500_000_000))
    assert sdists.epoch(tmp_path) == 1_500_000_000


def test_a_copy_of_the_sources_is_without_what_was_built(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    kept = ["setup.py", "tests/build/data", "tools/quickstart", "pyx/shim.c"]
    built = ["PKG-INFO", "setup.cfg", "build/x", "dist/x.whl", "quickstart/rootfs/bin/sh", "libctrd/ctrd-shim"]
    for name in [*kept, *built, ".venv/x", ".git/x"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "libctrd" / "fifo.abi3.so").touch()
    sdists.copy(root, tmp_path / "copy")
    found = [str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(kept)
