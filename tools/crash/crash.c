/*
 * crash KIND N COMMAND…: runs COMMAND and kills one of its processes at the entry of the N-th system call that it makes.
 *
 * COMMAND says when to begin and to end, by giving its thread the names "crash-begin" and "crash-end" (prctl(2)). KIND says
 * who, of what executes a file of that name (ctrd-shim; crun or runc, also from a copy in memory) after the beginning:
 *   client    COMMAND itself, with all of its threads
 *   shim      the first shim;  second  the second one
 *   runtime   the first runtime
 *   init      all that the first runtime starts, each until it executes something else: the container's program
 *   deletion  the first runtime that is told to delete
 * With N = 0 nobody is killed. It says how many calls there were, whether it has killed, and the exit code of COMMAND. What is
 * not killed goes on untraced.
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
	bool known, held; /* who has made it is known; it waits for that */
	bool inner; /* it is one of those that the runtime starts */
};
static struct traced all[MOST];
static int count;
static enum { CLIENT, SHIM, SECOND, RUNTIME, INIT, DELETION, KINDS } kind;
static const char *const kinds[KINDS] = {"client", "shim", "second", "runtime", "init", "deletion"};
static pid_t target; /* the process whose calls are counted, or who starts those; 0: it is not there yet */
static int shims; /* so many have begun */
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

/* The name of the file that this process has just begun to execute. */
static const char *executed(pid_t tid)
{
	static char path[4096];
	char link[64];
	ssize_t size;

	snprintf(link, sizeof link, "/proc/%d/exe", (int)tid);
	size = readlink(link, path, sizeof path - 1);
	path[size < 0 ? 0 : size] = 0;
	return strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
}

static bool is_runtime(const char *name)
{
	return strncmp(name, "crun", 4) == 0 || strncmp(name, "runc", 4) == 0 || strncmp(name, "memfd:", 6) == 0;
}

/* Is one of its arguments "delete"? */
static bool is_told_to_delete(pid_t tid)
{
	char link[64], words[8192];
	bool found = false;
	size_t size;
	FILE *file;

	snprintf(link, sizeof link, "/proc/%d/cmdline", (int)tid);
	if (!(file = fopen(link, "r")))
		return false;
	size = fread(words, 1, sizeof words - 1, file);
	words[size] = 0;
	for (const char *word = words; !found && word < words + size; word += strlen(word) + 1)
		found = strcmp(word, "delete") == 0;
	fclose(file);
	return found;
}

/* Is the file that this process has just begun to execute the one that is looked for? */
static bool is_wanted(pid_t tid)
{
	const char *name = executed(tid);

	if (kind == SHIM || kind == SECOND)
		return strcmp(name, "ctrd-shim") == 0 && ++shims == (kind == SHIM ? 1 : 2);
	return is_runtime(name) && (kind != DELETION || is_told_to_delete(tid));
}

/* Somebody has made a process or a thread. True for one that has waited to be told by whom. */
static bool child_of(const struct traced *maker, pid_t *child)
{
	bool inner = maker->inner || (kind == INIT && target != 0 && maker->group == target);
	unsigned long tid = 0;
	struct traced *made;

	if (ptrace(PTRACE_GETEVENTMSG, maker->tid, 0, &tid) < 0)
		return false;
	*child = (pid_t)tid;
	made = find(*child); /* which may move nothing: entries are only added at the end */
	made->known = true;
	made->inner = inner && made->group != target;
	return made->held;
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
	if (kind == INIT ? !t->inner : t->group != target || (kind == CLIENT && (!before || !begun)))
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

	while (argc >= 4 && kind < KINDS && strcmp(argv[1], kinds[kind]) != 0)
		kind++;
	if (argc < 4 || kind == KINDS) {
		fprintf(stderr, "crash: client|shim|second|runtime|init|deletion N COMMAND...\n");
		return 2;
	}
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
	find(root)->known = true;
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
			t->inner = t->inner && is_runtime(executed(tid));
		} else if (number == (SIGTRAP | 0x80)) {
			t->inside = !t->inside;
			if (t->inside && is_the_one(t, root)) {
				target = t->group;
				kill(target, SIGKILL);
				killed = true;
				break;
			}
		} else if (event == PTRACE_EVENT_STOP) {
			if (number != SIGTRAP) {
				ptrace(PTRACE_LISTEN, tid, 0, 0); /* stopped by a signal of job control */
				continue;
			}
			if (kind == INIT && !t->known) { /* it has begun before its maker has told us of it */
				t->held = true;
				continue;
			}
		} else if (event != 0) {
			pid_t child;
			if (child_of(t, &child))
				ptrace(PTRACE_SYSCALL, child, 0, 0);
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
