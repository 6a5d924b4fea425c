"""What other compiled modules may use of libctrd.fifo: the class, and the watch for a peer that opens."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from libctrd.posix cimport iovec


cdef struct Waiter:
    # One thread in one list of who is to be woken. Lives on that thread's stack; guarded by the GIL.
    int wake_fd
    bint woken
    Waiter *next


cdef class Cancellation:
    cdef bint _cancelled
    cdef int _generation
    cdef Waiter *_waiters

    cdef void _after_fork(self) noexcept


@cython.final
cdef class Fifo:
    cdef readonly object path
    cdef object _cancel           # Cancellation or None; bounds the wait for the peer only
    cdef bytes _ahead             # taken from the pipe, not yet returned by a read; None mostly
    cdef Py_ssize_t _ahead_at     # of that from here on
    cdef Waiter *_waiters
    cdef int64_t _deadline        # for the wait for the peer, CLOCK_MONOTONIC in ns; -1: none
    cdef uint64_t _device         # the inode first held (the type as well), for a writer that must reopen
    cdef uint64_t _inode
    cdef int _fd                  # -1: closed, handed over, or a writer that cannot have one before its reader comes
    cdef int _handle              # O_PATH handle of such a writer, else -1
    cdef int _access              # O_RDONLY, O_WRONLY or O_RDWR
    cdef int _users               # threads inside a call on the descriptor; the last one closes it
    cdef int _generation          # of the process, counted by fork; waiters of another one are gone
    cdef int _state               # OPENING, OPEN, CLOSED
    cdef unsigned int _news       # counts closings and no_more_writers(), so that none is missed between look and wait
    cdef bint _no_more_writers
    cdef bint _was_open

    cdef int release(self) except -1
    cdef bint is_writer(self)

    cdef bytes _read_to_end(self)

cdef int  peer_watch(int fd, int wake_fd) noexcept nogil
cdef void peer_unwatch(int token) noexcept nogil
cdef int  peer_fd() noexcept nogil
cdef void peer_dispatch() noexcept nogil
cdef bint writer_connected(int fd) noexcept nogil
cdef int  open_held(const char *path, int handle, uint64_t device, uint64_t inode, int access) noexcept nogil
