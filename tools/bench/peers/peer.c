/*
 * The peers that are bare system calls, and programs to be measured with:
 *
 *   peer fifo PATH N      makes, opens at both ends, sends a byte through, closes and removes a fifo N times; prints the
 *                         nanoseconds that one took
 *   peer splice PATH      throws away what comes out of a fifo, with splice(2) to /dev/null; prints nanoseconds of
 *                         processor time
 *   peer write MIB        writes so much to its stdout
 *   peer tick N           prints a line a second, N in all
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };
static char block[BLOCK];

static long long now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void fifo(const char *path, int count)
{
	long long begin = now(CLOCK_MONOTONIC);
	char byte = 'x';
	for (int i = 0; i < count; i++) {
		if (mkfifo(path, 0700) < 0)
			fail("mkfifo");
		int reader = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
		if (reader < 0 || writer < 0 || write(writer, &byte, 1) != 1 || read(reader, &byte, 1) != 1)
			fail(path);
		close(writer);
		close(reader);
		unlink(path);
	}
	printf("%lld\n", (now(CLOCK_MONOTONIC) - begin) / count);
}

static void discard(const char *path)
{
	int from = open(path, O_RDONLY | O_CLOEXEC), to = open("/dev/null", O_WRONLY | O_CLOEXEC);
	ssize_t n;
	if (from < 0 || to < 0)
		fail(path);
	fcntl(from, F_SETPIPE_SZ, BLOCK);
	while ((n = splice(from, NULL, to, NULL, BLOCK, SPLICE_F_MOVE)) > 0) {
	}
	if (n < 0)
		fail("splice");
	printf("%lld\n", now(CLOCK_PROCESS_CPUTIME_ID));
}

static void write_all(long mib)
{
	memset(block, 'x', BLOCK);
	for (; mib > 0; mib--)
		for (ssize_t at = 0, n; at < BLOCK; at += n)
			if ((n = write(1, block + at, (size_t)(BLOCK - at))) < 0)
				fail("write");
}

static void tick(int count)
{
	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (int i = 0; i < count; i++) {
		char line[32];
		int n = snprintf(line, sizeof line, "line %d\n", i);
		if (write(1, line, (size_t)n) != n)
			fail("write");
		next.tv_sec++;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	if (strcmp(what, "fifo") == 0 && argc == 4)
		fifo(argv[2], atoi(argv[3]));
	else if (strcmp(what, "splice") == 0)
		discard(argv[2]);
	else if (strcmp(what, "write") == 0)
		write_all(atol(argv[2]));
	else if (strcmp(what, "tick") == 0)
		tick(atoi(argv[2]));
	else
		return fputs("peer fifo PATH N | splice PATH | write MIB | tick N\n", stderr), 2;
	return 0;
}
