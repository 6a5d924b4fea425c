"""libc as every Unix has it, declared once for all compiled modules. What differs between systems is in system.pxd."""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "<errno.h>" nogil:
    int errno
    int EACCES, EAGAIN, EBADF, EBUSY, ECANCELED, ECONNRESET, EEXIST, EINTR, EINVAL, EIO, EISDIR, EMFILE, ENFILE, ENODEV
    int ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM, EPIPE, ESRCH, ESTALE

cdef extern from "<sys/types.h>" nogil:
    ctypedef unsigned int mode_t
    ctypedef long long off_t
    ctypedef unsigned long long dev_t
    ctypedef unsigned long long ino_t
    ctypedef int pid_t

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_CREAT, O_NONBLOCK, O_CLOEXEC, O_NOFOLLOW, O_NOCTTY, O_APPEND
    int F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, F_GETFD, F_SETFD, FD_CLOEXEC
    int c_open "open"(const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)

cdef extern from "<sys/stat.h>" nogil:
    struct c_stat "stat":
        mode_t st_mode
        dev_t st_dev
        ino_t st_ino
    int fstat(int fd, c_stat *status)
    int lstat(const char *path, c_stat *status)
    int mkfifo(const char *path, mode_t mode)
    bint S_ISFIFO(mode_t mode)
    bint S_ISREG(mode_t mode)
    bint S_ISDIR(mode_t mode)
    bint S_ISLNK(mode_t mode)
    bint S_ISSOCK(mode_t mode)
    bint S_ISCHR(mode_t mode)
    bint S_ISBLK(mode_t mode)

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    ssize_t c_read "read"(int fd, void *buffer, size_t size)
    ssize_t c_write "write"(int fd, const void *data, size_t size)
    int isatty(int fd)
    int pipe(int *fds)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t c_readv "readv"(int fd, const iovec *vectors, int count)
    ssize_t c_writev "writev"(int fd, const iovec *vectors, int count)

cdef extern from "<limits.h>" nogil:
    int PIPE_BUF

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL
    int c_poll "poll"(pollfd *fds, unsigned long count, int milliseconds)

cdef extern from "<sys/ioctl.h>" nogil:
    unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    struct timespec:
        long tv_sec
        long tv_nsec
    clockid_t CLOCK_MONOTONIC, CLOCK_REALTIME
    int clock_gettime(clockid_t clock, timespec *now)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    ctypedef struct siginfo_t:
        pass
    ctypedef void (*sighandler_t)(int) noexcept nogil
    struct c_sigaction "sigaction":
        sighandler_t sa_handler
    int SIGINT, SIGPIPE, SIGTTIN, SIGTTOU, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIG_BLOCK, SIG_SETMASK
    sighandler_t SIG_IGN, SIG_DFL
    int sigemptyset(sigset_t *signals)
    int sigfillset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    int sigdelset(sigset_t *signals, int number)
    int sigismember(const sigset_t *signals, int number)
    int sigpending(sigset_t *signals)
    int sigaction(int number, const c_sigaction *new, c_sigaction *old)
    int sigwait(const sigset_t *signals, int *number)
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_destroy(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    int sem_trywait(sem_t *semaphore)
    int sem_wait(sem_t *semaphore)
    int sem_timedwait(sem_t *semaphore, const timespec *until)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int MSG_DONTWAIT, MSG_NOSIGNAL, SOL_SOCKET, SO_ERROR
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, void *attributes)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_attr_init(pthread_attr_t *attributes)
    int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size)
    int pthread_attr_destroy(pthread_attr_t *attributes)
    int pthread_create(pthread_t *thread, pthread_attr_t *attributes, void *(*run)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    int pthread_detach(pthread_t thread)
    ctypedef void (*fork_handler)() noexcept nogil
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)


cdef inline int64_t monotonic() noexcept nogil:
    """CLOCK_MONOTONIC now, in nanoseconds; ``time.monotonic_ns`` counts the same clock."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
