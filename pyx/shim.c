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
 *     t terminal, d discard what nobody reads, u hide cgroup v2, k kill what init leaves, p no pivot, x only undo,
 *     r remove everything once it has ended and its output was drained: for a container that no client waits for,
 *     a the starter reads its output himself, as if he had said "attach"
 *
 * The protocol: one packet (SOCK_SEQPACKET) of text a request, one a reply, one request at a time on a connection.
 *   watch          state starting|running|paused|stopped PID, then events: started PID, oom, pause, resume,
 *                  exit CODE OOM SECONDS NANOSECONDS
 *   kill N         ok | error ERRNO                     signals init; never a stranger: a pid not reaped is not reused
 *   close-stdin    ok                                   lets go of our write end
 *   resize W H     ok | error ERRNO
 *   fds            fds LETTERS, with SCM_RIGHTS         the client's ends: i stdin, o stdout, e stderr
 *   attach         ok                                   this connection is a reader: nothing is drained while it lasts
 *   pause, resume  ok | failed CODE TEXT                after the event
 *   delete         ok | failed CODE TEXT | error ERRNO  of a stopped container; the shim ends with it
 *   end            ok | error ERRNO                     like delete, when the caller has removed what the runtime left
 *   undo           ok                                   ends it whatever its state, a start too: kill, delete, the end
 * The starter (descriptor 3) watches from the beginning; it hears "started PID" or "failed CODE TEXT" first.
 */
#include "shim.h"

struct options opt;
struct peer peers[MAX_PEERS];
int peer_count;
bool ending;
char packet[PACKET];
static int listener = -1, signals = -1;

/* ---- messages -------------------------------------------------------------------------------------------------------- */

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void drop_peer(int i)
{
	close_fd(&peers[i].fd);
	peers[i] = (struct peer){.fd = -1};
	if (runtime.peer == i)
		runtime.peer = -1;
}

/* A peer that does not take its packets is dropped: nobody may make us wait. */
void say(int i, const char *text)
{
	if (i >= 0 && peers[i].fd >= 0 && send(peers[i].fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		drop_peer(i);
}

void say_errno(int i, int number)
{
	char text[32];
	snprintf(text, sizeof text, "error %d", number);
	say(i, text);
}

void announce(const char *event)
{
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0 && peers[i].watches)
			say(i, event);
}

/* The room for the exit record is also the mark of a container that was started; this one was not, after all. */
static void unmark(void)
{
	unlinkat(STATE_FD, RECORD_TEMP, 0);
}

/* The start cannot go on before the runtime was reached: which call failed on what, then the end. */
_Noreturn void die(const char *call, const char *what)
{
	int number = errno;
	snprintf(packet, sizeof packet, "broken %d %s %s", number, call, what);
	if (!opt.undo)
		unmark();
	if (send(STARTER_FD, packet, strlen(packet), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		_exit(2); /* nobody is left to be told; the code is all there is */
	_exit(1);
}

/* Some places are kept for requests: however many watch, a container can be killed and deleted. */
static int watching(void)
{
	int n = 0;
	for (int i = 0; i < peer_count; i++)
		n += peers[i].fd >= 0 && peers[i].watches;
	return n;
}

bool somebody_reads(void)
{
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0 && peers[i].reads)
			return true;
	return false;
}

/* ---- requests -------------------------------------------------------------------------------------------------------- */

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
	else {
		init.doomed = init.doomed || atoi(number) == SIGKILL;
		say(i, "ok");
	}
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
	for (int i = 0; i < peer_count && runtime.pid == 0 && !ending; i++) {
		enum op op = peers[i].want;
		if (peers[i].fd < 0 || op == NOTHING)
			continue;
		if (op == UNDO && (init.state == RUNNING || init.state == PAUSED))
			kill(init.pid, SIGKILL);
		if (op == UNDO && init.state == PAUSED) { /* frozen by cgroup v1, it takes no SIGKILL until it is thawed */
			spawn_runtime(RESUME, -1);
			return;
		}
		peers[i].want = NOTHING;
		if (op == UNDO)
			spawn_runtime(UNDO, i);
		else if (init.state == STARTING || (op == DELETE || op == END) != (init.state == STOPPED))
			say_errno(i, op == DELETE || op == END ? EBUSY : ESRCH);
		else if (op == END)
			ending = true, say(i, "ok");
		else if (op == PAUSE && init.doomed)
			say_errno(i, ESRCH); /* frozen by cgroup v1, it would take no SIGKILL, and whoever sent it would wait */
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
		watching() < MAX_PEERS - REQUESTS ? watch(i) : say_errno(i, EAGAIN);
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
	} else if (strcmp(text, "end") == 0) {
		peers[i].want = END;
	} else if (strcmp(text, "undo") == 0) {
		if (init.state == STARTING && runtime.op == START)
			kill(runtime.pid, SIGKILL); /* start_ended() undoes it, unless it has just ended well */
		peers[i].want = UNDO;
	} else {
		say_errno(i, EINVAL);
	}
}

static bool accept_peer(void)
{
	struct ucred who;
	socklen_t size = sizeof who;
	int i, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return false;
	/* The socket's mode already says so; this holds where somebody changed it. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || (who.uid != 0 && who.uid != geteuid())) {
		close(fd);
		return true;
	}
	for (i = 1; i < peer_count && peers[i].fd >= 0; i++) { /* the starter's place is nobody else's: he is spoken to */
	}
	if (i == MAX_PEERS) { /* only at the end: a full table does not poll the listener */
		close(fd);
		return true;
	}
	peer_count += i == peer_count;
	peers[i] = (struct peer){.fd = fd};
	return true;
}

/*
 * Who asked before the name of our socket went gets its answer, though it may not have been accepted yet. Who has come so
 * far and not asked yet is told the exit all the same: it is what he would hear. Nobody comes after that: the listener
 * refuses from now on, and its backlog is taken empty.
 */
static void answer_the_last(void)
{
	shutdown(listener, SHUT_RDWR);
	while (accept_peer()) {
	}
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0)
			request(i);
	for (int i = 0; i < peer_count && init.record[0]; i++)
		if (peers[i].fd != STARTER_FD)
			say(i, init.record);
}

/* ---- set-up ---------------------------------------------------------------------------------------------------------- */

/*
 * A socket in the state directory, which is our working directory: so its path is short however deep that lies. It gets
 * its name once it listens: who finds it there and is refused knows that its shim has gone.
 */
static int listen_at(const char *name, int type)
{
	static const char temporary[] = "sock.tmp";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t old = umask(0177);

	if (fd < 0)
		die("socket", name);
	memcpy(address.sun_path, temporary, sizeof temporary);
	unlinkat(STATE_FD, temporary, 0);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 128) < 0 ||
	    renameat(STATE_FD, temporary, STATE_FD, name) < 0)
		die("bind", name);
	umask(old);
	return fd;
}

static void set_up(void)
{
	sigset_t all, child;

	syscall(SYS_close_range, STATE_FD + 1, ~0U, 0); /* ENOSYS before Linux 5.9: the starter passed only ours anyway */
	fcntl(STARTER_FD, F_SETFD, FD_CLOEXEC);
	fcntl(STATE_FD, F_SETFD, FD_CLOEXEC);
	peers[peer_count++] = (struct peer){.fd = STARTER_FD, .watches = true, .reads = opt.attended};

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

	if (opt.undo) /* nobody is served, and the traces of the one that was killed are not touched */
		return;
	allocate_record();
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
			opt.auto_remove = strchr(value, 'r') != NULL;
			opt.attended = strchr(value, 'a') != NULL;
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

/* ---- the loop -------------------------------------------------------------------------------------------------------- */

static struct pollfd polls[MAX_PEERS + 16]; /* the terminal, two outputs and the like besides the peers */
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
	if (b->to < 0)
		return -1;
	return b->start < b->end ? want(b->to, POLLOUT) : want(b->from, POLLIN);
}

static void turn(void)
{
	int at_peer[MAX_PEERS], at_out[2] = {-1, -1}, busy = 0;
	bool draining = opt.unattended != HOLD && !somebody_reads();

	poll_count = 0;
	for (int i = 0; i < peer_count; i++) {
		busy += i == 0 || peers[i].fd >= 0;
		at_peer[i] = want(peers[i].fd, peers[i].want == NOTHING ? POLLIN : 0);
	}
	int at_signals = want(signals, POLLIN);
	int at_listener = want(busy < MAX_PEERS ? listener : -1, POLLIN); /* full: the rest wait in the backlog */
	int at_tty = want(tty_listener, POLLIN);
	int at_oom = oom_is_v2 ? want(oom_control, POLLPRI) : want(oom_fd, POLLIN);
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
		if (!oom_is_v2 && read(oom_fd, &count, sizeof count) < 0)
			close_fd(&oom_fd);
		look_for_oom();
	}
	if (answer(at_signals)) {
		struct signalfd_siginfo info;
		while (read(signals, &info, sizeof info) > 0) {
		}
		reap();
	}
	for (int i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0 && answer(at_peer[i]))
			answer(at_peer[i]) & POLLIN ? request(i) : drop_peer(i);
	if (answer(at_listener))
		accept_peer();
	if (answer(at_tty_out) && !pump(&tty_out, true)) {
		close_fd(&tty_out.to); /* the end of the output */
		tty_out.from = -1;
	}
	if (answer(at_tty_in) && !pump(&tty_in, true)) {
		if (tty_in.from < 0 || !type_end_of_file(&tty_in))
			tty_in.to = -1; /* the terminal stays: closing it would hang up on the container */
		close_fd(&tty_in.from);
	}
	for (int k = 0; k < 2; k++)
		if (answer(at_out[k]) && !drain(out_read[k]))
			close_fd(&out_read[k]);
	run_wanted();
	remove_if_done();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	set_up();
	if (!opt.undo)
		flock(STATE_FD, LOCK_UN); /* whoever waits to remove it finds our socket */
	spawn_runtime(opt.undo ? UNDO : START, 0);
	while (!ending)
		turn();
	if (opt.undo)
		return 0;
	unlinkat(STATE_FD, SOCKET_NAME, 0);
	unlinkat(STATE_FD, TTY_NAME, 0);
	if (init.state == STARTING)
		unmark();
	answer_the_last();
	return 0;
}
