"""Builds what is compiled: the Cython modules, the cffi module and the shim.

The metadata is in pyproject.toml. What stands here cannot stand there: the shim is a program, not a module, and the
sources in ``pyx/`` belong to the package ``libctrd``.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
CFLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]
STATIC_SHIM_CC = os.environ.get("LIBCTRD_SHIM_CC", "")
"""The command of a compiler that links the shim static, against musl, such as ``musl-gcc``: it then starts in a
seventh of the time, with a fifth of the memory. Without it the shim is built like the modules, on the C library."""
SHIM = "libctrd.ctrd-shim"  # an "extension" by name only: build_ext links it as a program


def stage_headers() -> str:
    """Lays the .pxd files out as the package ``libctrd``, the way ``cimport`` looks for them; returns the directory.

    The sources live in ``pyx/``, the modules in ``libctrd``; Cython finds a header by its module's name.
    """
    package = HERE / "build" / "pxd" / "libctrd"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    (package / "__init__.pxd").touch()
    for header in (HERE / "pyx").glob("*.pxd"):
        shutil.copy2(header, package)
    return str(package.parent)


class BuildExt(build_ext):
    """``build_ext`` that also links the shim, a program that is installed beside the modules."""

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
            command = [*shlex.split(STATIC_SHIM_CC), "@pyx/static.opts", "-o", str(target), *ext.sources]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn(command)
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
    return Extension(f"libctrd.{name}", [f"pyx/{name}.pyx"], extra_compile_args=CFLAGS, libraries=["pthread"])


modules = cythonize(
    [module(name) for name in ("fifo", "relay", "shape")],
    include_path=[stage_headers()],
    compiler_directives={"language_level": "3", "binding": True, "embedsignature": False},
)
shim = Extension(
    SHIM,
    ["pyx/shim.c", *(f"pyx/shim_{part}.c" for part in ("options", "runtime", "children", "exec", "stdio", "keep"))],
    depends=["pyx/shim.h"],
    extra_compile_args=[*CFLAGS, "-fPIE"],
    extra_link_args=["-pie", "-Wl,-z,relro,-z,now", "-s"],
)
setup(
    ext_modules=[*modules, shim],
    cffi_modules=["tools/build_proc.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    zip_safe=False,
)
