"""What a seccomp filter says of a call: an interpreter of the instructions that seccomp(2) allows."""

from __future__ import annotations

import struct
from collections.abc import Sequence

# linux/bpf_common.h; a class is the lowest three bits.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
MASK = 0xFFFFFFFF


def verdict(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """The action that *program* returns for a call with that number in that architecture (AUDIT_ARCH_…)."""
    six = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number & MASK, architecture, 0, *(value & (1 << 64) - 1 for value in six))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = index = at = 0
    memory = [0] * 16
    while True:
        op, if_true, if_false, k = code[at]
        at += 1
        kind, source = op & 7, index if op & 8 else k
        if kind == RET:
            return accumulator if op & 0x18 == 0x10 else k
        if kind == LD:
            mode = op & 0xE0
            accumulator = struct.unpack_from("=I", data, k)[0] if mode == 0x20 else memory[k] if mode == 0x60 else k
        elif kind == LDX:
            index = memory[k] if op & 0xE0 == 0x60 else k
        elif kind in (ST, STX):
            memory[k] = accumulator if kind == ST else index
        elif kind == ALU:
            accumulator = {0x50: accumulator & source, 0x40: accumulator | source}[op & 0xF0]
        elif kind == MISC:
            accumulator, index = (index, index) if op & 0x80 else (accumulator, accumulator)
        elif op & 0xF0 == 0:
            at += k
        else:
            holds = {0x10: accumulator == source, 0x20: accumulator > source, 0x30: accumulator >= source}
            holds[0x40] = bool(accumulator & source)
            at += if_true if holds[op & 0xF0] else if_false
