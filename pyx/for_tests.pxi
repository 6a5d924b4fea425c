# What the tests need to see of fifo.pyx, and to change.


def _switch(*, inotify: bool | None = None, write_flag: bool | None = None) -> None:
    """For the tests: a system with no inotify instance to be had; a kernel with no RWF_NOSIGNAL."""
    global hub_off, write_loudly
    if inotify is not None:
        pthread_mutex_lock(&hub_lock)
        hub_off = not inotify
        pthread_mutex_unlock(&hub_lock)
    if write_flag is not None:
        write_loudly = not write_flag


def _kept():
    """For the tests: the descriptors that are kept for the next wait."""
    cdef int i
    return {fd for i in range(wakers_idle) for fd in (wakers[i].fds[0], wakers[i].fds[1])}


def _counts():
    """For the tests: watches on fifos, threads that wait, and idle wakers that are kept."""
    cdef int i, used = 0
    pthread_mutex_lock(&hub_lock)
    for i in range(hub_size):
        used += watches[i].number >= 0
    pthread_mutex_unlock(&hub_lock)
    return used, wakers_all - wakers_idle, wakers_idle
