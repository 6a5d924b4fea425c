/* ctrd-shim, fifth part: its command line. What the options mean stands at the top of shim.c. */
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
