# What is given to a pump (a part of relay.pyx): fifos are handed over, descriptors are duplicated, and each is looked at
# once, so that the relay thread knows how to use it without ever waiting in it, and without touching flags others share.


cdef take_source(Pump pump, source):
    pump.source = name_of(source)
    if isinstance(source, Fifo):
        if (<Fifo>source).is_writer():
            raise InvalidArgumentError(f"{pump.source} is open for writing: it cannot be a source")
        if (<Fifo>source)._no_more_writers:
            pump.pump.no_more = True
        pump.pump.source.fd = never_wait((<Fifo>source).release())
        pump.pump.source.how = OURS
        pump.pump.source.pipe = True
    else:
        take_descriptor(pump.source, &pump.pump.source, source, False, False)


cdef take_sink(Pump pump, sink, bint take_over):
    cdef pump_t *p = pump.pump
    pump.sink = name_of(sink)
    if isinstance(sink, Fifo):
        if (<Fifo>sink)._access == O_RDONLY:
            raise InvalidArgumentError(f"{pump.sink} is open for reading: it cannot be a sink")
        p.pending = (<Fifo>sink).is_writer() and not sink.connected
        p.sink.fd = never_wait((<Fifo>sink).release())
        p.sink.how = OURS
        p.sink.pipe = True
    else:
        take_descriptor(pump.sink, &p.sink, sink, True, take_over)
    p.splices = (p.source.pipe and (p.sink.pipe or p.sink.plain_file or p.sink.null)) or (
        p.source.plain_file and p.sink.pipe
    )


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
        end.how, end.pipe = PIPE, True
    elif S_ISSOCK(status.st_mode):
        end.how = SOCKET
    elif S_ISREG(status.st_mode) or S_ISBLK(status.st_mode):
        end.how, end.plain_file = PLAIN, S_ISREG(status.st_mode) and not (writes and access & O_APPEND)
    elif isatty(fd):
        end.terminal = True
        end.fd = -1 if is_terminal_master(fd) else reopen(fd, access & O_ACCMODE)     # a master opens as a new terminal
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


cdef int reopen(int fd, int access) except -2:
    """A terminal as an open file of our own, so that to make it nonblocking does not make others' so. -1: refused."""
    cdef bytes path = f"/proc/self/fd/{fd}".encode()
    return c_open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
