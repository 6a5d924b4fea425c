/*
 * ctrd-shim: the small parent that each local container has.
 *
 * It runs the OCI runtime, waits for the container's init, writes the exit record before it announces the exit, and
 * serves a socket in the container's state directory. It holds the far end of each fifo (a read end of stdout and
 * stderr, a write end of stdin, never both ends of one, or end of file would not come), so that a client that goes
 * away neither kills the container with SIGPIPE nor feeds it end of file. It outlives every client and stays after
 * the exit until the container is deleted. It is not a supervisor: it restarts nothing and decides nothing.
 *
 * One thread, one poll(2), no heap: whatever it needs is in the static tables below, so no peer can make it grow.
 * Every signal is blocked for good; SIGCHLD is read from a signalfd, and children start with an empty mask.
 *
 *   ctrd-shim OPTION... ID -- RUNTIME [ARG...]      descriptors: 3 the starter's socket, 4 the state directory
 *     --state, --bundle, --root DIR; --memory-cgroup DIR; --log FILE; --flags of these letters: i o e the fifos there are,
 *     t terminal, d discard what nobody reads, u hide cgroup v2, k kill what init leaves, p no pivot, x only undo
 *
 * The protocol: one packet (SOCK_SEQPACKET) of text a request, one a reply, one request at a time on a connection.
 *   watch          state running|paused|stopped PID, then events: oom, pause, resume, exit CODE OOM SECONDS NANOSECONDS
 *   kill N         ok | error ERRNO                     signals init; never a stranger: a pid not reaped is not reused
 *   close-stdin    ok                                   lets go of our write end
 *   resize W H     ok | error ERRNO
 *   fds            fds LETTERS, with SCM_RIGHTS         the client's ends: i stdin, o stdout, e stderr
 *   attach         ok                                   this connection is a reader: nothing is drained while it lasts
 *   pause, resume  ok | failed CODE TEXT                after the event
 *   delete         ok | failed CODE TEXT | error ERRNO  of a stopped container; the shim ends with it
 *   undo           ok                                   ends it whatever its state, a start too: kill, delete, the end
 * The starter (descriptor 3) watches from the beginning; it hears "started PID" or "failed CODE TEXT" first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STARTER_FD = 3, STATE_FD = 4, MAX_PEERS = 48, MAX_ARGS = 64, PACKET = 4096, RECORD = 160, BLOCK = 4096 };
enum op { NOTHING, START, PAUSE, RESUME, DELETE, KILL_REST, UNDO };
enum state { STARTING, RUNNING, PAUSED, STOPPED };
enum unattended { HOLD, DISCARD, LOG };

#define SOCKET_NAME "shim.sock"
#define TTY_NAME "tty.sock"
#define RECORD_NAME "exit.json"
#define RECORD_TEMP "exit.tmp"
#define PID_NAME "pid"
#define LOG_NAME "runtime.log"

/* What the command line said. */
static struct {
	const char *id, *state, *bundle, *root, *memory, *log;
	char *runtime[MAX_ARGS];
	int runtime_argc;
	bool in, out, err, terminal, hide_unified, kill_rest, no_pivot, undo;
	enum unattended unattended;
} opt;

/* The container's init. */
static struct {
	pid_t pid;
	enum state state;
	bool oom;
	char record[RECORD]; /* the exit as it is announced: "exit CODE OOM SECONDS NANOSECONDS" */
} init;

/* The runtime, when one is under way. Only one is at a time; a request for another waits in its peer's `want`. */
static struct {
	pid_t pid;
	enum op op;
	int peer;
} runtime = {.peer = -1};

struct peer {
	int fd; /* -1: free */
	bool watches, reads;
	enum op want;
};
static struct peer peers[MAX_PEERS];

/* Bytes on their way between the terminal and a fifo. What does not fit stays in the kernel, where it holds back. */
struct pipe_buffer {
	int from, to; /* -1: closed */
	size_t start, end;
	char bytes[BLOCK];
};
static struct pipe_buffer tty_out = {.from = -1, .to = -1}, tty_in = {.from = -1, .to = -1};

/* Our ends of the fifos, and the ends that the runtime takes over. -1: none. */
static int stdin_write = -1, out_read[2] = {-1, -1}, child_end[3] = {-1, -1, -1};
static int listener = -1, tty_listener = -1, master = -1, signals = -1, oom_fd = -1, oom_control = -1;
static int record_fd = -1, log_fd = -1, null_fd = -1;
static bool log_is_v2, ending;
static char packet[PACKET];

static void spawn_runtime(enum op op, int peer);

/* ---- messages ------------------------------------------------------------------------------------------------ */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void drop_peer(int i)
{
	close_fd(&peers[i].fd);
	peers[i] = (struct peer){.fd = -1};
	if (runtime.peer == i)
		runtime.peer = -1;
}

/* A peer that does not take its packets is dropped: nobody may make us wait. */
static void say(int i, const char *text)
{
	if (i >= 0 && peers[i].fd >= 0 && send(peers[i].fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		drop_peer(i);
}

static void say_errno(int i, int number)
{
	char text[32];
	snprintf(text, sizeof text, "error %d", number);
	say(i, text);
}

static void announce(const char *event)
{
	for (int i = 0; i < MAX_PEERS; i++)
		if (peers[i].fd >= 0 && peers[i].watches)
			say(i, event);
}

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

/* The start cannot go on before the runtime was reached: which call failed on what, then the end. */
static void die(const char *call, const char *what)
{
	int number = errno;
	snprintf(packet, sizeof packet, "broken %d %s %s", number, call, what);
	if (send(STARTER_FD, packet, strlen(packet), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		_exit(2); /* nobody is left to be told; the code is all there is */
	_exit(1);
}

/* ---- the exit ------------------------------------------------------------------------------------------------ */

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

static void look_for_oom(void)
{
	if (!init.oom && oom_kills() > 0) {
		init.oom = true;
		announce("oom");
	}
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
	close_fd(&oom_fd);
	close_fd(&oom_control);
	/* A watcher has its answer and is let go, so that those who still wait in the backlog find a place. */
	for (int i = 0; i < MAX_PEERS; i++)
		if (peers[i].fd >= 0 && peers[i].fd != STARTER_FD && peers[i].watches && !peers[i].reads && !peers[i].want)
			drop_peer(i);
}

/* ---- the runtime --------------------------------------------------------------------------------------------- */

/*
 * What the runtime's process does between vfork and exec; only system calls, for it shares our memory.
 *
 * A hybrid of cgroup v1 with an (unused) v2 at `unified` is refused by some versions of crun. For them v2 is hidden in
 * a mount namespace of the runtime's own: a slave, so that later mounts of the host still arrive; and an empty tmpfs
 * over it, for crun would leave plain files where it finds no mount.
 */
static int enter_runtime(char **argv, const int stdio[3])
{
	sigset_t none;

	if (opt.hide_unified &&
	    (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0 ||
	     umount2("/sys/fs/cgroup/unified", MNT_DETACH) < 0 ||
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
static void spawn_runtime(enum op op, int peer)
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
	return pid > 1 && pid != getpid() ? (pid_t)pid : 0;
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
		log_is_v2 = true;
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

static void receive_terminal(void)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {packet, sizeof packet};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int fd = accept4(tty_listener, NULL, NULL, SOCK_CLOEXEC);
	struct cmsghdr *head;

	if (fd < 0)
		return;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) >= 0 && (head = CMSG_FIRSTHDR(&message)) != NULL &&
	    head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(int))) {
		memcpy(&master, CMSG_DATA(head), sizeof master);
		fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK);
		tty_out.from = tty_in.to = master;
		close_fd(&tty_listener);
		unlinkat(STATE_FD, TTY_NAME, 0);
	}
	close(fd);
}

static void start_ended(int code)
{
	char text[32];

	for (int i = 0; i < 3; i++) /* the container has its own copies; with ours there would be no end of file */
		close_fd(&child_end[i]);
	if (code == 0 && (init.pid = read_pid()) > 0) {
		init.state = RUNNING;
		watch_oom();
		snprintf(text, sizeof text, "started %d", (int)init.pid);
		say(0, text);
		return;
	}
	if (code == 0) {
		leave_in_log("it ended well but left no pid file: it is no OCI runtime");
		code = 255;
	}
	say_failed(0, code);
	spawn_runtime(UNDO, -1); /* a runtime that was killed half-way leaves a state of its own and cgroups */
	ending = ending || runtime.pid == 0;
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
		ending = true;
	} else if (code != 0) {
		say_failed(peer, code);
	} else {
		if (op == PAUSE || op == RESUME) {
			if (init.state != STOPPED)
				init.state = op == PAUSE ? PAUSED : RUNNING;
			announce(op == PAUSE ? "pause" : "resume");
		}
		ending = op == DELETE;
		say(peer, "ok");
	}
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
static void reap(void)
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

/* ---- requests ------------------------------------------------------------------------------------------------ */

static void hand_over(int i)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(3 * sizeof(int))];
	} control = {0};
	int fds[3], n = 0;
	char text[16] = "fds ";
	struct iovec iov = {text, 4};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	const int have[3] = {stdin_write, out_read[0], out_read[1]};

	for (int k = 0; k < 3; k++)
		if (have[k] >= 0) {
			text[iov.iov_len++] = "ioe"[k];
			fds[n++] = have[k];
		}
	if (n > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
		memcpy(CMSG_DATA(head), fds, (size_t)n * sizeof(int));
	}
	if (sendmsg(peers[i].fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		drop_peer(i);
}

static void watch(int i)
{
	static const char *const names[] = {
		[STARTING] = "starting", [RUNNING] = "running", [PAUSED] = "paused", [STOPPED] = "stopped"};
	char text[64];

	snprintf(text, sizeof text, "state %s %d", names[init.state], (int)init.pid);
	say(i, text);
	if (init.oom)
		say(i, "oom");
	if (init.state == STOPPED) {
		say(i, init.record);
		drop_peer(i); /* nothing more will come: make room for the next */
	} else if (peers[i].fd >= 0) {
		peers[i].watches = true;
	}
}

static void kill_init(int i, const char *number)
{
	if (init.state == STARTING || init.state == STOPPED)
		say_errno(i, ESRCH);
	else if (kill(init.pid, atoi(number)) < 0)
		say_errno(i, errno);
	else
		say(i, "ok");
}

static void resize(int i, const char *numbers)
{
	char *rest;
	struct winsize size = {0};

	size.ws_col = (unsigned short)strtoul(numbers, &rest, 10);
	size.ws_row = (unsigned short)strtoul(rest, NULL, 10);
	if (master < 0)
		say_errno(i, opt.terminal ? EAGAIN : ENOTTY);
	else if (ioctl(master, TIOCSWINSZ, &size) < 0)
		say_errno(i, errno);
	else
		say(i, "ok");
}

static void run_wanted(void)
{
	for (int i = 0; i < MAX_PEERS && runtime.pid == 0 && !ending; i++) {
		enum op op = peers[i].want;
		if (peers[i].fd < 0 || op == NOTHING)
			continue;
		if (op == UNDO && init.state == PAUSED) { /* frozen by cgroup v1, it takes no SIGKILL until it is thawed */
			kill(init.pid, SIGKILL);
			spawn_runtime(RESUME, -1);
			return;
		}
		peers[i].want = NOTHING;
		if (op == UNDO)
			spawn_runtime(UNDO, i);
		else if (init.state == STARTING || (op == DELETE) != (init.state == STOPPED))
			say_errno(i, op == DELETE ? EBUSY : ESRCH);
		else
			spawn_runtime(op, i);
	}
}

static const char *after(const char *text, const char *word)
{
	size_t n = strlen(word);
	return strncmp(text, word, n) == 0 && text[n] == ' ' ? text + n + 1 : NULL;
}

static void request(int i)
{
	char text[128];
	const char *rest;
	ssize_t n = recv(peers[i].fd, text, sizeof text - 1, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop_peer(i);
		return;
	}
	text[n] = 0;
	if (strcmp(text, "watch") == 0) {
		watch(i);
	} else if ((rest = after(text, "kill"))) {
		kill_init(i, rest);
	} else if (strcmp(text, "close-stdin") == 0) {
		close_fd(&stdin_write);
		say(i, "ok");
	} else if ((rest = after(text, "resize"))) {
		resize(i, rest);
	} else if (strcmp(text, "fds") == 0) {
		hand_over(i);
	} else if (strcmp(text, "attach") == 0) {
		peers[i].reads = true;
		say(i, "ok");
	} else if (strcmp(text, "pause") == 0) {
		peers[i].want = PAUSE;
	} else if (strcmp(text, "resume") == 0) {
		peers[i].want = RESUME;
	} else if (strcmp(text, "delete") == 0) {
		peers[i].want = DELETE;
	} else if (strcmp(text, "undo") == 0) {
		if (init.state == STARTING && runtime.op == START)
			kill(runtime.pid, SIGKILL); /* start_ended() undoes it */
		else
			peers[i].want = UNDO;
	} else {
		say_errno(i, EINVAL);
	}
}

static void accept_peer(void)
{
	struct ucred who;
	socklen_t size = sizeof who;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	/* The socket's mode already says so; this holds where somebody changed it. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || (who.uid != 0 && who.uid != geteuid())) {
		close(fd);
		return;
	}
	for (int i = 0; i < MAX_PEERS; i++)
		if (peers[i].fd < 0) {
			peers[i] = (struct peer){.fd = fd};
			return;
		}
	close(fd); /* not reached: a full table does not poll the listener */
}

/* ---- bytes --------------------------------------------------------------------------------------------------- */

/* One step of terminal to fifo or back. False: this direction is over. */
static bool pump(struct pipe_buffer *b, bool readable)
{
	ssize_t n;

	if (b->start == b->end && readable) {
		n = read(b->from, b->bytes, sizeof b->bytes);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return false; /* EIO from a terminal: every process has closed it */
		b->start = 0;
		b->end = n > 0 ? (size_t)n : 0;
	}
	while (b->start < b->end) {
		n = write(b->to, b->bytes + b->start, b->end - b->start);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		b->start += (size_t)n;
	}
	return true;
}

/* Output that nobody reads: thrown away or written to the log, as the starter chose. False: its end. */
static bool drain(int fd)
{
	char block[BLOCK];
	ssize_t n, done = 0;

	if (opt.unattended == DISCARD) {
		n = splice(fd, NULL, null_fd, NULL, 1 << 20, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
		return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
	}
	n = read(fd, block, sizeof block);
	while (done < n) { /* a full disk loses log lines, as it does for everyone, but never stops the container */
		ssize_t put = write(log_fd, block + done, (size_t)(n - done));
		if (put < 0 && errno != EINTR)
			break;
		done += put > 0 ? put : 0;
	}
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool somebody_reads(void)
{
	for (int i = 0; i < MAX_PEERS; i++)
		if (peers[i].fd >= 0 && peers[i].reads)
			return true;
	return false;
}

/* ---- set-up -------------------------------------------------------------------------------------------------- */

static int open_fifo(int dir, const char *name, int flags)
{
	struct stat st;
	int fd = openat(dir, name, flags | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		die("open", name);
	if (!S_ISFIFO(st.st_mode)) {
		errno = EINVAL;
		die("open", name);
	}
	return fd;
}

static void make_blocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

/*
 * The reading end first each time, so that no open waits for a peer and none fails for want of one. O_NONBLOCK then
 * goes from what the container gets; with a terminal those ends stay here and keep it.
 */
static void open_stdio(void)
{
	int dir = open(opt.bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		die("open", opt.bundle);
	if (opt.in) {
		child_end[0] = open_fifo(dir, "init-stdin", O_RDONLY);
		stdin_write = open_fifo(dir, "init-stdin", O_WRONLY);
	}
	if (opt.out) {
		out_read[0] = open_fifo(dir, "init-stdout", O_RDONLY);
		child_end[1] = open_fifo(dir, "init-stdout", O_WRONLY);
	}
	if (opt.err) {
		out_read[1] = open_fifo(dir, "init-stderr", O_RDONLY);
		child_end[2] = open_fifo(dir, "init-stderr", O_WRONLY);
	}
	close(dir);
	if (opt.terminal) {
		tty_in.from = child_end[0];
		tty_out.to = child_end[1];
		child_end[0] = child_end[1] = -1;
	}
	for (int i = 0; i < 3; i++)
		if (child_end[i] >= 0)
			make_blocking(child_end[i]);
}

/* A socket in the state directory, which is our working directory: so its path is short however deep that lies. */
static int listen_at(const char *name, int type)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t old = umask(0177);

	if (fd < 0)
		die("socket", name);
	strncpy(address.sun_path, name, sizeof address.sun_path - 1);
	unlinkat(STATE_FD, name, 0);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 128) < 0)
		die("bind", name);
	umask(old);
	return fd;
}

static void set_up(void)
{
	static char blank[RECORD];
	sigset_t all, child;

	for (int i = 0; i < MAX_PEERS; i++)
		peers[i].fd = -1;
	syscall(SYS_close_range, STATE_FD + 1, ~0U, 0); /* ENOSYS before Linux 5.9: the starter passed only ours anyway */
	fcntl(STARTER_FD, F_SETFD, FD_CLOEXEC);
	fcntl(STATE_FD, F_SETFD, FD_CLOEXEC);
	peers[0] = (struct peer){.fd = STARTER_FD, .watches = true};

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	if ((signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
		die("signalfd", "SIGCHLD");
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		die("prctl", "PR_SET_CHILD_SUBREAPER");
	if ((null_fd = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
		die("open", "/dev/null");
	if (fchdir(STATE_FD) < 0)
		die("fchdir", opt.state);

	memset(blank, ' ', sizeof blank);
	record_fd = openat(STATE_FD, RECORD_TEMP, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (record_fd < 0)
		die("open", RECORD_TEMP);
	if (write(record_fd, blank, sizeof blank) != (ssize_t)sizeof blank)
		die("write", RECORD_TEMP);
	if (opt.unattended == LOG &&
	    (log_fd = open(opt.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600)) < 0)
		die("open", opt.log);
	open_stdio();
	listener = listen_at(SOCKET_NAME, SOCK_SEQPACKET);
	if (opt.terminal)
		tty_listener = listen_at(TTY_NAME, SOCK_STREAM);
	unlinkat(STATE_FD, PID_NAME, 0); /* a stale one would be believed */
}

static void usage(const char *what)
{
	errno = EINVAL;
	die("option", what);
}

static void parse(int argc, char **argv)
{
	int i = 1;

	for (; i + 1 < argc && argv[i][0] == '-' && strcmp(argv[i], "--") != 0; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];
		if (strcmp(name, "--state") == 0)
			opt.state = value;
		else if (strcmp(name, "--bundle") == 0)
			opt.bundle = value;
		else if (strcmp(name, "--root") == 0)
			opt.root = value;
		else if (strcmp(name, "--memory-cgroup") == 0)
			opt.memory = value;
		else if (strcmp(name, "--log") == 0)
			opt.log = value, opt.unattended = LOG;
		else if (strcmp(name, "--flags") == 0) {
			opt.in = strchr(value, 'i') != NULL;
			opt.out = strchr(value, 'o') != NULL;
			opt.err = strchr(value, 'e') != NULL;
			opt.terminal = strchr(value, 't') != NULL;
			opt.hide_unified = strchr(value, 'u') != NULL;
			opt.kill_rest = strchr(value, 'k') != NULL;
			opt.no_pivot = strchr(value, 'p') != NULL;
			opt.undo = strchr(value, 'x') != NULL;
			if (strchr(value, 'd') != NULL)
				opt.unattended = DISCARD;
		} else
			usage(name);
	}
	if (i + 2 >= argc || strcmp(argv[i + 1], "--") != 0 || !opt.state || !opt.bundle || !opt.root)
		usage("ID -- RUNTIME");
	opt.id = argv[i];
	for (i += 2; i < argc; i++) {
		if (opt.runtime_argc == MAX_ARGS)
			usage("RUNTIME: more than 64 arguments");
		opt.runtime[opt.runtime_argc++] = argv[i];
	}
}

/* ---- the loop ------------------------------------------------------------------------------------------------ */

static struct pollfd polls[MAX_PEERS + 16];
static nfds_t poll_count;

/* Adds a descriptor to the next poll when there is one; returns where its answer will stand, -1 for none. */
static int want(int fd, short events)
{
	if (fd < 0)
		return -1;
	polls[poll_count] = (struct pollfd){.fd = fd, .events = events};
	return (int)poll_count++;
}

static short answer(int at)
{
	return at < 0 ? 0 : polls[at].revents;
}

/* A buffer with bytes in it waits for room, an empty one for bytes. */
static int want_pump(struct pipe_buffer *b)
{
	if (b->from < 0 || b->to < 0)
		return -1;
	return b->start < b->end ? want(b->to, POLLOUT) : want(b->from, POLLIN);
}

static void turn(void)
{
	int at_peer[MAX_PEERS], at_out[2] = {-1, -1}, free_peers = 0;
	bool draining = opt.unattended != HOLD && !somebody_reads();

	poll_count = 0;
	for (int i = 0; i < MAX_PEERS; i++) {
		free_peers += peers[i].fd < 0;
		at_peer[i] = want(peers[i].fd, peers[i].want == NOTHING ? POLLIN : 0);
	}
	int at_signals = want(signals, POLLIN);
	int at_listener = want(free_peers > 0 ? listener : -1, POLLIN); /* full: the rest wait in the backlog */
	int at_tty = want(tty_listener, POLLIN);
	int at_oom = log_is_v2 ? want(oom_control, POLLPRI) : want(oom_fd, POLLIN);
	int at_tty_out = want_pump(&tty_out), at_tty_in = want_pump(&tty_in);
	for (int k = 0; draining && k < 2; k++)
		at_out[k] = want(out_read[k], POLLIN);

	while (poll(polls, poll_count, -1) < 0)
		if (errno != EINTR)
			_exit(3);

	if (answer(at_tty)) /* before the runtime's end is seen: it returns only after it has sent the terminal */
		receive_terminal();
	if (answer(at_oom)) {
		unsigned long long count;
		if (!log_is_v2 && read(oom_fd, &count, sizeof count) < 0)
			close_fd(&oom_fd);
		look_for_oom();
	}
	if (answer(at_signals)) {
		struct signalfd_siginfo info;
		while (read(signals, &info, sizeof info) > 0) {
		}
		reap();
	}
	for (int i = 0; i < MAX_PEERS; i++)
		if (peers[i].fd >= 0 && answer(at_peer[i]))
			answer(at_peer[i]) & POLLIN ? request(i) : drop_peer(i);
	if (answer(at_listener))
		accept_peer();
	if (answer(at_tty_out) && !pump(&tty_out, true)) {
		close_fd(&tty_out.to); /* the end of the output */
		tty_out.from = -1;
	}
	if (answer(at_tty_in) && !pump(&tty_in, true)) {
		close_fd(&tty_in.from);
		tty_in.to = -1; /* the terminal stays: closing it would hang up on the container */
	}
	for (int k = 0; k < 2; k++)
		if (answer(at_out[k]) && !drain(out_read[k]))
			close_fd(&out_read[k]);
	run_wanted();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	set_up();
	spawn_runtime(opt.undo ? UNDO : START, 0);
	while (!ending)
		turn();
	unlinkat(STATE_FD, SOCKET_NAME, 0);
	unlinkat(STATE_FD, TTY_NAME, 0);
	return 0;
}
