/* ctrd-shim, second part: the OCI runtime and its children, the exit of init and its record. */
#include "shim.h"

struct runtime runtime = {.peer = -1};
int oom_fd = -1, oom_control = -1;
bool oom_is_v2, oom_killed;
static bool removing, undone;
static bool unsure; /* a pause or a resume has failed: whether it is frozen now, nobody knows */
static int init_status;

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
	if (!oom_killed && oom_kills() > 0) {
		oom_killed = true;
		announce("oom");
	}
}

/*
 * Removes the cgroups of a container that has ended, in every hierarchy: all that a runtime of a known kind leaves outside
 * of our directory. To call the runtime for that costs half of a bare run of it again. False when there is something in
 * one of them, or nobody said which they are: then the runtime has to.
 */
bool remove_cgroups(void)
{
	static const char top[] = "/sys/fs/cgroup";
	char path[PATH_MAX];
	int dir = opt.cgroup ? open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	bool gone = dir >= 0, unified = gone && faccessat(dir, "cgroup.controllers", F_OK, 0) == 0;
	struct entries in = {0};

	if (unified)
		print(path, sizeof path, "%s%s", top, opt.cgroup), gone = rmdir(path) == 0 || errno == ENOENT;
	for (const char *name; gone && !unified && (name = next_entry(dir, &in));) {
		if (name[0] == '.')
			continue;
		print(path, sizeof path, "%s/%s%s", top, name, opt.cgroup);
		gone = rmdir(path) == 0 || errno == ENOENT || errno == ENOTDIR;
	}
	close_fd(&dir);
	return gone;
}

/* A file with the room for a record. -1 and errno when there is none. */
int make_record(const char *name)
{
	static char blank[RECORD];
	int fd = openat(STATE_FD, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	memset(blank, ' ', sizeof blank);
	if (fd >= 0 && write(fd, blank, sizeof blank) != (ssize_t)sizeof blank) {
		int number = errno;
		close_fd(&fd);
		unlinkat(STATE_FD, name, 0);
		errno = number;
	}
	return fd;
}

/*
 * The record's blocks were allocated before the process started, so a full disk cannot lose an exit: this only
 * overwrites and renames. Should even that fail (the directory was taken away under us), watchers still hear it.
 */
void finish_record(int *fd, const char *said, const char *temporary, const char *name)
{
	char text[RECORD];
	size_t n = strlen(said);

	memset(text, ' ', sizeof text);
	memcpy(text, said, n < sizeof text ? n : sizeof text - 1);
	text[sizeof text - 1] = '\n';
	if (*fd >= 0 && pwrite(*fd, text, sizeof text, 0) == (ssize_t)sizeof text)
		renameat(STATE_FD, temporary, STATE_FD, name);
	close_fd(fd);
}

/* Called when its end may be told: `settle_init` says when. */
void init_ended(void)
{
	struct timespec now;
	char text[RECORD];
	int code = WIFSIGNALED(init_status) ? 128 + WTERMSIG(init_status) : WEXITSTATUS(init_status);

	log_the_rest();
	clock_gettime(CLOCK_REALTIME, &now);
	look_for_oom();
	INIT->state = STOPPED;
	print(text, sizeof text, "{\"code\":%d,\"oom_killed\":%s,\"seconds\":%lld,\"nanoseconds\":%ld}", code,
		 oom_killed ? "true" : "false", (long long)now.tv_sec, now.tv_nsec);
	finish_record(&INIT->record_fd, text, RECORD_TEMP, RECORD_NAME);
	print(INIT->record, sizeof INIT->record, "exit %d %d %lld %ld", code, oom_killed, (long long)now.tv_sec,
		 now.tv_nsec);
	announce(INIT->record);
	ending = ending || undone;
	close_fd(&oom_fd);
	close_fd(&oom_control);
	/* A watcher has its answer and is let go, so that those who still wait in the backlog find a place. */
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0 && peers[i].fd != STARTER_FD && peers[i].watches && !peers[i].reads && !peers[i].want)
			drop_peer(i);
	if (opt.kill_rest && runtime.pid == 0)
		spawn_runtime(KILL_ALL, -1);
	remove_cgroups(); /* while the listeners wake up. What is not empty yet is looked at again at the end */
}

/* ---- the runtime ----------------------------------------------------------------------------------------------------- */

/* The reply to a runtime that failed: its code, and the end of what it wrote into its log. */
void say_failed(int i, int code, const char *log)
{
	int n = print(packet, sizeof packet, "failed %d ", code);
	int fd = openat(STATE_FD, log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0) {
		off_t size = lseek(fd, 0, SEEK_END), room = (off_t)sizeof packet - n - 1;
		ssize_t got = pread(fd, packet + n, (size_t)room, size > room ? size - room : 0);
		n += got > 0 ? (int)got : 0;
		close(fd);
	}
	packet[n] = 0;
	say(i, packet);
}

/* Is the sealed copy that of the runtime as it is by now? It may have been replaced long after the start. */
static bool sealed_is_current(void)
{
	static struct stat first;
	struct stat now;

	if (!opt.sealed || stat(opt.runtime[0], &now) < 0)
		return false;
	if (first.st_ino == 0)
		first = now;
	return first.st_dev == now.st_dev && first.st_ino == now.st_ino && first.st_size == now.st_size &&
	       first.st_mtim.tv_sec == now.st_mtim.tv_sec && first.st_mtim.tv_nsec == now.st_mtim.tv_nsec;
}

/* The copy is the starter's, and is not held longer than he is there: it has a size. */
void forget_sealed(void)
{
	if (opt.sealed)
		close(SEALED_FD);
	opt.sealed = false;
}

/*
 * What the runtime's process does between vfork and exec; only system calls, for it shares our memory.
 */
static int enter_runtime(char **argv, const int stdio[3], bool from_copy)
{
	sigset_t none;

	if (opt.hide_unified && geteuid() == 0 && (unshare(CLONE_NEWNS) < 0 || hide_unified() < 0))
		return errno;
	for (int i = 0; i < 3; i++) /* our own descriptors are all above 2, so no source is overwritten */
		if (dup2(stdio[i] >= 0 ? stdio[i] : null_fd, i) < 0)
			return errno;
	if (INIT->state == STARTING) /* should we be killed it must not go on to make a container, whose files are removed */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(STARTER_FD);
	close(STATE_FD);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (from_copy) /* returns where a policy of the host lets only files be executed */
		syscall(SYS_execveat, SEALED_FD, "", argv, environ, AT_EMPTY_PATH);
	execv(argv[0], argv);
	return errno;
}

/* What we know better than the runtime stands where it would have told its own failure. */
void leave_in(const char *log, const char *text)
{
	const struct iovec line[] = {
		{opt.runtime[0], strlen(opt.runtime[0])},
		{(char *)": ", 2},
		{(char *)text, strlen(text)},
	};
	int fd = openat(STATE_FD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return;
	if (writev(fd, line, 3) < 0)
		unlinkat(STATE_FD, log, 0); /* the disk is full: the code has to do */
	close(fd);
}

/*
 * Calls the runtime: what comes before *verb* is the same each time. Returns its pid, whose end arrives as SIGCHLD; 0 when
 * there is none, and then as in every case the reason of a failure is in *log*.
 */
pid_t call_runtime(const char *const verb[], const int stdio[3], const char *log)
{
	char path[PATH_MAX], *argv[MAX_ARGS + 32];
	int n = opt.runtime_argc;
	volatile int failed = 0; /* written by the child, which shares our memory until it has called exec */
	bool from_copy;
	pid_t pid;

	print(path, sizeof path, "%s/%s", opt.state, log);
	memcpy(argv, opt.runtime, (size_t)n * sizeof *argv);
	argv[n++] = "--root";
	argv[n++] = (char *)opt.root;
	argv[n++] = "--log";
	argv[n++] = path;
	argv[n++] = "--log-format";
	argv[n++] = "json";
	while (*verb)
		argv[n++] = (char *)*verb++;
	argv[n] = NULL;

	unlinkat(STATE_FD, log, 0);
	from_copy = sealed_is_current(); /* here, for it remembers: what a child remembers is lost where vfork is a fork */
	pid = vfork();
	if (pid == 0) {
		failed = enter_runtime(argv, stdio, from_copy);
		_exit(127);
	}
	if (pid < 0 || failed)
		leave_in(log, strerror(pid < 0 ? errno : failed));
	return pid < 0 ? 0 : pid;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

/* What a client wants the runtime to be called with; returns how many words that are, *most* at most. */
static int read_words(const char *token, const char *words[], int most)
{
	static char text[PACKET] APART;
	char name[TOKEN + 8];
	int n = 0, fd;
	ssize_t size;

	print(name, sizeof name, "call-%s", token);
	fd = openat(STATE_FD, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	size = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	close_fd(&fd);
	text[size > 0 ? size : 0] = 0;
	for (const char *at = text; at < text + size && n < most; at += strlen(at) + 1)
		words[n++] = at;
	return n;
}

/* Starts the runtime for one operation on the container. Its end arrives in runtime_ended(). */
void spawn_runtime(enum op op, int peer)
{
	static const int quiet[3] = {-1, -1, -1};
	static const char *const verbs[] = {[START] = "run",	 [PAUSE] = "pause",  [RESUME] = "resume",
					    [DELETE] = "delete", [KILL_ALL] = "kill", [UNDO] = "delete",
					    [CALL] = ""};
	const char *verb[24];
	char pid[PATH_MAX], console[64], number[16];
	int n = 0;

	verb[n++] = verbs[op];
	if (op == CALL) {
		n = read_words(peers[peer].token, verb, 15);
	} else if (op == START) {
		print(pid, sizeof pid, "%s/" PID_NAME, opt.state);
		verb[n++] = "--detach";
		verb[n++] = "--bundle"; /* the spec that nobody else can change: the bundle may be the container's root's */
		verb[n++] = opt.state;
		verb[n++] = "--pid-file";
		verb[n++] = pid;
		if (opt.restore) {
			verb[0] = "restore";
			verb[n++] = "--image-path";
			verb[n++] = opt.restore;
			verb[n++] = "--work-path";
			verb[n++] = opt.restore; /* CRIU leaves its log there, which the next look for a reason finds */
			verb[n++] = "--tcp-established";
			verb[n++] = "--ext-unix-sk";
			if (strcmp(base_name(opt.runtime[0]), "crun") != 0) { /* crun empties the network namespace by itself */
				verb[n++] = "--empty-ns";
				verb[n++] = "network";
			}
		}
		if (opt.no_pivot)
			verb[n++] = "--no-pivot";
		if (opt.terminal) { /* through /proc: a socket's path has 107 bytes, ours may be longer */
			print(console, sizeof console, "/proc/%d/fd/%d/" TTY_NAME, (int)getpid(), STATE_FD);
			verb[n++] = "--console-socket";
			verb[n++] = console;
		}
	} else if (op == DELETE || op == UNDO) {
		verb[n++] = "--force";
	} else if (op == KILL_ALL) {
		verb[n++] = "--all";
	}
	verb[n++] = opt.id;
	if (op == KILL_ALL) {
		print(number, sizeof number, "%d", peer < 0 ? SIGKILL : peers[peer].number);
		verb[n++] = number;
	}
	verb[n] = NULL;

	runtime.op = op;
	runtime.peer = peer;
	runtime.pid = call_runtime(verb, op == START && !opt.terminal ? INIT->io.child_end : quiet, LOG_NAME);
	if (runtime.pid == 0) {
		runtime.op = NOTHING;
		say_failed(peer, 127, LOG_NAME);
		ending = op == START || opt.undo || ending; /* there is nothing else that it could do */
	}
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
		print(text, sizeof text, "%d %d", oom_fd, oom_control);
		if (oom_fd >= 0 && write(control, text, strlen(text)) < 0)
			close_fd(&oom_fd); /* no live event then; the count is still read at the exit */
		close_fd(&control);
	}
	close(dir);
}

static void start_ended(int code)
{
	char text[32];
	bool over;

	for (int i = 0; i < 3; i++) /* the container has its own copies; with ours there would be no end of file */
		close_fd(&INIT->io.child_end[i]);
	INIT->pid = code == 0 ? read_pid(PID_NAME) : 0;
	over = !is_ours(INIT->pid) && was_reaped(INIT->pid, &init_status);
	if (over || (INIT->pid > 0 && is_ours(INIT->pid))) {
		INIT->state = RUNNING;
		watch_oom();
		print(text, sizeof text, "started %d", (int)INIT->pid);
		announce(text); /* to the starter, and to who watches already: who comes later is told the state */
		INIT->over = over;
		return;
	}
	INIT->pid = 0;
	if (code == 0) {
		leave_in(LOG_NAME, "it ended well but left no pid file that names a child of its own: it is no OCI runtime");
		code = 255;
	}
	end_children();
	say_failed(0, code, LOG_NAME);
	spawn_runtime(UNDO, -1); /* a runtime that was killed half-way leaves a state of its own and cgroups */
	ending = ending || runtime.pid == 0;
}

/* All that a start has made, by name and nothing else: what somebody has put beside it keeps the directory alive. */
static void remove_files(void)
{
	/* The record of the container first: without that of its exit it would be one that was never started. */
	static const char *const ours[] = {"state.json", SOCKET_NAME, TTY_NAME, RECORD_NAME, RECORD_TEMP, PID_NAME, LOG_NAME,
					   "criu.conf",  "log.json", "config.json"};
	static const char *const bundled[] = {"config.json", "init-stdin", "init-stdout", "init-stderr"};
	int bundle = hold(opt.bundle, O_DIRECTORY), parent;
	char above[PATH_MAX];

	for (size_t i = 0; bundle >= 0 && i < sizeof bundled / sizeof *bundled; i++)
		unlinkat(bundle, bundled[i], 0);
	close_fd(&bundle);
	for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
		unlinkat(STATE_FD, ours[i], 0);
	remove_process_files();
	rmdir(opt.root);
	print(above, sizeof above, "%s", opt.bundle);
	*(char *)base_name(above) = 0; /* a slash stays before it */
	parent = hold(above, O_DIRECTORY);
	if (parent >= 0)
		unlinkat(parent, base_name(opt.bundle), AT_REMOVEDIR);
	close_fd(&parent);
	rmdir(opt.state);
}

/*
 * A container that no client waits for removes itself, under the lock of its directory like every other hand that
 * removes one. When somebody holds that, they are at it already and will ask for "delete".
 */
void remove_if_done(void)
{
	if (!opt.auto_remove || INIT->state != STOPPED || runtime.pid > 0 || INIT->io.out_read[0] >= 0 ||
	    INIT->io.out_read[1] >= 0 || INIT->io.tty_out.to >= 0 || starting_processes() > 0 || ending)
		return;
	opt.auto_remove = false;
	if (flock(STATE_FD, LOCK_EX | LOCK_NB) < 0)
		return;
	removing = true;
	spawn_runtime(DELETE, -1);
}

/*
 * What one runtime takes for granted another refuses, so it is said here, where the requests of all clients come one
 * after another: of two who resume at once the second is told.
 */
bool is_so_already(enum op op)
{
	return !unsure && ((op == PAUSE && INIT->state == PAUSED) || (op == RESUME && INIT->state == RUNNING));
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
		ending = INIT->pid <= 0 || INIT->state == STOPPED; /* else its exit is told first: SIGKILL is on its way */
	} else if (code != 0) {
		unsure = unsure || op == PAUSE || op == RESUME;
		say_failed(peer, code, LOG_NAME);
	} else {
		if (op == PAUSE || op == RESUME) {
			unsure = false;
			if (INIT->state != STOPPED)
				INIT->state = op == PAUSE ? PAUSED : RUNNING;
			announce(op == PAUSE ? "pause" : "resume");
		}
		ending = op == DELETE;
		if (ending && removing)
			remove_files();
		say(peer, "ok");
	}
	if (op == PAUSE && INIT->doomed && INIT->state != STOPPED)
		spawn_runtime(RESUME, -1); /* SIGKILL was sent while it was being frozen, whatever came of that */
}

static bool is_starting(void)
{
	return (runtime.pid > 0 && runtime.op == START) || starting_processes() > 0;
}

/*
 * Every child that has ended, whoever it is: a runtime, a process of the container, or a stray, which a runtime has left
 * and which became ours, the subreaper's. A detached runtime can return before its own helper has, so that it was not
 * found among our children never means that a process is gone: its SIGCHLD comes when it is handed over.
 */
void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0 || (pid < 0 && errno == EINTR)) {
		if (pid < 0)
			continue;
		if (pid == runtime.pid) {
			runtime_ended(status); /* may start the next one */
		} else if (pid == INIT->pid && INIT->state != STOPPED) {
			INIT->over = true;
			init_status = status;
		} else if (!exec_ended(pid, status) && !process_ended(pid, status) && is_starting()) {
			remember_stray(pid, status);
		}
	}
	if (!is_starting())
		forget_strays();
	settle_init();
}
