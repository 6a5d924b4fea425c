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
