/* ctrd-shim, third part: the fifos, the terminals, and output that nobody reads. */
#include "shim.h"

int null_fd = -1;

/* Apart from the table of processes, whose every entry in use would else begin on pages of its own: most have no terminal. */
static char blocks[MAX_PROCESSES][2][BLOCK] APART;

/* That of a process in the table. */
void no_streams(struct streams *io)
{
	size_t place = (size_t)((char *)io - (char *)processes) / sizeof *processes;

	io->stdin_write = io->out_read[0] = io->out_read[1] = -1;
	io->child_end[0] = io->child_end[1] = io->child_end[2] = -1;
	io->tty_listener = io->master = -1;
	io->tty_out.from = io->tty_out.to = io->tty_in.from = io->tty_in.to = -1;
	io->tty_out.start = io->tty_out.end = io->tty_in.start = io->tty_in.end = 0;
	io->tty_out.bytes = blocks[place][0];
	io->tty_in.bytes = blocks[place][1];
}

/*
 * -1 and errno for what cannot be opened, or is no fifo. It is opened through a handle and not with O_NOFOLLOW itself, for
 * that would be one of its flags for good: CRIU opens it with the same ones again, at /proc/self/fd, which is a link.
 */
static int open_fifo(const char *path, int flags)
{
	char handle_path[32];
	struct stat st = {0};
	int fd = -1, number, handle = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (handle < 0)
		return -1;
	print(handle_path, sizeof handle_path, "/proc/self/fd/%d", handle);
	if (fstat(handle, &st) < 0 || !S_ISFIFO(st.st_mode))
		errno = S_ISLNK(st.st_mode) ? ELOOP : EINVAL;
	else
		fd = open(handle_path, flags | O_NONBLOCK | O_CLOEXEC);
	number = errno;
	close(handle);
	errno = number;
	return fd;
}

static void make_blocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

/*
 * The reading end first each time, so that no open waits for a peer and none fails for want of one. O_NONBLOCK then
 * goes from what the process gets; with a terminal those ends stay here and keep it. Returns 0, or what was wrong with
 * which path; then nothing is open.
 */
int open_stdio(struct streams *io, const char *const paths[3], const char **failed)
{
	static const int for_us[3] = {O_WRONLY, O_RDONLY, O_RDONLY}, for_it[3] = {O_RDONLY, O_WRONLY, O_WRONLY};
	int *const ours[3] = {&io->stdin_write, &io->out_read[0], &io->out_read[1]};

	for (int i = 0; i < 3; i++) {
		int *first = i == 0 ? &io->child_end[0] : ours[i], *second = i == 0 ? ours[0] : &io->child_end[i];
		if (!paths[i] || !*paths[i] || (i == 2 && io->terminal))
			continue;
		if ((*first = open_fifo(paths[i], i == 0 ? for_it[0] : for_us[i])) < 0 ||
		    (*second = open_fifo(paths[i], i == 0 ? for_us[0] : for_it[i])) < 0) {
			int number = errno;
			close_stdio(io);
			*failed = paths[i];
			return number;
		}
	}
	if (io->terminal) {
		io->tty_in.from = io->child_end[0];
		/* A terminal that nobody reads would hold its process up. */
		io->tty_out.to = io->child_end[1] >= 0 ? io->child_end[1] : fcntl(null_fd, F_DUPFD_CLOEXEC, 3);
		io->child_end[0] = io->child_end[1] = -1;
	}
	for (int i = 0; i < 3; i++)
		if (io->child_end[i] >= 0)
			make_blocking(io->child_end[i]);
	return 0;
}

/* Lets go of all of it. Output that nobody has read goes with our end, unless a client holds one. */
void close_stdio(struct streams *io)
{
	close_fd(&io->stdin_write);
	for (int i = 0; i < 3; i++)
		close_fd(&io->child_end[i]);
	close_fd(&io->out_read[0]);
	close_fd(&io->out_read[1]);
	close_fd(&io->tty_in.from);
	close_fd(&io->tty_out.to);
	close_fd(&io->master);
	if (io->tty_listener >= 0)
		unlinkat(STATE_FD, io->tty_name, 0);
	close_fd(&io->tty_listener);
	no_streams(io);
}

/*
 * A socket in the state directory, which is our working directory: so its path is short however deep that lies. It gets
 * its name once it listens: who finds it there and is refused knows that its shim has gone. -1 and errno when it fails.
 */
int listen_at(const char *name, int type)
{
	static const char temporary[] = "sock.tmp";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t old;

	if (fd < 0)
		return -1;
	old = umask(0177);
	memcpy(address.sun_path, temporary, sizeof temporary);
	unlinkat(STATE_FD, temporary, 0);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 128) < 0 ||
	    renameat(STATE_FD, temporary, STATE_FD, name) < 0) {
		int number = errno;
		close_fd(&fd);
		errno = number;
	}
	umask(old);
	return fd;
}

void receive_terminal(struct streams *io)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {packet, sizeof packet};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int fd = accept4(io->tty_listener, NULL, NULL, SOCK_CLOEXEC);
	struct cmsghdr *head;

	if (fd < 0)
		return;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) >= 0 && (head = CMSG_FIRSTHDR(&message)) != NULL &&
	    head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(int))) {
		memcpy(&io->master, CMSG_DATA(head), sizeof io->master);
		fcntl(io->master, F_SETFL, O_RDWR | O_NONBLOCK);
		io->tty_out.from = io->tty_in.to = io->master;
		close_fd(&io->tty_listener);
		unlinkat(STATE_FD, io->tty_name, 0);
	}
	close(fd);
}

void hand_over(int i, const struct streams *io)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(3 * sizeof(int))];
	} control = {0};
	int fds[3], n = 0;
	char text[16] = "fds ";
	struct iovec iov = {text, 4};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	const int have[3] = {io->stdin_write, io->out_read[0], io->out_read[1]};

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

/*
 * The end of the input is a key to a terminal: a program that reads to the end would wait for ever without. It goes
 * into the buffer, twice when a line must be ended first. False: in the mode of the terminal there is no such key.
 */
bool type_end_of_file(struct pipe_buffer *b)
{
	struct termios mode;
	bool in_line = b->end > 0 && b->bytes[b->end - 1] != '\n' && b->bytes[b->end - 1] != '\r';

	if (tcgetattr(b->to, &mode) < 0 || !(mode.c_lflag & ICANON) || mode.c_cc[VEOF] == _POSIX_VDISABLE)
		return false;
	b->bytes[0] = b->bytes[1] = (char)mode.c_cc[VEOF];
	b->start = 0;
	b->end = in_line ? 2 : 1;
	return true;
}

/* One step of terminal to fifo or back. False: this direction is over. */
bool pump(struct pipe_buffer *b, bool readable)
{
	ssize_t n;

	if (b->start == b->end && readable) {
		n = read(b->from, b->bytes, BLOCK);
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

/*
 * We let go of a terminal whose output is not all in its fifo: that is full. A process that stays behind writes the rest
 * when there is room. It holds no reading end, so that it ends as soon as nobody is left who could read it: EPIPE.
 */
void flush_terminal(struct streams *io)
{
	struct pipe_buffer *b = &io->tty_out;

	if (!opt.flush || b->to < 0 || b->from < 0 || fork() != 0)
		return;
	dup2(b->from, STARTER_FD);
	dup2(b->to, STATE_FD);
	b->from = STARTER_FD;
	b->to = STATE_FD;
	/* All else goes, above all the connection of who waits for our end; and we stand in a directory that is removed. */
	if (syscall(SYS_close_range, STATE_FD + 1, ~0U, 0) < 0)
		for (long fd = sysconf(_SC_OPEN_MAX); fd > STATE_FD; fd--)
			close((int)fd);
	if (chdir("/") < 0)
		_exit(1);
	do {
		struct pollfd next = b->start < b->end ? (struct pollfd){b->to, POLLOUT, 0} : (struct pollfd){b->from, POLLIN, 0};
		poll(&next, 1, -1);
	} while (pump(b, true));
	_exit(0);
}

void flush_terminals(void)
{
	for (int k = 0; k < process_count; k++)
		if (processes[k].name[0])
			flush_terminal(&processes[k].io);
}

/* Output of init's that nobody reads: thrown away or written to the log, as the starter chose. False: its end. */
bool drain(int stream)
{
	char block[BLOCK];
	int fd = INIT->io.out_read[stream];
	ssize_t n;

	if (opt.unattended == DISCARD) {
		n = splice(fd, NULL, null_fd, NULL, 1 << 20, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
		return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
	}
	n = read(fd, block, sizeof block);
	if (n > 0)
		log_output(stream, block, (size_t)n);
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}
