# The beginning and the end of the relay thread (a part of relay.pyx): it starts with the first pump; it ends with the
# interpreter; and in the child of a fork it has never been.


cdef start(Pump pump):
    cdef pump_t *p = pump.pump
    try:
        run_relay()
    except BaseException:
        kept.discard(pump)
        raise
    pthread_mutex_lock(&lock)
    p.done = False
    p.references += 1
    p.next = relay.all
    if p.next != NULL:
        p.next.previous = p
    relay.all = p
    relay.active += 1
    command(p, START)
    pthread_mutex_unlock(&lock)


cdef run_relay():
    """Starts the thread, if it is not there. The GIL is held throughout: nobody else does the same meanwhile."""
    cdef int number
    if relay.running:
        return
    number = make_relay()
    if number:
        close_relay()
        raise from_errno(number, "start the relay (epoll_create, eventfd, pipe, pthread_create)")
    relay.running = True


cdef int make_relay() noexcept:
    cdef sigset_t blocked, before
    cdef pthread_attr_t attributes
    cdef int number
    close_relay()
    relay.stop = False
    number = poller_open(&relay.poller)
    if number:
        return number
    if wake_pair(relay.wake) < 0 or wake_pair(relay.peers) < 0:
        return errno
    if not PORTABLE and not make_scratch():
        return errno
    number = poller_add(&relay.poller, relay.wake[0], POLLIN, False, TAG_WAKE)
    if number == 0:
        number = poller_add(&relay.poller, relay.peers[0], POLLIN, False, TAG_PEERS)
    if number:
        return number
    # Signals are Python's business; the two of job control are left alone, for a thread that blocks them gets EIO from a
    # terminal in the background instead of being stopped with its process.
    sigfillset(&blocked)
    for number in (SIGTTIN, SIGTTOU, SIGSEGV, SIGBUS, SIGFPE, SIGILL):
        sigdelset(&blocked, number)
    pthread_sigmask(SIG_SETMASK, &blocked, &before)
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, 131072)
    number = pthread_create(&relay.thread, &attributes, run, NULL)
    pthread_attr_destroy(&attributes)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return number


cdef bint make_scratch() noexcept:
    """What bytes are moved through and to uncopied. False with errno."""
    cdef int i
    if pipe(relay.scratch) < 0:
        return False
    for i in range(2):
        fcntl(relay.scratch[i], F_SETFD, FD_CLOEXEC)
        fcntl(relay.scratch[i], F_SETFL, O_NONBLOCK)
    relay.null = c_open(b"/dev/null", O_RDWR | O_CLOEXEC)
    return relay.null >= 0


cdef void close_relay() noexcept:
    poller_close(&relay.poller)
    if relay.null >= 0:
        c_close(relay.null)
    close_two(relay.wake)
    close_two(relay.peers)
    close_two(relay.scratch)
    forget_relay()


cdef void close_two(int *two) noexcept:
    if two[0] >= 0:
        c_close(two[0])
    if two[1] >= 0 and two[1] != two[0]:
        c_close(two[1])


cdef void forget_relay() noexcept:
    relay.running = False
    poller_none(&relay.poller)
    relay.null = -1
    relay.wake[0] = relay.wake[1] = relay.peers[0] = relay.peers[1] = relay.scratch[0] = relay.scratch[1] = -1
    relay.ready = relay.resting = NULL
    relay.timed = False
    relay.grown = 0


def _stop():
    """At exit: the thread ends, which takes no longer than its turn; what is under way is cancelled."""
    global stopped
    cdef uint64_t one = 1
    stopped = True
    if relay.running:
        pthread_mutex_lock(&lock)
        relay.stop = True
        c_write(relay.wake[1], &one, sizeof(one))
        pthread_mutex_unlock(&lock)
        with nogil:
            pthread_join(relay.thread, NULL)
        pthread_mutex_lock(&lock)
        end_all()
        pthread_mutex_unlock(&lock)
        close_relay()
    for _ in range(relay.workers):
        sem_post(&relay.job)
    sem_post(&relay.dispatch)
    if dispatcher is not None:
        dispatcher.join(1)


# By the C library and not by Python's hooks: see peers.pxi.

cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&lock)


cdef void after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&lock)


cdef void after_fork_in_child() noexcept nogil:
    pthread_mutex_init(&lock, NULL)


def _after_fork_in_child():
    """The child has no thread and no pump: its copies of the descriptors are closed, or ends of file would not come."""
    global dispatcher
    cdef pump_t *pending
    pthread_mutex_lock(&lock)
    relay.generation += 1
    pending = relay.all
    while pending != NULL:              # the descriptor that its bell would ring is the parent's too
        pending.asked = False
        pending = pending.next
    relay.jobs = NULL
    relay.waiting_jobs = relay.workers = relay.idle_workers = 0
    for pump in kept:
        (<Pump>pump).pump.owner = NULL
    end_all()
    pthread_mutex_unlock(&lock)
    close_relay()
    sem_init(&relay.job, 0, 0)
    sem_init(&relay.dispatch, 0, 0)
    kept.clear()
    dispatcher = None


forget_relay()
sem_init(&relay.job, 0, 0)
sem_init(&relay.dispatch, 0, 0)
atexit.register(_stop)
if pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child):
    raise MemoryError("could not register what a fork has to do (pthread_atfork)")
os.register_at_fork(after_in_child=_after_fork_in_child)
