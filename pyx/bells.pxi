# How an event loop waits for what pumps gather (a part of relay.pyx): for any number of buffers through one descriptor.
#
# `ask` looks and asks under the lock under which the relay adds bytes and ends pumps, so nothing comes between the two. Who
# was told that there is nothing is told once when there is something, or the end, and asks again when he finds that another
# reader was quicker. `ring` says why no such word is lost.


cdef class Bell:
    """A descriptor that becomes readable once one of the buffers that were asked has something, or its end.

    For one event loop: its methods but `ring` are called by the thread of that loop only.
    """

    cdef bell_t *bell
    cdef dict _asked            # buffers by their pump: they live until they are heard of

    def __cinit__(self):
        self._asked = {}
        self.bell = <bell_t *>calloc(1, sizeof(bell_t))
        if self.bell == NULL:
            raise MemoryError
        self.bell.references = 1
        if wake_pair(self.bell.fds) < 0:
            number = errno
            self.bell.fds[0] = self.bell.fds[1] = -1
            raise from_errno(number, "make the descriptor that an event loop waits for (eventfd, pipe)")

    def __dealloc__(self):
        if self.bell != NULL:
            self.end()
            pthread_mutex_lock(&lock)
            let_go_of_bell(self.bell)
            pthread_mutex_unlock(&lock)

    cdef void end(self) noexcept:
        pthread_mutex_lock(&lock)
        close_two(self.bell.fds)
        self.bell.fds[0] = self.bell.fds[1] = -1
        let_go_of_rung(self.bell.rung)
        self.bell.rung = NULL
        pthread_mutex_unlock(&lock)

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self.bell.fds[0]

    def ask(self, Buffer buffer not None) -> bool:
        """False when *buffer* has something now, or its end; else true, and `heard` gives it once, when it has.

        Raises `InvalidArgumentError` when another event loop has asked for it, `ClosedError` when this bell is closed.
        """
        cdef pump_t *pump = buffer.pump
        cdef bint another, there
        if self.bell.fds[0] < 0:
            raise ClosedError(f"the event loop that waits for {buffer.source} is closed")
        pthread_mutex_lock(&lock)
        another = pump.bell != NULL and pump.bell != self.bell
        there = pump.done or pump.held > 0
        if not another and not there:
            if pump.bell == NULL:
                pump.bell = self.bell
                self.bell.references += 1
            pump.asked = True
        pthread_mutex_unlock(&lock)
        if another:
            raise InvalidArgumentError(f"{buffer.source} is read in another event loop: read it in one of them only")
        if not there:
            self._asked[<uintptr_t>pump] = buffer
        return not there

    def forget(self, Buffer buffer not None) -> None:
        """Nobody waits for *buffer* any more."""
        self._asked.pop(<uintptr_t>buffer.pump, None)
        pthread_mutex_lock(&lock)
        buffer.pump.asked = False
        pthread_mutex_unlock(&lock)

    def ring(self) -> None:
        """Makes the descriptor readable for something else, which the caller has put down before. From any thread."""
        cdef uint64_t one = 1
        pthread_mutex_lock(&lock)
        if self.bell.fds[1] >= 0:
            c_write(self.bell.fds[1], &one, sizeof(one))
        pthread_mutex_unlock(&lock)

    def heard(self) -> list:
        """The buffers that have something, or their end, since the last time; and the descriptor is quiet again."""
        cdef list found = []
        cdef pump_t *rung
        cdef pump_t *pump
        if self.bell.fds[0] >= 0:
            empty(self.bell.fds[0])
        pthread_mutex_lock(&lock)
        rung = self.bell.rung
        self.bell.rung = NULL
        pthread_mutex_unlock(&lock)
        pump = rung
        while pump != NULL:             # nobody else follows or changes what is in the list, while `rung` says so of them
            buffer = self._asked.pop(<uintptr_t>pump, None)
            if buffer is not None:
                found.append(buffer)
            pump = pump.next_rung
        pthread_mutex_lock(&lock)
        let_go_of_rung(rung)
        pthread_mutex_unlock(&lock)
        return found

    def close(self) -> None:
        """Closes the descriptor; who waits is not told any more. Idempotent."""
        self._asked.clear()
        self.end()


cdef void let_go_of_rung(pump_t *pump) noexcept nogil:
    """Needs the lock."""
    cdef pump_t *next
    while pump != NULL:
        next = pump.next_rung
        pump.next_rung = NULL
        pump.rung = False
        forget(pump)
        pump = next
