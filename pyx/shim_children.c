/* ctrd-shim, sixth part: which processes are ours, and how those have ended that nobody knew yet. */
#include "shim.h"

/*
 * Exits of children that we do not know yet: while a start is under way one of them may be the process itself, which can
 * end before the runtime has written its pid down. A start leaves two strays or so: there is room for as many starts as
 * there can be at once, and when starts never cease the oldest is given up.
 */
enum { MAX_STRAYS = 4 * MAX_PROCESSES };
static struct stray {
	pid_t pid;
	int status;
} strays[MAX_STRAYS] APART;
static unsigned stray_count;

/* The pid that the runtime left in a file; 0 when there is none. */
pid_t read_pid(const char *name)
{
	char text[24];
	int fd = openat(STATE_FD, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	long pid;

	close_fd(&fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	pid = strtol(text, NULL, 10);
	return pid > 1 && pid <= INT_MAX && pid != getpid() ? (pid_t)pid : 0; /* cut to an int it could be -1: everybody */
}

static pid_t parent_of(pid_t pid)
{
	char text[256], *at;
	int fd;
	ssize_t n;

	print(text, sizeof text, "/proc/%d/stat", (int)pid);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	close_fd(&fd);
	text[n > 0 ? n : 0] = 0;
	at = strrchr(text, ')'); /* the name before it may hold anything */
	return at && strlen(at) > 4 ? (pid_t)strtol(at + 4, NULL, 10) : 0;
}

/*
 * Is that process our child, or a child's child? A runtime may name a stranger in its pid file, which is neither to be
 * waited for nor to be killed. A helper that ends during the walk hands its child over to us: so there is a second one.
 */
bool is_ours(pid_t pid)
{
	for (int walk = 0; pid > 0 && walk < 2; walk++)
		for (pid_t at = parent_of(pid); at > 1; at = parent_of(at))
			if (at == getpid())
				return true;
	return false;
}

/* The next name in a directory, NULL at its end. opendir(3) would take memory from a heap. */
const char *next_entry(int dir, struct entries *in)
{
	struct entry { /* of getdents64(2) */
		unsigned long long inode, offset;
		unsigned short size;
		unsigned char type;
		char name[];
	} *found;

	if (in->at >= in->size) {
		in->at = 0;
		in->size = syscall(SYS_getdents64, dir, in->block, sizeof in->block);
		if (in->size <= 0)
			return NULL;
	}
	found = (struct entry *)(in->block + in->at);
	in->at += found->size;
	return found->name;
}

/*
 * Kills every child there is, and theirs as they become ours, and reaps them: what a runtime that ended in the middle of a
 * start has left, a helper above all, which would go on to make cgroups and files after everything was removed. Each turn
 * waits for one of those that were killed; its children are ours by then, and the next turn finds them. Only for a start
 * that failed: there is nothing yet that may live on.
 */
void end_children(void)
{
	int killed, status;

	do {
		int dir = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		struct entries in = {0};
		killed = 0;
		for (const char *name; dir >= 0 && (name = next_entry(dir, &in));) {
			pid_t pid = (pid_t)strtol(name, NULL, 10);
			if (pid > 1 && parent_of(pid) == getpid())
				killed += kill(pid, SIGKILL) == 0;
		}
		close_fd(&dir);
	} while (killed > 0 && (waitpid(-1, &status, 0) > 0 || errno == EINTR));
}

/* Has that process ended before its pid was known? Then its status is here. */
bool was_reaped(pid_t pid, int *status)
{
	for (unsigned i = 0; pid > 0 && i < stray_count; i++)
		if (strays[i].pid == pid) {
			*status = strays[i].status;
			memmove(strays + i, strays + i + 1, (--stray_count - i) * sizeof *strays);
			return true;
		}
	return false;
}

void remember_stray(pid_t pid, int status)
{
	if (stray_count == MAX_STRAYS)
		memmove(strays, strays + 1, --stray_count * sizeof *strays);
	strays[stray_count++] = (struct stray){pid, status};
}

void forget_strays(void)
{
	stray_count = 0;
}
