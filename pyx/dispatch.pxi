# How Python is called (a part of relay.pyx). The relay thread puts a pump into the list of jobs; a worker, a Python thread,
# takes it from there and calls what is to be called. One worker does for everybody as long as callbacks return; the
# dispatcher only sees to it that a callback which does not return holds up nobody else's: when every worker is inside a
# callback and none has taken a job for a moment, it starts another. Idle workers end by themselves. All are daemon
# threads that wait without the GIL, so that the end of the interpreter never waits for them.
#
# A pump is in the list at most once and with one worker at most (`job_queued`, `job_running`). What arrives while its
# worker is in a callback is seen by that worker afterwards, under the lock, before it lets go of the pump.

cdef enum:
    GRACE = 10              # ms that the workers may take before another is started
    ANEW = 100              # ms until the next try when none could be
    REST = 5                # s that a worker stays idle

cdef set kept = set()       # pumps with callbacks: they live until they are done and all was called
cdef object dispatcher = None


cdef void keep(Pump pump) except *:
    """From now on the pump may be queued. Needs the GIL, not the lock."""
    start_dispatcher()
    kept.add(pump)
    pthread_mutex_lock(&lock)
    pump.pump.owner = <PyObject *>pump
    pthread_mutex_unlock(&lock)


cdef start_dispatcher():
    global dispatcher
    if dispatcher is None:
        dispatcher = Worker(_dispatch, "ctrd-relay-dispatch")
        try:
            dispatcher.start()
        except UnavailableError:
            dispatcher = None           # whoever comes next tries anew
            raise


def _dispatch():
    cdef int taken, generation = relay.generation
    cdef bint needed, first, stuck, failed = False
    while True:
        with nogil:
            sem_wait(&relay.dispatch)
        while True:
            if stopped or relay.generation != generation:
                return
            pthread_mutex_lock(&lock)
            needed = relay.waiting_jobs > relay.idle_workers
            taken = relay.taken_jobs
            first = relay.workers == 0
            pthread_mutex_unlock(&lock)
            if not needed:
                failed = False
                break
            if not first:
                with nogil:
                    c_poll(NULL, 0, GRACE)
            pthread_mutex_lock(&lock)
            stuck = relay.taken_jobs == taken and relay.waiting_jobs > relay.idle_workers
            pthread_mutex_unlock(&lock)
            if stuck:
                failed = not start_worker(failed)
            if failed:              # nothing tells when there is room for a thread again
                with nogil:
                    c_poll(NULL, 0, ANEW)


cdef bint start_worker(bint again) except -1:
    pthread_mutex_lock(&lock)
    relay.workers += 1
    pthread_mutex_unlock(&lock)
    try:
        threading.Thread(target=_work, name="ctrd-relay-callback", daemon=True).start()
    except RuntimeError:
        pthread_mutex_lock(&lock)
        relay.workers -= 1
        pthread_mutex_unlock(&lock)
        if not again:
            logger.exception("could not start a thread for callbacks: they wait until one can be started, or returns")
        return False
    return True


def _work():
    cdef int generation = relay.generation
    cdef pump_t *pump
    while True:
        with nogil:
            pump = next_job(monotonic() + <int64_t>REST * 1000000000)
        if pump == NULL:
            return
        handle(<Pump>pump.owner)
        if stopped or relay.generation != generation:
            return


cdef pump_t *next_job(int64_t deadline) noexcept nogil:
    """Waits for a job; NULL: there was none for so long, and this worker counts no more.

    The list counts, not the semaphore: a job that came just before the deadline is taken, and what is then left in the
    semaphore makes somebody look in vain.
    """
    cdef pump_t *pump
    cdef timespec until
    cdef bint over, waited = False
    pthread_mutex_lock(&lock)
    relay.idle_workers += 1
    while True:
        pump = relay.jobs
        over = stopped or monotonic() >= deadline
        if pump != NULL or over:
            break
        pthread_mutex_unlock(&lock)
        clock_gettime(CLOCK_REALTIME, &until)
        until.tv_sec += 1
        waited = sem_timedwait(&relay.job, &until) == 0
        pthread_mutex_lock(&lock)
    relay.idle_workers -= 1
    if pump == NULL:
        relay.workers -= 1
    else:
        relay.jobs = pump.next_job
        relay.waiting_jobs -= 1
        relay.taken_jobs += 1
        if not waited:
            sem_trywait(&relay.job)     # its own post, which nobody needs any more
        pump.job_queued = False
        pump.job_running = True
    pthread_mutex_unlock(&lock)
    return pump


cdef handle(Pump pump):
    """One batch for a callback, and at the end what on_done registered."""
    cdef pump_t *p = pump.pump
    cdef bint finished
    cdef list callbacks = []
    cdef int generation = relay.generation
    if p.kind == CALL and not pump._failed:
        data = pump.drain(-1)
        if data:
            try:
                pump._callback(data)
            except BaseException as cause:
                if relay.generation != generation:
                    raise
                data = None
                pump.callback_failed(cause)
    if relay.generation != generation:
        return                          # the callback forked, and this is the child
    pthread_mutex_lock(&lock)
    if p.ended and (p.held == 0 or pump._failed):
        become_done(p)
    finished = p.done
    if finished:
        p.notify = False
    pthread_mutex_unlock(&lock)
    if finished:
        callbacks, pump._callbacks = pump._callbacks, []
    for callback in callbacks:
        try:
            callback(pump)
        except BaseException:
            logger.exception("on_done of %r raised", pump)
        if relay.generation != generation:
            return
    pthread_mutex_lock(&lock)
    p.job_running = False
    finished = p.done and not p.notify
    if finished:
        p.owner = NULL
    elif p.done or p.ended or (p.held and p.kind == CALL):
        queue_job(p)
    pthread_mutex_unlock(&lock)
    if finished:
        kept.discard(pump)
