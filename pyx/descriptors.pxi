# What is given to a pump (a part of relay.pyx): fifos are handed over, descriptors are duplicated, and each is looked at
# once, so that the relay thread knows how to use it without ever waiting in it, and without touching flags others share.


cdef take_source(Pump pump, source):
    pump.source = name_of(source)
    if isinstance(source, Fifo):
        if (<Fifo>source).is_writer():
            raise InvalidArgumentError(f"{pump.source} is open for writing: it cannot be a source")
        if (<Fifo>source)._no_more_writers:
            pump.pump.no_more = True
        take_ahead(pump.pump, source)
        pump.pump.source.fd = never_wait((<Fifo>source).release())
        pump.pump.source.how = OURS
        pump.pump.source.pipe = True
    else:
        take_descriptor(pump.source, &pump.pump.source, source, False, False)


cdef take_ahead(pump_t *p, Fifo source):
    """What the fifo has read ahead goes first."""
    cdef bytes ahead = source._ahead[source._ahead_at:] if source._ahead is not None else None
    cdef size_t size
    cdef Chunk *chunk
    if ahead is None:
        return
    size = <size_t>len(ahead)
    if p.kind == DISCARD:
        p.moved = size
    elif p.kind == COPY:
        p.rest = <char *>malloc(size)
        if p.rest == NULL:
            raise MemoryError
        memcpy(p.rest, <const char *>ahead, size)
        p.rest_start, p.rest_end = 0, size
    else:
        chunk = <Chunk *>malloc(sizeof(Chunk) + size)
        if chunk == NULL:
            raise MemoryError
        chunk.next, chunk.start, chunk.end, chunk.size = NULL, 0, size, size
        memcpy(bytes_of(chunk), <const char *>ahead, size)
        p.head = p.tail = chunk
        p.held = p.moved = size
    source._ahead, source._ahead_at = None, 0


cdef take_sink(Pump pump, sink, bint take_over):
    cdef pump_t *p = pump.pump
    pump.sink = name_of(sink)
    if isinstance(sink, Fifo):
        if (<Fifo>sink)._access == O_RDONLY:
            raise InvalidArgumentError(f"{pump.sink} is open for reading: it cannot be a sink")
        p.pending = (<Fifo>sink).is_writer() and not sink.connected
        if p.pending and (<Fifo>sink)._fd < 0:
            take_path(p, sink)
        else:
            p.sink.fd = never_wait((<Fifo>sink).release())
        p.sink.how = OURS
        p.sink.pipe = True
    else:
        take_descriptor(pump.sink, &p.sink, sink, True, take_over)
    p.splices = not PORTABLE and (
        (p.source.pipe and (p.sink.pipe or p.sink.plain_file or p.sink.null)) or (p.source.plain_file and p.sink.pipe)
    )


cdef take_path(pump_t *p, Fifo sink):
    """A write end that cannot be opened before its reader has come: the relay does it then (`settle`)."""
    cdef bytes path = os.fsencode(sink.path)
    cdef Py_ssize_t size = len(path) + 1
    p.sink_path = <char *>malloc(<size_t>size)
    if p.sink_path == NULL:
        raise MemoryError
    memcpy(p.sink_path, <const char *>path, <size_t>size)
    p.sink_device, p.sink_inode = sink._device, sink._inode
    sink.close()


cdef int never_wait(int fd) noexcept:
    """The open file of a fifo is ours alone by now, and so are its flags."""
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
    return fd


cdef str name_of(end):
    if isinstance(end, Fifo):
        return f"fifo {end.path!r}"
    if isinstance(end, int) and end >= 0:
        return f"descriptor {end}"
    raise InvalidArgumentError(f"a source or sink is a Fifo or a descriptor, not {end!r}")


cdef take_descriptor(str name, End *end, int fd, bint writes, bint take_over):
    """A duplicate of the caller's descriptor, or an open file of our own where a nonblocking one is needed."""
    cdef int access = fcntl(fd, F_GETFL)
    cdef c_stat status
    if access < 0 or fstat(fd, &status) < 0:
        raise from_errno(errno, f"use {name} (fcntl)")
    if access & O_PATH or (access & O_ACCMODE) not in (O_RDWR, O_WRONLY if writes else O_RDONLY):
        raise InvalidArgumentError(f"{name} is not open for {'writing' if writes else 'reading'}")
    if S_ISDIR(status.st_mode):
        raise InvalidArgumentError(f"{name} is a directory")
    end.how = ASK
    end.piece = PIPE_BUF
    if S_ISFIFO(status.st_mode):
        end.how, end.pipe = ASK if PORTABLE else PIPE, True
    elif S_ISSOCK(status.st_mode):
        end.how = SOCKET
    elif S_ISREG(status.st_mode) or S_ISBLK(status.st_mode):
        end.how, end.plain_file = PLAIN, S_ISREG(status.st_mode) and not (writes and access & O_APPEND)
    elif isatty(fd):
        end.terminal = True
        if not is_terminal_master(fd):      # a master opens as a new terminal
            end.fd = open_terminal(fd, access & O_ACCMODE | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
        if end.fd >= 0:
            end.how = OURS
        elif writes:
            # Where poll says "writable", a terminal has room for 256 characters at least; a tab may become eight.
            end.piece = 32
    elif S_ISCHR(status.st_mode):
        end.null = True
    if end.fd < 0:
        end.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        if end.fd < 0:
            raise from_errno(errno, f"duplicate {name} (fcntl)")
    if take_over:
        os.close(fd)
