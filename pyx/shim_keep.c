/*
 * ctrd-shim, seventh part: the keeper. It keeps what has been written and nobody has read yet after a container is gone.
 *
 * A fifo holds its bytes only while somebody has it open. So the hand that removes a container of `ctrd serve` gives our
 * ends of its outputs to this process: one for a state directory, started when it is needed. It ends when nothing is left
 * to keep. It serves a 0600 socket in that directory; the first connection is descriptor 3. One packet with the reading
 * ends of fifos (SCM_RIGHTS) is answered "ok" or "error ERRNO".
 *
 * A fifo is kept until a reader has read it to its end, or until it has no name left, for then no reader can come. What
 * bounds that is the number and the size of what is kept, and not time: a reader may come the next day, and what nobody
 * will ever read has to make room only for what is newer. Nothing polls: each state of a fifo below has an event that ends
 * it.
 *
 *   WRITTEN  somebody may still write: we hold a reading end, on which poll(2) tells the end of the last writer.
 *   AWAITED  nobody has it open but us. We hold a writing end, and no reading one: so a reader's open does not wait, as it
 *            would for a writer, its reader is not told the end before it has come, and POLLERR says that there is none.
 *            It is inotify that says when to look; a blocked open is told only once it has returned, which it does here.
 *   READ     somebody reads, and must be told the end when all is read: we hold a reading end, so that what he leaves is
 *            there for the next one. inotify tells when he has read, and when he has gone.
 */
#include "shim.h"
#include <sys/inotify.h>

/* With pipes of the usual size that is a quarter of what a user without privileges may have in all of his (pipe(7)). */
enum { KEPT = 256, KEPT_BYTES = 64 << 20 };
enum { HEARD = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE };
enum how { WRITTEN, AWAITED, READ };

static struct kept { /* in the order in which they came */
	int fd, watch;
	enum how how;
} kept[KEPT + 1] APART;
static int kept_count, ears;

/* ---- one fifo -------------------------------------------------------------------------------------------------------- */

static int unread(int fd)
{
	int n = 0;
	return ioctl(fd, FIONREAD, &n) < 0 ? 0 : n;
}

static bool has(int fd, short what)
{
	struct pollfd look = {.fd = fd};
	return poll(&look, 1, 0) > 0 && (look.revents & what);
}

/* The path by which the fifo behind a descriptor is opened again, whatever it is called by now. */
static const char *path_of(int fd)
{
	static char path[32];
	print(path, sizeof path, "/proc/self/fd/%d", fd);
	return path;
}

/* Holds the other end. When that cannot be had (its mode was changed), it is kept as it is. */
static void turn_over(struct kept *k, int flags, enum how how)
{
	int fd = open(path_of(k->fd), flags | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return;
	close(k->fd);
	k->fd = fd;
	k->how = how;
}

/* What is heard of it from now on. The same fifo has the same watch, however often it is set. */
static int listen_to(int fd, unsigned int events)
{
	return inotify_add_watch(ears, path_of(fd), IN_ATTRIB | events);
}

/* Something has happened to it. False: there is nothing to keep. */
static bool look(struct kept *k)
{
	struct stat st;

	if (fstat(k->fd, &st) < 0 || st.st_nlink == 0)
		return false; /* whoever reads it has it open */
	if (k->how == AWAITED && !has(k->fd, POLLERR))
		turn_over(k, O_RDONLY, READ);
	if (k->how != AWAITED)
		k->how = has(k->fd, POLLHUP) ? READ : WRITTEN; /* a writer may come: a container that is given the same fifo */
	return k->how == WRITTEN || unread(k->fd) > 0;
}

/*
 * The last writer has gone, or a reader: is there any reader left? Only who holds no reading end can tell. What we close
 * ourselves for that must not be heard, or it would never end; what others do meanwhile the look finds. (In `look` our
 * reading end is opened and the writing end closed, neither of which leads here.)
 */
static bool await_reader(struct kept *k)
{
	listen_to(k->fd, 0);
	turn_over(k, O_WRONLY, AWAITED);
	listen_to(k->fd, HEARD);
	return look(k);
}

static bool changed(struct kept *k, bool gone)
{
	return look(k) && (k->how != READ || !gone || await_reader(k));
}

/*
 * A reader that came while there was no writer has seen none, and so would see no end either, nor would his open return if
 * it waits: for all that are there a writer has come and gone.
 */
static void drop(int i)
{
	int writer = open(path_of(kept[i].fd), O_WRONLY | O_NONBLOCK | O_CLOEXEC);

	close_fd(&writer);
	inotify_rm_watch(ears, kept[i].watch);
	close(kept[i].fd);
	memmove(kept + i, kept + i + 1, (size_t)(--kept_count - i) * sizeof *kept);
}

/* ---- all of them ----------------------------------------------------------------------------------------------------- */

static int find_watch(int watch)
{
	for (int i = 0; i < kept_count; i++)
		if (kept[i].watch == watch)
			return i;
	return -1;
}

static bool too_much(void)
{
	long long all = 0;
	for (int i = 0; i < kept_count; i++)
		all += unread(kept[i].fd);
	return kept_count > KEPT || (kept_count > 1 && all > KEPT_BYTES);
}

/* Takes over a reading end. Returns 0, or an errno and then it is closed. */
static int keep(int fd)
{
	struct stat st;
	int watch;

	if (fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode) || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) {
		close(fd);
		return EINVAL;
	}
	if ((watch = listen_to(fd, HEARD)) < 0) {
		int number = errno;
		close(fd);
		return number;
	}
	if (find_watch(watch) >= 0) { /* that fifo is kept already: of an earlier container, or of a hand that was killed */
		close(fd);
		return 0;
	}
	kept[kept_count] = (struct kept){.fd = fd, .watch = watch, .how = READ};
	/* Whose end it was still holds that same one: only an own one is closed when we close it, and then his is heard. */
	if (!changed(&kept[kept_count++], true))
		drop(kept_count - 1);
	while (too_much())
		drop(0);
	return 0;
}

static void hear(void)
{
	static char block[BLOCK] APART __attribute__((aligned(__alignof__(struct inotify_event))));
	const struct inotify_event *event;
	ssize_t n = read(ears, block, sizeof block);

	for (ssize_t at = 0; at < n; at += (ssize_t)(sizeof *event + event->len)) {
		event = (const struct inotify_event *)(block + at);
		if (event->mask & IN_Q_OVERFLOW) {
			for (int i = kept_count - 1; i >= 0; i--)
				if (!changed(&kept[i], true))
					drop(i);
			continue;
		}
		int i = find_watch(event->wd); /* -1: of a watch that was removed since */
		if (i >= 0 && !changed(&kept[i], (event->mask & IN_CLOSE_NOWRITE) != 0))
			drop(i);
	}
}

/* ---- who asks -------------------------------------------------------------------------------------------------------- */

static bool may_ask(int fd)
{
	struct ucred who;
	socklen_t size = sizeof who;
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && (who.uid == 0 || who.uid == geteuid());
}

/* One packet. False: he has gone. */
static bool take(int peer)
{
	enum { MOST = 8 };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MOST * sizeof(int))];
	} control = {0};
	char text[32];
	struct iovec iov = {text, sizeof text};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(peer, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	int fds[MOST], count = 0, number = message.msg_flags & MSG_CTRUNC ? E2BIG : 0;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	for (struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&message) : NULL; head; head = CMSG_NXTHDR(&message, head))
		if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
			count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(head), (size_t)count * sizeof(int));
		}
	for (int i = 0; i < count; i++) {
		int failed = keep(fds[i]);
		number = number ? number : failed;
	}
	print(text, sizeof text, number ? "error %d" : "ok", number);
	return n > 0 && send(peer, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
}

/* ---- the loop -------------------------------------------------------------------------------------------------------- */

/* The first that is wrong is told to who has started us, as a shim does it (see die()). */
static void set_up_keeper(int *listener)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL); /* like a shim, it is ended by nothing but its work */
	syscall(SYS_close_range, STATE_FD + 1, ~0U, 0);
	fcntl(STARTER_FD, F_SETFD, FD_CLOEXEC);
	fcntl(STATE_FD, F_SETFD, FD_CLOEXEC);
	opt.undo = true; /* there is no container whose mark a failure would take back */
	if (fchdir(STATE_FD) < 0)
		die("fchdir", "the state directory");
	if ((ears = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) < 0)
		die("inotify_init", "see fs.inotify.max_user_instances");
	if ((*listener = listen_at(KEEPER_NAME, SOCK_SEQPACKET)) < 0)
		die("bind", KEEPER_NAME);
	switch (fork()) { /* who has started us reaps that at once, and need not know when we end */
	case -1:
		die("fork", "the keeper");
	case 0:
		break;
	default:
		_exit(0);
	}
}

_Noreturn void keep_unread(void)
{
	static struct pollfd polls[KEPT + 4] APART;
	int listener, peer = STARTER_FD;
	bool leaving = false;

	set_up_keeper(&listener);
	for (;;) {
		nfds_t n = 3;
		polls[0] = (struct pollfd){.fd = ears, .events = POLLIN};
		polls[1] = (struct pollfd){.fd = listener, .events = POLLIN};
		polls[2] = (struct pollfd){.fd = peer, .events = POLLIN}; /* -1 is passed over */
		for (int i = 0; i < kept_count; i++)
			polls[n++] = (struct pollfd){.fd = kept[i].how == WRITTEN ? kept[i].fd : -1};
		while (poll(polls, n, leaving && kept_count == 0 && peer < 0 ? 0 : -1) < 0)
			if (errno != EINTR)
				_exit(3);
		for (int i = kept_count - 1; i >= 0; i--) /* first: what follows may change their places */
			if (polls[3 + i].revents && !changed(&kept[i], true))
				drop(i);
		if (polls[0].revents)
			hear();
		if (polls[2].revents && !take(peer))
			close_fd(&peer);
		if (polls[1].revents) { /* one at a time: who has come before him has been killed, or hangs */
			int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
			if (fd >= 0 && may_ask(fd)) {
				close_fd(&peer);
				peer = fd;
			} else {
				close_fd(&fd);
			}
		} else if (leaving && kept_count == 0 && peer < 0) {
			_exit(0);
		}
		/* Nobody finds us any more, and the next keeper can begin; who had come so far is served, and then we go. */
		if (!leaving && kept_count == 0 && peer < 0) {
			unlinkat(STATE_FD, KEEPER_NAME, 0);
			leaving = true;
		}
	}
}
