/* ctrd-shim, second part: the OCI runtime and its children, the exit of init and its record. */
#include "shim.h"

struct init init;
struct runtime runtime = {.peer = -1};
int oom_fd = -1, oom_control = -1, record_fd = -1;
bool oom_is_v2;
static bool removing, undone;

/* ---- the exit -------------------------------------------------------------------------------------------------------- */

/* How many processes the kernel killed in the container for want of memory; children of init count too. */
static long oom_kills(void)
{
	char text[1024], *at;
	ssize_t n = oom_control < 0 ? -1 : pread(oom_control, text, sizeof text - 1, 0);
	if (n <= 0)
		return 0;
	text[n] = 0;
	at = strstr(text, "oom_kill ");
	return at ? strtol(at + strlen("oom_kill "), NULL, 10) : 0;
}

void look_for_oom(void)
{
	if (!init.oom && oom_kills() > 0) {
		init.oom = true;
		announce("oom");
	}
}

void allocate_record(void)
{
	static char blank[RECORD];

	memset(blank, ' ', sizeof blank);
	record_fd = openat(STATE_FD, RECORD_TEMP, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (record_fd < 0)
		die("open", RECORD_TEMP);
	if (write(record_fd, blank, sizeof blank) != (ssize_t)sizeof blank)
		die("write", RECORD_TEMP);
}

/*
 * The record's blocks were allocated before the container started, so a full disk cannot lose an exit: this only
 * overwrites and renames. Should even that fail (the directory was taken away under us), watchers still hear it.
 */
static void write_record(int code, const struct timespec *at)
{
	char text[RECORD];
	int n = snprintf(text, sizeof text, "{\"code\":%d,\"oom_killed\":%s,\"seconds\":%lld,\"nanoseconds\":%ld}", code,
			 init.oom ? "true" : "false", (long long)at->tv_sec, at->tv_nsec);
	memset(text + n, ' ', sizeof text - (size_t)n - 1);
	text[sizeof text - 1] = '\n';
	if (pwrite(record_fd, text, sizeof text, 0) == (ssize_t)sizeof text)
		renameat(STATE_FD, RECORD_TEMP, STATE_FD, RECORD_NAME);
	close_fd(&record_fd);
}

static void init_ended(int status)
{
	struct timespec now;
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);

	clock_gettime(CLOCK_REALTIME, &now);
	look_for_oom();
	init.state = STOPPED;
	write_record(code, &now);
	snprintf(init.record, sizeof init.record, "exit %d %d %lld %ld", code, init.oom, (long long)now.tv_sec, now.tv_nsec);
	announce(init.record);
	ending = ending || undone;
	close_fd(&oom_fd);
	close_fd(&oom_control);
	/* A watcher has its answer and is let go, so that those who still wait in the backlog find a place. */
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0 && peers[i].fd != STARTER_FD && peers[i].watches && !peers[i].reads && !peers[i].want)
			drop_peer(i);
}

/* ---- the runtime ----------------------------------------------------------------------------------------------------- */

/* The reply to a runtime that failed: its code, and the end of what it wrote into its log. */
static void say_failed(int i, int code)
{
	int n = snprintf(packet, sizeof packet, "failed %d ", code);
	int fd = openat(STATE_FD, LOG_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0) {
		off_t size = lseek(fd, 0, SEEK_END), room = (off_t)sizeof packet - n - 1;
		ssize_t got = pread(fd, packet + n, (size_t)room, size > room ? size - room : 0);
		n += got > 0 ? (int)got : 0;
		close(fd);
	}
	packet[n] = 0;
	say(i, packet);
}

/*
 * What the runtime's process does between vfork and exec; only system calls, for it shares our memory.
 *
 * A hybrid of cgroup v1 with an (unused) v2 at `unified` is refused by some versions of crun. For them an empty tmpfs
 * hides v2, in a mount namespace of the runtime's own: a slave, so that later mounts of the host still arrive.
 */
static int enter_runtime(char **argv, const int stdio[3])
{
	sigset_t none;

	if (opt.hide_unified &&
	    (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0 ||
	     mount("none", "/sys/fs/cgroup/unified", "tmpfs", 0, "size=4k,mode=555") < 0))
		return errno;
	for (int i = 0; i < 3; i++) /* our own descriptors are all above 4, so no source is overwritten */
		if (dup2(stdio[i] >= 0 ? stdio[i] : null_fd, i) < 0)
			return errno;
	close(STARTER_FD);
	close(STATE_FD);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(argv[0], argv);
	return errno;
}

/* What we know better than the runtime stands where it would have told its own failure. */
static void leave_in_log(const char *text)
{
	int fd = openat(STATE_FD, LOG_NAME, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0) {
		dprintf(fd, "%s: %s", opt.runtime[0], text);
		close(fd);
	}
}

/* Starts the runtime for one operation. Its end arrives as SIGCHLD, in runtime_ended(). */
void spawn_runtime(enum op op, int peer)
{
	static char log[PACKET], pid[PACKET], console[64];
	static const char *const verbs[] = {[START] = "run",	   [PAUSE] = "pause",	 [RESUME] = "resume",
					    [DELETE] = "delete", [KILL_REST] = "kill", [UNDO] = "delete"};
	const int quiet[3] = {-1, -1, -1};
	const int *stdio = op == START && !opt.terminal ? child_end : quiet;
	char *argv[MAX_ARGS + 32];
	int n = opt.runtime_argc;
	volatile int failed = 0; /* written by the child, which shares our memory until it has called exec */

	snprintf(log, sizeof log, "%s/" LOG_NAME, opt.state);
	memcpy(argv, opt.runtime, (size_t)n * sizeof *argv);
	argv[n++] = "--root";
	argv[n++] = (char *)opt.root;
	argv[n++] = "--log";
	argv[n++] = log;
	argv[n++] = "--log-format";
	argv[n++] = "json";
	argv[n++] = (char *)verbs[op];
	if (op == START) {
		snprintf(pid, sizeof pid, "%s/" PID_NAME, opt.state);
		argv[n++] = "--detach";
		argv[n++] = "--bundle";
		argv[n++] = (char *)opt.bundle;
		argv[n++] = "--pid-file";
		argv[n++] = pid;
		if (opt.no_pivot)
			argv[n++] = "--no-pivot";
		if (opt.terminal) { /* through /proc: a socket's path has 107 bytes, ours may be longer */
			snprintf(console, sizeof console, "/proc/%d/fd/%d/" TTY_NAME, (int)getpid(), STATE_FD);
			argv[n++] = "--console-socket";
			argv[n++] = console;
		}
	} else if (op == DELETE || op == UNDO) {
		argv[n++] = "--force";
	} else if (op == KILL_REST) {
		argv[n++] = "--all";
	}
	argv[n++] = (char *)opt.id;
	if (op == KILL_REST)
		argv[n++] = "KILL";
	argv[n] = NULL;

	unlinkat(STATE_FD, LOG_NAME, 0);
	runtime.op = op;
	runtime.peer = peer;
	runtime.pid = vfork();
	if (runtime.pid == 0) {
		failed = enter_runtime(argv, stdio);
		_exit(127);
	}
	if (runtime.pid < 0) {
		leave_in_log(strerror(errno));
		runtime.pid = 0;
		runtime.op = NOTHING;
		say_failed(peer, 127);
		ending = op == START || ending;
	} else if (failed) {
		leave_in_log(strerror(failed));
	}
}

/* The pid that the runtime left in its file; 0 when there is none. */
static pid_t read_pid(void)
{
	char text[24];
	int fd = openat(STATE_FD, PID_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
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

	snprintf(text, sizeof text, "/proc/%d/stat", (int)pid);
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
static bool is_ours(pid_t pid)
{
	for (int walk = 0; walk < 2; walk++)
		for (pid_t at = parent_of(pid); at > 1; at = parent_of(at))
			if (at == getpid())
				return true;
	return false;
}

/*
 * Kills every child there is, and theirs as they become ours, and reaps them: what a runtime that ended in the middle of a
 * start has left, a helper above all, which would go on to make cgroups and files after everything was removed. Each turn
 * waits for one of those that were killed; its children are ours by then, and the next turn finds them. Only for a start
 * that failed: there is nothing yet that may live on.
 */
static void end_children(void)
{
	static char block[BLOCK] __attribute__((aligned(8)));
	struct entry { /* of getdents64(2) */
		unsigned long long inode, offset;
		unsigned short size;
		unsigned char type;
		char name[];
	};
	int killed, status;

	do {
		int dir = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		killed = 0;
		for (long n, at; dir >= 0 && (n = syscall(SYS_getdents64, dir, block, sizeof block)) > 0;)
			for (at = 0; at < n; at += ((struct entry *)(block + at))->size) {
				pid_t pid = (pid_t)strtol(((struct entry *)(block + at))->name, NULL, 10);
				if (pid > 1 && parent_of(pid) == getpid())
					killed += kill(pid, SIGKILL) == 0;
			}
		close_fd(&dir);
	} while (killed > 0 && (waitpid(-1, &status, 0) > 0 || errno == EINTR));
}

/*
 * cgroup v1 tells of an OOM through an eventfd that is registered by writing its number; v2 by an exceptional
 * condition (POLLPRI) on memory.events. A container without a memory cgroup of its own has no OOM to tell.
 */
static void watch_oom(void)
{
	char text[48];
	int dir = opt.memory ? open(opt.memory, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1, control;

	if (dir < 0)
		return;
	oom_control = openat(dir, "memory.events", O_RDONLY | O_CLOEXEC);
	if (oom_control >= 0) {
		oom_is_v2 = true;
	} else if ((oom_control = openat(dir, "memory.oom_control", O_RDONLY | O_CLOEXEC)) >= 0) {
		control = openat(dir, "cgroup.event_control", O_WRONLY | O_CLOEXEC);
		oom_fd = control < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		snprintf(text, sizeof text, "%d %d", oom_fd, oom_control);
		if (oom_fd >= 0 && write(control, text, strlen(text)) < 0)
			close_fd(&oom_fd); /* no live event then; the count is still read at the exit */
		close_fd(&control);
	}
	close(dir);
}

static void start_ended(int code)
{
	char text[32];

	for (int i = 0; i < 3; i++) /* the container has its own copies; with ours there would be no end of file */
		close_fd(&child_end[i]);
	if (code == 0 && (init.pid = read_pid()) > 0 && is_ours(init.pid)) {
		init.state = RUNNING;
		watch_oom();
		snprintf(text, sizeof text, "started %d", (int)init.pid);
		announce(text); /* to the starter, and to who watches already: who comes later is told the state */
		return;
	}
	init.pid = 0;
	if (code == 0) {
		leave_in_log("it ended well but left no pid file that names a child of its own: it is no OCI runtime");
		code = 255;
	}
	end_children();
	say_failed(0, code);
	spawn_runtime(UNDO, -1); /* a runtime that was killed half-way leaves a state of its own and cgroups */
	ending = ending || runtime.pid == 0;
}

/* All that a start has made, by name and nothing else: what somebody has put beside it keeps the directory alive. */
static void remove_files(void)
{
	static const char *const ours[] = {SOCKET_NAME, TTY_NAME, RECORD_NAME, RECORD_TEMP, PID_NAME, LOG_NAME, "state.json"};
	static const char *const bundled[] = {"config.json", "init-stdin", "init-stdout", "init-stderr"};
	int bundle = open(opt.bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; bundle >= 0 && i < sizeof bundled / sizeof *bundled; i++)
		unlinkat(bundle, bundled[i], 0);
	close_fd(&bundle);
	for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
		unlinkat(STATE_FD, ours[i], 0);
	rmdir(opt.root);
	rmdir(opt.bundle);
	rmdir(opt.state);
}

/*
 * A container that no client waits for removes itself, under the lock of its directory like every other hand that
 * removes one. When somebody holds that, they are at it already and will ask for "delete".
 */
void remove_if_done(void)
{
	if (!opt.auto_remove || init.state != STOPPED || runtime.pid > 0 || out_read[0] >= 0 || out_read[1] >= 0 ||
	    tty_out.to >= 0 || ending)
		return;
	opt.auto_remove = false;
	if (flock(STATE_FD, LOCK_EX | LOCK_NB) < 0)
		return;
	removing = true;
	spawn_runtime(DELETE, -1);
}

static void runtime_ended(int status)
{
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), peer = runtime.peer;
	enum op op = runtime.op;

	runtime.pid = 0;
	runtime.op = NOTHING;
	runtime.peer = -1;
	if (op == START) {
		start_ended(code);
	} else if (op == UNDO) {
		say(peer, "ok"); /* whatever its code: by force, nothing is left that it could have said */
		for (int i = 0; i < peer_count; i++)
			if (peers[i].want == UNDO)
				say(i, "ok"); /* asked for during the start, which was undone for that */
		undone = true;
		ending = init.pid <= 0 || init.state == STOPPED; /* else its exit is told first: SIGKILL is on its way */
	} else if (code != 0) {
		say_failed(peer, code);
	} else {
		if (op == PAUSE || op == RESUME) {
			if (init.state != STOPPED)
				init.state = op == PAUSE ? PAUSED : RUNNING;
			announce(op == PAUSE ? "pause" : "resume");
		}
		ending = op == DELETE;
		if (ending && removing)
			remove_files();
		say(peer, "ok");
	}
	if (op == PAUSE && init.doomed && init.state != STOPPED)
		spawn_runtime(RESUME, -1); /* SIGKILL was sent while it was being frozen, whatever came of that */
}

static bool reap_one(pid_t pid, int *status)
{
	pid_t got;
	do
		got = waitpid(pid, status, WNOHANG);
	while (got < 0 && errno == EINTR);
	return got > 0;
}

/*
 * While a runtime is under way only pids that we know are reaped: init may end, and may become our child, before its
 * pid file was read, and its status must still be there then. A detached runtime can also return before its own
 * helper has, so ECHILD never means that init is gone: its SIGCHLD comes when it is handed over to us, the subreaper.
 */
void reap(void)
{
	int status;

	while (runtime.pid > 0 && reap_one(runtime.pid, &status))
		runtime_ended(status); /* may start the next one */
	if (init.pid > 0 && init.state != STOPPED && reap_one(init.pid, &status)) {
		init_ended(status);
		if (opt.kill_rest && runtime.pid == 0)
			spawn_runtime(KILL_REST, -1);
	}
	while (runtime.pid == 0) {
		pid_t pid;
		do
			pid = waitpid(-1, &status, WNOHANG);
		while (pid < 0 && errno == EINTR);
		if (pid <= 0)
			return;
		if (pid == init.pid && init.state != STOPPED) {
			init_ended(status);
			if (opt.kill_rest)
				spawn_runtime(KILL_REST, -1);
		}
	}
}
