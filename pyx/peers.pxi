# The watch for a peer that opens (a part of fifo.pyx): one inotify instance for the whole process, made at the first
# need and kept. It says when it is worth to look at a fifo again, and never what will be seen there.
#
# Everything here is guarded by `hub_lock` and needs no GIL; whoever holds the lock takes no other one and never blocks
# (the inotify descriptor and the eventfds are nonblocking). No wake-up is lost: a watch is in the table before its owner
# looks at the fifo, so an open is either seen by that look or makes an event after it; and whoever reads the event, be it
# another thread, adds to the eventfd of *every* watch on that inode before the lock is let go.

cdef struct Watch:
    int number    # inotify's, the same for all fifos on one inode; -1: this entry is free
    int wake_fd
    int next      # the next entry of the same bucket, or of the free list; -1: none

cdef extern from *:
    """
    static pthread_mutex_t ctrd_hub_lock = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t hub_lock "ctrd_hub_lock"

cdef int hub_fd = -1            # inotify
cdef Watch *watches = NULL      # the index in it is the token
cdef int *buckets = NULL        # by number modulo hub_size: index of the first entry
cdef int hub_size = 0           # entries in each of the two, a power of two
cdef int hub_free = -1          # first free entry
cdef bint hub_off = False       # tests: behave as if no inotify instance were to be had


cdef bint grow_hub() noexcept nogil:
    """Doubles the table; false without memory, and nothing has changed then."""
    cdef int size = hub_size * 2 if hub_size else 16, i, bucket
    cdef int *new_buckets = <int *>malloc(size * sizeof(int))
    cdef Watch *new_watches = <Watch *>realloc(watches, size * sizeof(Watch)) if new_buckets != NULL else NULL
    global watches, buckets, hub_size, hub_free
    if new_watches == NULL:
        free(new_buckets)
        return False
    free(buckets)
    watches, buckets = new_watches, new_buckets
    for i in range(size):
        buckets[i] = -1
    for i in range(hub_size):          # only called with no entry free: every one of them is in use
        bucket = watches[i].number & (size - 1)
        watches[i].next = buckets[bucket]
        buckets[bucket] = i
    for i in range(hub_size, size):
        watches[i].number = -1
        watches[i].next = i + 1 if i + 1 < size else -1
    hub_free = hub_size
    hub_size = size
    return True


cdef void wake_watches(int number, bint all_of_them) noexcept nogil:
    cdef uint64_t one = 1
    cdef int i
    if all_of_them:
        for i in range(hub_size):
            if watches[i].number >= 0:
                c_write(watches[i].wake_fd, &one, sizeof(one))
    elif hub_size:
        i = buckets[number & (hub_size - 1)]
        while i >= 0:
            if watches[i].number == number:
                c_write(watches[i].wake_fd, &one, sizeof(one))
            i = watches[i].next


cdef void drain_hub() noexcept nogil:
    """Reads all events there are; adds 1 to each eventfd concerned, and to all after an overflow. Needs the lock."""
    cdef char[4096] events
    cdef inotify_event *event
    cdef ssize_t size, at
    while hub_fd >= 0:
        size = c_read(hub_fd, events, sizeof(events))
        if size <= 0:
            break
        at = 0
        while at < size:
            event = <inotify_event *>(events + at)
            wake_watches(event.wd, event.mask & IN_Q_OVERFLOW != 0)
            at += sizeof(inotify_event) + event.len


cdef int peer_watch(int fd, int wake_fd) noexcept nogil:
    """From now on each open of fd's inode adds 1 to the eventfd wake_fd. A token >= 0, or -errno: look on a timer."""
    global hub_fd, hub_free
    cdef int number, token, bucket
    if PORTABLE:
        return -ENOSYS
    pthread_mutex_lock(&hub_lock)
    if hub_fd < 0 and not hub_off:
        hub_fd = inotify_init()
    if hub_off:
        token = -ENOSYS
    elif hub_fd < 0:
        token = -errno
    elif hub_free < 0 and not grow_hub():
        token = -ENOMEM
    else:
        number = inotify_add(hub_fd, fd)
        if number < 0:
            token = -errno
        else:
            token = hub_free
            hub_free = watches[token].next
            bucket = number & (hub_size - 1)
            watches[token].number = number
            watches[token].wake_fd = wake_fd
            watches[token].next = buckets[bucket]
            buckets[bucket] = token
    pthread_mutex_unlock(&hub_lock)
    return token


cdef void peer_unwatch(int token) noexcept nogil:
    """Ends a watch. Once this has returned nobody adds to its eventfd any more."""
    global hub_free
    cdef int *link
    cdef int number
    cdef bint shared = False
    pthread_mutex_lock(&hub_lock)
    if 0 <= token < hub_size and watches[token].number >= 0:    # not so after a fork
        number = watches[token].number
        link = &buckets[number & (hub_size - 1)]
        while link[0] >= 0:
            if link[0] == token:
                link[0] = watches[token].next
            else:
                shared = shared or watches[link[0]].number == number
                link = &watches[link[0]].next
        if not shared:
            inotify_remove(hub_fd, number)
            drain_hub()         # that the watch has gone is an event too, of no interest to those who poll for events
        watches[token].number = -1
        watches[token].next = hub_free
        hub_free = token
    pthread_mutex_unlock(&hub_lock)


cdef int peer_fd() noexcept nogil:
    """The inotify descriptor, to be polled for POLLIN; -1 while there is none. It stays the same until a fork."""
    cdef int fd
    pthread_mutex_lock(&hub_lock)
    fd = hub_fd
    pthread_mutex_unlock(&hub_lock)
    return fd


cdef void peer_dispatch() noexcept nogil:
    """Reads all events there are and adds 1 to each eventfd concerned; to all of them when the queue overflowed."""
    pthread_mutex_lock(&hub_lock)
    drain_hub()
    pthread_mutex_unlock(&hub_lock)


# The locks are taken and let go of by the C library, inside of fork(): Python's own hooks run Python code of others in
# between, and while that waits, a thread that has the GIL by then and wants a lock would wait for ever.

cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&moment_lock)  # nobody else holds both, nor waits for the GIL with one
    pthread_mutex_lock(&hub_lock)     # so that the child finds the table whole


cdef void after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&hub_lock)
    pthread_mutex_unlock(&moment_lock)


cdef void after_fork_in_child() noexcept nogil:
    pthread_mutex_init(&hub_lock, NULL)
    pthread_mutex_init(&moment_lock, NULL)


def _after_fork_in_child():
    """The child starts clean: the parent's events, eventfds and waiting threads are none of its business."""
    global hub_fd, watches, buckets, hub_size, hub_free, process_generation
    if hub_fd >= 0:
        c_close(hub_fd)
    free(watches)
    free(buckets)
    hub_fd, watches, buckets, hub_size, hub_free = -1, NULL, NULL, 0, -1
    process_generation += 1
    forget_wakers()


if pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child):
    raise MemoryError("could not register what a fork has to do (pthread_atfork)")
os.register_at_fork(after_in_child=_after_fork_in_child)
