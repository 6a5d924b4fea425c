/*
 * Any bytes as a request to a shim whose container runs: libFuzzer's target for the parser in shim.c and what it leads to, with
 * the sanitizers. The runtime is a program that fails at once, and requests that would call it for `init` are only noted.
 */
#define _GNU_SOURCE
#include "planted.h"
#include <sys/socket.h>

static ssize_t recv_planted(int fd, void *to, size_t size, int flags)
{
	ssize_t n = recv(fd, to, size, flags);

	if (n > 0)
		ctrd_planted(to, (size_t)n);
	return n;
}

#define main shim_main
#define recv recv_planted
#undef _GNU_SOURCE
#include "../../pyx/shim.c"
#undef main
#undef recv

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static int ours; /* the other end of the peer's connection */

static void set_up_once(void)
{
	int pair[2];
	pid_t pid;

	if (INIT->pid)
		return;
	if ((pid = fork()) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	strcpy(INIT->name, "init");
	no_streams(&INIT->io);
	INIT->starter = INIT->record_fd = -1;
	INIT->pid = pid;
	INIT->state = RUNNING;
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	listener = signals = oom_fd = -1;
	opt.id = "fuzz";
	opt.state = opt.bundle = opt.root = "/nowhere";
	opt.runtime[0] = "/bin/false";
	opt.runtime_argc = 1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 || dup2(pair[1], STARTER_FD) < 0)
		abort();
	dup2(open("/tmp", O_RDONLY | O_DIRECTORY), STATE_FD); /* where requests that name files find none of theirs */
	peers[0] = (struct peer){.fd = STARTER_FD};
	peer_count = 2;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	char reply[PACKET];
	int pair[2], status;

	set_up_once();
	if (size == 0 || size > REQUEST + 16)
		return 0;
	if (strncmp((const char *)data, "kill ", size < 5 ? size : 5) == 0)
		return 0; /* it would end the container, or stop it */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	peers[1] = (struct peer){.fd = pair[1]};
	ours = pair[0];
	if (send(ours, data, size, MSG_NOSIGNAL) == (ssize_t)size)
		request(1);
	while (recv(ours, reply, sizeof reply, MSG_DONTWAIT) > 0) {
	}
	for (int i = 1; i < process_count; i++) /* whatever was started goes: each input finds the same */
		if (processes[i].name[0])
			close_stdio(&processes[i].io);
	while (waitpid(-1, &status, WNOHANG) > 0) {
	}
	memset(processes + 1, 0, sizeof *processes * (size_t)(process_count - 1));
	process_count = 1;
	if (peers[1].fd >= 0)
		close(peers[1].fd);
	peers[1].fd = -1;
	close(ours);
	return 0;
}
