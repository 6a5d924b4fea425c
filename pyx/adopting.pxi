# An end of a fifo that another process has opened and handed over.


def adopt_fifo(int fd, path) -> Fifo:
    """The fifo of which another process has handed over an end, the descriptor *fd*: it is the fifo's own from now on.

    Whether it reads or writes the descriptor says; *path* is for errors alone. The peer counts as having been there.
    Raises `InvalidArgumentError` for what is no fifo, or one end that can do both, and `ClosedError` for no descriptor.
    """
    cdef c_stat status
    cdef Fifo fifo
    cdef int flags = fcntl(fd, F_GETFL)
    if flags < 0 or fstat(fd, &status) < 0:
        raise from_errno(errno, f"take over descriptor {fd} of fifo {path!r}")
    if not S_ISFIFO(status.st_mode) or flags & O_ACCMODE not in (O_RDONLY, O_WRONLY):
        raise InvalidArgumentError(f"descriptor {fd} is no reading or writing end of a fifo")
    if fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 or fcntl(fd, F_SETFD, FD_CLOEXEC) < 0:
        raise from_errno(errno, f"set up descriptor {fd} of fifo {path!r} (fcntl)")
    fifo = Fifo.__new__(Fifo)
    fifo.path = path
    fifo._access = flags & O_ACCMODE
    fifo._fd = fd
    fifo._state = OPENING
    become_open(fifo)
    return fifo
