"""The only place with Linux-only calls.

Each has a fallback that fails with ENOSYS (or, where something close exists, does that), so that what cimports this
compiles elsewhere; whether it is Linux is asked by `ON_LINUX`, never by trying.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from libctrd.posix cimport iovec, pollfd, sigset_t


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/inotify.h>
    #define CTRD_ON_LINUX 1
    static inline int ctrd_inotify_init(void) { return inotify_init1(IN_NONBLOCK | IN_CLOEXEC); }
    static inline int ctrd_inotify_add(int fd, const char *path) { return inotify_add_watch(fd, path, IN_OPEN); }
    static inline int ctrd_inotify_remove(int fd, int watch) { return inotify_rm_watch(fd, watch); }
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
        return pwritev2(fd, vectors, count, -1, 0x100 /* RWF_NOSIGNAL, Linux 6.18 */);
    }
    static inline int ctrd_pipe_size(int fd) { return fcntl(fd, F_GETPIPE_SZ); }
    static inline int ctrd_pipe_resize(int fd, int size) { return fcntl(fd, F_SETPIPE_SZ, size); }
    static inline int ctrd_wake_pair(int *fds) { return fds[0] = fds[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    #else
    #define CTRD_ON_LINUX 0
    #ifndef O_PATH
    #define O_PATH 0
    #endif
    #define IN_Q_OVERFLOW 0x4000
    struct inotify_event { int wd; uint32_t mask, cookie, len; char name[]; };
    static inline int ctrd_inotify_init(void) { errno = ENOSYS; return -1; }
    static inline int ctrd_inotify_add(int fd, const char *path) { (void)fd; (void)path; errno = ENOSYS; return -1; }
    static inline int ctrd_inotify_remove(int fd, int watch) { (void)fd; (void)watch; errno = ENOSYS; return -1; }
    static inline int ctrd_has_writer(int fd) { (void)fd; return -ENOSYS; }
    static inline ssize_t ctrd_write_no_signal(int fd, const struct iovec *vectors, int count)
    { (void)fd; (void)vectors; (void)count; errno = ENOSYS; return -1; }
    static inline int ctrd_pipe_size(int fd) { (void)fd; errno = ENOSYS; return -1; }
    static inline int ctrd_pipe_resize(int fd, int size) { (void)fd; (void)size; errno = ENOSYS; return -1; }
    static inline int ctrd_wake_pair(int *fds)
    {
        if (pipe(fds))
            return -1;
        for (int i = 0; i < 2; i++) {
            fcntl(fds[i], F_SETFD, FD_CLOEXEC);
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
        }
        return 0;
    }
    #endif

    /* poll(2) with a limit in nanoseconds (-1: none) and a signal mask that holds while it waits (NULL: unchanged). */
    static inline int ctrd_ppoll(struct pollfd *fds, unsigned long count, int64_t nanoseconds, const sigset_t *mask)
    {
    #ifdef __APPLE__
        sigset_t before;
        int result, number;
        if (mask)
            pthread_sigmask(SIG_SETMASK, mask, &before);
        result = poll(fds, count, nanoseconds < 0 ? -1 : (int)(nanoseconds / 1000000 + 1));
        number = errno;
        if (mask)
            pthread_sigmask(SIG_SETMASK, &before, NULL);
        errno = number;
        return result;
    #else
        struct timespec limit = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
        return ppoll(fds, count, nanoseconds < 0 ? NULL : &limit, mask);
    #endif
    }
    """
    const bint ON_LINUX "CTRD_ON_LINUX"
    int O_PATH
    uint32_t IN_Q_OVERFLOW
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t len

    # One inotify descriptor; a watch tells of each open(2) of an inode once that open has returned.
    int inotify_init "ctrd_inotify_init"() nogil
    int inotify_add "ctrd_inotify_add"(int fd, const char *path) nogil
    int inotify_remove "ctrd_inotify_remove"(int fd, int watch) nogil

    # Whether a writer holds the fifo of this read end, consuming nothing: tee(2) of one byte into a scratch pipe fails
    # with EAGAIN while there is a writer that wrote nothing, and gives 0 while there is none. 1: a writer, or data that
    # one has left; 0: neither; below 0: -errno, not known.
    int has_writer "ctrd_has_writer"(int fd) nogil

    # writev(2) on a pipe that does not raise SIGPIPE; EOPNOTSUPP on older kernels.
    ssize_t write_no_signal "ctrd_write_no_signal"(int fd, const iovec *vectors, int count) nogil

    int pipe_size "ctrd_pipe_size"(int fd) nogil
    int pipe_resize "ctrd_pipe_resize"(int fd, int size) nogil

    # What wakes one waiter: {read from, write to}; one eventfd twice on Linux, a pipe elsewhere. Below 0: errno.
    int wake_pair "ctrd_wake_pair"(int *fds) nogil

    int ppoll "ctrd_ppoll"(pollfd *fds, unsigned long count, int64_t nanoseconds, const sigset_t *mask) nogil


# What the relay needs: epoll and eventfd for its one thread, splice to move bytes without copying, terminals, capabilities.
cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <termios.h>
    #ifdef __linux__
    #include <linux/capability.h>
    /* Whether pipes may grow without limit: the kernel asks for these two in the first user namespace only. */
    static inline int ctrd_pipes_are_free(void)
    {
        struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
        struct __user_cap_data_struct data[2];
        struct stat user;
        if (syscall(SYS_capget, &header, data) || stat("/proc/self/ns/user", &user) || user.st_ino != 0xEFFFFFFDU)
            return 0;
        return (data[0].effective & (1U << CAP_SYS_ADMIN | 1U << CAP_SYS_RESOURCE)) != 0;
    }
    static inline int ctrd_is_terminal_master(int fd) { unsigned number; return ioctl(fd, TIOCGPTN, &number) == 0; }
    static inline void ctrd_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }
    #else
    #define EPOLLIN 1
    #define EPOLLOUT 4
    #define EPOLLERR 8
    #define EPOLLHUP 16
    #define EPOLLET 0
    #define EPOLL_CTL_ADD 1
    #define EPOLL_CTL_DEL 2
    #define SPLICE_F_MOVE 1
    #define SPLICE_F_NONBLOCK 2
    typedef union { uint64_t u64; } epoll_data_t;
    struct epoll_event { uint32_t events; epoll_data_t data; };
    static inline int ctrd_no(void) { errno = ENOSYS; return -1; }
    #define epoll_create1(flags) ctrd_no()
    #define epoll_ctl(epoll, what, fd, event) ctrd_no()
    #define epoll_wait(epoll, events, count, milliseconds) ctrd_no()
    #define EPOLL_CLOEXEC 0
    #define splice(from, at, to, there, size, flags) ((void)(from), (void)(to), (void)(size), ctrd_no())
    static inline int ctrd_pipes_are_free(void) { return 0; }
    static inline int ctrd_is_terminal_master(int fd) { (void)fd; return 0; }
    static inline void ctrd_name_thread(const char *name) { (void)name; }
    #endif
    """
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLET
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event) nogil
    int epoll_wait(int epoll, epoll_event *events, int count, int milliseconds) nogil
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    ssize_t splice(int source, void *at, int sink, void *there, size_t size, unsigned int flags) nogil
    bint pipes_are_free "ctrd_pipes_are_free"() nogil
    bint is_terminal_master "ctrd_is_terminal_master"(int fd) nogil
    void name_thread "ctrd_name_thread"(const char *name) nogil
