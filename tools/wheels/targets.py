"""The platforms that wheels are built for: what each is called by pip, by the compiler and by Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A processor and a C library, the oldest that the wheel runs with."""

    machine: str
    """``uname -m``."""
    platform: str
    """The wheel's tag, that auditwheel grants, without the machine."""
    libc: str
    """The compiler's name for the C library, with its version where there are several: ``gnu.2.17``, ``musl``."""

    @property
    def name(self) -> str:
        """The platform as in the name of the wheel: ``manylinux2014_x86_64``."""
        return f"{self.platform}_{self.machine}"

    @property
    def is_musl(self) -> bool:
        """Whether the modules use musl. (The shim always does: it is static.)"""
        return self.libc == "musl"

    @property
    def modules_for(self) -> str:
        """What the compiler makes modules for: ``x86_64-linux-gnu.2.17``."""
        return f"{self.machine}-linux-{self.libc}"

    @property
    def shim_for(self) -> str:
        """What the compiler makes the shim for."""
        return f"{self.machine}-linux-musl"

    @property
    def libraries(self) -> frozenset[str]:
        """All that a module may ask the loader for."""
        if self.is_musl:
            return frozenset((self.musl,))
        loader = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[self.machine]
        return frozenset(("libc.so.6", "libpthread.so.0", "libdl.so.2", loader))

    @property
    def musl(self) -> str:
        """The name by which modules ask for musl where it is installed; the compiler writes plain ``libc.so``."""
        return f"libc.musl-{self.machine}.so.1"


TARGETS = {
    target.name: target
    for machine in ("x86_64", "aarch64")
    for target in (Target(machine, "manylinux2014", "gnu.2.17"), Target(machine, "musllinux_1_2", "musl"))
}
