"""Named pipes that cost nothing while they wait (contract rows C13 to C17).

A `Fifo` is one end of a named pipe. It is in one of three states: *opening*, while its peer has never been there; *open*,
from the moment it was; *closed*. Opening needs no thread: a reader is opened without waiting, and `poll` stays silent
until a first writer has come; a writer holds its write end beside nobody, and ``POLLERR`` stands until a reader has come
(see `open_write_end`). Whoever wants to read or write before that waits in `wait_turn`, without the GIL.

Every transition happens with the GIL held, and in `become_open` or `shut`. The module is laid out in parts: ends.pxi does
things to bare descriptors, peers.pxi watches for peers that open, waiting.pxi is how a thread waits, machine.pxi is the
state machine, and here are the class and the opening. It moves no bytes between descriptors (the relay does), and knows
nothing of containers.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from libctrd.posix cimport *
from libctrd.system cimport *

from libctrd.errors import (
    CancelledError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    UnavailableError,
    from_errno,
)

globals()["PORTABLE"] = bool(PORTABLE)    # to be asked by Python too: which build is this?

cdef extern from "Python.h":
    bint PyOS_InterruptOccurred()
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *bytes_data "PyBytes_AsString"(PyObject *block) except NULL
    void Py_XDECREF(PyObject *block)

cdef extern from *:
    """
    #ifdef Py_LIMITED_API /* which has no such call: what is less than was asked for is copied once more */
    static int ctrd_resize_bytes(PyObject **block, Py_ssize_t size)
    {
        PyObject *old = *block;
        Py_ssize_t kept = PyBytes_Size(old) < size ? PyBytes_Size(old) : size;
        *block = PyBytes_FromStringAndSize(NULL, size);
        if (*block)
            memcpy(PyBytes_AsString(*block), PyBytes_AsString(old), (size_t)kept);
        Py_DECREF(old);
        return *block ? 0 : -1;
    }
    #else
    #define ctrd_resize_bytes _PyBytes_Resize
    #endif
    """
    int resize_bytes "ctrd_resize_bytes"(PyObject **block, Py_ssize_t size) except -1

cdef enum:
    OPENING = 0
    OPEN = 1
    CLOSED = 2

cdef enum:
    BLOCK = 65536           # bytes of one read when there is no size: what a pipe holds by default
    LINE = 1048576          # bytes of a line that are kept, waiting for its end
    MOST = 1048576          # bytes that one read(size) asks for at most
    ON_STACK = 4096         # up to here a read needs no object that must be shrunk afterwards
    VECTORS = 64            # buffers that go into one writev(2)


include "ends.pxi"
include "peers.pxi"
include "waiting.pxi"
include "machine.pxi"


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
        drop(self)

    cdef int release(self) except -1:
        """Hands the descriptor over to the caller, who closes it; the fifo is closed from then on.

        A deadline or cancellation of its opening ends with that. While another thread is inside a call on the descriptor,
        the caller gets a duplicate, so that the number that thread uses stays what it is.
        """
        cdef int fd
        notice_fork(self)
        if self._state == CLOSED:
            raise ClosedError(f"fifo {self.path!r} is closed")
        if self._fd < 0:
            raise UnavailableError(
                f"fifo {self.path!r} has no descriptor to hand over before its reader has come (wait_connected() first)"
            )
        if self._ahead is not None:
            raise UnavailableError(
                f"fifo {self.path!r} cannot be handed over: {len(all_ahead(self))} bytes were read ahead (read them first)"
            )
        fd = self._fd
        if self._users:
            fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
            if fd < 0:
                raise from_errno(errno, f"hand over fifo {self.path!r} (fcntl)")
        else:
            self._fd = -1
        shut(self)
        return fd

    cdef bint is_writer(self):
        return self._access == O_WRONLY

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
            got = take(self, small, size)
            return PyBytes_FromStringAndSize(small, got)
        try:
            size = min(size, <Py_ssize_t>MOST)
            block = new_bytes(NULL, size)
            got = take(self, bytes_data(block), size)
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
                got = take(self, bytes_data(block) + filled, room - filled)
                if got == 0:
                    break
                filled += got
                if filled == room:
                    room *= 2
                    resize_bytes(&block, room)
                PyErr_CheckSignals()      # a writer that never pauses must not keep Ctrl-C out
            resize_bytes(&block, filled)
            return <bytes>block
        except BaseException:
            if filled and block != NULL and self._state != CLOSED:
                put_ahead(self, bytes_data(block)[:filled] + all_ahead(self))
            raise
        finally:
            Py_XDECREF(block)

    def readline(self) -> bytes:
        """The next line, with its end; ``b""`` at the end of all. One of more than 1 MiB comes in pieces. Raises as `read`.

        What it had taken when a signal handler raised is returned by the next read. Iterating gives one line after the other.
        """
        return next_line(self)

    def readinto(self, buffer) -> int:
        """Like `read`, into a writable buffer; returns the number of bytes, 0 at the end (or for an empty buffer)."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return take(self, <char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def read_nowait(self, Py_ssize_t size):
        """Like `read`, but ``None`` when there is nothing now; never waits. *size* is in bytes, at least 1."""
        cdef ssize_t got
        if self._access == O_WRONLY:
            raise not_for(self, "reading")
        if size <= 0:
            raise InvalidArgumentError(f"read_nowait() takes at least 1 byte, not {size}")
        size = min(size, <Py_ssize_t>MOST)
        cdef bytes whole
        enter(self)
        try:
            if self._ahead is not None:
                whole = self._ahead[self._ahead_at:self._ahead_at + size]
                step_ahead(self, len(whole))
                return whole
            whole = PyBytes_FromStringAndSize(NULL, size)
            got = take_now(self, PyBytes_AsString(whole), size)
            if got < 0:
                check_patience(self)
                return None
            return whole[:got]
        finally:
            leave(self)

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
            return put(self, &vector, 1)
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
            return put(self, vectors, count)
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
            raise not_for(self, "writing")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            enter(self)
            try:
                if not peer_came(self):
                    check_patience(self)
                    return 0
                vector.iov_base, vector.iov_len = view.buf, view.len
                return max(put_now(self, &vector, 1), <ssize_t>0) if view.len else 0
            finally:
                leave(self)
        finally:
            PyBuffer_Release(&view)

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

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
        enter(self)
        try:
            return peer_came(self)
        finally:
            leave(self)

    @property
    def at_end(self) -> bool:
        """For a read end: whether nothing can be added any more, though what was written may still wait to be read.

        True when it is hung up or closed, or when `no_more_writers` was called and it is empty and held by no writer.
        """
        if self._access == O_WRONLY:
            raise not_for(self, "reading")
        if self._state == CLOSED:
            return True
        enter(self)
        try:
            if look_at(self._fd) & POLLHUP:
                return True
            return self._no_more_writers and writer_there(self) == 0
        finally:
            leave(self)

    def no_more_writers(self) -> None:
        """Tells a read end that whoever was to write has ended (say, its process): a read of nothing is the end now.

        What is in the pipe is read first, and a writer that is there after all is awaited as usual. A waiting read or
        `wait_connected` takes notice at once. Calling it again, or on a closed fifo, does nothing.
        """
        if self._access == O_WRONLY:
            raise not_for(self, "reading")
        notice_fork(self)
        self._no_more_writers = True
        self._news += 1
        wake(self._waiters)

    def wait_connected(self, timeout=None) -> None:
        """Waits until the peer has come, or, after `no_more_writers`, none can come any more.

        *timeout* is in seconds; when it passes, `DeadlineError` is raised and the fifo stays open. Raises also what bounds
        the opening, as `read` does, and `ClosedError`.
        """
        cdef int64_t until = deadline_in(timeout)
        enter(self)
        try:
            await_peer(self, until)
        finally:
            leave(self)

    def grow(self, Py_ssize_t size) -> int:
        """Asks for room for *size* bytes (F_SETPIPE_SZ) and returns the room there is; a refusal is no error.

        0 where the system does not tell.
        """
        cdef int fd, room
        enter(self)
        try:
            fd = self._fd
            with nogil:
                pipe_resize(fd, <int>min(size, <Py_ssize_t>0x40000000))
                room = pipe_size(fd)
            return max(room, 0)
        finally:
            leave(self)

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
        shut(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        shut(self)

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


def growing_is_free() -> bool:
    """Whether pipes may grow without counting against this user's share of 64 MiB (pipe(7), CAP_SYS_RESOURCE)."""
    return pipes_are_free()


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
    if not 0 <= mode <= 0o7777:
        raise InvalidArgumentError(f"mode {mode:#o} of fifo {path!r}: permissions are 0 to 0o7777")
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
            f"could not open fifo {path!r} {purpose(fifo)}: it is {kind_of(kind)} (remove it, or choose another path)"
        )
    if number:
        raise failed(fifo, number, call.decode())
    fifo._state = OPENING
    if fifo._access == O_RDWR or fifo._was_open:
        become_open(fifo)
    if not flags & O_NONBLOCK:
        try:
            fifo.wait_connected()
        except BaseException:
            shut(fifo)
            raise
    return fifo


include "adopting.pxi"


include "for_tests.pxi"
