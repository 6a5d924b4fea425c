"""The build of ``libctrd._proc``, the C behind `libctrd.proc`: cffi in API mode, with its source in pyx/proc.c."""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

CDEF = """
#define CTRD_PORTABLE ...
#define STAGE_NULL ...
#define STAGE_DUP ...
#define STAGE_LIST ...
#define STAGE_SESSION ...
#define STAGE_PREPARE ...
#define STAGE_SPAWN ...

int ctrd_has_closefrom(void);
int ctrd_spawn(const char *path, char **argv, char **envp, const int *child, const int *parent, int count,
               int new_session, int use_closefrom, int *pid, int *stage, int *which);
int ctrd_pidfd_open(int pid);
int ctrd_pidfd_send_signal(int pidfd, int sig);
int ctrd_pidfd_reap(int pidfd, int *pid, int *code, int *status);
int ctrd_set_subreaper(int on);
int ctrd_get_subreaper(int *on);
int ctrd_set_pdeathsig(int sig);
int ctrd_get_pdeathsig(int *sig);
int ctrd_unmount(const char *path);
int ctrd_open_below(int dir, const char *name);
int ctrd_getxattr(int fd, const char *name, char *value, int size);
int ctrd_inotify_init(void);
int ctrd_inotify_add(int fd, const char *path, unsigned int mask);
int ctrd_inotify_remove(int fd, int watch);
"""

sys.path.insert(0, str(Path(__file__).resolve().parent))  # cffi runs this file without a place of its own
import flavour  # noqa: E402

ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source("libctrd._proc", '#include "proc.c"', **flavour.common())
