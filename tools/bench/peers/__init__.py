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


NO_GO_FIFO = "Go's containerd/fifo: build tools/bench/peers/fifo.go beside it and give the program with --go-fifo"
