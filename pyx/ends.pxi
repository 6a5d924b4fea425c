# What is done to a bare descriptor (a part of fifo.pyx): look at it, open it, write to it. Nothing here needs the GIL.
#
# A write end can be had beside nobody only by being its own reader for a moment (`open_end`). Another pending writer that
# looked in that moment would take it for its reader, write, and fail. So that moment and every such look hold
# `moment_lock`; a writer of another process that was woken by that open is fooled no longer than it lasts (`settled`).

cdef extern from *:
    """
    static pthread_mutex_t ctrd_moment_lock = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t moment_lock "ctrd_moment_lock"


cdef bint writer_connected(int fd) noexcept nogil:
    """Whether somebody reads the fifo of this write end."""
    cdef pollfd polled
    cdef bint here
    polled.fd, polled.events, polled.revents = fd, 0, 0
    pthread_mutex_lock(&moment_lock)
    here = c_poll(&polled, 1, 0) == 0
    pthread_mutex_unlock(&moment_lock)
    return here


cdef bint settled(int fd) noexcept nogil:
    """Whether a reader that was just seen is still there 1 ms later; false as soon as it has gone."""
    cdef pollfd polled
    polled.fd, polled.events, polled.revents = fd, 0, 0
    return c_poll(&polled, 1, 1) == 0


cdef short look_at(int fd) noexcept nogil:
    """What poll says of a read end now."""
    cdef pollfd polled
    polled.fd, polled.events, polled.revents = fd, POLLIN, 0
    c_poll(&polled, 1, 0)
    return polled.revents


cdef int open_held(const char *path, int handle, uint64_t device, uint64_t inode, int access) noexcept nogil:
    """Opens the inode that is held by *handle*, or that was seen at *path* when there is none; never blocks.

    -1 and errno on failure; ESTALE when something else has taken the place.
    """
    cdef c_stat status
    cdef int fd
    access |= O_NONBLOCK | O_CLOEXEC
    if handle >= 0:
        fd = reopen(handle, access)
        if fd >= 0 or errno != ENOENT:
            return fd
    fd = c_open(path, access | O_NOFOLLOW)      # no handles here, or no /proc
    if fd < 0:
        return -1
    if fstat(fd, &status) < 0 or not S_ISFIFO(status.st_mode) or status.st_dev != device or status.st_ino != inode:
        c_close(fd)
        set_errno(ESTALE)
        return -1
    return fd


cdef int open_end(Fifo fifo, const char *path, int flags, mode_t mode, const char **call, mode_t *kind) noexcept nogil:
    """Makes the fifo when asked to, holds its inode, and opens its end without waiting. 0 or an errno.

    *call* is the system call that failed; *kind* the file type, when it is another one than a fifo. The type is always
    that of the inode held: what was there before is held by a handle, for to open a device may do something to it.
    """
    cdef c_stat status
    cdef int attempts = 16 if flags & O_CREAT else 1, result
    while True:
        if flags & O_CREAT:
            call[0] = b"mkfifo"
            result = mkfifo(path, mode)
            if result < 0 and errno != EEXIST:
                return errno
            if result == 0 and not PORTABLE and open_made(fifo, path):
                return 0
        call[0] = b"open"
        if PORTABLE:
            result = lstat(path, &status)
        else:
            fifo._handle = result = c_open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        attempts -= 1
        if result >= 0:
            break
        if errno != ENOENT or not attempts:     # it may have been removed just after mkfifo saw it
            return errno
    if fifo._handle >= 0 and fstat(fifo._handle, &status) < 0:
        return errno
    if not S_ISFIFO(status.st_mode):
        kind[0] = status.st_mode
        return EINVAL
    fifo._device, fifo._inode = status.st_dev, status.st_ino
    if fifo._access == O_WRONLY:
        pthread_mutex_lock(&moment_lock)
        result = open_write_end(fifo, path)
        pthread_mutex_unlock(&moment_lock)
        if result == 0 and fifo._fd < 0:
            return 0                            # the handle is needed for the next try
    else:
        fifo._fd = open_held(path, fifo._handle, fifo._device, fifo._inode, fifo._access)
        result = errno if fifo._fd < 0 else 0
    if fifo._handle >= 0:
        c_close(fifo._handle)
        fifo._handle = -1
    return result


cdef bint open_made(Fifo fifo, const char *path) noexcept nogil:
    """The shorter way for a fifo made just now, which cannot be a device: opened first, then looked at.

    False when that does not work out, for whatever reason; the longer way finds the reason.
    """
    cdef c_stat status
    cdef bint writer = fifo._access == O_WRONLY
    cdef int fd
    if writer:
        pthread_mutex_lock(&moment_lock)
    fd = c_open(path, (O_RDWR if writer else fifo._access) | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)
    if fd >= 0 and fstat(fd, &status) == 0 and S_ISFIFO(status.st_mode):
        if writer:
            fifo._fd = open_held(path, fd, status.st_dev, status.st_ino, O_WRONLY)
        else:
            fifo._fd, fd = fd, -1
    if fd >= 0:
        c_close(fd)
    if writer:
        pthread_mutex_unlock(&moment_lock)
    return fifo._fd >= 0


cdef int open_write_end(Fifo fifo, const char *path) noexcept nogil:
    """The write end, also beside nobody. 0 or an errno; 0 without a descriptor: to be tried again.

    A writer alone would get ENXIO. So it opens the fifo for both, then its write end, and lets go of the first: a reader
    that waits in its own open comes through, and from then on POLLERR tells that there is no reader. That takes the
    permission to read. Without it, and on other systems, the end stays unopened until there is a reader.
    """
    cdef int both, result
    fifo._fd = open_held(path, fifo._handle, fifo._device, fifo._inode, O_WRONLY)
    if fifo._fd >= 0:
        fifo._was_open = True                   # there is a reader
        return 0
    if errno != ENXIO:
        return errno
    if PORTABLE:
        return 0
    both = open_held(path, fifo._handle, fifo._device, fifo._inode, O_RDWR)
    if both < 0:
        return 0 if errno == EACCES else errno
    # Its number is free for the next open: with no other descriptor left that would fail, and a reader who waits for us
    # would have seen a writer come and go.
    c_close(fifo._handle)
    fifo._handle = -1
    fifo._fd = open_held(path, both, fifo._device, fifo._inode, O_WRONLY)
    result = errno if fifo._fd < 0 else 0
    c_close(both)
    return result


cdef bint write_loudly = PORTABLE   # whether this kernel has no RWF_NOSIGNAL; found out by the first write


cdef ssize_t write_quietly(int fd, const iovec *vectors, int count, int *number) noexcept nogil:
    """writev(2) that never raises SIGPIPE, whatever the host does with that signal; *number* gets errno."""
    global write_loudly
    cdef c_sigaction action
    cdef sigset_t broken, before, waiting
    cdef ssize_t written
    cdef int signal
    if not write_loudly:
        written = write_no_signal(fd, vectors, count)
        number[0] = errno
        if written >= 0 or (number[0] != EOPNOTSUPP and number[0] != ENOSYS):
            return written
        write_loudly = True
    if sigaction(SIGPIPE, NULL, &action) == 0 and action.sa_handler == SIG_IGN:      # so it is in a Python process
        written = c_writev(fd, vectors, count)
        number[0] = errno
        return written
    # SIGPIPE of a write goes to the thread that writes: hold it back there, and take it away when it came by us.
    sigemptyset(&broken)
    sigaddset(&broken, SIGPIPE)
    sigpending(&waiting)
    pthread_sigmask(SIG_BLOCK, &broken, &before)
    written = c_writev(fd, vectors, count)
    number[0] = errno
    if written < 0 and number[0] == EPIPE and not sigismember(&waiting, SIGPIPE):
        sigpending(&waiting)
        if sigismember(&waiting, SIGPIPE):
            sigwait(&broken, &signal)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return written
