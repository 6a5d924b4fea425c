# What a pump is, and the lists it is in (a part of relay.pyx). Nothing here needs the GIL.
#
# One lock, `lock`, guards everything that more than one thread touches: the lists, `held`, `done`, the waiters, the
# commands. It is held for pointer work only, never across a call that can wait, never while something of Python runs
# (which could let go of the GIL), and no other lock is taken inside it. What is marked "relay only" belongs to the relay
# thread from the moment it takes the command START until the pump is done.
#
# Descriptors are closed under the lock too, and set to -1 with it. Forking takes the lock, so that the child never finds
# the number of a descriptor that was closed and may be somebody else's by now.

cdef enum:                  # what becomes of the bytes
    DISCARD = 0
    COPY = 1
    BUFFER = 2
    CALL = 3

cdef enum:                  # how a descriptor is read or written without ever waiting in it
    OURS = 0                # its open file is ours and nonblocking
    PIPE = 1                # a pipe whose flags others share: splice, through the scratch pipe (not PORTABLE: ASK)
    SOCKET = 2              # MSG_DONTWAIT
    PLAIN = 3               # never waits: a file, /dev/null
    ASK = 4                 # anything else: poll first, then a little

cdef enum:                  # commands to the relay thread
    START = 1
    CANCEL = 2
    LOOK = 4                # there is room in its buffer again: take a turn
    FINISH = 8
    SINK_GONE = 16
    NO_MORE = 32

cdef enum:                  # where an error arose
    NOWHERE = 0
    SOURCE = 1
    SINK = 2
    WATCH = 3
    CALLBACK = 4
    CANCELLED = 5

cdef struct Waiter:         # one thread that waits; lives on its stack, in the list while it waits
    sem_t woken
    bint for_bytes          # not for the end alone
    Waiter *next

cdef struct bell_t:         # what wakes an event loop, see bells.pxi
    int fds[2]
    pump_t *rung            # whose bytes, or end, have come since it was last heard
    int references          # its Python object, and the buffers that were asked through it

cdef struct Chunk:          # a piece of what is buffered; the bytes come right behind it
    Chunk *next
    size_t start
    size_t end
    size_t size

cdef struct End:
    int fd
    int how
    int piece               # most bytes of one call, for ASK
    int grown_from          # the pipe's size before it was grown; 0: it was not
    bint pipe               # a pipe or fifo: it can be spliced, and its end is a hang-up
    bint plain_file         # a regular file, not one that only appends: splice takes it
    bint null               # a device that never waits, /dev/null first of all
    bint terminal
    bint polled             # it is in the poller
    bint ready              # relay only: worth a try since the last "nothing now"

cdef struct pump_t:
    # lists
    pump_t *next
    pump_t *previous        # all pumps under way
    pump_t *next_command
    pump_t *next_job
    pump_t *next_ready      # relay only
    pump_t *next_resting    # relay only
    unsigned int commands   # not 0: it is in the list of commands
    int references          # the Python object, the list of all, those of the ready, the resting and the rung ones
    # what it is
    int kind
    bint close_source       # when the sink fails: close the source, instead of draining it
    End source
    End sink
    # how far it is
    bint pending            # the sink is a fifo whose reader has never been there: nothing is written before
    char *sink_path         # PORTABLE: of a pending sink, which has no descriptor before its reader has come
    uint64_t sink_device
    uint64_t sink_inode
    bint splices            # relay only
    bint in_ready           # relay only
    bint resting            # relay only: see `rest`
    bint draining           # relay only: the sink has failed
    bint hung_up            # relay only: a writer has been there and has gone
    bint no_more            # relay only: no writer comes any more
    bint bounded            # relay only: it ends after `remaining` more bytes
    bint tried_growing      # relay only
    bint watched            # relay only: a pending sink that is looked at
    int token               # relay only: of peer_watch
    int sink_error          # relay only: what an event said
    int64_t remaining       # relay only
    int64_t every           # relay only: ns from one look at a resting source to the next; 0: its events are asked for
    int64_t waited          # relay only: when a source that is thrown away had nothing last
    int64_t given           # relay only: what it has given since then
    int64_t awake_until     # relay only: it does not rest before
    int64_t seen            # relay only: when the reader of a pending sink was first seen; 0: it was not, at the last look
    uint64_t swept          # relay only: `moved` at the last sweep for idle grown pipes
    char *rest              # relay only: taken from the source, not yet taken by the sink
    size_t rest_start
    size_t rest_end
    uint64_t moved
    # what is buffered
    Chunk *head
    Chunk *tail
    size_t held
    size_t limit
    int to_end              # readers that want all there is, so that the limit does not count
    bint writing            # the relay is reading into the tail, behind its end
    bint full               # the source was stopped for want of room
    # its end
    bint ended              # CALL: nothing is added any more; done once the callback has had everything
    bint done
    int error               # errno
    int error_at
    bint notify             # somebody registered with on_done
    bint job_queued
    bint job_running
    PyObject *owner         # the Pump, while it is kept alive for its callbacks
    Waiter *waiters
    bell_t *bell            # the one bell it may ring; NULL: nobody has asked yet
    pump_t *next_rung
    bint asked              # ring when there is something
    bint rung               # it is in the bell's list

cdef struct State:
    bint running
    bint stop
    int generation          # of the process, counted by forks
    poller_t poller
    int wake[2]             # commands
    int peers[2]            # a fifo was opened somewhere
    int null
    int scratch[2]          # a pipe of the relay's own, empty between two uses
    pthread_t thread
    pump_t *all
    int active
    pump_t *commands
    pump_t *last_command
    pump_t *jobs
    pump_t *last_job
    int waiting_jobs
    int taken_jobs
    int workers
    int idle_workers
    sem_t job               # workers wait on it
    sem_t dispatch          # the dispatcher waits on it
    # relay only
    pump_t *ready
    pump_t *last_ready
    pump_t *resting
    int64_t look_at         # when the first of those is to be looked at
    bint timed              # some pending sink has no watch, or was just seen: look again on a timer
    int grown               # pipes grown at the cost of the user's share

cdef extern from *:
    """
    static pthread_mutex_t ctrd_relay_lock = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t lock "ctrd_relay_lock"

cdef State relay


cdef inline char *bytes_of(Chunk *chunk) noexcept nogil:
    return <char *>(chunk + 1)


cdef void close_end(End *end) noexcept nogil:
    """Needs the lock."""
    if end.fd >= 0:
        c_close(end.fd)
        end.fd = -1


cdef void free_chunks(pump_t *pump) noexcept nogil:
    """Needs the lock. The chunk that the relay is reading into stays."""
    cdef Chunk *chunk
    while pump.head != NULL and not (pump.writing and pump.head == pump.tail):
        chunk = pump.head
        pump.head = chunk.next
        free(chunk)
    if pump.head == NULL:
        pump.tail = NULL
    else:
        pump.head.start = pump.head.end
    pump.held = 0


cdef void forget(pump_t *pump) noexcept nogil:
    """Drops one reference. Needs the lock."""
    pump.references -= 1
    if pump.references == 0:
        close_end(&pump.source)
        close_end(&pump.sink)
        free_chunks(pump)
        free(pump.rest)
        free(pump.sink_path)
        if pump.bell != NULL:
            let_go_of_bell(pump.bell)
        free(pump)


cdef void let_go_of_bell(bell_t *bell) noexcept nogil:
    """Needs the lock."""
    bell.references -= 1
    if bell.references == 0:
        free(bell)


cdef void wake_waiters(pump_t *pump) noexcept nogil:
    """Needs the lock: a waiter is in the list until it has taken itself out, so that its semaphore exists."""
    cdef Waiter *waiter = pump.waiters
    while waiter != NULL:
        if waiter.for_bytes or pump.done:
            sem_post(&waiter.woken)
        waiter = waiter.next


cdef void ring(pump_t *pump) noexcept nogil:
    """Puts a pump that was asked into the list of its bell. Needs the lock.

    Who finds the list empty makes the descriptor readable. Who hears the bell reads the descriptor first and takes the list
    then: what is put in after that finds it empty, so nothing waits in there without the descriptor being readable.
    """
    cdef uint64_t one = 1
    if not pump.asked:
        return
    pump.asked = False
    if pump.rung or pump.bell.fds[1] < 0:
        return
    pump.rung = True
    pump.references += 1
    if pump.bell.rung == NULL:
        c_write(pump.bell.fds[1], &one, sizeof(one))
    pump.next_rung = pump.bell.rung
    pump.bell.rung = pump


cdef void queue_job(pump_t *pump) noexcept nogil:
    """Something is to be done in Python for it. Needs the lock. While a worker is at it, that one will see it."""
    if pump.job_queued or pump.job_running or pump.owner == NULL:
        return
    pump.job_queued = True
    pump.next_job = NULL
    if relay.jobs == NULL:
        relay.jobs = pump
    else:
        relay.last_job.next_job = pump
    relay.last_job = pump
    relay.waiting_jobs += 1
    sem_post(&relay.job)
    if relay.waiting_jobs > relay.idle_workers:
        sem_post(&relay.dispatch)


cdef void become_done(pump_t *pump) noexcept nogil:
    """Needs the lock. The only place where a pump becomes done."""
    if not pump.done:
        pump.done = True
        wake_waiters(pump)
        ring(pump)
        queue_job(pump)


cdef void fail(pump_t *pump, int number, int at) noexcept nogil:
    """Keeps the first error. Needs the lock."""
    if not pump.error_at:
        pump.error = number
        pump.error_at = at


cdef void command(pump_t *pump, unsigned int what) noexcept nogil:
    """Tells the relay thread something. Needs the lock.

    Who finds the list empty adds to the eventfd. The relay thread reads the eventfd first and takes the list then: what is
    put in after that finds it empty, so no command waits without the eventfd being readable.
    """
    cdef uint64_t one = 1
    if pump.done or not relay.running:
        return
    if not pump.commands:
        pump.references += 1
        pump.next_command = NULL
        if relay.commands == NULL:
            relay.commands = pump
            c_write(relay.wake[1], &one, sizeof(one))
        else:
            relay.last_command.next_command = pump
        relay.last_command = pump
    pump.commands |= what


cdef void unlist(pump_t *pump) noexcept nogil:
    """Out of the list of all. Needs the lock."""
    if pump.previous != NULL:
        pump.previous.next = pump.next
    elif relay.all == pump:
        relay.all = pump.next
    else:
        return
    if pump.next != NULL:
        pump.next.previous = pump.previous
    pump.next = pump.previous = NULL
    relay.active -= 1
    forget(pump)


cdef void end_all() noexcept nogil:
    """Ends every pump under way as cancelled, without the relay thread. Needs the lock.

    The list of ready ones may be half changed (by a thread that a fork has left behind): its references are given up.
    """
    cdef pump_t *pump
    while relay.commands != NULL:
        pump = relay.commands
        relay.commands = pump.next_command
        pump.commands = 0
        forget(pump)
    while relay.all != NULL:
        pump = relay.all
        close_end(&pump.source)
        close_end(&pump.sink)
        pump.writing = False
        fail(pump, ECANCELED, CANCELLED)
        become_done(pump)
        unlist(pump)


cdef void wait_until(Waiter *waiter, int64_t deadline) noexcept nogil:
    """Waits to be woken, for a signal, or for the deadline (`monotonic`; -1: none); the caller looks which it was.

    A semaphore knows the wall clock only, which may be set: so no single wait is longer than 2 s.
    """
    cdef timespec until
    cdef int64_t left
    if deadline < 0:
        sem_wait(&waiter.woken)
        return
    left = min(deadline - monotonic(), <int64_t>2000000000)
    if left <= 0:
        return
    clock_gettime(CLOCK_REALTIME, &until)
    left += until.tv_nsec
    until.tv_sec += left // 1000000000
    until.tv_nsec = left % 1000000000
    sem_timedwait(&waiter.woken, &until)
