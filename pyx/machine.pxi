# The state machine (a part of fifo.pyx): the states of a `Fifo`, its peer, and its bytes. All of it needs the GIL, and lets
# go of it around each system call that takes the lock of a pipe, which a peer may hold for as long as it likes.


cdef int enter(Fifo fifo) except -1:
    """The descriptor is in use by this thread until `leave`; while it is, its number is not closed."""
    notice_fork(fifo)
    if fifo._state == CLOSED:
        raise ClosedError(f"fifo {fifo.path!r} is closed")
    fifo._users += 1
    return 0


cdef int leave(Fifo fifo) except -1:
    notice_fork(fifo)
    if fifo._users:            # 0 when a signal handler forked: this is the child, and nobody else is here
        fifo._users -= 1
    if fifo._users == 0 and fifo._state == CLOSED:
        drop(fifo)
    return 0


cdef void notice_fork(Fifo fifo) noexcept:
    if fifo._generation != process_generation:
        fifo._generation = process_generation
        fifo._users = 0
        fifo._waiters = NULL


cdef void drop(Fifo fifo) noexcept:
    cdef int fd = fifo._fd, handle = fifo._handle
    fifo._fd = fifo._handle = -1
    with nogil:
        if fd >= 0:
            c_close(fd)
        if handle >= 0:
            c_close(handle)


cdef void become_open(Fifo fifo) noexcept:
    if fifo._state == OPENING:
        fifo._state = OPEN
        fifo._was_open = True
        fifo._cancel = None


cdef void shut(Fifo fifo) noexcept:
    notice_fork(fifo)
    if fifo._state != CLOSED:
        fifo._state = CLOSED
        fifo._cancel = None
        put_ahead(fifo, None)
        fifo._news += 1
        wake(fifo._waiters)
        if fifo._users == 0:
            drop(fifo)


cdef bint peer_came(Fifo fifo) except -1:
    """Whether the peer has come, by a fresh look."""
    cdef int fd = fifo._fd, there
    if fifo._state == OPEN:
        return True
    if fd < 0:
        return open_again(fifo)
    if fifo._access == O_WRONLY:
        with nogil:
            there = writer_connected(fd)
    else:
        there = writer_there(fifo)
        if there <= 0 and look_at(fd):      # data that a writer left, or the hang-up of one
            there = 1
    if there > 0:
        become_open(fifo)
    return there > 0


cdef int writer_there(Fifo fifo) except -2:
    """1: a writer holds the fifo, or has left data in it; 0: neither; -1: there is no telling."""
    cdef int fd = fifo._fd, there
    cdef char byte
    cdef ssize_t got
    with nogil:
        there = has_writer(fd)
    if there > -1 or not PORTABLE:
        return max(there, -1)
    if look_at(fd) & POLLIN:
        return 1
    with nogil:
        got = c_read(fd, &byte, 1)
        there = errno
    if got > 0:
        put_ahead(fifo, all_ahead(fifo) + (&byte)[:1])
    return 1 if got > 0 or (got < 0 and there == EAGAIN) else 0


cdef bint open_again(Fifo fifo) except -1:
    """Opens the write end that could not be opened before its reader came."""
    cdef bytes encoded = os.fsencode(fifo.path)
    cdef const char *path = encoded
    cdef int fd, number
    with nogil:
        fd = open_held(path, fifo._handle, fifo._device, fifo._inode, O_WRONLY)
        number = errno
    if fd < 0:
        if number == ENXIO or number == EINTR:
            return False
        raise failed(fifo, number, "open")
    if fifo._fd >= 0 or fifo._state == CLOSED:      # another thread was quicker
        c_close(fd)
    else:
        fifo._fd = fd
    become_open(fifo)
    return True


cdef int check_patience(Fifo fifo) except -1:
    """Ends an opening that was cancelled or took too long; of no concern once the peer has come."""
    if fifo._state != OPENING:
        return 0
    if fifo._cancel is not None and (<Cancellation>fifo._cancel)._cancelled:
        shut(fifo)
        raise CancelledError(f"could not open fifo {fifo.path!r} {purpose(fifo)}: cancelled before its peer came")
    if fifo._deadline >= 0 and monotonic() >= fifo._deadline:
        shut(fifo)
        raise DeadlineError(
            f"could not open fifo {fifo.path!r} {purpose(fifo)}: its peer did not come in time "
            "(check that the other side runs, or give it longer)"
        )
    return 0


cdef int await_peer(Fifo fifo, int64_t until) except -1:
    """Returns once the peer has come, or none can come any more. The caller has entered."""
    cdef unsigned int news
    while True:
        news = fifo._news
        if fifo._state == CLOSED:
            raise ClosedError(f"fifo {fifo.path!r} was closed while its peer was waited for")
        if peer_came(fifo) or fifo._no_more_writers:
            return 0
        check_patience(fifo)
        if until >= 0 and monotonic() >= until:
            raise DeadlineError(f"the peer of fifo {fifo.path!r} did not come in time (it is still waited for)")
        wait_turn(fifo, POLLIN, True, sooner(fifo, until), news)


cdef int64_t sooner(Fifo fifo, int64_t until) noexcept:
    if fifo._state != OPENING or fifo._deadline < 0:
        return until
    return fifo._deadline if until < 0 or fifo._deadline < until else until


cdef ssize_t take(Fifo fifo, char *buffer, size_t size) except -1:
    """Up to *size* bytes, at least one unless it is the end (0)."""
    cdef ssize_t got
    cdef unsigned int news
    if fifo._access == O_WRONLY:
        raise not_for(fifo, "reading")
    enter(fifo)
    try:
        while True:
            news = fifo._news
            if fifo._state == CLOSED:
                raise ClosedError(f"fifo {fifo.path!r} was closed while it was read")
            if fifo._ahead is not None:
                return take_ahead(fifo, buffer, size)
            if size == 0:
                return 0
            got = take_now(fifo, buffer, size)
            if got >= 0:
                return got
            check_patience(fifo)
            wait_turn(fifo, POLLIN, False, sooner(fifo, -1), news)
    finally:
        leave(fifo)


cdef ssize_t take_ahead(Fifo fifo, char *buffer, size_t size) except -1:
    cdef bytes ahead = fifo._ahead
    cdef size_t got = min(<size_t>(len(ahead) - fifo._ahead_at), size)
    memcpy(buffer, PyBytes_AsString(ahead) + fifo._ahead_at, got)
    step_ahead(fifo, got)
    return got


cdef bytes all_ahead(Fifo fifo):
    return fifo._ahead[fifo._ahead_at:] if fifo._ahead is not None else b""


cdef void put_ahead(Fifo fifo, bytes ahead) noexcept:
    fifo._ahead, fifo._ahead_at = ahead or None, 0


cdef void step_ahead(Fifo fifo, Py_ssize_t size) noexcept:
    fifo._ahead_at += size
    if fifo._ahead_at == len(fifo._ahead):
        put_ahead(fifo, None)


cdef bytes next_line(Fifo fifo):
    cdef bytes held, block
    cdef Py_ssize_t end, at
    while True:
        if fifo._ahead is not None:         # looked at each time: another thread may have put something there
            held, at = fifo._ahead, fifo._ahead_at
            end = held.find(b"\n", at) + 1
            if end == 0 and len(held) - at >= LINE:
                end = at + LINE
            if end:
                step_ahead(fifo, end - at)
                return held[at:end]
        held = all_ahead(fifo)
        put_ahead(fifo, None)
        try:
            block = fifo.read(BLOCK)
        except BaseException:
            if fifo._state != CLOSED:
                put_ahead(fifo, held + all_ahead(fifo))
            raise
        if not block:
            return held
        put_ahead(fifo, held + block + all_ahead(fifo))


cdef ssize_t take_now(Fifo fifo, char *buffer, size_t size) except -2:
    """One read(2): bytes taken, 0 at the end, -1 when there is nothing now and there may be later.

    A read of nothing means that there is no writer. It is the end when one was there (POLLHUP), or when none can come
    any more; what was known of that *before* the read counts, for a last writer may come and go after it.
    """
    cdef int fd = fifo._fd, number
    cdef bint last = fifo._no_more_writers
    cdef short seen = 0
    cdef ssize_t got
    while True:
        with nogil:
            got = c_read(fd, buffer, size)
            number = errno
            if got == 0:
                seen = look_at(fd)
        if got > 0 or (got == 0 and not seen & POLLIN and seen & POLLHUP):
            become_open(fifo)
            return got
        if got == 0 and not seen & POLLIN:
            return 0 if last else -1
        if got < 0 and number == EAGAIN:
            become_open(fifo)
            return -1
        if got < 0 and number != EINTR:
            raise failed(fifo, number, "read")


cdef ssize_t put(Fifo fifo, iovec *vectors, Py_ssize_t count) except -1:
    """Writes all of it, waiting for the reader and for room. Changes the vectors."""
    cdef ssize_t total = 0, written
    cdef unsigned int news
    if fifo._access == O_RDONLY:
        raise not_for(fifo, "writing")
    enter(fifo)
    try:
        while True:
            while count and not vectors.iov_len:
                vectors += 1
                count -= 1
            if not count:
                return total
            if fifo._state == OPENING:
                await_peer(fifo, -1)
            news = fifo._news
            if fifo._state == CLOSED:
                raise ClosedError(f"fifo {fifo.path!r} was closed while it was written ({total} bytes were)")
            written = put_now(fifo, vectors, count)
            if written < 0:
                wait_turn(fifo, POLLOUT, False, -1, news)
                continue
            total += written
            while count and <size_t>written >= vectors.iov_len:
                written -= vectors.iov_len
                vectors += 1
                count -= 1
            if written:
                vectors.iov_base = <char *>vectors.iov_base + written
                vectors.iov_len -= written
            if count:
                PyErr_CheckSignals()
    finally:
        leave(fifo)


cdef ssize_t put_now(Fifo fifo, iovec *vectors, Py_ssize_t count) except -2:
    """One writev(2): bytes written, -1 when there is no room now."""
    cdef int fd = fifo._fd, number = 0, some = <int>min(count, <Py_ssize_t>VECTORS)
    cdef ssize_t written
    while True:
        with nogil:
            written = write_quietly(fd, vectors, some, &number)
        if written >= 0:
            return written
        if number == EAGAIN:
            return -1
        if number != EINTR:
            raise failed(fifo, number, "write")


cdef object purpose(Fifo fifo):
    return {O_RDONLY: "for reading", O_WRONLY: "for writing"}.get(fifo._access, "for reading and writing")


cdef object not_for(Fifo fifo, wanted):
    return InvalidArgumentError(f"fifo {fifo.path!r} is open {purpose(fifo)} only, not for {wanted}")


cdef object failed(Fifo fifo, int number, call):
    if call == "read" or call == "write":
        return from_errno(number, f"{call} fifo {fifo.path!r} ({call})")
    hint = "something else has taken its place meanwhile" if number == ESTALE else ""
    return from_errno(number, f"open fifo {fifo.path!r} {purpose(fifo)} ({call})", hint)
