/* ctrd-shim, fifth part: its command line, whose options are explained at the top of shim.c, and what is set up by it. */
#include "shim.h"

static void usage(const char *what)
{
	errno = EINVAL;
	die("option", what);
}

void parse(int argc, char **argv)
{
	int i = 1;

	if (argc == 4 && strcmp(argv[3], "--keep") == 0) /* --state before it is for who looks at the processes of a host */
		keep_unread();
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
		else if (strcmp(name, "--cgroup") == 0)
			opt.cgroup = value;
		else if (strcmp(name, "--log") == 0)
			opt.log = value, opt.unattended = LOG;
		else if (strcmp(name, "--restore") == 0)
			opt.restore = value;
		else if (strcmp(name, "--stdin") == 0)
			opt.stdio[0] = value;
		else if (strcmp(name, "--stdout") == 0)
			opt.stdio[1] = value;
		else if (strcmp(name, "--stderr") == 0)
			opt.stdio[2] = value;
		else if (strcmp(name, "--flags") == 0) {
			opt.terminal = strchr(value, 't') != NULL;
			opt.hide_unified = strchr(value, 'u') != NULL;
			opt.kill_rest = strchr(value, 'k') != NULL;
			opt.no_pivot = strchr(value, 'p') != NULL;
			opt.undo = strchr(value, 'x') != NULL;
			opt.auto_remove = strchr(value, 'r') != NULL;
			opt.attended = strchr(value, 'a') != NULL;
			opt.sealed = strchr(value, 's') != NULL;
			opt.grow = strchr(value, 'g') != NULL;
			opt.flush = strchr(value, 'f') != NULL;
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

/* ---- set-up ---------------------------------------------------------------------------------------------------------- */

void set_up(void)
{
	sigset_t all, child;
	const char *failed = "";

	/* ENOSYS before Linux 5.9: the starter passed only ours anyway. */
	syscall(SYS_close_range, (opt.sealed ? SEALED_FD : STATE_FD) + 1, ~0U, 0);
	fcntl(STARTER_FD, F_SETFD, FD_CLOEXEC);
	fcntl(STATE_FD, F_SETFD, FD_CLOEXEC);
	if (opt.sealed)
		fcntl(SEALED_FD, F_SETFD, FD_CLOEXEC);
	peers[peer_count++] = (struct peer){.fd = STARTER_FD, .watches = true, .reads = opt.attended};

	strcpy(INIT->name, "init");
	strcpy(INIT->io.tty_name, TTY_NAME);
	INIT->io.terminal = opt.terminal;
	INIT->starter = INIT->record_fd = -1;
	no_streams(&INIT->io);

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
	if ((INIT->record_fd = make_record(RECORD_TEMP)) < 0)
		die("write", RECORD_TEMP);
	if (opt.unattended == LOG &&
	    (log_fd = open(opt.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600)) < 0)
		die("open", opt.log);
	if ((errno = open_stdio(&INIT->io, opt.stdio, &failed)) != 0)
		die("open", failed);
	for (int i = 0; i < 2 && opt.grow; i++) /* what is drained moves several times as fast */
		fcntl(INIT->io.out_read[i], F_SETPIPE_SZ, 1 << 20);
	if ((listener = listen_at(SOCKET_NAME, SOCK_SEQPACKET)) < 0)
		die("bind", SOCKET_NAME);
	if (opt.terminal && (INIT->io.tty_listener = listen_at(TTY_NAME, SOCK_STREAM)) < 0)
		die("bind", TTY_NAME);
	unlinkat(STATE_FD, PID_NAME, 0); /* a stale one would be believed */
}
