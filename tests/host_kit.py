"""A root file system with this host's own programs, for containers that need more than busybox."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

PYTHON = os.path.realpath(sys.executable)


class HostRoot(NamedTuple):
    """Its directory, and the mounts that bring the programs into it."""

    rootfs: str
    mounts: list[dict[str, Any]]


def host_root(root: Path) -> HostRoot:
    """One in *root*, with the host's own /usr, read-only: its Python (`PYTHON`), its programs in Go."""
    for name in ("usr", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    binds = ["/usr"] if sys.base_prefix.startswith("/usr") else ["/usr", sys.base_prefix]
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
        elif os.path.isdir(f"/{name}"):
            (root / name).mkdir()
            binds.append(f"/{name}")
    mounts = [{"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]} for path in binds]
    return HostRoot(str(root), mounts)
