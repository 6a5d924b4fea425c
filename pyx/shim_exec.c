/* ctrd-shim, fourth part: further processes. Each is started by a runtime of its own, side by side with the others. */
#include "shim.h"

struct process processes[MAX_PROCESSES] APART __attribute__((aligned(512))); /* `init` in one page */
int process_count = 1;
static unsigned long long ends;
static long long hurry_at; /* when a start that goes on after the end of init has had its time; 0: none does */

/* What a process has in the state directory: the document (its starter's), the pid file, the log, the exit's record. */
static const char *file_of(const struct process *p, const char *kind)
{
	static char name[TOKEN + 16];
	print(name, sizeof name, "exec-%s.%s", p->token, kind);
	return name;
}

static void remove_files_of(const struct process *p)
{
	static const char *const kinds[] = {"json", "pid", "log", "tmp", "exit"};
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		unlinkat(STATE_FD, file_of(p, kinds[i]), 0);
}

void remove_process_files(void)
{
	for (int i = 1; i < process_count; i++)
		if (processes[i].name[0])
			remove_files_of(&processes[i]);
}

static void release(struct process *p)
{
	close_stdio(&p->io);
	close_fd(&p->record_fd);
	remove_files_of(p);
	p->name[0] = 0;
}

struct process *find_process(const char *name)
{
	for (int i = 0; i < process_count; i++)
		if (strcmp(processes[i].name, name) == 0)
			return &processes[i];
	return NULL;
}

/* A place for one more. When all are taken, that of the process whose end waits longest for somebody to collect it. */
static struct process *free_place(void)
{
	struct process *oldest = NULL;

	for (int i = 1; i < process_count; i++) {
		struct process *p = &processes[i];
		if (!p->name[0])
			return p;
		if (p->state == STOPPED && (!oldest || p->ended < oldest->ended))
			oldest = p;
	}
	if (process_count < MAX_PROCESSES)
		return &processes[process_count++];
	if (oldest)
		release(oldest);
	return oldest;
}

static void refuse(int peer, int number, const char *call, const char *what)
{
	print(packet, sizeof packet, "error %d %s %s", number, call, what);
	say(peer, packet);
}

/* The request's fields: name, token, flags (t: terminal), and the paths of its fifos, empty for none. */
void start_process(int peer, const char *text, size_t size)
{
	const char *fields[6], *at = text + strlen(text);
	static const int quiet[3] = {-1, -1, -1};
	static char document[PATH_MAX] APART, pid[PATH_MAX] APART;
	const char *verb[16], *failed = "";
	char console[64];
	int n = 0, number, slot;
	struct process *p;

	for (int k = 0; k < 6; k++, at += strlen(at)) {
		if (at >= text + size) {
			say_errno(peer, EINVAL);
			return;
		}
		fields[k] = ++at;
	}
	if (strlen(fields[0]) >= NAME || !*fields[0] || strlen(fields[1]) >= TOKEN || strchr(fields[1], '/')) {
		say_errno(peer, EINVAL);
		return;
	}
	if (INIT->state != RUNNING || INIT->over) { /* in a frozen container it would freeze half-way through its start */
		say_errno(peer, INIT->state == PAUSED ? EBUSY : ESRCH);
		return;
	}
	if (find_process(fields[0])) {
		say_errno(peer, EEXIST);
		return;
	}
	if ((p = free_place()) == NULL) {
		say_errno(peer, ENOSPC);
		return;
	}
	slot = (int)(p - processes);
	p->pid = p->runtime = 0;
	p->state = STARTING;
	p->doomed = p->given_up = false;
	p->record_fd = -1;
	p->record[0] = 0;
	print(p->token, sizeof p->token, "%s", fields[1]);
	no_streams(&p->io);
	p->io.terminal = strchr(fields[2], 't') != NULL;
	if ((number = open_stdio(&p->io, fields + 3, &failed)) != 0) {
		refuse(peer, number, "open", failed);
		return;
	}
	print(p->name, sizeof p->name, "%s", fields[0]); /* from here on it is in the table */
	if ((p->record_fd = make_record(file_of(p, "tmp"))) < 0) {
		refuse(peer, errno, "write", file_of(p, "tmp"));
		release(p);
		return;
	}
	print(document, sizeof document, "%s/%s", opt.state, file_of(p, "json"));
	print(pid, sizeof pid, "%s/%s", opt.state, file_of(p, "pid"));
	verb[n++] = "exec";
	verb[n++] = "--detach";
	verb[n++] = "--process";
	verb[n++] = document;
	verb[n++] = "--pid-file";
	verb[n++] = pid;
	if (p->io.terminal) {
		print(p->io.tty_name, sizeof p->io.tty_name, "tty-%d.sock", slot);
		if ((p->io.tty_listener = listen_at(p->io.tty_name, SOCK_STREAM)) < 0) {
			refuse(peer, errno, "bind", p->io.tty_name);
			release(p);
			return;
		}
		print(console, sizeof console, "/proc/%d/fd/%d/%s", (int)getpid(), STATE_FD, p->io.tty_name);
		verb[n++] = "--console-socket";
		verb[n++] = console;
	}
	verb[n++] = opt.id;
	verb[n] = NULL;
	p->runtime = call_runtime(verb, p->io.terminal ? quiet : p->io.child_end, file_of(p, "log"));
	if (p->runtime == 0) {
		say_failed(peer, 127, file_of(p, "log"));
		release(p);
		return;
	}
	p->starter = peer;
	peers[peer].want = EXEC;
}

static void end(struct process *p, int status)
{
	struct timespec now;
	char text[RECORD];
	char from[TOKEN + 16];
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);

	clock_gettime(CLOCK_REALTIME, &now);
	p->state = STOPPED;
	p->ended = ++ends;
	print(text, sizeof text, "{\"name\":\"%s\",\"code\":%d,\"seconds\":%lld,\"nanoseconds\":%ld}", p->name, code,
		 (long long)now.tv_sec, now.tv_nsec);
	print(from, sizeof from, "%s", file_of(p, "tmp"));
	finish_record(&p->record_fd, text, from, file_of(p, "exit"));
	print(p->record, sizeof p->record, "ended %s %d %lld %ld", p->name, code, (long long)now.tv_sec, now.tv_nsec);
	announce(p->record);
	if (p->given_up)
		release(p);
}

bool process_ended(pid_t pid, int status)
{
	for (int i = 1; i < process_count; i++)
		if (processes[i].name[0] && processes[i].state == RUNNING && processes[i].pid == pid) {
			end(&processes[i], status);
			return true;
		}
	return false;
}

static void started(struct process *p, int code)
{
	char text[NAME + 32];
	int peer = p->starter, status = 0;
	bool over;

	p->runtime = 0;
	p->starter = -1;
	if (peer >= 0)
		peers[peer].want = NOTHING;
	for (int i = 0; i < 3; i++) /* it has its own copies; with ours there would be no end of file */
		close_fd(&p->io.child_end[i]);
	p->pid = code == 0 ? read_pid(file_of(p, "pid")) : 0;
	over = !is_ours(p->pid) && was_reaped(p->pid, &status);
	if (p->pid == 0 || !(over || is_ours(p->pid))) {
		if (code == 0) {
			leave_in(file_of(p, "log"), "it ended well but left no pid file that names a child of its own");
			code = 255;
		}
		say_failed(peer, code, file_of(p, "log"));
		release(p);
		return;
	}
	unlinkat(STATE_FD, file_of(p, "json"), 0);
	unlinkat(STATE_FD, file_of(p, "pid"), 0);
	unlinkat(STATE_FD, file_of(p, "log"), 0);
	p->state = RUNNING;
	print(text, sizeof text, "process %s %d", p->name, (int)p->pid);
	announce(text);
	print(text, sizeof text, "started %d", (int)p->pid);
	say(peer, text);
	if (over)
		end(p, status);
	else if (p->doomed)
		kill(p->pid, SIGKILL);
}

bool exec_ended(pid_t pid, int status)
{
	for (int i = 1; i < process_count; i++)
		if (processes[i].name[0] && processes[i].runtime == pid) {
			started(&processes[i], WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
			return true;
		}
	return false;
}

/*
 * Who started it does not want it any more, and nobody will collect its end. One that is still being started is killed once
 * it has been: a runtime that is killed in the middle may have made it and told nobody. Only *at_once*, for one that hangs,
 * is that risk taken.
 */
void cancel_process(int peer, const char *token, bool at_once)
{
	for (int i = 1; i < process_count; i++) {
		struct process *p = &processes[i];
		if (!p->name[0] || strcmp(p->token, token) != 0)
			continue;
		p->doomed = p->given_up = true;
		if (p->state == RUNNING)
			kill(p->pid, SIGKILL);
		else if (p->state == STOPPED)
			release(p);
		else if (at_once)
			kill(p->runtime, SIGKILL);
	}
	say(peer, "ok");
}

void forget_process(int peer, const char *name)
{
	struct process *p = find_process(name);

	if (p && p != INIT && p->state != STOPPED) {
		say_errno(peer, EBUSY);
		return;
	}
	if (p && p != INIT) {
		flush_terminal(&p->io);
		release(p);
	}
	say(peer, "ok");
}

/* Each in a line: its name, pid (0: it has ended), whether it has a terminal, and of an end what was announced. */
void list_processes(int peer)
{
	static char list[LIST] APART;
	int n = print(list, sizeof list, "processes\n");

	for (int i = 1; i < process_count; i++) {
		const struct process *p = &processes[i];
		if (!p->name[0] || p->state == STARTING)
			continue;
		n += print(list + n, sizeof list - (size_t)n, "%s %d %d%s\n", p->name, p->state == RUNNING ? (int)p->pid : 0,
			      p->io.terminal, p->state == STOPPED ? p->record + strlen("ended ") + strlen(p->name) : "");
	}
	say(peer, list);
}

/* The ends that nobody has collected yet, in their order, for who begins to watch. */
void tell_ends(int peer)
{
	unsigned long long told = 0;
	const struct process *next;

	do {
		next = NULL;
		for (int i = 1; i < process_count; i++) {
			const struct process *p = &processes[i];
			if (p->name[0] && p->state == STOPPED && p->ended > told && (!next || p->ended < next->ended))
				next = p;
		}
		if (next) {
			told = next->ended;
			say(peer, next->record);
		}
	} while (next);
}

int starting_processes(void)
{
	int n = 0;
	for (int i = 1; i < process_count; i++)
		n += processes[i].name[0] && processes[i].runtime > 0;
	return n;
}

static int running_processes(void)
{
	int n = 0;
	for (int i = 1; i < process_count; i++)
		n += processes[i].name[0] && processes[i].state == RUNNING;
	return n;
}

/* With init. A runtime that starts one comes back by itself, and is not killed in the middle unless it *hangs*. */
static void kill_processes(bool hangs)
{
	for (int i = 1; i < process_count; i++) {
		const struct process *p = &processes[i];
		if (p->name[0] && p->state == RUNNING)
			kill(p->pid, SIGKILL);
		else if (p->name[0] && p->runtime > 0 && hangs)
			kill(p->runtime, SIGKILL);
	}
}

static long long milliseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/*
 * The ends of further processes are told before that of init. With a pid namespace of the container's own the kernel sees
 * to it: init cannot be reaped before they were. Without one they would live on, and go with it as the rest does. One that
 * is just being started ends as well, and nobody knows how before its runtime has come back: it has PATIENCE for that.
 */
void settle_init(void)
{
	bool hangs;

	if (!INIT->over || INIT->state == STOPPED)
		return;
	if (running_processes() + starting_processes() == 0) {
		init_ended();
		return;
	}
	hangs = hurry_at > 0 && milliseconds() >= hurry_at;
	if (hurry_at == 0 || hangs)
		hurry_at = milliseconds() + PATIENCE;
	kill_processes(hangs);
}

/* How long the next turn may wait, in milliseconds; -1: for ever. */
int patience(void)
{
	long long left = hurry_at - milliseconds();

	if (hurry_at == 0 || INIT->state == STOPPED)
		return -1;
	return left > 0 ? (int)left : 0;
}
