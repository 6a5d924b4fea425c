"""What is wrong with a wheel that is to be published: what auditwheel and abi3audit look at, and what they do not.

auditwheel sees the versions of symbols. A function that is newer than the C library which was linked has none: it is
left to the loader, and the module fails where it runs. That, the shim and what a build leaves behind are seen here.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from targets import Target

MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
MODULES = ("_proc", "fifo", "relay", "shape")
SHIM = "libctrd/ctrd-shim"
TAG = "cp311-abi3"
GLIBC = (2, 17)
# What musl has got since 1.2.0, from its list of changes. Its symbols have no versions, so they are known by name.
NEWER_THAN_MUSL_1_2 = {
    *("_Fork", "gettid", "reallocarray"),  # 1.2.2
    "qsort_r",  # 1.2.3
    *("statx", "preadv2", "pwritev2"),  # 1.2.5
    *("renameat2", "posix_getdents"),  # 1.2.6
}
# How a path to look for other libraries, or relative relocations (glibc 2.36, musl 1.2.4), would show.
REFUSED = {
    "DT_RPATH": "has an RPATH",
    "DT_RUNPATH": "has a RUNPATH",
    "DT_RELR": "has relative relocations, which an old loader does not know (DT_RELR)",
    "DT_TEXTREL": "has relocations in its code (DT_TEXTREL)",
}


def undefined(elf: ELFFile) -> Iterator[tuple[str, str, bool]]:
    """What the loader has to find: name, version ("" for none), and whether it may be missing (a weak symbol)."""
    symbols, versions = elf.get_section_by_name(".dynsym"), elf.get_section_by_name(".gnu.version")
    needed = elf.get_section_by_name(".gnu.version_r")
    for number, symbol in enumerate(symbols.iter_symbols()):
        if symbol["st_shndx"] != "SHN_UNDEF" or not symbol.name:
            continue
        index = versions.get_symbol(number)["ndx"] if versions else "VER_NDX_GLOBAL"
        version = needed.get_version(index)[1].name if needed and isinstance(index, int) and index > 1 else ""
        yield symbol.name, version, symbol["st_info"]["bind"] == "STB_WEAK"


def newer_calls(elf: ELFFile, target: Target) -> Iterator[str]:
    """The functions that the oldest C library of *target* does not have."""
    for name, version, weak in undefined(elf):
        if re.match("_?Py", name) or weak:
            continue  # Python's own: abi3audit sees to them
        if target.is_musl:
            if name in NEWER_THAN_MUSL_1_2:
                yield f"calls {name}, which musl 1.2.0 does not have: use syscall(2)"
        elif not version:
            yield f"calls {name}, which glibc {'.'.join(map(str, GLIBC))} does not have: use syscall(2)"
        elif not (match := re.fullmatch(r"GLIBC_([\d.]+)", version)) or tuple(map(int, match[1].split("."))) > GLIBC:
            yield f"calls {name} of {version}: use syscall(2), or an older one"


def module_faults(data: bytes, target: Target) -> Iterator[str]:
    """What is wrong with a module: whom it asks for, and how it is linked."""
    elf = ELFFile(io.BytesIO(data))
    if elf["e_machine"] != MACHINES[target.machine]:
        yield f"is for {elf['e_machine']}"
    dynamic = elf.get_section_by_name(".dynamic")
    if dynamic is None:
        yield "is no shared object"
        return
    for tag in dynamic.iter_tags():
        if tag.entry.d_tag in REFUSED:
            yield REFUSED[tag.entry.d_tag]
        elif tag.entry.d_tag == "DT_NEEDED" and tag.needed not in target.libraries:
            yield f"needs {tag.needed}"
    yield from newer_calls(elf, target)


def shim_faults(data: bytes, target: Target) -> Iterator[str]:
    """The shim asks for nothing: then it runs on every Linux, and starts at once."""
    elf = ELFFile(io.BytesIO(data))
    if elf["e_machine"] != MACHINES[target.machine]:
        yield f"is for {elf['e_machine']}"
    if any(segment["p_type"] in ("PT_INTERP", "PT_DYNAMIC") for segment in elf.iter_segments()):
        yield "is not linked static: it needs a loader"
    if elf.get_section_by_name(".symtab") is not None:
        yield "is not stripped"


def wheel_faults(path: Path, target: Target, built_in: Path) -> list[str]:
    """All that is wrong with the wheel at *path*, which was built in the directory *built_in*."""
    faults = []
    tag, platforms = path.stem.split("-", 2)[2].rsplit("-", 1)
    if tag != TAG:
        faults.append(f"is for {tag} and not for {TAG}: it does not keep to the limited API")
    if target.name not in platforms.split("."):
        faults.append(f"is for {platforms} and not for {target.name}")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        for name in [f"libctrd/{module}.abi3.so" for module in MODULES] + [SHIM]:
            if name not in entries:
                faults.append(f"{name} is missing")
                continue
            data = archive.read(name)
            found = shim_faults(data, target) if name == SHIM else module_faults(data, target)
            faults += [f"{name} {fault}" for fault in found]
            if str(built_in).encode() in data:
                faults.append(f"{name} names the directory in which it was built")
            if entries[name].external_attr >> 16 & 0o777 != 0o755:
                faults.append(f"{name} has not the mode 0755")
        compiled = {f"libctrd/{module}.abi3.so" for module in MODULES}
        faults += [f"{name} does not belong there" for name in entries if name.endswith(".so") and name not in compiled]
    return [f"{path.name}: {fault}" for fault in faults]
