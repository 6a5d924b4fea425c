# How bytes move (a part of relay.pyx): what the relay thread does to two descriptors, without the GIL, never waiting in a
# system call. Whoever gets EAGAIN from here waits for an edge of the poller (`wait_for`); since every edge since the pump
# was added leads to another try, and a try ends with EAGAIN, nothing that became possible meanwhile is missed.
#
# The portable build has no way but `ASK` to a pipe whose flags others share. Another process that reads from it, or fills
# it, between the question and the answer can make the relay wait there: POSIX has no call that would not.

cdef enum:
    PIECE = 65536           # bytes of one read or write
    TURN = 1048576          # bytes of one turn of one pump, so that the others get theirs
    GROWN = 1048576         # bytes of a grown pipe
    FEW_GROWN = 8           # pipes grown by this process, where they count against the user's share
    FIRST_CHUNK = 4096
    LAST_CHUNK = 262144

cdef char[PIECE] scratch    # relay thread only
cdef size_t UNLIMITED = <size_t>-1


cdef short look(int fd, short events) noexcept nogil:
    cdef pollfd polled
    polled.fd, polled.events, polled.revents = fd, events, 0
    c_poll(&polled, 1, 0)
    return polled.revents


cdef ssize_t take(End *end, char *buffer, size_t size) noexcept nogil:
    """read(2) that never waits: the bytes read, 0 at the end or (a fifo) without a writer, -errno."""
    cdef ssize_t got = -1
    cdef ssize_t more
    cdef size_t done = 0
    if end.how == SOCKET:
        got = recv(end.fd, buffer, size, MSG_DONTWAIT)
    elif end.how == PIPE:
        got = move(end.fd, relay.scratch[1], size)
        if got > 0:
            while done < <size_t>got:
                more = c_read(relay.scratch[0], buffer + done, <size_t>got - done)
                if more <= 0:
                    return -EIO
                done += <size_t>more
            return got
    else:
        if end.how == ASK:
            if not look(end.fd, POLLIN):
                return -EAGAIN
            if not end.pipe:        # which gives what it has and waits for no more
                size = min(size, <size_t>end.piece)
        got = c_read(end.fd, buffer, size)
    if got >= 0:
        return got
    if end.terminal and errno == EIO:
        return 0                # the other side of a terminal has hung up: its end
    return -errno


cdef ssize_t put(End *end, const char *data, size_t size) noexcept nogil:
    """write(2) that never waits: the bytes written, or -errno."""
    cdef ssize_t gone, moved
    cdef size_t over
    cdef char[4096] lost
    if end.how == SOCKET:
        gone = send(end.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        return gone if gone >= 0 else -errno
    if end.how == PIPE:         # into the scratch pipe, and from there without waiting; what does not fit is still in data
        gone = c_write(relay.scratch[1], data, size)
        if gone <= 0:
            return -EIO
        moved = move(relay.scratch[0], end.fd, <size_t>gone)
        if moved < 0:
            moved = -errno
        over = <size_t>(gone - max(moved, 0))
        while over:
            gone = c_read(relay.scratch[0], lost, min(over, sizeof(lost)))
            if gone <= 0:
                return -EIO
            over -= <size_t>gone
        return moved
    if end.how == ASK:
        if not look(end.fd, POLLOUT):
            return -EAGAIN
        size = min(size, <size_t>end.piece)
    gone = c_write(end.fd, data, size)
    return gone if gone >= 0 else -errno


cdef void grow(End *end) noexcept nogil:
    """A bigger pipe moves more at a time; as long as that is free, or few others have one."""
    cdef int size
    cdef bint free_of_charge
    if not end.pipe or end.grown_from or end.fd < 0:
        return
    size = pipe_size(end.fd)
    if size <= 0 or size >= GROWN:
        return
    free_of_charge = pipes_are_free()
    if not free_of_charge and relay.grown >= FEW_GROWN:
        return
    if pipe_resize(end.fd, GROWN) > 0 and not free_of_charge:
        end.grown_from = size
        relay.grown += 1


cdef void shrink(End *end) noexcept nogil:
    """Gives back what growing took from the user's share. A pipe that holds more than the old size stays, until next time."""
    if end.grown_from and pipe_resize(end.fd, end.grown_from) > 0:
        end.grown_from = 0
        relay.grown -= 1


cdef inline void wait_for(End *end) noexcept nogil:
    """There is nothing now, or no room: the next event says when to try again."""
    end.ready = False
    if end.polled:
        poller_again(&relay.poller, end.fd)


cdef bint at_end(pump_t *pump) noexcept nogil:
    """A read of nothing: whether that is the end.

    Of a pipe only when a writer has been there, or none will come: the hang-up must have been seen *before* the read that
    gave nothing, for a writer may come, write and go between that read and the look.
    """
    if not pump.source.pipe or pump.hung_up or pump.no_more:
        return True
    if look(pump.source.fd, POLLIN) & POLLHUP:
        pump.hung_up = True
        pump.source.ready = True
    else:
        wait_for(&pump.source)
    return False


cdef bint drained(pump_t *pump) noexcept nogil:
    """After `finish`: whether what was there then has been moved."""
    return pump.bounded and pump.remaining <= 0


cdef void sink_failed(pump_t *pump, int number) noexcept nogil:
    pthread_mutex_lock(&lock)
    fail(pump, number, SINK)
    if pump.sink.fd >= 0:
        unpoll(&pump.sink)
        close_end(&pump.sink)
    pthread_mutex_unlock(&lock)
    free(pump.rest)
    pump.rest = NULL
    pump.rest_start = pump.rest_end = 0
    pump.sink_error = 0
    pump.draining = True


cdef void left(pump_t *pump, ssize_t size) noexcept nogil:
    """*size* bytes have left the source."""
    if pump.bounded:
        pump.remaining -= size


cdef void arrived(pump_t *pump, ssize_t size) noexcept nogil:
    """*size* bytes are where they belong."""
    pthread_mutex_lock(&lock)
    pump.moved += <uint64_t>size
    pthread_mutex_unlock(&lock)


cdef enum:                  # what a turn comes to
    WAITS = 0               # for an edge, for room, or for its peer
    AGAIN = 1               # there is more to do
    OVER = 2


cdef int turn_discard(pump_t *pump) noexcept nogil:
    """It tries again at once, also after a splice that took less than it may: what came meanwhile needs no event then."""
    cdef int64_t budget = TURN
    cdef ssize_t got
    cdef bint rests = pump.tried_growing and not (pump.bounded or pump.hung_up or pump.no_more)
    while budget > 0:
        if drained(pump):
            return OVER
        if pump.source.pipe and not PORTABLE:
            got = move(pump.source.fd, relay.null, most(pump, GROWN))
            if got < 0:
                got = -errno
        else:
            got = take(&pump.source, scratch, most(pump, PIECE))
        if got > 0:
            left(pump, got)
            pump.given += got
            if not pump.draining:
                arrived(pump, got)
            budget -= got
            if rests and pump.every and rest(pump, True):
                return WAITS
        elif got == 0:
            if at_end(pump):
                return OVER
            if not pump.source.ready:
                rest(pump, False)
                return WAITS
        elif got == -EAGAIN:
            wait_for(&pump.source)
            if pump.bounded:
                return OVER
            rest(pump, False)
            return WAITS
        elif got != -EINTR:
            return source_failed(pump, <int>-got)
    return WAITS if rests and rest(pump, True) else AGAIN


cdef size_t most(pump_t *pump, size_t size) noexcept nogil:
    return min(size, <size_t>pump.remaining) if pump.bounded else size


cdef int source_failed(pump_t *pump, int number) noexcept nogil:
    pthread_mutex_lock(&lock)
    fail(pump, number, SOURCE)
    pthread_mutex_unlock(&lock)
    return OVER


cdef int turn_copy(pump_t *pump) noexcept nogil:
    cdef int64_t budget = TURN
    cdef ssize_t got, gone
    if pump.sink_error:
        sink_failed(pump, pump.sink_error)
    if pump.draining:
        return OVER if pump.close_source else turn_discard(pump)
    if pump.pending:
        return WAITS
    while budget > 0:
        if pump.rest != NULL:
            gone = put(&pump.sink, pump.rest + pump.rest_start, pump.rest_end - pump.rest_start)
            if gone > 0:
                arrived(pump, gone)
                budget -= gone
                pump.rest_start += <size_t>gone
                if pump.rest_start == pump.rest_end:
                    free(pump.rest)
                    pump.rest = NULL
            elif gone == -EAGAIN or gone == 0:
                wait_for(&pump.sink)
                return WAITS
            elif gone != -EINTR:
                sink_failed(pump, <int>-gone)
                return AGAIN
            continue
        if drained(pump):
            return OVER
        if pump.splices:
            got = move(pump.source.fd, pump.sink.fd, most(pump, GROWN))
            if got > 0:
                left(pump, got)
                arrived(pump, got)
                budget -= got
            elif got == 0:
                if at_end(pump):
                    return OVER
                if not pump.source.ready:
                    return WAITS
            elif errno == EAGAIN:       # one of the two, who knows which: the next edge of either leads here again
                if pump.bounded and not look(pump.source.fd, POLLIN) & POLLIN:
                    return OVER
                return WAITS
            elif errno == EINVAL:
                pump.splices = False
            elif errno != EINTR:
                if not pump.source.pipe and errno not in (EPIPE, ENOSPC):
                    return source_failed(pump, errno)
                sink_failed(pump, errno)
                return AGAIN
            continue
        if not pump.source.ready:
            return OVER if pump.bounded else WAITS
        got = take(&pump.source, scratch, most(pump, PIECE))
        if got == 0:
            if at_end(pump):
                return OVER
        elif got == -EAGAIN:
            wait_for(&pump.source)
        elif got < 0:
            if got != -EINTR:
                return source_failed(pump, <int>-got)
        else:
            left(pump, got)
            gone = put(&pump.sink, scratch, <size_t>got)
            if gone < 0 and gone != -EAGAIN and gone != -EINTR:
                sink_failed(pump, <int>-gone)
                return AGAIN
            gone = max(gone, 0)
            arrived(pump, gone)
            budget -= got
            if gone < got:              # the sink stalls: what it did not take waits here, and the source with it
                pump.rest = <char *>malloc(<size_t>(got - gone))
                if pump.rest == NULL:
                    sink_failed(pump, ENOMEM)
                    return AGAIN
                memcpy(pump.rest, scratch + gone, <size_t>(got - gone))
                pump.rest_start, pump.rest_end = 0, <size_t>(got - gone)
    return AGAIN


cdef Chunk *room(pump_t *pump) noexcept nogil:
    """The chunk to read into; NULL without memory. Needs the lock."""
    cdef Chunk *chunk = pump.tail
    cdef size_t size
    if chunk != NULL:
        if chunk.start == chunk.end:
            chunk.start = chunk.end = 0
        if chunk.end < chunk.size:
            return chunk
    size = FIRST_CHUNK if chunk == NULL else min(2 * chunk.size, <size_t>LAST_CHUNK)
    chunk = <Chunk *>malloc(sizeof(Chunk) + size)
    if chunk != NULL:
        chunk.next = NULL
        chunk.start = chunk.end = 0
        chunk.size = size
        if pump.tail == NULL:
            pump.head = chunk
        else:
            pump.tail.next = chunk
        pump.tail = chunk
    return chunk


cdef int turn_buffer(pump_t *pump) noexcept nogil:
    """Reads into the tail, behind its end, where no reader looks: so that needs no lock, only its announcement does."""
    cdef int64_t budget = TURN
    cdef ssize_t got
    cdef size_t size, limit
    cdef Chunk *chunk
    if pump.draining:
        return OVER if pump.close_source else turn_discard(pump)
    while budget > 0:
        if drained(pump):
            return OVER
        if not pump.source.ready:
            return OVER if pump.bounded else WAITS
        pthread_mutex_lock(&lock)
        limit = UNLIMITED if pump.to_end else pump.limit
        pump.full = pump.held >= limit
        if pump.full:
            pthread_mutex_unlock(&lock)
            return WAITS
        chunk = room(pump)
        if chunk == NULL:
            pthread_mutex_unlock(&lock)
            return source_failed(pump, ENOMEM)
        pump.writing = True
        size = min(limit - pump.held, chunk.size - chunk.end)
        pthread_mutex_unlock(&lock)
        got = take(&pump.source, bytes_of(chunk) + chunk.end, most(pump, size))
        pthread_mutex_lock(&lock)
        pump.writing = False
        if got > 0:
            chunk.end += <size_t>got
            pump.held += <size_t>got
            pump.moved += <uint64_t>got
            wake_waiters(pump)
            if pump.kind == CALL:
                queue_job(pump)
        elif pump.held == 0:
            free_chunks(pump)           # nothing is there: a waiting pump costs no buffer
        pthread_mutex_unlock(&lock)
        if got > 0:
            left(pump, got)
            budget -= got
        elif got == 0:
            if at_end(pump):
                return OVER
        elif got == -EAGAIN:
            wait_for(&pump.source)
        elif got != -EINTR:
            return source_failed(pump, <int>-got)
    return AGAIN
