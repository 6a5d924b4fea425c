"""The default seccomp profile as the kernel takes it: compiled once a boot, and handed over to crun so.

A runtime compiles a profile at each start, which takes it some milliseconds; crun also takes a compiled one, in the
annotation ``run.oci.seccomp_bpf_data`` (crun(1)). It is compiled by libseccomp, which crun itself is linked to, from
the same profile and in the same way, and so says the same of every call. Where that library is missing, and for
profiles of others, the runtime compiles.
"""

from __future__ import annotations

import binascii
import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from libctrd import proc, seccomp
from libctrd._log import log
from libctrd.engine import remembered
from libctrd.errors import UnsupportedError

if TYPE_CHECKING:
    from libctrd.engine.runtime import Runtime

ANNOTATION: Final = "run.oci.seccomp_bpf_data"
_LIBRARY: Final = "libseccomp.so.2"
_MEMORY: Final = "seccomp"
_OPTIMIZE, _AS_A_TREE = (
    8,
    2,
)  # SCMP_FLTATR_CTL_OPTIMIZE of libseccomp 2.5: a search, instead of one comparison after another
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_EPERM: Final = 1
_OPERATORS: Final = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN: Final = -1  # a call that the library does not know yet, and which no program it filters can make by that name

_lock = threading.Lock()  # held while it is compiled: who else needs it waits, instead of compiling it too
_text: str | None = None  # in base64, as crun wants it; "" when it cannot be compiled here


def hand_over(runtime: Runtime, spec: dict[str, Any]) -> dict[str, Any]:
    """*spec* for *runtime*: a copy with its profile compiled, when it is the default one and *runtime* is crun, else
    itself.

    Raises `UnsupportedError` when there is a profile and the runtime was built without seccomp: it would not say so,
    and start the container without.
    """
    linux = spec.get("linux") or {}
    profile = linux.get("seccomp")
    if profile is None:
        return spec
    if runtime.lacks_seccomp:
        raise UnsupportedError(
            f"the OCI runtime {runtime.path!r} was built without seccomp and would run the container without its "
            "profile: use another runtime, or ask for no profile (seccomp=False, --seccomp unconfined)"
        )
    annotations = spec.get("annotations") or {}
    if not runtime.version.startswith("crun version 1.") or ANNOTATION in annotations or profile != _default():
        return spec
    text = _compiled(profile)
    if not text:
        return spec
    without = {name: value for name, value in linux.items() if name != "seccomp"}
    return {**spec, "linux": without, "annotations": {**annotations, ANNOTATION: text}}


@functools.cache
def _default() -> dict[str, Any]:
    return seccomp.profile()


def _compiled(profile: dict[str, Any]) -> str:
    global _text
    with _lock:
        if _text is None:
            key = f"{proc.boot_id()} {binascii.crc32(repr(profile).encode()):08x} ".encode()
            found = remembered.read(_MEMORY)
            if found.startswith(key):
                _text = found[len(key) :].decode("ascii", "replace")
            else:
                _text = compile_filter(profile)
                remembered.write(_MEMORY, key + _text.encode())
        return _text


def compile_filter(profile: dict[str, Any]) -> str:
    """The filter of *profile*, one that `libctrd.seccomp` has made, in base64; "" without libseccomp. Takes 10 ms."""
    try:
        import ctypes  # once a boot, and costly to import

        library = ctypes.CDLL(_LIBRARY)
    except (ImportError, OSError) as error:
        log.debug("the seccomp profile is left for the runtime to compile: %s", error)
        return ""
    number, pointer, text = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_char_p

    class Argument(ctypes.Structure):  # struct scmp_arg_cmp
        _fields_ = (("index", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))

    library.seccomp_init.restype, library.seccomp_init.argtypes = pointer, (number,)
    library.seccomp_release.restype, library.seccomp_release.argtypes = None, (pointer,)
    library.seccomp_attr_set.argtypes = (pointer, ctypes.c_int, number)
    library.seccomp_arch_resolve_name.restype, library.seccomp_arch_resolve_name.argtypes = number, (text,)
    library.seccomp_arch_add.argtypes = (pointer, number)
    library.seccomp_syscall_resolve_name.argtypes = (text,)
    library.seccomp_rule_add_array.argtypes = (pointer, number, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Argument))
    library.seccomp_export_bpf.argtypes = (pointer, ctypes.c_int)

    def check(result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    context = library.seccomp_init(_ERRNO | _EPERM)
    if not context:
        log.debug("the seccomp profile is left for the runtime to compile: seccomp_init failed")
        return ""
    try:
        library.seccomp_attr_set(context, _OPTIMIZE, _AS_A_TREE)  # before 2.5 there is none: it is slower then
        for rule in profile["syscalls"]:
            allows = rule["action"] == "SCMP_ACT_ALLOW"
            action = _ALLOW if allows else _ERRNO | rule["errnoRet"]
            given = rule.get("args") or ()
            arguments = (Argument * len(given))(
                *(Argument(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0)) for arg in given)
            )
            for name in rule["names"]:
                call = library.seccomp_syscall_resolve_name(name.encode())
                if call != _UNKNOWN:
                    check(library.seccomp_rule_add_array(context, action, call, len(given), arguments))
        with open(os.memfd_create("seccomp", os.MFD_CLOEXEC), "rb") as file:
            check(library.seccomp_export_bpf(context, file.fileno()))
            file.seek(0)
            return binascii.b2a_base64(file.read(), newline=False).decode()
    except OSError as error:
        log.debug("the seccomp profile is left for the runtime to compile: %s", error)
        return ""
    finally:
        library.seccomp_release(context)
