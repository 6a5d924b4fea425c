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
		else if (strcmp(name, "--log-limit") == 0)
			opt.log_limit = strtoll(value, NULL, 10);
		else if (strcmp(name, "--log-kept") == 0)
			opt.log_kept = (int)strtol(value, NULL, 10);
		else if (strcmp(name, "--restore") == 0)
			opt.restore = value;
		else if (strcmp(name, "--uid-map") == 0)
			opt.uid_map = value;
		else if (strcmp(name, "--gid-map") == 0)
			opt.gid_map = value;
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
			opt.log_json = strchr(value, 'j') != NULL;
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

/* ---- namespaces ------------------------------------------------------------------------------------------------------ */

/* In a mount namespace of our own an empty tmpfs hides cgroup v2 beside v1, which some versions of crun refuse; a slave, so
   that later mounts of the host still arrive. */
int hide_unified(void)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return -1;
	return mount("none", "/sys/fs/cgroup/unified", "tmpfs", 0, "size=4k,mode=555");
}

/* Calls newuidmap(1) or newgidmap(1), with *map* as its words, on *pid*. False when it does not do it. */
static bool map_ids(const char *program, pid_t pid, const char *map)
{
	char words[LIST], number[16], *argv[MAX_ARGS], *rest = words;
	int argc = 0, status;
	pid_t child;

	print(words, sizeof words, "%s", map);
	print(number, sizeof number, "%d", (int)pid);
	argv[argc++] = (char *)program;
	argv[argc++] = number;
	while (argc < MAX_ARGS - 1 && (argv[argc] = strtok_r(rest, " ", &rest)) != NULL)
		argc++;
	argv[argc] = NULL;
	if ((child = fork()) == 0) {
		execvp(program, argv);
		_exit(127);
	}
	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* Of the capabilities in a fresh user namespace those stay that the runtime needs to map ids; over its exec, as who is not
   root there, too. With more than the runtime has we would be hidden from it in /proc, where our sockets are. */
static bool keep_capabilities(void)
{
	/* of capset(2), version 3; without its header, which musl-gcc does not have */
	static const int kept[] = {6 /* CAP_SETGID */, 7 /* CAP_SETUID */, 21 /* CAP_SYS_ADMIN */};
	struct {
		unsigned version;
		int pid;
	} header = {0x20080522, 0};
	struct {
		unsigned effective, permitted, inheritable;
	} data[2] = {{0, 0, 0}, {0, 0, 0}};

	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		data[0].permitted |= 1u << kept[i];
	data[0].effective = data[0].inheritable = data[0].permitted;
	if (syscall(SYS_capset, &header, data) < 0)
		return false;
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept[i], 0, 0) < 0)
			return false;
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) > 0;

	close_fd(&fd);
	return done;
}

/* Of a user who may map nobody else. */
static bool map_own_ids(uid_t uid, gid_t gid)
{
	char uids[32], gids[32];

	print(uids, sizeof uids, "%d %d 1", (int)uid, (int)uid);
	print(gids, sizeof gids, "%d %d 1", (int)gid, (int)gid);
	return write_file("/proc/self/setgroups", "deny") && write_file("/proc/self/uid_map", uids) &&
	       write_file("/proc/self/gid_map", gids);
}

/*
 * Without root that takes a user namespace, and it is one for all calls of the runtime: only from there can it enter the
 * container again. So we live in it, whose children they are. All ids stay what they are, our own and those that this user
 * may map, which a helper outside of it has to do for us. The runtime may map them again, for the container.
 */
static void hide_unified_without_root(void)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	pid_t self = getpid(), helper = 0;
	int go[2] = {-1, -1}, status = 0;
	char byte = 0;

	if (opt.uid_map && opt.gid_map && (pipe2(go, O_CLOEXEC) < 0 || (helper = fork()) < 0))
		die("fork", "a helper for newuidmap");
	if (go[0] >= 0 && helper == 0) {
		close_fd(&go[1]);
		_exit(read(go[0], &byte, 1) != 1 || !map_ids("newuidmap", self, opt.uid_map) ||
		      !map_ids("newgidmap", self, opt.gid_map));
	}
	close_fd(&go[0]);
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		die("unshare", "a user namespace");
	if (helper ? write(go[1], &byte, 1) != 1 || waitpid(helper, &status, 0) != helper : !map_own_ids(uid, gid))
		die("map", "the ids of this user");
	close_fd(&go[1]);
	if (status != 0)
		errno = EPERM, die("newuidmap and newgidmap", opt.uid_map);
	if (!keep_capabilities())
		die("capset", "the capabilities in a user namespace");
	if (hide_unified() < 0)
		die("mount", "/sys/fs/cgroup/unified");
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
	if (opt.hide_unified && geteuid() != 0)
		hide_unified_without_root();
	if (fchdir(STATE_FD) < 0)
		die("fchdir", opt.state);

	if (opt.undo) /* nobody is served, and the traces of the one that was killed are not touched */
		return;
	if ((INIT->record_fd = make_record(RECORD_TEMP)) < 0)
		die("write", RECORD_TEMP);
	if (opt.unattended == LOG && (errno = open_log()) != 0)
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
