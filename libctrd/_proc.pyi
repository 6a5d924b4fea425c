"""Types of the cffi module that tools/build_proc.py builds; cffi's pointers and arrays have none."""

from typing import Any

class _FFI:
    NULL: Any
    def new(self, ctype: str, init: object = ...) -> Any: ...

class _Lib:
    STAGE_NULL: int
    STAGE_DUP: int
    STAGE_LIST: int
    STAGE_SESSION: int
    STAGE_PREPARE: int
    STAGE_SPAWN: int
    def ctrd_has_closefrom(self) -> int: ...
    def ctrd_spawn(
        self,
        path: bytes,
        argv: Any,
        envp: Any,
        child: list[int],
        parent: list[int],
        count: int,
        new_session: int,
        use_closefrom: int,
        pid: Any,
        stage: Any,
        which: Any,
        /,
    ) -> int: ...
    def ctrd_pidfd_open(self, pid: int, /) -> int: ...
    def ctrd_pidfd_send_signal(self, pidfd: int, sig: int, /) -> int: ...
    def ctrd_pidfd_reap(self, pidfd: int, pid: Any, code: Any, status: Any, /) -> int: ...
    def ctrd_set_subreaper(self, on: int, /) -> int: ...
    def ctrd_get_subreaper(self, on: Any, /) -> int: ...
    def ctrd_set_pdeathsig(self, sig: int, /) -> int: ...
    def ctrd_get_pdeathsig(self, sig: Any, /) -> int: ...
    def ctrd_unmount(self, path: bytes, /) -> int: ...

ffi: _FFI
lib: _Lib
