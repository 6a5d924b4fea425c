# How a thread waits (a part of fifo.pyx): one turn of waiting, and what wakes it.
#
# All that is shared here is guarded by the GIL. A caller looks at the fifo, which lets go of the GIL, and then waits a turn,
# which lets go of it once more, around the poll. Whoever closes, or says that no writer comes any more, counts that in
# `_news` and then wakes those in the list, without letting go of the GIL between. So he either did that before the turn,
# and then the count is not the one that the caller read before its look, and the turn ends at once; or he finds the
# waiter in the list and adds to its eventfd. A cancellation is looked at after the look at the fifo, with nothing between
# that and the turn. So no wake-up is lost. A turn leaves nothing behind, so that Python code (a signal handler that closes,
# raises or forks) runs between turns only.

cdef int64_t RETRY = 25 * 1000000     # ns until the next look where nothing announces a peer
cdef int KEPT = 16                    # idle wakers that are kept

cdef struct Waker:
    int[2] fds                        # read from, write to

cdef Waker *wakers = NULL             # first the idle ones, then the borrowed ones
cdef int wakers_idle = 0, wakers_all = 0, wakers_room = 0
cdef int process_generation = 0       # how many forks lie between this process and the one that imported the module

cdef sigset_t only_interrupt
sigemptyset(&only_interrupt)
sigaddset(&only_interrupt, SIGINT)


cdef bint borrow_waker(int *fds) noexcept:
    """A waker for one turn; false, and both -1, when there is none to be had: then the turn must be short."""
    global wakers, wakers_idle, wakers_all, wakers_room
    cdef Waker *more
    fds[0] = fds[1] = -1
    if wakers_idle:
        wakers_idle -= 1
        fds[0], fds[1] = wakers[wakers_idle].fds[0], wakers[wakers_idle].fds[1]
        return True
    if wakers_all == wakers_room:
        more = <Waker *>realloc(wakers, (wakers_room + KEPT) * sizeof(Waker))
        if more == NULL:
            return False
        wakers, wakers_room = more, wakers_room + KEPT
    if wake_pair(fds) < 0:
        return False
    wakers[wakers_all].fds[0], wakers[wakers_all].fds[1] = fds[0], fds[1]
    wakers_all += 1
    return True


cdef void close_waker(Waker *waker) noexcept nogil:
    c_close(waker.fds[0])
    if waker.fds[1] != waker.fds[0]:
        c_close(waker.fds[1])


cdef void return_waker(int *fds) noexcept:
    global wakers_idle, wakers_all
    cdef int i = wakers_idle
    while wakers[i].fds[0] != fds[0]:
        i += 1
    if wakers_idle < KEPT:
        wakers[i] = wakers[wakers_idle]
        wakers[wakers_idle].fds[0], wakers[wakers_idle].fds[1] = fds[0], fds[1]
        wakers_idle += 1
    else:
        close_waker(&wakers[i])
        wakers_all -= 1
        wakers[i] = wakers[wakers_all]


cdef void forget_wakers() noexcept:
    """After a fork, in the child: the parent waits on the same eventfds, and their borrowers do not exist here."""
    global wakers_idle, wakers_all
    cdef int i
    for i in range(wakers_all):
        close_waker(&wakers[i])
    wakers_idle = wakers_all = 0


cdef void wake(Waiter *waiter) noexcept:
    cdef uint64_t one = 1
    while waiter != NULL:
        waiter.woken = True
        if waiter.wake_fd >= 0:
            c_write(waiter.wake_fd, &one, sizeof(one))
        waiter = waiter.next


cdef inline void join(Waiter **waiters, Waiter *me, int wake_fd) noexcept:
    me.wake_fd, me.woken, me.next = wake_fd, False, waiters[0]
    waiters[0] = me


cdef inline void part(Waiter **waiters, Waiter *me) noexcept:
    while waiters[0] != me:
        waiters = &waiters[0].next
    waiters[0] = me.next


cdef int wait_turn(Fifo fifo, short events, bint for_peer, int64_t until, unsigned int news) except -1:
    """One turn: until the fifo is ready for *events*, somebody opened it (*for_peer*), the fifo was closed, the wait
    cancelled, a signal came, or *until* (CLOCK_MONOTONIC, ns; -1: no limit) is reached; or for no reason. The caller
    looks again at everything. *news* is what the fifo's count was before its last look. Raises what a signal handler raises.
    """
    cdef pollfd[3] polled
    cdef int[2] waker
    cdef char[64] drained
    cdef Waiter in_fifo, in_cancel
    cdef Cancellation cancel = fifo._cancel
    cdef sigset_t before
    cdef int fd = fifo._fd, token = -1, there = 0
    cdef int64_t left = -1
    if fifo._news != news:
        return 0
    cdef bint announced = fd >= 0 and not PORTABLE
    # Of a first writer poll tells, with its first byte or its hang-up; of a reader, or of a writer that only opens, nothing.
    cdef bint hurry = not borrow_waker(waker) or (fifo._state == OPENING and not announced and (for_peer or fd < 0))
    polled[0].fd = waker[0]
    polled[0].events = POLLIN
    # A writer without a reader has nothing to poll: POLLERR would never be silent.
    polled[1].fd = -1 if for_peer and fifo._access == O_WRONLY else fd
    polled[1].events = events
    polled[2].fd = -1
    polled[2].events = POLLIN
    join(&fifo._waiters, &in_fifo, waker[1])
    if cancel is not None:
        cancel._after_fork()
        join(&cancel._waiters, &in_cancel, waker[1])
    # An interrupt that comes between the last look at signals and the poll would be slept through. So SIGINT is held back
    # until the poll, which lets it in atomically; one that was noted before that ends the turn.
    pthread_sigmask(SIG_BLOCK, &only_interrupt, &before)
    if PyOS_InterruptOccurred():
        PyErr_SetInterrupt()
    else:
        with nogil:
            if for_peer and announced:
                if waker[1] >= 0:
                    token = peer_watch(fd, waker[1])
                polled[2].fd = peer_fd()
                if fifo._access == O_WRONLY:
                    there = writer_connected(fd)
                else:
                    there = has_writer(fd)
                hurry = hurry or token < 0 or there < 0
            while there <= 0:
                if until >= 0:
                    left = max(until - monotonic(), <int64_t>0)
                if hurry and (left < 0 or left > RETRY):
                    left = RETRY
                polled[0].revents = polled[1].revents = polled[2].revents = 0
                ppoll(polled, 3, left, &before)
                if not polled[2].revents:
                    break
                peer_dispatch()
                if polled[0].revents or polled[1].revents:
                    break
                # Events for others only, or for us: then our eventfd is readable now, and the next poll returns at once.
            if token >= 0 and fifo._access == O_WRONLY and writer_connected(fd):
                settled(fd)      # if not, the caller will see so
            if token >= 0:
                peer_unwatch(token)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    part(&fifo._waiters, &in_fifo)
    if cancel is not None:
        part(&cancel._waiters, &in_cancel)
    if waker[0] >= 0:
        if token >= 0 or in_fifo.woken or (cancel is not None and in_cancel.woken):
            c_read(waker[0], drained, sizeof(drained))
        return_waker(waker)
    PyErr_CheckSignals()
    return 0


cdef class Cancellation:
    """A one-way switch: ends the wait for a peer of every fifo that was opened with it (C14, C15). Thread-safe."""

    def cancel(self) -> None:
        """Throws the switch. Waits under way raise `CancelledError`; a second time does nothing."""
        self._cancelled = True
        self._after_fork()
        wake(self._waiters)

    cdef void _after_fork(self) noexcept:
        if self._generation != process_generation:     # those who wait are the parent's threads
            self._generation = process_generation
            self._waiters = NULL

    @property
    def cancelled(self) -> bool:
        """Whether it was thrown."""
        return self._cancelled
