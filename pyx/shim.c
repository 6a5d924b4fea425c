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
 *     --state, --bundle, --root DIR; --memory-cgroup DIR; --stdin, --stdout, --stderr FIFO;
 *     --log FILE, --log-limit BYTES after which it begins anew, --log-kept N files of it that are kept then;
 *     --restore DIR of a checkpoint to go on from; --cgroup PATH, when its cgroups are all that the runtime leaves;
 *     --flags of these letters: t terminal, d discard what nobody reads, u hide cgroup v2, k kill what init leaves,
 *     p no pivot, x only undo,
 *     r remove everything once it has ended and its output was drained: for a container that no client waits for,
 *     a the starter reads its output himself, as if he had said "attach",
 *     s descriptor 5 is a sealed copy of the runtime, to be used while the starter is there,
 *     j the log is of lines of JSON, g pipes may grow: nobody's share is used up by that,
 *     f what a terminal has told last is written on when we have ended, as long as somebody may read it.
 *     (--state DIR --keep alone: see shim_keep.c.)
 *
 * The protocol: one packet (SOCK_SEQPACKET) of text a request, one a reply, one request at a time on a connection. A NAME
 * is that of a further process; without one it is init that is meant.
 *   watch          state starting|running|paused|stopped PID, then events: started PID, oom, pause, resume,
 *                  process NAME PID, ended NAME CODE SECONDS NANOSECONDS, exit CODE OOM SECONDS NANOSECONDS
 *   kill N [NAME]  ok | error ERRNO                     never a stranger: a pid that is not reaped is not reused
 *   kill-all N     ok | failed CODE TEXT                every process of the container, by the runtime
 *   close-stdin [NAME]    ok                            lets go of our write end
 *   resize W H [NAME]     ok | error ERRNO
 *   fds [NAME]     fds LETTERS, with SCM_RIGHTS         the client's ends: i stdin, o stdout, e stderr
 *   attach         ok                                   this connection is a reader: nothing is drained while it lasts
 *   pause, resume  ok | failed CODE TEXT | error ERRNO  after the event; EALREADY: it is so already
 *   exec           started PID | failed CODE TEXT | error ERRNO [CALL WHAT]    with fields, each behind a NUL: name, token,
 *                  flags, the three fifos. The document of the process is exec-TOKEN.json in the state directory
 *   cancel TOKEN, cancel-now TOKEN  ok                  that process is not wanted any more; now: its start hangs
 *   forget NAME    ok | error ERRNO                     its end was collected
 *   processes      processes, a line each
 *   call TOKEN     ok | failed CODE TEXT                the runtime with the words that stand in call-TOKEN, each before a NUL
 *   delete         ok | failed CODE TEXT | error ERRNO  of a stopped container; the shim ends with it
 *   end            ok | error ERRNO                     like delete, without the runtime; EBUSY when that is needed
 *   undo           ok                                   ends it whatever its state, a start too: kill, delete, the end
 * The starter (descriptor 3) watches from the beginning; it hears "started PID" or "failed CODE TEXT" first.
 */
#include "shim.h"

struct options opt;
struct peer peers[MAX_PEERS] APART;
int peer_count;
bool ending;
char packet[PACKET] APART;
int listener = -1, signals = -1;

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
	if (i == 0)
		forget_sealed();
	for (int k = 1; k < process_count; k++)
		if (processes[k].starter == i)
			processes[k].starter = -1; /* it goes on without one */
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
	print(text, sizeof text, "error %d", number);
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
	print(packet, sizeof packet, "broken %d %s %s", number, call, what);
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

	print(text, sizeof text, "state %s %d", names[INIT->state], (int)INIT->pid);
	say(i, text);
	if (oom_killed)
		say(i, "oom");
	tell_ends(i);
	if (INIT->state == STOPPED) {
		say(i, INIT->record);
		drop_peer(i); /* nothing more will come: make room for the next */
	} else if (peers[i].fd >= 0) {
		peers[i].watches = true;
	}
}

static void kill_process(int i, const struct process *p, int number)
{
	if (!p || p->state == STARTING || p->state == STOPPED || p->over)
		say_errno(i, ESRCH);
	else if (kill(p->pid, number) < 0)
		say_errno(i, errno);
	else
		say(i, "ok");
}

static void resize(int i, const struct process *p, const struct winsize *size)
{
	if (!p)
		say_errno(i, ESRCH);
	else if (p->io.master < 0)
		say_errno(i, p->io.terminal ? EAGAIN : ENOTTY);
	else if (ioctl(p->io.master, TIOCSWINSZ, size) < 0)
		say_errno(i, errno);
	else
		say(i, "ok");
}

static void run_wanted(void)
{
	for (int i = 0; i < peer_count && runtime.pid == 0 && !ending; i++) {
		enum op op = peers[i].want;
		if (peers[i].fd < 0 || op == NOTHING || op == EXEC)
			continue;
		if ((op == DELETE || op == END || op == UNDO) && starting_processes() > 0 && INIT->state == STOPPED)
			continue; /* they fail now; each is told so first */
		if (op == UNDO && !INIT->over && (INIT->state == RUNNING || INIT->state == PAUSED))
			kill(INIT->pid, SIGKILL);
		if (op == UNDO && !INIT->over && INIT->state == PAUSED) { /* frozen by cgroup v1, it takes no SIGKILL until it is thawed */
			spawn_runtime(RESUME, -1);
			return;
		}
		peers[i].want = NOTHING;
		if (op == UNDO)
			spawn_runtime(UNDO, i);
		else if (INIT->state == STARTING || (op == DELETE || op == END) != (INIT->state == STOPPED))
			say_errno(i, op == DELETE || op == END ? EBUSY : ESRCH);
		else if (op == END && !remove_cgroups())
			say_errno(i, EBUSY);
		else if (op == END)
			ending = true, say(i, "ok");
		else if (op == PAUSE && INIT->doomed)
			say_errno(i, ESRCH); /* frozen by cgroup v1, it would take no SIGKILL, and whoever sent it would wait */
		else if (is_so_already(op))
			say_errno(i, EALREADY);
		else
			spawn_runtime(op, i);
	}
}

static const char *after(const char *text, const char *word)
{
	size_t n = strlen(word);
	return strncmp(text, word, n) == 0 && text[n] == ' ' ? text + n + 1 : NULL;
}

/* The process that the rest of a request names: init when it names none, NULL when there is none of that name. */
static struct process *named(const char *rest)
{
	while (*rest == ' ')
		rest++;
	return *rest ? find_process(rest) : INIT;
}

/* A word, and what follows it or nothing. */
static const char *maybe_after(const char *text, const char *word)
{
	return strcmp(text, word) == 0 ? "" : after(text, word);
}

static void request(int i)
{
	static char text[REQUEST] APART;
	const char *rest;
	char *numbers;
	struct process *p;
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
		int number = (int)strtol(rest, &numbers, 10);
		p = named(numbers);
		if (p && number == SIGKILL)
			p->doomed = true;
		kill_process(i, p, number);
	} else if ((rest = after(text, "kill-all"))) {
		peers[i].number = atoi(rest);
		INIT->doomed = INIT->doomed || peers[i].number == SIGKILL;
		peers[i].want = KILL_ALL;
	} else if ((rest = maybe_after(text, "close-stdin"))) {
		if ((p = named(rest)))
			close_fd(&p->io.stdin_write);
		p ? say(i, "ok") : say_errno(i, ESRCH);
	} else if ((rest = after(text, "resize"))) {
		struct winsize size = {0};
		size.ws_col = (unsigned short)strtoul(rest, &numbers, 10);
		size.ws_row = (unsigned short)strtoul(numbers, &numbers, 10);
		resize(i, named(numbers), &size);
	} else if ((rest = maybe_after(text, "fds"))) {
		(p = named(rest)) ? hand_over(i, &p->io) : say_errno(i, ESRCH);
	} else if (strcmp(text, "attach") == 0) {
		peers[i].reads = true;
		say(i, "ok");
	} else if (strcmp(text, "exec") == 0) {
		start_process(i, text, (size_t)n);
	} else if ((rest = after(text, "cancel")) || (rest = after(text, "cancel-now"))) {
		cancel_process(i, rest, strncmp(text, "cancel-now", 10) == 0);
	} else if ((rest = after(text, "forget"))) {
		forget_process(i, rest);
	} else if (strcmp(text, "processes") == 0) {
		list_processes(i);
	} else if ((rest = after(text, "call")) && strlen(rest) < TOKEN && !strchr(rest, '/')) {
		strcpy(peers[i].token, rest);
		peers[i].want = CALL;
	} else if (strcmp(text, "pause") == 0) {
		peers[i].want = PAUSE;
	} else if (strcmp(text, "resume") == 0) {
		peers[i].want = RESUME;
	} else if (strcmp(text, "delete") == 0) {
		peers[i].want = DELETE;
	} else if (strcmp(text, "end") == 0) {
		peers[i].want = END;
	} else if (strcmp(text, "undo") == 0) {
		if (INIT->state == STARTING && runtime.op == START)
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
	for (int i = 0; i < peer_count && INIT->record[0]; i++)
		if (peers[i].fd != STARTER_FD)
			say(i, INIT->record);
}

/* ---- the loop -------------------------------------------------------------------------------------------------------- */

/*
 * cgroup v1 tells that there is no memory just before the kernel kills for it, and then nothing more: so the number of those
 * that it has killed may rise a moment later. It is looked at again for a second; where it does not rise nobody was killed.
 */
enum { OOM_LOOKS = 100, OOM_PAUSE = 10 /* milliseconds */ };
static int oom_looks;

static void oom_turn(bool told)
{
	unsigned long long count;

	if (told && !oom_is_v2 && read(oom_fd, &count, sizeof count) < 0)
		close_fd(&oom_fd);
	if (told || oom_looks > 0)
		look_for_oom();
	oom_looks = oom_killed ? 0 : told ? OOM_LOOKS : oom_looks > 0 ? oom_looks - 1 : 0;
}

/* How long the next turn may wait, in milliseconds; -1: for ever. */
static int most(void)
{
	int left = patience();
	return oom_looks > 0 && (left < 0 || left > OOM_PAUSE) ? OOM_PAUSE : left;
}

/* Terminals, two outputs and the like besides the peers. */
static struct pollfd polls[MAX_PEERS + 3 * MAX_PROCESSES + 16] APART;
static nfds_t poll_count;

/* Adds a descriptor to the next poll when there is one; returns where its answer will stand, -1 for none. */
static short want(int fd, short events)
{
	if (fd < 0)
		return -1;
	polls[poll_count] = (struct pollfd){.fd = fd, .events = events};
	return (short)poll_count++;
}

static short answer(int at)
{
	return at < 0 ? 0 : polls[at].revents;
}

/* A buffer with bytes in it waits for room, an empty one for bytes. */
static short want_pump(struct pipe_buffer *b)
{
	if (b->to < 0)
		return -1;
	return b->start < b->end ? want(b->to, POLLOUT) : want(b->from, POLLIN);
}

static void terminal_turn(struct streams *io, const short at[3])
{
	if (answer(at[0]))
		receive_terminal(io);
	if (answer(at[1]) && !pump(&io->tty_out, true)) {
		close_fd(&io->tty_out.to); /* the end of the output */
		io->tty_out.from = -1;
	}
	if (answer(at[2]) && !pump(&io->tty_in, true)) {
		if (io->tty_in.from < 0 || !type_end_of_file(&io->tty_in))
			io->tty_in.to = -1; /* the terminal stays: closing it would hang up on the container */
		close_fd(&io->tty_in.from);
	}
}

static void turn(void)
{
	short at_peer[MAX_PEERS], at_tty[MAX_PROCESSES][3], at_out[2] = {-1, -1};
	int busy = 0, processes_then = process_count;
	bool draining = opt.unattended != HOLD && !somebody_reads();

	poll_count = 0;
	for (int i = 0; i < peer_count; i++) {
		busy += i == 0 || peers[i].fd >= 0;
		at_peer[i] = want(peers[i].fd, peers[i].want == NOTHING ? POLLIN : 0);
	}
	int at_signals = want(signals, POLLIN);
	int at_listener = want(busy < MAX_PEERS ? listener : -1, POLLIN); /* full: the rest wait in the backlog */
	int at_oom = oom_is_v2 ? want(oom_control, POLLPRI) : want(oom_fd, POLLIN);
	for (int k = 0; k < processes_then; k++) {
		struct streams *io = &processes[k].io;
		bool has = processes[k].name[0] && io->terminal;
		at_tty[k][0] = has ? want(io->tty_listener, POLLIN) : -1;
		at_tty[k][1] = has ? want_pump(&io->tty_out) : -1;
		at_tty[k][2] = has ? want_pump(&io->tty_in) : -1;
	}
	for (int k = 0; draining && k < 2; k++)
		at_out[k] = want(INIT->io.out_read[k], POLLIN);

	while (poll(polls, poll_count, most()) < 0)
		if (errno != EINTR)
			_exit(3);

	for (int k = 0; k < processes_then; k++) /* first: a runtime returns only after it has sent the terminal */
		terminal_turn(&processes[k].io, at_tty[k]);
	oom_turn(answer(at_oom));
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
	for (int k = 0; k < 2; k++)
		if (answer(at_out[k]) && !drain(k))
			close_fd(&INIT->io.out_read[k]);
	settle_init();
	run_wanted();
	remove_if_done();
}

/* What the start has used of the stack is given back: the kernel has it anew when it is used again. Never inlined: then
   its frame would be its caller's, and with what else is inlined there that may reach further down than a page. */
static __attribute__((noinline)) void give_back_stack(void)
{
	enum { PAGE = 4096, DEEPEST = 16 * PAGE };
	char *top = (char *)((size_t)__builtin_frame_address(0) & ~(size_t)(PAGE - 1)) - PAGE;

	madvise(top - DEEPEST, DEEPEST, MADV_DONTNEED);
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	set_up();
	if (!opt.undo)
		flock(STATE_FD, LOCK_UN); /* whoever waits to remove it finds our socket */
	spawn_runtime(opt.undo ? UNDO : START, 0);
	while (!ending) {
		enum state before = INIT->state;
		turn();
		if (before == STARTING && INIT->state != STARTING)
			give_back_stack();
	}
	if (opt.undo)
		return 0;
	unlinkat(STATE_FD, SOCKET_NAME, 0);
	unlinkat(STATE_FD, TTY_NAME, 0);
	if (INIT->state == STARTING)
		unmark();
	answer_the_last();
	flush_terminals();
	return 0;
}
