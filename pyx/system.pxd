"""What each system does in its own way: on Linux linux.h, elsewhere and in the portable build portable.h.

Where there is nothing like it a call fails with ENOSYS; who calls asks `PORTABLE` which of them it is, and never tries.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from libctrd.posix cimport iovec, pollfd, sigset_t


cdef extern from "system.h" nogil:
    const bint PORTABLE "CTRD_PORTABLE"
    void set_errno "ctrd_set_errno"(int number)

    # Descriptors. `reopen` opens the inode that *fd* holds, whatever is at its path by now (ENOENT: it cannot);
    # `open_terminal` a terminal, so that it has flags of its own. O_PATH makes handles for it, or is 0.
    int O_PATH
    int reopen "ctrd_reopen"(int fd, int flags)
    int open_terminal "ctrd_open_terminal"(int fd, int flags)
    bint is_terminal_master "ctrd_is_terminal_master"(int fd)

    # Whether a writer holds the fifo of this read end, consuming nothing: tee(2) of one byte into a scratch pipe fails
    # with EAGAIN while there is a writer that wrote nothing, and gives 0 while there is none. 1: a writer, or data that
    # one has left; 0: neither; below 0: -errno, not known.
    int has_writer "ctrd_has_writer"(int fd)

    # writev(2) on a pipe that does not raise SIGPIPE; EOPNOTSUPP or ENOSYS where there is none.
    ssize_t write_no_signal "ctrd_write_no_signal"(int fd, const iovec *vectors, int count)

    int pipe_size "ctrd_pipe_size"(int fd)
    int pipe_resize "ctrd_pipe_resize"(int fd, int size)
    # Whether pipes may grow without limit.
    bint pipes_are_free "ctrd_pipes_are_free"()

    # splice(2) without waiting: bytes from one to the other of which one is a pipe, uncopied.
    ssize_t move "ctrd_move"(int source, int sink, size_t size)

    # One inotify descriptor; a watch tells of each open(2) of the inode of *fd* once that open has returned.
    uint32_t IN_Q_OVERFLOW
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t len
    int inotify_init "ctrd_watch_init"()
    int inotify_add "ctrd_watch_add"(int inotify, int fd)
    int inotify_remove "ctrd_watch_remove"(int inotify, int watch)

    # What wakes one waiter: {read from, write to}; one eventfd twice on Linux, a pipe elsewhere. Below 0: errno.
    int wake_pair "ctrd_wake_pair"(int *fds)

    # poll(2) with a limit in nanoseconds (-1: none) and a signal mask that holds while it waits (NULL: unchanged).
    int ppoll "ctrd_ppoll"(pollfd *fds, unsigned long count, int64_t nanoseconds, const sigset_t *mask)

    # What a thread does first: it has that name, and timers as exact as there are.
    void begin_thread "ctrd_begin_thread"(const char *name)

    # The poller, for one thread: epoll or poll, with the events of the latter. `poller_add` and `poller_open` return 0
    # or an errno (EPERM: such a descriptor never waits). What was added with *once* is told when it begins to be so, an
    # edge, and the next time only after `poller_again`, which is for whoever has just got EAGAIN.
    ctypedef struct poller_t "ctrd_poller":
        pass
    ctypedef struct seen_t "ctrd_seen":
        pass
    uint64_t tag_of "ctrd_tag"(const seen_t *seen)
    unsigned int events_of "ctrd_events"(const seen_t *seen)
    int poller_open "ctrd_poller_open"(poller_t *poller)
    void poller_none "ctrd_poller_none"(poller_t *poller)          # without closing anything
    void poller_close "ctrd_poller_close"(poller_t *poller)        # one that is none: nothing
    int poller_add "ctrd_poller_add"(poller_t *poller, int fd, unsigned int events, bint once, uint64_t tag)
    void poller_remove "ctrd_poller_remove"(poller_t *poller, int fd)
    void poller_again "ctrd_poller_again"(poller_t *poller, int fd)
    # Until an event or so long; -1: without limit. Whether less than a millisecond is possible says `poller_is_fine`,
    # which may change once with a wait, and where it is, `poller_ask` changes what is asked of what was added *once*: 0
    # for nothing (an error or a hang-up is told all the same); what is so by then is told, as after `poller_add`.
    int poller_wait "ctrd_poller_wait"(poller_t *poller, seen_t *seen, int room, int64_t nanoseconds)
    bint poller_is_fine "ctrd_poller_is_fine"(const poller_t *poller)
    int poller_ask "ctrd_poller_ask"(poller_t *poller, int fd, unsigned int events, uint64_t tag)
