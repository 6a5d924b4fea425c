"""Builds what is compiled: the Cython modules, the cffi module and the shim.

The metadata is in pyproject.toml. What stands here cannot stand there: which flavour is built (tools/flavour.py), the
shim, which is a program and not a module, and that the sources in ``pyx/`` belong to the package ``libctrd``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "tools"))  # a build by pyproject.toml does not look beside setup.py
import flavour  # noqa: E402

STATIC_SHIM_CC = os.environ.get("LIBCTRD_SHIM_CC", "")
"""The command of a compiler that links the shim static, against musl, such as ``musl-gcc``: it then starts in a
seventh of the time, with a fifth of the memory. Without it the shim is built like the modules, on the C library."""
SHIM = "libctrd.ctrd-shim"  # an "extension" by name only: build_ext links it as a program


def stage_headers() -> str:
    """Lays the .pxd files out as the package ``libctrd``, the way ``cimport`` looks for them; returns the directory.

    The sources live in ``pyx/``, the modules in ``libctrd``; Cython finds a header by its module's name.
    """
    package = HERE / flavour.BUILD / "pxd" / "libctrd"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    (package / "__init__.pxd").touch()
    for header in (HERE / "pyx").glob("*.pxd"):
        shutil.copy2(header, package)
    return str(package.parent)


def static_command(scratch: Path) -> list[str]:
    """The compiler of the static shim with its options; of those for the linker, which save memory, what it knows.

    GNU ld knows them all. One that a compiler refuses for an empty program, it would refuse for the shim.
    """
    command = shlex.split(STATIC_SHIM_CC)
    scratch.mkdir(parents=True, exist_ok=True)
    empty = scratch / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")

    def knows(options: list[str]) -> bool:
        tried = [*command, *options, "-o", str(scratch / "empty"), str(empty)]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0

    options = (HERE / "pyx" / "static.opts").read_text(encoding="ascii").split()
    if not knows(options):
        plain = [option for option in options if not option.startswith("-Wl,")]
        options = plain + [option for option in options if option not in plain and knows([*plain, option])]
    return [*command, *options]


class BuildExt(build_ext):
    """``build_ext`` that also links the shim, a program that is installed beside the modules."""

    def copy_extensions_to_source(self) -> None:
        """What lies in place may be another flavour's: newer, so that it would stay, or found first by its suffix."""
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            for old in [HERE / "libctrd" / name, *(HERE / "libctrd").glob(f"{name}.*so")]:
                old.unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith(SHIM.rpartition(".")[2]):
            return os.path.join(*fullname.split("."))
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return [] if ext.name == SHIM else super().get_export_symbols(ext)

    def build_extension(self, ext: Extension) -> None:
        if ext.name != SHIM:
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        if STATIC_SHIM_CC:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn([*static_command(Path(self.build_temp)), "-o", str(target), *ext.sources])
            return
        objects = self.compiler.compile(ext.sources, output_dir=self.build_temp, extra_postargs=ext.extra_compile_args)
        self.compiler.link_executable(
            objects,
            target.name,
            output_dir=str(target.parent),
            extra_postargs=[*ext.extra_link_args, *shlex.split(os.environ.get("LDFLAGS", ""))],
        )
        target.chmod(0o755)


def module(name: str) -> Extension:
    made = Extension(f"libctrd.{name}", [f"pyx/{name}.pyx"], py_limited_api=flavour.LIMITED, **flavour.common())
    if flavour.LIMITED:
        made.define_macros = [*made.define_macros, ("Py_LIMITED_API", "0x030B0000")]
        made.extra_compile_args = [*made.extra_compile_args, "-include", str(HERE / "pyx" / "limited.h")]
    return made


modules = cythonize(
    [module(name) for name in ("fifo", "relay", "shape")],
    build_dir=f"{flavour.BUILD}/cython-{Cython.__version__}",  # of another version it would be taken as it is
    include_path=[stage_headers()],
    compiler_directives={"language_level": "3", "binding": True, "embedsignature": False},
)
shim = Extension(
    SHIM,
    [
        "pyx/shim.c",
        *(f"pyx/shim_{part}.c" for part in ("options", "runtime", "children", "exec", "stdio", "keep", "log", "text")),
    ],
    depends=["pyx/shim.h"],
    extra_compile_args=[*flavour.CFLAGS, "-fPIE"],
    extra_link_args=["-pie", "-Wl,-z,relro,-z,now", "-s"],
)
setup(
    ext_modules=modules if flavour.PORTABLE else [*modules, shim],
    cffi_modules=["tools/build_proc.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    options={
        "build": {"build_base": flavour.BUILD},
        **({"bdist_wheel": {"py_limited_api": "cp311"}} if flavour.LIMITED else {}),
    },
    zip_safe=False,
)
