"""Named pipes that cost nothing while they wait (contract rows C13 to C17).

A `Fifo` is one end of a named pipe. It is in one of three states: *opening*, while its peer has never been there; *open*,
from the moment it was; *closed*. Opening needs no thread: a reader is opened without waiting, and `poll` stays silent
until a first writer has come; a writer holds its write end beside nobody, and ``POLLERR`` stands until a reader has come
(see `open_end`). Whoever wants to read or write before that waits in `wait_turn`, without the GIL.

Every transition happens with the GIL held and in one of three places: `Fifo._become_open`, `Fifo._shut`, `Fifo.release`.
This module moves no bytes between descriptors (the relay does), and knows nothing of containers.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from libctrd.linux cimport *
from libctrd.posix cimport *

from libctrd.errors import (
    CancelledError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    UnavailableError,
    from_errno,
)

cdef extern from "Python.h":
    bint PyOS_InterruptOccurred()
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *bytes_data "PyBytes_AS_STRING"(PyObject *block)
    int resize_bytes "_PyBytes_Resize"(PyObject **block, Py_ssize_t size) except -1
    void Py_XDECREF(PyObject *block)

cdef enum:
    OPENING = 0
    OPEN = 1
    CLOSED = 2

cdef enum:
    BLOCK = 65536           # bytes of one block of an iteration: what a pipe holds by default
    MOST = 1048576          # bytes that one read(size) asks for at most
    ON_STACK = 4096         # up to here a read needs no object that must be shrunk afterwards
    VECTORS = 64            # buffers that go into one writev(2)

cdef bint portable = not ON_LINUX    # tests: also the path of other systems, on Linux


include "peers.pxi"
include "waiting.pxi"


cdef class Cancellation:
    """A one-way switch: ends the wait for a peer of every fifo that was opened with it (C14, C15). Thread-safe."""

    def cancel(self) -> None:
        """Throws the switch. Waits under way raise `CancelledError`; a second time does nothing."""
        self._cancelled = True
        if self._generation == process_generation:
            wake(self._waiters)

    @property
    def cancelled(self) -> bool:
        """Whether it was thrown."""
        return self._cancelled


# --- the descriptor ------------------------------------------------------------------------------------------------


cdef bint writer_connected(int fd) noexcept nogil:
    """Whether somebody reads the fifo of this write end."""
    cdef pollfd polled
    polled.fd, polled.events, polled.revents = fd, 0, 0
    return c_poll(&polled, 1, 0) == 0


cdef short look_at(int fd) noexcept nogil:
    """What poll says of a read end now."""
    cdef pollfd polled
    polled.fd, polled.events, polled.revents = fd, POLLIN, 0
    c_poll(&polled, 1, 0)
    return polled.revents


cdef int open_held(const char *path, int handle, uint64_t device, uint64_t inode, int access) noexcept nogil:
    """Opens the inode that is held by *handle*, or that was seen at *path* when there is none; never blocks.

    -1 and errno on failure; ESTALE when something else has taken the place.
    """
    cdef char[32] reach
    cdef c_stat status
    cdef int fd
    access |= O_NONBLOCK | O_CLOEXEC
    if handle >= 0:
        snprintf(reach, sizeof(reach), b"/proc/self/fd/%d", handle)
        fd = c_open(reach, access)
        if fd >= 0 or errno != ENOENT:
            return fd
    fd = c_open(path, access | O_NOFOLLOW)      # no handles here, or no /proc
    if fd < 0:
        return -1
    if fstat(fd, &status) < 0 or not S_ISFIFO(status.st_mode) or status.st_dev != device or status.st_ino != inode:
        c_close(fd)
        set_errno(ESTALE)
        return -1
    return fd


cdef int open_end(Fifo fifo, const char *path, int flags, mode_t mode, const char **call, mode_t *kind) noexcept nogil:
    """Makes the fifo when asked to, holds its inode, and opens its end without waiting. 0 or an errno.

    *call* is the system call that failed, *kind* the file type when it is not a fifo (EINVAL).
    A writer alone would get ENXIO. So it opens the fifo for both, then its write end, and lets go of the first: a reader
    that waits in its own open comes through, and POLLERR tells that there is none (this needs no reader but it does need
    the permission to read; without that, and on other systems, the end stays unopened and is tried again).
    """
    cdef c_stat status
    cdef int attempts = 16 if flags & O_CREAT else 1, both, number
    while True:
        if flags & O_CREAT:
            call[0] = b"mkfifo"
            if mkfifo(path, mode) < 0 and errno != EEXIST:
                return errno
        call[0] = b"open"
        if portable:
            number = lstat(path, &status)
        else:
            fifo._handle = number = c_open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        attempts -= 1
        if number >= 0:
            break
        if errno != ENOENT or not attempts:     # it may have been removed just after mkfifo saw it
            return errno
    if fifo._handle >= 0 and fstat(fifo._handle, &status) < 0:
        return errno
    if not S_ISFIFO(status.st_mode):
        kind[0] = status.st_mode
        return EINVAL
    fifo._device, fifo._inode = status.st_dev, status.st_ino
    number = 0
    fifo._fd = open_held(path, fifo._handle, fifo._device, fifo._inode, fifo._access)
    if fifo._fd < 0:
        number = errno
        if number == ENXIO and fifo._access == O_WRONLY:
            if portable:
                return 0
            both = open_held(path, fifo._handle, fifo._device, fifo._inode, O_RDWR)
            if both < 0 and errno == EACCES:
                return 0
            number = errno
            if both >= 0:
                fifo._fd = open_held(path, fifo._handle, fifo._device, fifo._inode, O_WRONLY)
                number = errno if fifo._fd < 0 else 0
                c_close(both)
    if fifo._handle >= 0:
        c_close(fifo._handle)
        fifo._handle = -1
    return number


cdef ssize_t write_quietly(int fd, const iovec *vectors, int count, int *number) noexcept nogil:
    """writev(2) that never raises SIGPIPE, whatever the host does with that signal; *number* gets errno."""
    cdef c_sigaction action
    cdef sigset_t broken, before, waiting
    cdef ssize_t written
    cdef int signal
    if sigaction(SIGPIPE, NULL, &action) == 0 and action.sa_handler == SIG_IGN:      # so it is in a Python process
        written = c_write(fd, vectors.iov_base, vectors.iov_len) if count == 1 else c_writev(fd, vectors, count)
        number[0] = errno
        return written
    # SIGPIPE of a write goes to the thread that writes: hold it back there, and take it away when it came by us.
    sigemptyset(&broken)
    sigaddset(&broken, SIGPIPE)
    sigpending(&waiting)
    pthread_sigmask(SIG_BLOCK, &broken, &before)
    written = c_writev(fd, vectors, count)
    number[0] = errno
    if written < 0 and number[0] == EPIPE and not sigismember(&waiting, SIGPIPE):
        sigpending(&waiting)
        if sigismember(&waiting, SIGPIPE):
            sigwait(&broken, &signal)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return written


# --- the fifo ------------------------------------------------------------------------------------------------------


@cython.final
@cython.no_gc
cdef class Fifo:
    """One end of a named pipe; made by `open_fifo`. Its methods may be called from any thread (C14 to C17)."""

    def __cinit__(self):
        self._fd = self._handle = -1
        self._deadline = -1
        self._state = CLOSED
        self._generation = process_generation

    def __init__(self):
        raise TypeError("a Fifo is made by open_fifo()")

    def __dealloc__(self):
        if self._fd >= 0:
            c_close(self._fd)
        if self._handle >= 0:
            c_close(self._handle)

    # States

    cdef int _enter(self) except -1:
        """The descriptor is in use by this thread until `_leave`."""
        self._after_fork()
        if self._state == CLOSED:
            raise ClosedError(f"fifo {self.path!r} is closed")
        self._users += 1
        return 0

    cdef int _leave(self) except -1:
        if self._generation != process_generation:     # a signal handler forked: in the child, this thread is alone
            self._after_fork()
            self._users = 1
        self._users -= 1
        if self._users == 0 and self._state == CLOSED:
            self._drop()
        return 0

    cdef void _after_fork(self) noexcept:
        if self._generation != process_generation:
            self._generation = process_generation
            self._users = 0
            self._waiters = NULL

    cdef void _drop(self) noexcept:
        cdef int fd = self._fd, handle = self._handle
        self._fd = self._handle = -1
        with nogil:
            if fd >= 0:
                c_close(fd)
            if handle >= 0:
                c_close(handle)

    cdef void _become_open(self) noexcept:
        if self._state == OPENING:
            self._state = OPEN
            self._was_open = True
            self._cancel = None

    cdef void _shut(self) noexcept:
        self._after_fork()
        if self._state != CLOSED:
            self._state = CLOSED
            self._cancel = None
            self._ahead = None
            wake(self._waiters)
            if self._users == 0:
                self._drop()

    cdef int release(self) except -1:
        """Hands the descriptor over to the caller, who closes it; the fifo is closed from then on.

        A deadline or cancellation of its opening ends with that. While another thread is inside a call on the descriptor,
        the caller gets a duplicate, so that the number that thread uses stays what it is.
        """
        cdef int fd
        self._after_fork()
        if self._state == CLOSED:
            raise ClosedError(f"fifo {self.path!r} is closed")
        if self._fd < 0:
            raise UnavailableError(
                f"fifo {self.path!r} has no descriptor to hand over before its reader has come (wait_connected() first)"
            )
        if self._ahead is not None:
            raise UnavailableError(
                f"fifo {self.path!r} cannot be handed over: {len(self._ahead)} bytes were read ahead (read them first)"
            )
        fd = self._fd
        if self._users:
            fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
            if fd < 0:
                raise from_errno(errno, f"hand over fifo {self.path!r} (fcntl)")
        else:
            self._fd = -1
        self._shut()
        return fd

    cdef bint is_writer(self):
        return self._access == O_WRONLY

    # The peer

    cdef bint _look(self) except -1:
        """Whether the peer has come, by a fresh look."""
        cdef int fd = self._fd, there
        if self._state == OPEN:
            return True
        if fd < 0:
            return self._try_again()
        if self._access == O_WRONLY:
            with nogil:
                there = writer_connected(fd)
        else:
            there = self._writer_there()
            if there <= 0 and look_at(fd):      # data that a writer left, or the hang-up of one
                there = 1
        if there > 0:
            self._become_open()
        return there > 0

    cdef int _writer_there(self) except -2:
        """1: a writer holds the fifo, or has left data in it; 0: neither; -1: there is no telling."""
        cdef int fd = self._fd, there
        cdef char byte
        cdef ssize_t got
        with nogil:
            there = -ENOSYS if portable else has_writer(fd)
        if there > -1 or not portable:
            return max(there, -1)
        if look_at(fd) & POLLIN:
            return 1
        with nogil:
            got = c_read(fd, &byte, 1)
            there = errno
        if got > 0:
            self._ahead = (self._ahead or b"") + (&byte)[:1]
        return 1 if got > 0 or (got < 0 and there == EAGAIN) else 0

    cdef bint _try_again(self) except -1:
        """Opens the write end that could not be opened before its reader came."""
        cdef bytes encoded = os.fsencode(self.path)
        cdef const char *path = encoded
        cdef int fd, number
        with nogil:
            fd = open_held(path, self._handle, self._device, self._inode, O_WRONLY)
            number = errno
        if fd < 0:
            if number == ENXIO or number == EINTR:
                return False
            raise self._failed(number, "open")
        if self._fd >= 0 or self._state == CLOSED:      # another thread was quicker
            c_close(fd)
        else:
            self._fd = fd
        self._become_open()
        return True

    cdef int _check_patience(self) except -1:
        """Ends an opening that was cancelled or took too long; of no concern once the peer has come."""
        if self._state != OPENING:
            return 0
        if self._cancel is not None and (<Cancellation>self._cancel)._cancelled:
            self._shut()
            raise CancelledError(f"could not open fifo {self.path!r} {self._purpose()}: cancelled before its peer came")
        if self._deadline >= 0 and monotonic() >= self._deadline:
            self._shut()
            raise DeadlineError(
                f"could not open fifo {self.path!r} {self._purpose()}: its peer did not come in time "
                "(check that the other side runs, or give it longer)"
            )
        return 0

    cdef int _await_peer(self, int64_t until) except -1:
        """Returns once the peer has come, or none can come any more. The caller has entered."""
        while True:
            if self._state == CLOSED:
                raise ClosedError(f"fifo {self.path!r} was closed while its peer was waited for")
            if self._look() or self._no_more_writers:
                return 0
            self._check_patience()
            if until >= 0 and monotonic() >= until:
                raise DeadlineError(f"the peer of fifo {self.path!r} did not come in time (it is still waited for)")
            wait_turn(self, POLLIN, True, self._sooner(until))

    cdef int64_t _sooner(self, int64_t until) noexcept:
        if self._state != OPENING or self._deadline < 0:
            return until
        return self._deadline if until < 0 or self._deadline < until else until

    # Bytes

    cdef ssize_t _take(self, char *buffer, size_t size) except -1:
        """Up to *size* bytes, at least one unless it is the end (0)."""
        cdef ssize_t got
        if self._access == O_WRONLY:
            raise self._not_for("reading")
        self._enter()
        try:
            while True:
                if self._state == CLOSED:
                    raise ClosedError(f"fifo {self.path!r} was closed while it was read")
                if self._ahead is not None:
                    return self._take_ahead(buffer, size)
                if size == 0:
                    return 0
                got = self._take_now(buffer, size)
                if got >= 0:
                    return got
                self._check_patience()
                wait_turn(self, POLLIN, False, self._sooner(-1))
        finally:
            self._leave()

    cdef ssize_t _take_ahead(self, char *buffer, size_t size) except -1:
        cdef bytes ahead = self._ahead
        cdef size_t got = min(<size_t>PyBytes_GET_SIZE(ahead), size)
        memcpy(buffer, PyBytes_AS_STRING(ahead), got)
        self._ahead = ahead[got:] or None
        return got

    cdef ssize_t _take_now(self, char *buffer, size_t size) except -2:
        """One read(2): bytes taken, 0 at the end, -1 when there is nothing now and there may be later.

        A read of nothing means that there is no writer. It is the end when one was there (POLLHUP), or when none can come
        any more; what was known of that *before* the read counts, for a last writer may come and go after it.
        """
        cdef int fd = self._fd, number
        cdef bint last = self._no_more_writers
        cdef short seen = 0
        cdef ssize_t got
        while True:
            with nogil:
                got = c_read(fd, buffer, size)
                number = errno
                if got == 0:
                    seen = look_at(fd)
            if got > 0 or (got == 0 and not seen & POLLIN and seen & POLLHUP):
                self._become_open()
                return got
            if got == 0 and not seen & POLLIN:
                return 0 if last else -1
            if got < 0 and number == EAGAIN:
                self._become_open()
                return -1
            if got < 0 and number != EINTR:
                raise self._failed(number, "read")

    cdef ssize_t _put(self, iovec *vectors, Py_ssize_t count) except -1:
        """Writes all of it, waiting for the reader and for room. Changes the vectors."""
        cdef ssize_t total = 0, written
        if self._access == O_RDONLY:
            raise self._not_for("writing")
        self._enter()
        try:
            while True:
                while count and not vectors.iov_len:
                    vectors += 1
                    count -= 1
                if not count:
                    return total
                if self._state == OPENING:
                    self._await_peer(-1)
                if self._state == CLOSED:
                    raise ClosedError(f"fifo {self.path!r} was closed while it was written ({total} bytes were)")
                written = self._put_now(vectors, count)
                if written < 0:
                    wait_turn(self, POLLOUT, False, -1)
                    continue
                total += written
                while count and <size_t>written >= vectors.iov_len:
                    written -= vectors.iov_len
                    vectors += 1
                    count -= 1
                if written:
                    vectors.iov_base = <char *>vectors.iov_base + written
                    vectors.iov_len -= written
        finally:
            self._leave()

    cdef ssize_t _put_now(self, iovec *vectors, Py_ssize_t count) except -2:
        """One writev(2): bytes written, -1 when there is no room now."""
        cdef int fd = self._fd, number = 0, some = <int>min(count, <Py_ssize_t>VECTORS)
        cdef ssize_t written
        while True:
            with nogil:
                written = write_quietly(fd, vectors, some, &number)
            if written >= 0:
                return written
            if number == EAGAIN:
                return -1
            if number != EINTR:
                raise self._failed(number, "write")

    cdef object _purpose(self):
        return {O_RDONLY: "for reading", O_WRONLY: "for writing"}.get(self._access, "for reading and writing")

    cdef object _not_for(self, purpose):
        return InvalidArgumentError(f"fifo {self.path!r} is open {self._purpose()} only, not for {purpose}")

    cdef object _failed(self, int number, call):
        if call == "read" or call == "write":
            return from_errno(number, f"{call} fifo {self.path!r} ({call})")
        hint = "something else has taken its place meanwhile" if number == ESTALE else ""
        return from_errno(number, f"open fifo {self.path!r} {self._purpose()} ({call})", hint)

    def read(self, Py_ssize_t size=-1) -> bytes:
        """Up to *size* bytes, as soon as there is one; ``b""`` at the end. -1: everything up to the end.

        Waits for the first writer if none has been there yet. Raises `ClosedError`, `InvalidArgumentError` on a write end,
        and `CancelledError` or `DeadlineError` when the opening was bounded and no writer came (the fifo is closed then).
        What a read to the end had taken when a signal handler raised is returned by the next read.
        """
        cdef char[ON_STACK] small
        cdef PyObject *block = NULL
        cdef ssize_t got
        if size < 0:
            return self._read_to_end()
        if size <= ON_STACK:
            got = self._take(small, size)
            return PyBytes_FromStringAndSize(small, got)
        try:
            size = min(size, <Py_ssize_t>MOST)
            block = new_bytes(NULL, size)
            got = self._take(bytes_data(block), size)
            if got < size:
                resize_bytes(&block, got)
            return <bytes>block
        finally:
            Py_XDECREF(block)

    cdef bytes _read_to_end(self):
        cdef PyObject *block = NULL
        cdef Py_ssize_t filled = 0, room = BLOCK
        cdef ssize_t got
        try:
            block = new_bytes(NULL, room)
            while True:
                got = self._take(bytes_data(block) + filled, room - filled)
                if got == 0:
                    break
                filled += got
                if filled == room:
                    room *= 2
                    resize_bytes(&block, room)
            resize_bytes(&block, filled)
            return <bytes>block
        except BaseException:
            if filled and block != NULL and self._state != CLOSED:
                self._ahead = bytes_data(block)[:filled] + (self._ahead or b"")
            raise
        finally:
            Py_XDECREF(block)

    def readinto(self, buffer) -> int:
        """Like `read`, into a writable buffer; returns the number of bytes, 0 at the end (or for an empty buffer)."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return self._take(<char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def read_nowait(self, Py_ssize_t size):
        """Like `read`, but ``None`` when there is nothing now; never waits. *size* is in bytes, at least 1."""
        cdef ssize_t got
        if self._access == O_WRONLY:
            raise self._not_for("reading")
        if size <= 0:
            raise InvalidArgumentError(f"read_nowait() takes at least 1 byte, not {size}")
        size = min(size, <Py_ssize_t>MOST)
        cdef bytes whole
        self._enter()
        try:
            if self._ahead is not None:
                whole, self._ahead = self._ahead[:size], self._ahead[size:] or None
                return whole
            whole = PyBytes_FromStringAndSize(NULL, size)
            got = self._take_now(PyBytes_AS_STRING(whole), size)
            if got < 0:
                self._check_patience()
                return None
            return whole[:got]
        finally:
            self._leave()

    def write(self, data) -> int:
        """Writes all of *data* (bytes-like) and returns its length. Waits for the reader, and for room.

        Raises `UnavailableError` when the reader has gone (never SIGPIPE), `ClosedError`, `InvalidArgumentError` on a read
        end, and `CancelledError` or `DeadlineError` when the opening was bounded and no reader came (the fifo is closed
        then). When a signal handler raises, a part may have been written.
        """
        cdef Py_buffer view
        cdef iovec vector
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            vector.iov_base, vector.iov_len = view.buf, view.len
            return self._put(&vector, 1)
        finally:
            PyBuffer_Release(&view)

    def writev(self, buffers) -> int:
        """Like `write`, for several buffers as if they were one; returns the sum of their lengths."""
        cdef list wanted = list(buffers)
        cdef Py_ssize_t count = len(wanted), held = 0, i
        cdef Py_buffer *views = <Py_buffer *>malloc(count * sizeof(Py_buffer) or 1)
        cdef iovec *vectors = <iovec *>malloc(count * sizeof(iovec) or 1)
        try:
            if views == NULL or vectors == NULL:
                raise MemoryError()
            while held < count:
                PyObject_GetBuffer(wanted[held], &views[held], PyBUF_SIMPLE)
                vectors[held].iov_base, vectors[held].iov_len = views[held].buf, views[held].len
                held += 1
            return self._put(vectors, count)
        finally:
            for i in range(held):
                PyBuffer_Release(&views[i])
            free(views)
            free(vectors)

    def write_nowait(self, data) -> int:
        """Writes what there is room for, at once; returns how many bytes, 0 also while there is no reader yet."""
        cdef Py_buffer view
        cdef iovec vector
        if self._access == O_RDONLY:
            raise self._not_for("writing")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._enter()
            try:
                if not self._look():
                    self._check_patience()
                    return 0
                vector.iov_base, vector.iov_len = view.buf, view.len
                return max(self._put_now(&vector, 1), <ssize_t>0) if view.len else 0
            finally:
                self._leave()
        finally:
            PyBuffer_Release(&view)

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        block = self.read(BLOCK)
        if not block:
            raise StopIteration
        return block

    # What it is and how it stands

    @property
    def mode(self) -> str:
        """``"read"``, ``"write"`` or ``"read-write"``."""
        return {O_RDONLY: "read", O_WRONLY: "write"}.get(self._access, "read-write")

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its descriptor handed over."""
        return self._state == CLOSED

    @property
    def connected(self) -> bool:
        """Whether the peer is there or has been, by a fresh look; once true it stays so, also after the close."""
        if self._state == CLOSED:
            return self._was_open
        self._enter()
        try:
            return self._look()
        finally:
            self._leave()

    @property
    def at_end(self) -> bool:
        """For a read end: whether nothing can be added any more, though what was written may still wait to be read.

        True when it is hung up or closed, or when `no_more_writers` was called and it is empty and held by no writer.
        """
        if self._access == O_WRONLY:
            raise self._not_for("reading")
        if self._state == CLOSED:
            return True
        self._enter()
        try:
            if look_at(self._fd) & POLLHUP:
                return True
            return self._no_more_writers and self._writer_there() == 0
        finally:
            self._leave()

    def no_more_writers(self) -> None:
        """Tells a read end that whoever was to write has ended (say, its process): a read of nothing is the end now.

        What is in the pipe is read first, and a writer that is there after all is awaited as usual. A waiting read or
        `wait_connected` takes notice at once. Calling it again, or on a closed fifo, does nothing.
        """
        if self._access == O_WRONLY:
            raise self._not_for("reading")
        self._after_fork()
        self._no_more_writers = True
        wake(self._waiters)

    def wait_connected(self, timeout=None) -> None:
        """Waits until the peer has come, or, after `no_more_writers`, none can come any more.

        *timeout* is in seconds; when it passes, `DeadlineError` is raised and the fifo stays open. Raises also what bounds
        the opening, as `read` does, and `ClosedError`.
        """
        cdef int64_t until = deadline_in(timeout)
        self._enter()
        try:
            self._await_peer(until)
        finally:
            self._leave()

    def grow(self, Py_ssize_t size) -> int:
        """Asks for room for *size* bytes (F_SETPIPE_SZ) and returns the room there is; a refusal is no error.

        0 where the system does not tell.
        """
        cdef int room
        self._enter()
        try:
            if self._fd < 0:
                return 0
            pipe_resize(self._fd, <int>min(size, <Py_ssize_t>0x40000000))
            return max(pipe_size(self._fd), 0)
        finally:
            self._leave()

    def fileno(self) -> int:
        """The descriptor, for `select` and `selectors`; it is nonblocking.

        A read end gets ready with the first byte and with the end. A write end counts as ready while it has no reader:
        ask for `connected` first. Raises `ClosedError`, and `UnavailableError` for a write end that has no descriptor yet
        (other systems than Linux; no permission to read the fifo).
        """
        if self._state == CLOSED:
            raise ClosedError(f"fifo {self.path!r} is closed")
        if self._fd < 0:
            raise UnavailableError(f"fifo {self.path!r} has no descriptor before its reader has come")
        return self._fd

    def detach(self) -> int:
        """Hands the (nonblocking) descriptor over to the caller, who closes it; the fifo is closed from then on."""
        return self.release()

    def close(self) -> None:
        """Closes it; again does nothing. Whoever waits in a read or write of another thread gets `ClosedError`."""
        self._shut()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self._shut()

    def __repr__(self) -> str:
        state = ("opening", "open", "closed")[self._state]
        return f"<Fifo {self.path!r} {self.mode} {state}>"


# --- opening -------------------------------------------------------------------------------------------------------


cdef int64_t deadline_in(timeout) except -2:
    """CLOCK_MONOTONIC in ns, *timeout* seconds from now; -1 for None."""
    if timeout is None:
        return -1
    cdef double seconds = timeout
    if not seconds >= 0:
        raise InvalidArgumentError(f"a timeout is a number of seconds from 0 on, or None, not {timeout!r}")
    return -1 if seconds > 1e9 else monotonic() + <int64_t>(seconds * 1e9)


cdef object kind_of(mode_t kind):
    if S_ISLNK(kind):
        return "a symbolic link, which is not followed"
    if S_ISDIR(kind):
        return "a directory"
    if S_ISREG(kind):
        return "a regular file"
    if S_ISSOCK(kind):
        return "a socket"
    return "a device" if S_ISCHR(kind) or S_ISBLK(kind) else "something else"


def open_fifo(path, int flags, mode=0o700, *, timeout=None, cancel=None) -> Fifo:
    """Opens one end of the named pipe at *path* (C14 to C17).

    *flags*: ``os.O_RDONLY``, ``os.O_WRONLY`` or ``os.O_RDWR``, with ``os.O_CREAT`` to make it with permissions *mode* (less
    the umask) when it is missing, and with ``os.O_NONBLOCK`` to return at once: the first read or write waits for the peer
    then. Without that, the call itself waits for it; Ctrl-C interrupts. ``O_RDWR`` never waits.

    *timeout* (seconds) and *cancel* (a `Cancellation`) bound the wait for the peer, here or in that first read or write:
    it raises `DeadlineError` or `CancelledError`, and the fifo is closed. Once the peer has come they no longer matter.

    Raises `InvalidArgumentError` for other flags and for anything at *path* that is not a fifo (a symbolic link is not
    followed), `NotFoundError` when nothing is there, and `UnavailableError` for permissions, a full disk, and too many
    open files. The inode first found there is the one that is opened, whatever takes its place meanwhile.
    """
    cdef bytes encoded
    cdef const char *call = b""
    cdef const char *name
    cdef mode_t kind = 0, permissions
    cdef int number
    cdef Fifo fifo
    path = os.fspath(path)
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise InvalidArgumentError(f"fifo {path!r}: a path has no NUL in it")
    if flags & ~(O_ACCMODE | O_CREAT | O_NONBLOCK | O_CLOEXEC) or flags & O_ACCMODE not in (O_RDONLY, O_WRONLY, O_RDWR):
        raise InvalidArgumentError(
            f"flags {flags:#x} do not open fifo {path!r}: use O_RDONLY, O_WRONLY or O_RDWR, with O_CREAT and O_NONBLOCK"
        )
    if cancel is not None and not isinstance(cancel, Cancellation):
        raise TypeError(f"cancel is a Cancellation or None, not {type(cancel).__name__}")
    permissions = mode
    fifo = Fifo.__new__(Fifo)
    fifo.path = path
    fifo._access = flags & O_ACCMODE
    fifo._deadline = deadline_in(timeout)
    fifo._cancel = cancel
    name = encoded
    with nogil:
        number = open_end(fifo, name, flags, permissions, &call, &kind)
    if kind:
        raise InvalidArgumentError(
            f"could not open fifo {path!r} {fifo._purpose()}: it is {kind_of(kind)} (remove it, or choose another path)"
        )
    if number:
        raise fifo._failed(number, call.decode())
    fifo._state = OPENING
    if fifo._access == O_RDWR:
        fifo._become_open()
    if not flags & O_NONBLOCK:
        try:
            fifo.wait_connected()
        except BaseException:
            fifo._shut()
            raise
    return fifo


def _switch(*, portable_path: bool | None = None, inotify: bool | None = None) -> None:
    """For the tests: the path of other systems, and a system with no inotify instance to be had."""
    global portable, hub_off
    if portable_path is not None:
        portable = portable_path or not ON_LINUX
    if inotify is not None:
        hub_off = not inotify


def _counts() -> tuple[int, int, int]:
    """For the tests: watches on fifos, threads that wait, and idle wakers that are kept."""
    cdef int i, used = 0
    pthread_mutex_lock(&hub_lock)
    for i in range(hub_size):
        used += watches[i].number >= 0
    pthread_mutex_unlock(&hub_lock)
    return used, wakers_all - wakers_idle, wakers_idle
