"""A private containerd to measure with: in a directory of its own, and gone with all that is its own afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

START_SECONDS = 30.0
NAMESPACE = "bench"
DISABLED = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")
DISABLED += ("io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt")  # as cri: they reach out of the directory


class Daemon:
    """The first containerd of the PATH, and the ctr beside it. A context manager."""

    def __init__(self, directory: Path, state: str) -> None:
        """Both directories are there, and nobody else's. The path of *state* is short, for a socket lies in it."""
        self.socket = f"{state}/c.sock"
        self.address = f"unix://{self.socket}"
        self.ctr = shutil.which("ctr") or "ctr"
        self._config = directory / "config.toml"
        self._log = directory / "log"
        disabled = ", ".join(f'"{name}"' for name in DISABLED)
        self._config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{state}/state"\ndisabled_plugins = [{disabled}]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )

    def __enter__(self) -> Daemon:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise SystemExit(f"containerd did not start; it said:\n{self._log.read_text()}")
            time.sleep(0.05)
        return self

    def run_command(self, directory: Path, config: Path, how: str = "--rm") -> list[str]:
        """``ctr run --rm`` of the spec in the file *config*, whose name is the id; runc's state is in *directory*."""
        command = [self.ctr, "--address", self.socket, "--namespace", NAMESPACE, "run", how]
        return [*command, "--runc-root", str(directory / "runc"), "--config", str(config), config.stem]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as peer:
            if peer.connect_ex(self.socket):
                return False
        asked = [self.ctr, "--address", self.socket, "tasks", "ls"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()


def missing() -> str:
    """What this host lacks for one; "" when nothing."""
    lacking = [name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None]
    if lacking:
        return f"there is no {' and no '.join(lacking)}: apt-get install containerd runc"
    return "" if os.geteuid() == 0 else "containerd needs root"
