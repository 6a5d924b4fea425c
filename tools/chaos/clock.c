/*
 * A wall clock that another hand may set: loaded before a program (LD_PRELOAD), it adds to CLOCK_REALTIME what the file
 * named by CTRD_CHAOS_CLOCK says, eight bytes of nanoseconds, which is mapped and so changes under the program's feet.
 * CLOCK_MONOTONIC is as it was. A moment of that clock until which a program wants to wait is moved back for the kernel.
 * What a program asks the kernel for by itself, as those in Go do, is not changed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const int64_t none;
static const volatile int64_t *offset = &none;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_clock_nanosleep)(clockid_t, int, const struct timespec *, struct timespec *);
static int (*real_sem_timedwait)(sem_t *, const struct timespec *);
static int (*real_mutex_timedlock)(pthread_mutex_t *, const struct timespec *);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void begin(void)
{
	real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	real_clock_nanosleep = dlsym(RTLD_NEXT, "clock_nanosleep");
	real_sem_timedwait = dlsym(RTLD_NEXT, "sem_timedwait");
	real_mutex_timedlock = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
	real_syscall = dlsym(RTLD_NEXT, "syscall");
	const char *path = getenv("CTRD_CHAOS_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *page = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED)
		offset = page;
	close(fd);
}

static int is_wall(clockid_t clock)
{
	return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

static struct timespec moved(const struct timespec *at, int64_t by)
{
	int64_t nanoseconds = at->tv_nsec + by % SECOND, seconds = at->tv_sec + by / SECOND;
	if (nanoseconds < 0)
		nanoseconds += SECOND, seconds--;
	if (nanoseconds >= SECOND)
		nanoseconds -= SECOND, seconds++;
	return (struct timespec){.tv_sec = seconds < 0 ? 0 : seconds, .tv_nsec = nanoseconds};
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
	/* Before our turn came: another library's constructor may ask. */
	int failed = real_clock_gettime ? real_clock_gettime(clock, at) : (int)syscall(SYS_clock_gettime, clock, at);
	if (!failed && is_wall(clock))
		*at = moved(at, *offset);
	return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
	struct timespec now;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	*at = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
	return 0;
}

time_t time(time_t *at)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (at)
		*at = now.tv_sec;
	return now.tv_sec;
}

int timespec_get(struct timespec *at, int base)
{
	return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, at) ? base : 0;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left)
{
	struct timespec at = *until;
	if (flags & TIMER_ABSTIME && is_wall(clock))
		at = moved(until, -*offset);
	return real_clock_nanosleep(clock, flags, &at, left);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
	struct timespec at = moved(until, -*offset);
	return real_sem_timedwait(semaphore, &at);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until)
{
	struct timespec at = moved(until, -*offset);
	return real_mutex_timedlock(mutex, &at);
}

/* For libraries that call futex(2) themselves, and wait until a moment of the wall clock. */
long syscall(long number, ...)
{
	va_list rest;
	long argument[6];
	struct timespec at;
	va_start(rest, number);
	for (int i = 0; i < 6; i++)
		argument[i] = va_arg(rest, long);
	va_end(rest);
	if (!real_syscall)
		real_syscall = dlsym(RTLD_NEXT, "syscall");
	if (number == SYS_futex && argument[1] & FUTEX_CLOCK_REALTIME && argument[3]) {
		at = moved((const struct timespec *)argument[3], -*offset);
		argument[3] = (long)&at;
	}
	return real_syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
