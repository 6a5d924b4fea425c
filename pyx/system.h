/*
 * What each system does in its own way, behind one switch: CTRD_PORTABLE. It is 0 on Linux, where linux.h is the only
 * file with Linux's own calls; it is 1 elsewhere, and on Linux too when the build asks for it (LIBCTRD_PORTABLE=1), and
 * then portable.h gets by with what POSIX has. Both define the same names, and system.pxd tells what they do.
 */
#ifndef CTRD_SYSTEM_H
#define CTRD_SYSTEM_H

#ifndef CTRD_PORTABLE
#ifdef __linux__
#define CTRD_PORTABLE 0
#else
#define CTRD_PORTABLE 1
#endif
#endif

/* What the headers show beyond plain C: with -std=c11 nothing else, on illumos neither. `_XOPEN_SOURCE` there changes
   what calls do, so it is left to the compiler's flags (setup.py) and the same for all sources; `__EXTENSIONS__` and
   `_POSIX_PTHREAD_SEMANTICS` (the sigwait of POSIX) only add. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#ifdef __sun
#ifndef __EXTENSIONS__
#define __EXTENSIONS__ 1
#endif
#ifndef _POSIX_PTHREAD_SEMANTICS
#define _POSIX_PTHREAD_SEMANTICS 1
#endif
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __sun
#include <sys/filio.h> /* FIONREAD: sys/ioctl.h has it for BSD_COMP only */
#endif

/* Of a limit for a call that takes no less; -1: none. */
static inline int ctrd_milliseconds(int64_t nanoseconds)
{
    return nanoseconds < 0 ? -1 : (int)((nanoseconds + 999999) / 1000000);
}

#if CTRD_PORTABLE
#include "portable.h"
#else
#include "linux.h"
#endif

static inline void ctrd_set_errno(int number) { errno = number; }

#endif
