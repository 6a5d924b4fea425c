"""What containerd is told of the OCI runtime: its runtime's name, and the options of the runc shim (C1, C8)."""

from __future__ import annotations

import os
from typing import Any

from libctrd import protos
from libctrd.errors import InvalidArgumentError, UnsupportedError

SHIM = "io.containerd.runc.v2"
"""containerd's runtime of runc, crun and all that have their command line."""


class Runtime:
    """A choice of runtime: *name* is containerd's, *binary* the OCI runtime's path ("": the shim's own choice), *root*
    the directory in which that keeps what it knows, by namespace.
    """

    def __init__(self, name: str, binary: str, arguments: tuple[str, ...], root: str) -> None:
        self.name = name
        self.binary = binary
        self.root = root
        self._systemd = False
        self._read(arguments)

    def _read(self, arguments: tuple[str, ...]) -> None:
        """Takes the runtime's own arguments. What the shim cannot pass on is an error, not a log line (C1)."""
        if arguments and not self.takes_options:
            raise UnsupportedError(f"containerd's runtime {self.name!r} takes no arguments: leave runtime_args out")
        rest = list(arguments)
        while rest:
            word, equals, value = rest.pop(0).partition("=")
            if word == "--systemd-cgroup" and value in ("", "true"):
                self._systemd = True
            elif word == "--root" and (equals or rest):
                self.root = value if equals else rest.pop(0)
                if not os.path.isabs(self.root):
                    raise InvalidArgumentError(f"the runtime's --root {self.root!r} is not absolute: say --root=/DIR")
            else:
                raise UnsupportedError(
                    f"the containerd engine cannot give the runtime the argument {word!r}: "
                    "its shim knows --root=/DIR and --systemd-cgroup only"
                )

    @property
    def takes_options(self) -> bool:
        """Is it runc's shim, the one that knows the options that are made here?"""
        return self.name.startswith("io.containerd.runc.") or os.path.basename(self.name).startswith(
            "containerd-shim-runc-"
        )

    @property
    def systemd_cgroup(self) -> bool:
        """Are its cgroups systemd's to make?"""
        return self._systemd

    def options(self, no_pivot_root: bool = False, checkpoint: str = "") -> Any:
        """The options of this runtime as a message; ``None`` for a shim that has others than runc's.

        The root is never left to containerd: its default is one directory for all daemons of the host, in which a
        container of another daemon with the same namespace and id would be destroyed.
        """
        if not self.takes_options:
            if no_pivot_root or checkpoint:
                what = "no pivot root" if no_pivot_root else "a checkpoint to start from"
                raise UnsupportedError(f"containerd's runtime {self.name!r} does not know {what}")
            return None
        options = protos.message("containerd.runc.v1.Options")(
            no_pivot_root=no_pivot_root,
            binary_name=self.binary,
            root=self.root,
            systemd_cgroup=self._systemd,
            criu_image_path=checkpoint,
        )
        return protos.any("containerd.runc.v1.Options", options.SerializeToString())


def choose(runtime: str | None, arguments: tuple[str, ...], root: str) -> Runtime:
    """The runtime that a caller named: a path or a name of an OCI runtime, containerd's name of one, a shim's path.

    Raises `NotFoundError` when it is not there, `UnsupportedError` for arguments that cannot be passed on.
    """
    if runtime is None:
        return Runtime(SHIM, "", arguments, root)
    if runtime.startswith("io.containerd."):
        return Runtime(runtime, "", arguments, root)
    from libctrd.engine import runtime as runtimes  # milliseconds, which who names none need not pay

    path = runtimes.locate(runtime)
    if os.path.basename(path).startswith("containerd-shim-"):
        return Runtime(path, "", arguments, root)
    return Runtime(SHIM, path, arguments, root)
