/*
 * crash KIND N COMMAND…: runs COMMAND and kills one of its processes at the entry of the N-th system call that it makes.
 *
 * COMMAND says when to begin and to end, by giving its thread the names "crash-begin" and "crash-end" (prctl(2)). KIND says
 * who: "client" is COMMAND itself, with all of its threads; "shim" and "runtime" are the first process after the beginning that
 * executes a file of that name (ctrd-shim; crun or runc, also from a copy in memory). With N = 0 nobody is killed. It says
 * how many calls there were, whether it has killed, and the exit code of COMMAND. What is not killed goes on untraced.
 *
 * ptrace(2), and not strace --inject, which counts the calls of each number on its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 4096 };
struct traced {
	pid_t tid, group;
	bool inside; /* a system call, between its entry and its exit */
};
static struct traced all[MOST];
static int count;
static enum { CLIENT, SHIM, RUNTIME } kind;
static pid_t target; /* the process whose calls are counted; 0: it is not there yet */
static bool begun; /* between the two names */
static long calls, wanted;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "crash: could not %s: %s\n", what, strerror(errno));
	exit(2);
}

static int code_of(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static pid_t group_of(pid_t tid)
{
	char path[64], line[256];
	FILE *file;
	pid_t group = tid;

	snprintf(path, sizeof path, "/proc/%d/status", (int)tid);
	if (!(file = fopen(path, "r")))
		return tid;
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "Tgid: %d", &group) == 1)
			break;
	fclose(file);
	return group;
}

static struct traced *find(pid_t tid)
{
	for (int i = 0; i < count; i++)
		if (all[i].tid == tid)
			return &all[i];
	if (count == MOST) {
		errno = ENOSPC;
		fail("follow so many threads");
	}
	all[count] = (struct traced){.tid = tid, .group = group_of(tid)};
	return &all[count++];
}

static void forget(pid_t tid)
{
	struct traced *t = find(tid);
	*t = all[--count];
}

/* Is the file that this process has just begun to execute the one that is looked for? */
static bool is_wanted(pid_t tid)
{
	char link[64], path[4096];
	const char *name;
	ssize_t size;

	snprintf(link, sizeof link, "/proc/%d/exe", (int)tid);
	if ((size = readlink(link, path, sizeof path - 1)) < 0)
		return false;
	path[size] = 0;
	name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	if (kind == SHIM)
		return strcmp(name, "ctrd-shim") == 0;
	return strncmp(name, "crun", 4) == 0 || strncmp(name, "runc", 4) == 0 || strncmp(name, "memfd:", 6) == 0;
}

/* A name that a client gives one of its threads is the sign to begin, or to end. */
static void look_for_sign(pid_t tid, const struct __ptrace_syscall_info *info)
{
	char name[16] = "";
	struct iovec here = {name, sizeof name - 1}, there = {(void *)(size_t)info->entry.args[1], sizeof name - 1};

	if (info->entry.nr != SYS_prctl || info->entry.args[0] != PR_SET_NAME)
		return;
	if (process_vm_readv(tid, &here, 1, &there, 1, 0) <= 0)
		return;
	if (strcmp(name, "crash-begin") == 0)
		begun = true;
	if (strcmp(name, "crash-end") == 0)
		begun = false;
}

/* The entry of a call. True when it is the one at which the target has to die. */
static bool is_the_one(const struct traced *t, pid_t root)
{
	struct __ptrace_syscall_info info;
	bool before = begun;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, t->tid, sizeof info, &info) < 0 || info.op != PTRACE_SYSCALL_INFO_ENTRY)
		return false;
	if (t->group == root)
		look_for_sign(t->tid, &info);
	if (t->group != target || (kind == CLIENT && (!before || !begun)))
		return false;
	return ++calls == wanted;
}

/* All but the target go on untraced; returns the exit code of *root* once that has ended, and there is nobody to wait for. */
static int let_all_go(pid_t root, int code)
{
	int status;
	pid_t tid;

	for (int i = 0; i < count; i++)
		if (all[i].group != target)
			ptrace(PTRACE_INTERRUPT, all[i].tid, 0, 0);
	while ((tid = waitpid(-1, &status, __WALL)) > 0) {
		if (WIFSTOPPED(status)) { /* of one that is being killed it fails, and its end is told next */
			int number = WSTOPSIG(status);
			bool real = status >> 16 == 0 && number != (SIGTRAP | 0x80) && number != SIGTRAP;
			ptrace(PTRACE_DETACH, tid, 0, real ? number : 0);
		} else if (tid == root)
			code = code_of(status);
	}
	return code;
}

int main(int argc, char **argv)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			     PTRACE_O_TRACEEXEC;
	pid_t root, tid;
	int status, code = 0;
	bool killed = false;

	if (argc < 4) {
		fprintf(stderr, "crash: client|shim|runtime N COMMAND...\n");
		return 2;
	}
	kind = strcmp(argv[1], "client") == 0 ? CLIENT : strcmp(argv[1], "shim") == 0 ? SHIM : RUNTIME;
	wanted = atol(argv[2]);
	if ((root = fork()) < 0)
		fail("fork");
	if (root == 0) {
		raise(SIGSTOP);
		execvp(argv[3], argv + 3);
		fail(argv[3]);
	}
	if (waitpid(root, &status, WUNTRACED) != root || ptrace(PTRACE_SEIZE, root, 0, options) < 0)
		fail("trace it");
	kill(root, SIGCONT);
	find(root);
	if (kind == CLIENT)
		target = root;
	while (!killed && (tid = waitpid(-1, &status, __WALL)) > 0) {
		struct traced *t = find(tid);
		int number, event;

		if (!WIFSTOPPED(status)) {
			if (tid == root)
				code = code_of(status);
			forget(tid);
			if (tid == root && kind == CLIENT)
				break;
			if (count == 0)
				break;
			continue;
		}
		number = WSTOPSIG(status);
		event = status >> 16;
		if (event == PTRACE_EVENT_EXEC) {
			t->inside = true; /* its exit comes next */
			if (target == 0 && begun && is_wanted(tid))
				target = t->group;
		} else if (number == (SIGTRAP | 0x80)) {
			t->inside = !t->inside;
			if (t->inside && is_the_one(t, root)) {
				kill(target, SIGKILL);
				killed = true;
				break;
			}
		} else if (event == PTRACE_EVENT_STOP || event != 0) {
			/* a thread that has begun, or one that will */
			if (event == PTRACE_EVENT_STOP && number != SIGTRAP) {
				ptrace(PTRACE_LISTEN, tid, 0, 0); /* stopped by a signal of job control */
				continue;
			}
		} else {
			ptrace(PTRACE_SYSCALL, tid, 0, number); /* a signal of its own */
			continue;
		}
		ptrace(PTRACE_SYSCALL, tid, 0, 0);
	}
	code = let_all_go(root, code);
	printf("%ld %s %d\n", calls, killed ? "killed" : "ended", code);
	return 0;
}
