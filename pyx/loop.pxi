# The relay thread (a part of relay.pyx): it waits in one place, for all pumps, and takes turns with those that can move.
# It never takes the GIL.

cdef enum:
    TAG_WAKE = 1            # tags of the poller that are no pump; with a pump, the lowest bit says which end
    TAG_PEERS = 2
    TAG_PEER_EVENTS = 3
    BATCH = 64
    LOOK_AGAIN = 25         # ms, for a pending sink without a watch
    SETTLE = 1              # ms that a reader must have been there, see `settle`
    IDLE = 1000             # ms without a byte, after which a grown pipe is given back
    MS = 1000000            # ns
    LOOK_OFTEN = 50000      # ns between two looks at a resting source, at least
    LOOK_RARELY = 1000000   # and at most
    AWAKE = 20000000        # ns that one whose pipe was almost full does not rest
    SOON = 250000           # ns within which a source has nothing again: it may rest


# --- pumps ---------------------------------------------------------------------------------------------------------


cdef void make_ready(pump_t *pump) noexcept nogil:
    """At the end of the list of those that take a turn."""
    if pump.in_ready or pump.ended or pump.done:
        return
    pump.in_ready = True
    pthread_mutex_lock(&lock)
    pump.references += 1
    pthread_mutex_unlock(&lock)
    pump.next_ready = NULL
    if relay.ready == NULL:
        relay.ready = pump
    else:
        relay.last_ready.next_ready = pump
    relay.last_ready = pump


cdef int poll_end(pump_t *pump, End *end, unsigned int events, uint64_t side) noexcept nogil:
    cdef int number
    if end.fd < 0 or end.polled:
        return 0
    number = poller_add(&relay.poller, end.fd, events, True, <uint64_t>pump | side)
    if number == 0:
        end.polled = True
        return 0
    if number != EPERM:
        return number
    end.ready = True
    if end.how == ASK:
        end.how = PLAIN
    return 0


cdef void unpoll(End *end) noexcept nogil:
    if end.polled:
        end.polled = False
        poller_remove(&relay.poller, end.fd)


cdef bint rest(pump_t *pump, bint more) noexcept nogil:
    """A source that is thrown away has given what it had, or there is *more*: what is waited for, its next event or some
    time? True when it rests now.

    For each piece its writer would wake this thread, and so its processor, which costs both of them several times what the
    bytes do; and one that writes without a pause and this thread would keep each other from the pipe. So the events of one
    that gives again and again are not asked for, and it is looked at by the clock, the rarer the less it fills; when there
    was nothing, they are asked for again, and nothing is missed: what came meanwhile is an event by then. A hang-up is told
    in any case. Nobody waits for these bytes, so none is late. Its writer does not wait either, while a look comes before
    the pipe is full: one that was found so, because its pipe is small or this thread had to wait for a processor, does not
    rest for a while, for then the events come rarely by themselves.
    """
    cdef int64_t now = monotonic()
    cdef int64_t given = pump.given
    cdef bint again = (more or now - pump.waited < SOON) and now >= pump.awake_until
    cdef int64_t room
    pump.waited = now
    pump.given = 0
    if not pump.every:
        if not again or not given or not pump.source.pipe or not pump.source.polled:
            return False
        if poller_is_fine(&relay.poller) and poller_ask(&relay.poller, pump.source.fd, 0, <uint64_t>pump) == 0:
            pump.every = LOOK_OFTEN
    elif not given or now < pump.awake_until or not poller_is_fine(&relay.poller):
        pump.every = 0
        poller_ask(&relay.poller, pump.source.fd, POLLIN, <uint64_t>pump)
    else:
        room = pipe_size(pump.source.fd)
        if 2 * given >= room:
            pump.every = max(pump.every // 2, <int64_t>LOOK_OFTEN)
        elif 8 * given < room:
            pump.every = min(pump.every * 2, <int64_t>LOOK_RARELY)
    if not pump.every:
        return False
    if pump.resting:
        return True
    pump.resting = True
    pthread_mutex_lock(&lock)
    pump.references += 1
    pthread_mutex_unlock(&lock)
    if relay.resting == NULL or now + pump.every < relay.look_at:
        relay.look_at = now + pump.every
    pump.next_resting = relay.resting
    relay.resting = pump
    return True


cdef void end_rests(int64_t now) noexcept nogil:
    """Those that have rested take a turn, and those with them that would half of the shortest rest later: one wake-up is less
    than two. Only few are in the list, for none that is quiet stays there.
    """
    cdef pump_t **place = &relay.resting
    cdef pump_t *pump
    cdef int64_t ends
    cdef int there
    relay.look_at = now + LOOK_RARELY
    while place[0] != NULL:
        pump = place[0]
        ends = pump.waited + pump.every
        if ends > now + LOOK_OFTEN // 2 and not pump.done:
            relay.look_at = min(relay.look_at, ends)
            place = &pump.next_resting
            continue
        place[0] = pump.next_resting
        pump.resting = False
        if not pump.done and ioctl(pump.source.fd, FIONREAD, &there) == 0 and 4 * there >= 3 * pipe_size(pump.source.fd):
            pump.awake_until = now + AWAKE
        make_ready(pump)
        pthread_mutex_lock(&lock)
        forget(pump)
        pthread_mutex_unlock(&lock)


cdef void over(pump_t *pump) noexcept nogil:
    """The end of a pump: everything of it is let go, and who waits for it is told."""
    if pump.pending and pump.token >= 0:
        peer_unwatch(pump.token)
    pump.pending = False
    shrink(&pump.source)
    shrink(&pump.sink)
    if pump.source.grown_from:
        relay.grown -= 1
    if pump.sink.grown_from:
        relay.grown -= 1
    pthread_mutex_lock(&lock)
    unpoll(&pump.source)
    unpoll(&pump.sink)
    close_end(&pump.source)
    close_end(&pump.sink)
    free(pump.rest)
    pump.rest = NULL
    if pump.kind == CALL and pump.error_at in (NOWHERE, SOURCE):
        pump.ended = True           # done when the callback has had everything, see `handle`
        queue_job(pump)
    else:
        become_done(pump)
    unlist(pump)
    pthread_mutex_unlock(&lock)


cdef void turn(pump_t *pump) noexcept nogil:
    cdef uint64_t before = pump.moved
    cdef int result
    if pump.kind == DISCARD:
        result = turn_discard(pump)
    elif pump.kind == COPY:
        result = turn_copy(pump)
    else:
        result = turn_buffer(pump)
        pthread_mutex_lock(&lock)
        if pump.held:                   # after the turn, not amid it: a loop is woken for much at once
            ring(pump)
        pthread_mutex_unlock(&lock)
    if result == OVER:
        over(pump)
        return
    if not pump.tried_growing and pump.moved - before >= PIECE:     # it moves a pipe full at a time
        pump.tried_growing = True
        grow(&pump.source)
        if pump.sink.how == OURS:
            grow(&pump.sink)
    if result == AGAIN:
        make_ready(pump)


cdef void begin(pump_t *pump) noexcept nogil:
    cdef int number = poll_end(pump, &pump.source, POLLIN, 0)
    if number == 0:
        number = poll_end(pump, &pump.sink, POLLOUT, 1)
    if pump.sink.null and pump.sink.how != PLAIN:
        pump.splices = False            # a device that can wait would do so in splice
    if number == 0 and pump.pending:
        watch(pump)
    if number:
        pthread_mutex_lock(&lock)
        fail(pump, number, WATCH)
        pthread_mutex_unlock(&lock)
        over(pump)
        return
    if pump.kind == CALL and pump.held:     # read ahead by the fifo
        pthread_mutex_lock(&lock)
        queue_job(pump)
        pthread_mutex_unlock(&lock)
    if pump.source.ready or pump.no_more or pump.bounded or pump.rest != NULL:
        make_ready(pump)


cdef void watch(pump_t *pump) noexcept nogil:
    """First the watch, then the look: a reader that opens in between makes an event (see peer_watch)."""
    cdef int fd
    pump.token = -1
    pump.watched = True
    if pump.sink.fd >= 0 and not writer_connected(pump.sink.fd):
        pump.token = peer_watch(pump.sink.fd, relay.peers[1])
        fd = peer_fd()
        if pump.token >= 0 and poller_add(&relay.poller, fd, POLLIN, False, TAG_PEER_EVENTS) not in (0, EEXIST):
            peer_unwatch(pump.token)
            pump.token = -1
    settle(pump)


cdef void settle(pump_t *pump) noexcept nogil:
    """Looks whether the reader of a pending sink is there.

    It counts when it is there at two looks, 1 ms apart: a writer that opens the same fifo in another process is its own
    reader for a moment.
    """
    cdef bint there
    cdef int64_t now = monotonic()
    if PORTABLE and pump.sink.fd < 0 and not open_sink(pump):
        return
    there = pump.sink.fd >= 0 and writer_connected(pump.sink.fd)
    if there and pump.seen and now - pump.seen >= SETTLE * 1000000:
        if pump.token >= 0:
            peer_unwatch(pump.token)
        pump.token = -1
        pump.pending = False
        wait_for(&pump.sink)    # what was told of it while it was pending has been let go
        make_ready(pump)
        return
    if not there:
        pump.seen = 0
    elif not pump.seen:
        pump.seen = now
    relay.timed = relay.timed or there or pump.token < 0


cdef bint open_sink(pump_t *pump) noexcept nogil:
    """Opens the pending sink that could not be opened before its reader came, if he has. False: it has failed."""
    cdef int number
    pump.sink.fd = open_held(pump.sink_path, -1, pump.sink_device, pump.sink_inode, O_WRONLY)
    if pump.sink.fd >= 0:
        number = poll_end(pump, &pump.sink, POLLOUT, 1)
    else:
        number = 0 if errno in (ENXIO, EINTR, EMFILE, ENFILE) else errno
    if not number:
        return True
    pump.pending = False
    pump.sink_error = number
    make_ready(pump)
    return False


cdef void settle_all() noexcept nogil:
    """The list of all changes under the lock only; this thread alone takes pumps out, others only put in at its head."""
    cdef pump_t *pump
    cdef pump_t *next
    relay.timed = False
    pthread_mutex_lock(&lock)
    pump = relay.all
    pthread_mutex_unlock(&lock)
    while pump != NULL:
        next = pump.next
        if pump.pending and pump.watched:
            settle(pump)
        pump = next


cdef void give_back() noexcept nogil:
    """Shrinks the grown pipes through which nothing has come since the last time."""
    cdef pump_t *pump
    pthread_mutex_lock(&lock)
    pump = relay.all
    pthread_mutex_unlock(&lock)
    while pump != NULL:
        if pump.source.grown_from or pump.sink.grown_from:
            if pump.swept == pump.moved:
                shrink(&pump.source)
                shrink(&pump.sink)
                pump.tried_growing = False
            pump.swept = pump.moved
        pump = pump.next


cdef void obey(pump_t *pump, unsigned int commands) noexcept nogil:
    cdef int there = 0
    if pump.ended or pump.done:
        return
    if commands & CANCEL:
        pthread_mutex_lock(&lock)
        fail(pump, ECANCELED, CANCELLED)
        pthread_mutex_unlock(&lock)
        over(pump)
        return
    if commands & SINK_GONE:
        pump.draining = True
    if commands & NO_MORE:
        pump.no_more = pump.source.ready = True
    if commands & FINISH and not pump.bounded:
        if ioctl(pump.source.fd, FIONREAD, &there) < 0:
            there = 0
        pump.bounded = pump.source.ready = True
        pump.remaining = there
    if commands & START:
        begin(pump)
    else:
        make_ready(pump)


cdef void event_of(pump_t *pump, bint sink, unsigned int events) noexcept nogil:
    cdef int number = 0
    cdef socklen_t size = sizeof(number)
    if not sink:
        pump.source.ready = True
        if events & POLLHUP and pump.source.pipe:
            pump.hung_up = True
    else:
        if pump.pending:
            return              # its reader has never been there: that is what the error says
        if events & POLLERR or (events & POLLHUP and (PORTABLE or not pump.sink.pipe)):
            if pump.sink.how == SOCKET:
                getsockopt(pump.sink.fd, SOL_SOCKET, SO_ERROR, &number, &size)
            elif pump.sink.terminal:
                number = EIO
            pump.sink_error = number or EPIPE
    make_ready(pump)


# --- the thread ----------------------------------------------------------------------------------------------------


cdef void empty(int fd) noexcept nogil:
    cdef char[64] bytes
    while c_read(fd, bytes, sizeof(bytes)) == sizeof(bytes):
        pass


cdef int64_t patience() noexcept nogil:
    """How long to wait for an event, in ns; -1: until there is one."""
    cdef int64_t ns = -1
    cdef int64_t left
    if relay.ready != NULL:
        return 0
    if relay.timed:
        ns = <int64_t>(SETTLE if someone_seen() else LOOK_AGAIN) * MS
    elif relay.grown:
        ns = <int64_t>IDLE * MS
    if relay.resting != NULL:
        left = max(relay.look_at - monotonic(), 0)
        ns = left if ns < 0 else min(ns, left)
    return ns


cdef bint someone_seen() noexcept nogil:
    cdef pump_t *pump
    pthread_mutex_lock(&lock)
    pump = relay.all
    pthread_mutex_unlock(&lock)
    while pump != NULL:
        if pump.pending and pump.seen:
            return True
        pump = pump.next
    return False


cdef bint take_commands() noexcept nogil:
    """False when the thread is to end."""
    cdef pump_t *pump
    cdef unsigned int commands
    cdef bint stop
    while True:
        pthread_mutex_lock(&lock)
        stop = relay.stop
        pump = NULL if stop else relay.commands
        if pump != NULL:
            relay.commands = pump.next_command
            commands = pump.commands
            pump.commands = 0
        pthread_mutex_unlock(&lock)
        if pump == NULL:
            return not stop
        obey(pump, commands)
        pthread_mutex_lock(&lock)
        forget(pump)
        pthread_mutex_unlock(&lock)


cdef void *run(void *nothing) noexcept nogil:
    cdef seen_t[BATCH] seen
    cdef pump_t *pump
    cdef pump_t *last
    cdef uint64_t tag
    cdef int64_t swept = monotonic()
    cdef int64_t settled = swept
    cdef int64_t now
    cdef int i, count
    cdef bint commanded, opened
    begin_thread(b"ctrd-relay")
    while True:
        count = poller_wait(&relay.poller, seen, BATCH, patience())
        commanded = opened = False
        for i in range(count):
            tag = tag_of(&seen[i])
            if tag == TAG_WAKE:
                empty(relay.wake[0])
                commanded = True
            elif tag == TAG_PEERS:
                empty(relay.peers[0])
                opened = True
            elif tag == TAG_PEER_EVENTS:
                peer_dispatch()
            else:
                event_of(<pump_t *>(tag & ~<uint64_t>1), tag & 1, events_of(&seen[i]))
        if relay.resting != NULL:
            now = monotonic()
            if now >= relay.look_at:
                end_rests(now)
        # Pumps end only from here on, when no event of the batch is left that could name one.
        if commanded and not take_commands():
            return NULL
        if opened or (relay.timed and monotonic() - settled >= SETTLE * 1000000):
            settled = monotonic()
            settle_all()
        last = relay.last_ready
        while relay.ready != NULL:
            pump = relay.ready
            relay.ready = pump.next_ready
            pump.in_ready = False
            if not pump.ended and not pump.done:
                turn(pump)
            pthread_mutex_lock(&lock)
            i = pump == last
            forget(pump)
            pthread_mutex_unlock(&lock)
            if i:
                break
        if relay.grown and monotonic() - swept >= <int64_t>IDLE * 1000000:
            swept = monotonic()
            give_back()
