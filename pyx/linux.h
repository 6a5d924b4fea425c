/* Linux's own ways; see system.pxd for what each is. */
#ifndef CTRD_LINUX_H
#define CTRD_LINUX_H

#include <linux/capability.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <termios.h>

/* ---- descriptors ---- */

/* The file that a descriptor of ours holds, opened anew: with flags of its own, and whatever is at its path now. */
static inline int ctrd_reopen(int fd, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, flags);
}

static inline int ctrd_open_terminal(int fd, int flags) { return ctrd_reopen(fd, flags); }

static inline int ctrd_is_terminal_master(int fd)
{
    unsigned number;
    return ioctl(fd, TIOCGPTN, &number) == 0;
}

/* ---- pipes ---- */

static inline int ctrd_has_writer(int fd)
{
    int scratch[2], result;
    if (pipe2(scratch, O_CLOEXEC))
        return -errno;
    result = (int)tee(fd, scratch[1], 1, SPLICE_F_NONBLOCK);
    if (result < 0)
        result = errno == EAGAIN ? 1 : -errno;
    close(scratch[0]);
    close(scratch[1]);
    return result;
}

static inline ssize_t ctrd_write_no_signal(int fd, const struct iovec *vectors, int count)
{
#ifdef SYS_pwritev2 /* by its number: glibc has the function since 2.26 only; of the offset -1 each half is -1 */
    return syscall(SYS_pwritev2, fd, vectors, (long)count, -1L, -1L, 0x100 /* RWF_NOSIGNAL, Linux 6.18 */);
#else
    (void)fd;
    (void)vectors;
    (void)count;
    errno = ENOSYS;
    return -1;
#endif
}

static inline int ctrd_pipe_size(int fd) { return fcntl(fd, F_GETPIPE_SZ); }
static inline int ctrd_pipe_resize(int fd, int size) { return fcntl(fd, F_SETPIPE_SZ, size); }

static inline ssize_t ctrd_move(int source, int sink, size_t size)
{
    return splice(source, NULL, sink, NULL, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
}

/* The kernel asks for these two in the first user namespace only. */
static inline int ctrd_pipes_are_free(void)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    struct stat user;
    if (syscall(SYS_capget, &header, data) || stat("/proc/self/ns/user", &user) || user.st_ino != 0xEFFFFFFDU)
        return 0;
    return (data[0].effective & (1U << CAP_SYS_ADMIN | 1U << CAP_SYS_RESOURCE)) != 0;
}

/* ---- waiting ---- */

static inline int ctrd_wake_pair(int *fds) { return fds[0] = fds[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

static inline int ctrd_ppoll(struct pollfd *fds, unsigned long count, int64_t nanoseconds, const sigset_t *mask)
{
    struct timespec limit = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
    return ppoll(fds, count, nanoseconds < 0 ? NULL : &limit, mask);
}

static inline int ctrd_watch_init(void) { return inotify_init1(IN_NONBLOCK | IN_CLOEXEC); }

static inline int ctrd_watch_add(int inotify, int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return inotify_add_watch(inotify, path, IN_OPEN);
}

static inline int ctrd_watch_remove(int inotify, int watch) { return inotify_rm_watch(inotify, watch); }

/* Its timers are exact, where the kernel else adds 50 us to spare wake-ups: the relay spares them itself. */
static inline void ctrd_begin_thread(const char *name)
{
    pthread_setname_np(pthread_self(), name);
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
}

/* ---- the poller: epoll, edge-triggered where it is told "once" ---- */

_Static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLERR == EPOLLERR && POLLHUP == EPOLLHUP,
               "epoll and poll have the same events");

typedef struct epoll_event ctrd_seen;
typedef struct { int fd, coarse; } ctrd_poller;

static inline uint64_t ctrd_tag(const ctrd_seen *seen) { return seen->data.u64; }
static inline unsigned ctrd_events(const ctrd_seen *seen) { return seen->events; }

static inline int ctrd_poller_open(ctrd_poller *poller)
{
    poller->fd = epoll_create1(EPOLL_CLOEXEC);
    poller->coarse = 0;
    return poller->fd < 0 ? errno : 0;
}

static inline void ctrd_poller_none(ctrd_poller *poller) { poller->fd = -1; }

static inline void ctrd_poller_close(ctrd_poller *poller)
{
    if (poller->fd >= 0)
        close(poller->fd);
    poller->fd = -1;
}

static inline int ctrd_poller_add(ctrd_poller *poller, int fd, unsigned events, int once, uint64_t tag)
{
    struct epoll_event event;
    event.events = events | (once ? EPOLLET : 0);
    event.data.u64 = tag;
    return epoll_ctl(poller->fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

/* Closing is not enough: while a child of a fork holds the open file, its events would go on to arrive. */
static inline void ctrd_poller_remove(ctrd_poller *poller, int fd)
{
    struct epoll_event event = { 0 };
    epoll_ctl(poller->fd, EPOLL_CTL_DEL, fd, &event);
}

static inline void ctrd_poller_again(ctrd_poller *poller, int fd) /* the next edge comes by itself */
{
    (void)poller;
    (void)fd;
}

/* Of what is not asked for an error and a hang-up are told all the same; what is there already when it is asked for
   again is told at once, as by EPOLL_CTL_ADD. */
static inline int ctrd_poller_ask(ctrd_poller *poller, int fd, unsigned events, uint64_t tag)
{
    struct epoll_event event;
    event.events = events | EPOLLET;
    event.data.u64 = tag;
    return epoll_ctl(poller->fd, EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : errno;
}

static inline int ctrd_poller_is_fine(const ctrd_poller *poller) { return !poller->coarse; }

static inline int ctrd_poller_wait(ctrd_poller *poller, ctrd_seen *seen, int room, int64_t nanoseconds)
{
#ifdef SYS_epoll_pwait2 /* by its number: Linux has it since 5.11, glibc since 2.35 */
    if (nanoseconds % 1000000 > 0 && !poller->coarse) {
        struct { long long seconds, nanoseconds; } limit = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
        int count = (int)syscall(SYS_epoll_pwait2, poller->fd, seen, room, &limit, NULL, 0L);
        if (count >= 0 || errno == EINTR)
            return count;
    }
#endif
    if (nanoseconds % 1000000 > 0)
        poller->coarse = 1;
    return epoll_wait(poller->fd, seen, room, ctrd_milliseconds(nanoseconds));
}

#endif
