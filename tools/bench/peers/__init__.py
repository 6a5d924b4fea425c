"""The peers that have to be built: in C with the host's compiler; those in Go when there is a ``go``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent


def c(directory: Path) -> str:
    """The program of ``peer.c``, built in *directory*; static, so that it runs in a container as well."""
    program = directory / "peer"
    if not program.exists():
        compiler = os.environ.get("CC") or shutil.which("musl-gcc") or "cc"
        command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, SOURCES / "peer.c"]
        subprocess.run(command, check=True)
    return str(program)


def go(directory: Path, source: str) -> str | None:
    """The program of a *source* in Go that needs nothing but Go, built in *directory*; ``None`` without a ``go``."""
    program, compiler = directory / Path(source).stem, shutil.which("go")
    if compiler is None:
        return None
    caches = {"GOCACHE": str(directory / "go-cache"), "GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    command = [compiler, "build", "-o", program, SOURCES / source]
    subprocess.run(command, check=True, env={**os.environ, **caches})
    return str(program)


NO_GO = "Go's queue: there is no go: apt-get install golang-go"
NO_GO_FIFO = "Go's containerd/fifo: build tools/bench/peers/fifo.go beside it and give the program with --go-fifo"
