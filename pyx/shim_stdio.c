/* ctrd-shim, third part: the fifos, the terminal, and output that nobody reads. */
#include "shim.h"

struct pipe_buffer tty_out = {.from = -1, .to = -1}, tty_in = {.from = -1, .to = -1};
int stdin_write = -1, out_read[2] = {-1, -1}, child_end[3] = {-1, -1, -1};
int tty_listener = -1, master = -1, null_fd = -1, log_fd = -1;

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
void open_stdio(void)
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

void receive_terminal(void)
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

void hand_over(int i)
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
bool drain(int fd)
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
