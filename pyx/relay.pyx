"""The one thread that moves bytes for every fifo (contract rows C12, C17, C28).

A pump takes what a source gives, a `Fifo` or any descriptor, to a sink, to a bounded buffer, to a Python callback, or to
nowhere. One native thread moves the bytes of all pumps; it never takes the GIL and waits in its poller only, so that a
slow sink stops its own source and nothing else. What is read is delivered or said to be lost; nothing piles up. It knows
nothing of containers, and opens no fifo (`libctrd.fifo` does).

The parts: pumps.pxi, what a pump is and the lists it is in; moving.pxi, how bytes move; loop.pxi, the thread;
dispatch.pxi, how Python is called; bells.pxi, how an event loop waits; descriptors.pxi, what is given to a pump; lifetime.pxi, how the thread begins and ends;
here, the classes and the functions that make them.
"""

import atexit
import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from libctrd.fifo cimport Fifo, peer_dispatch, peer_fd, open_held, peer_unwatch, peer_watch, writer_connected
from libctrd.posix cimport *
from libctrd.system cimport *

from libctrd._log import log as logger
from libctrd._worker import Worker
from libctrd.errors import (
    CancelledError,
    ClosedError,
    DeadlineError,
    InvalidArgumentError,
    UnavailableError,
    from_errno,
)

globals()["PORTABLE"] = bool(PORTABLE)    # to be asked by Python too: which build is this?
cdef bint stopped = False       # the interpreter is at its end: no Python is called any more

include "pumps.pxi"
include "moving.pxi"
include "loop.pxi"
include "dispatch.pxi"

cdef str KINDS = "discard copy buffer call"


# --- pumps as Python sees them -------------------------------------------------------------------------------------


cdef class Pump:
    """What moves the bytes of one source; made by `copy`, `discard`, `call` and `buffer`.

    It goes on without being referred to, until the source has come to its end. Its methods may be called from any thread.
    In the child of a fork it is over, with a `CancelledError`; the parent's goes on.
    """

    cdef pump_t *pump
    cdef readonly object source
    cdef readonly object sink
    cdef object _callback
    cdef list _callbacks
    cdef object _error
    cdef bint _failed
    cdef object __weakref__

    def __cinit__(self):
        self._callbacks = []
        self.pump = <pump_t *>calloc(1, sizeof(pump_t))
        if self.pump == NULL:
            raise MemoryError
        self.pump.references = 1
        self.pump.token = self.pump.source.fd = self.pump.sink.fd = -1
        self.pump.done = True           # until it is started

    def __init__(self):
        raise TypeError("a pump is made by copy(), discard(), call() or buffer()")

    def __dealloc__(self):
        if self.pump != NULL:
            pthread_mutex_lock(&lock)
            if self.pump.kind == BUFFER:
                command(self.pump, CANCEL)      # nobody can read it any more
            forget(self.pump)
            pthread_mutex_unlock(&lock)

    def __repr__(self):
        state = "under way" if not self.done else "done" if self.error is None else "failed"
        to = f" -> {self.sink}" if self.sink is not None else ""
        return f"<Pump {KINDS.split()[self.pump.kind]} {self.source}{to}, {self.bytes} bytes, {state}>"

    @property
    def done(self) -> bool:
        """Whether it is over: all was delivered, or it failed, or was cancelled. Its descriptors are closed then."""
        cdef bint done
        pthread_mutex_lock(&lock)
        done = self.pump.done
        pthread_mutex_unlock(&lock)
        return done

    @property
    def bytes(self) -> int:
        """Bytes delivered so far: those that the sink has taken, or, without a descriptor as sink, the source has given."""
        cdef uint64_t moved
        pthread_mutex_lock(&lock)
        moved = self.pump.moved
        pthread_mutex_unlock(&lock)
        return moved

    @property
    def error(self):
        """What failed first (`CtrdError`), or ``None``. A sink's failure is known at once, also while the source is drained."""
        cdef int number, at
        if self._error is None:
            pthread_mutex_lock(&lock)
            number, at = self.pump.error, self.pump.error_at
            pthread_mutex_unlock(&lock)
            if at == SOURCE:
                self._error = from_errno(number, f"read from {self.source} (read)")
            elif at == SINK:
                self._error = from_errno(number, f"write to {self.sink} (write)")
            elif at == WATCH:
                self._error = from_errno(number, f"watch {self.source} (epoll_ctl)")
            elif at == CANCELLED:
                self._error = CancelledError(f"the pump of {self.source} was cancelled")
        return self._error

    def wait(self, timeout=None) -> bool:
        """Waits until it is over, *timeout* seconds at most; returns whether it is. Ctrl-C interrupts it; `error` tells why."""
        return self.await_bytes(deadline_of(timeout), False)

    cdef bint await_bytes(self, int64_t deadline, bint bytes_too) except -1:
        """Waits for the end, or for bytes in the buffer too. False: the deadline has passed."""
        cdef Waiter waiter
        cdef Waiter **link
        cdef bint there
        cdef pump_t *pump = self.pump
        pthread_mutex_lock(&lock)
        there = pump.done or (bytes_too and pump.held > 0)
        if there:
            pthread_mutex_unlock(&lock)
            return True
        sem_init(&waiter.woken, 0, 0)
        waiter.for_bytes = bytes_too
        waiter.next = pump.waiters
        pump.waiters = &waiter
        pthread_mutex_unlock(&lock)
        try:
            while True:
                with nogil:
                    wait_until(&waiter, deadline)
                pthread_mutex_lock(&lock)
                there = pump.done or (bytes_too and pump.held > 0)
                pthread_mutex_unlock(&lock)
                if there:
                    return True
                PyErr_CheckSignals()
                if 0 <= deadline <= monotonic():
                    return False
        finally:
            pthread_mutex_lock(&lock)
            link = &pump.waiters
            while link[0] != NULL and link[0] != &waiter:
                link = &link[0].next
            if link[0] != NULL:
                link[0] = waiter.next
            pthread_mutex_unlock(&lock)
            sem_destroy(&waiter.woken)

    def cancel(self) -> None:
        """Ends it now: what the source still holds stays there, and `error` is a `CancelledError`. Idempotent; no waiting."""
        self.tell(CANCEL)

    def no_more_writers(self) -> None:
        """No writer comes any more: a read of nothing is the end, also of a fifo that never had one. Idempotent.

        What is in the fifo is delivered first, and a writer that is there is awaited as usual.
        """
        self.tell(NO_MORE)

    def finish(self) -> None:
        """Ends it once what the source holds now is delivered, though somebody may keep it open and write on. Idempotent."""
        self.tell(FINISH)

    def duplicate(self) -> int:
        """A duplicate of the source's descriptor, which the caller closes. Raises `ClosedError` when the pump is over."""
        cdef int fd, number
        pthread_mutex_lock(&lock)
        fd = self.pump.source.fd
        if fd >= 0:
            fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
            number = errno if fd < 0 else 0
        else:
            number = EBADF
        pthread_mutex_unlock(&lock)
        if number == EBADF:
            raise ClosedError(f"the pump of {self.source} is over, and its source closed")
        if number:
            raise from_errno(number, f"duplicate the descriptor of {self.source} (fcntl)")
        return fd

    cdef void tell(self, unsigned int what) noexcept:
        pthread_mutex_lock(&lock)
        command(self.pump, what)
        pthread_mutex_unlock(&lock)

    def on_done(self, callback) -> None:
        """Calls ``callback(pump)`` once, from a thread of the relay's, when it is over; soon, when it is already.

        What it raises is logged. In the child of a fork nothing is called.
        """
        if not callable(callback):
            raise InvalidArgumentError(f"on_done takes a function of a pump, not {callback!r}")
        keep(self)
        self._callbacks.append(callback)
        pthread_mutex_lock(&lock)
        self.pump.owner = <PyObject *>self      # a worker that was at its end may have let go of it
        self.pump.notify = True
        if self.pump.done:
            queue_job(self.pump)
        pthread_mutex_unlock(&lock)
        kept.add(self)

    cdef object drain(self, Py_ssize_t size):
        """Up to *size* bytes of what is buffered (-1: all of it), ``b""`` when there is nothing.

        Whole chunks are taken out under the lock and copied without it; of the last one a part is copied where it lies, which
        nobody else touches: other readers are kept away by the GIL, and the relay writes behind its end.
        """
        cdef pump_t *pump = self.pump
        cdef Chunk *chunks = NULL
        cdef Chunk **last = &chunks
        cdef Chunk *chunk
        cdef Chunk *part = NULL
        cdef size_t count, there, left
        cdef bytes data
        cdef char *to
        pthread_mutex_lock(&lock)
        there = pump.held
        pthread_mutex_unlock(&lock)
        if size >= 0:
            there = min(there, <size_t>size)
        if there == 0:
            return b""
        data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>there)
        to = PyBytes_AsString(data)
        pthread_mutex_lock(&lock)
        left = there
        while left:
            chunk = pump.head
            count = chunk.end - chunk.start
            if count > left or (pump.writing and chunk == pump.tail):
                part = chunk
                break
            pump.head = chunk.next
            if pump.head == NULL:
                pump.tail = NULL
            chunk.next = NULL
            last[0] = chunk
            last = &chunk.next
            left -= count
        pthread_mutex_unlock(&lock)
        if part != NULL:
            memcpy(to + (there - left), bytes_of(part) + part.start, left)
        pthread_mutex_lock(&lock)
        if part != NULL:
            part.start += left
        pump.held -= there
        if pump.full:
            pump.full = False
            command(pump, LOOK)
        pthread_mutex_unlock(&lock)
        if there > LAST_CHUNK:
            with nogil:
                copy_chunks(to, chunks)
        else:
            copy_chunks(to, chunks)
        return data

    cdef callback_failed(self, cause):
        logger.error("the callback for %s raised; what it gives is %s", self.source,
                     "refused from now on" if self.pump.close_source else "drained from now on", exc_info=cause)
        error = UnavailableError(f"the callback for {self.source} raised {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        self._failed = True
        pthread_mutex_lock(&lock)
        if not self.pump.error_at:
            self._error = error
        fail(self.pump, 0, CALLBACK)
        free_chunks(self.pump)
        self.pump.full = False
        command(self.pump, SINK_GONE)
        pthread_mutex_unlock(&lock)


cdef void copy_chunks(char *to, Chunk *chunks) noexcept nogil:
    cdef Chunk *chunk
    while chunks != NULL:
        chunk = chunks
        memcpy(to, bytes_of(chunk) + chunk.start, chunk.end - chunk.start)
        to += chunk.end - chunk.start
        chunks = chunk.next
        free(chunk)


cdef class Buffer(Pump):
    """A pump that is read. When its buffer is full its source waits; when nobody refers to it any more it is cancelled."""

    def read(self, Py_ssize_t size=-1, timeout=None):
        """Up to *size* bytes as soon as there is one, ``b""`` at the end; -1: all there is up to the end, whatever the limit.

        Raises `DeadlineError` after *timeout* seconds, and then nothing is lost: the next read has it. When the end is not the
        source's own, what came before is given first and then `error` raised. Ctrl-C interrupts it.
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef bint done = False
        if size == 0:
            return b""
        if size < 0:
            self.lift_limit(1)
        try:
            while not done:
                if not self.await_bytes(deadline, size > 0):
                    raise DeadlineError(f"{self.source} gave {'nothing' if size > 0 else 'no end'} within {timeout} s")
                done = self.done        # before the look: nothing is added after the end
                data = self.drain(size)
                if data:
                    return data         # else another reader was quicker
        finally:
            if size < 0:
                self.lift_limit(-1)
        if self.error is not None:
            raise self.error
        return b""

    cdef void lift_limit(self, int readers) noexcept:
        """While somebody reads to the end the limit does not count: he wants it all in memory."""
        pthread_mutex_lock(&lock)
        self.pump.to_end += readers
        if self.pump.to_end and self.pump.full:
            self.pump.full = False
            command(self.pump, LOOK)
        pthread_mutex_unlock(&lock)

    def read_nowait(self, Py_ssize_t size=-1):
        """Up to *size* bytes of what is there now (-1: all of it), ``None`` when there is nothing yet, ``b""`` at the end."""
        cdef bint done = self.done          # before the look: nothing is added after the end
        if size == 0:
            return b""
        data = self.drain(size)
        if data:
            return data
        if not done:
            return None
        if self.error is not None:
            raise self.error
        return b""


cdef int64_t deadline_of(timeout) except? -2:
    if timeout is None:
        return -1
    return monotonic() + <int64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)


# --- making them ---------------------------------------------------------------------------------------------------


def copy(source, sink, *, on_sink_error="drain", close_sink=False):
    """Moves everything from *source* to *sink*; returns the `Pump`.

    Each is a `Fifo`, which is handed over to the relay and closed at the end, or a descriptor, which is duplicated: the
    caller keeps his. With *close_sink* a sink's descriptor is taken over instead, and closed at the end. When the sink
    fails, *on_sink_error* says what becomes of the source: ``"drain"`` discards the rest of it, so that who writes there
    goes on; ``"close"`` closes it. A fifo whose reader has not been there yet is waited for, and so is, with it, the source.
    Raises `InvalidArgumentError` for what cannot be read or written, `ClosedError`, `UnavailableError` (no descriptors).
    """
    cdef Pump pump = Pump.__new__(Pump)
    pump.pump.kind = COPY
    pump.pump.close_source = policy(on_sink_error)
    take_source(pump, source)
    take_sink(pump, sink, close_sink)
    start(pump)
    return pump


def discard(source):
    """Reads *source* (as for `copy`) to its end and forgets what it gives, so that who writes there goes on (C12)."""
    cdef Pump pump = Pump.__new__(Pump)
    take_source(pump, source)
    start(pump)
    return pump


def call(source, callback, *, limit=1 << 20, on_sink_error="drain"):
    """Hands what *source* gives to ``callback(data)``, in order, in batches, one call at a time; returns the `Pump`.

    The calls come from a thread of the relay's. While one runs, up to *limit* bytes are gathered for the next; then the
    source waits. What it raises is logged and kept as the pump's `error`; it is not called again, and the source is drained
    or closed as for `copy`. The pump is done when the last call has returned.
    """
    cdef Pump pump = Pump.__new__(Pump)
    if not callable(callback):
        raise InvalidArgumentError(f"a callback is a function of bytes, not {callback!r}")
    pump.pump.kind = CALL
    pump.pump.limit = bytes_limit(limit)
    pump.pump.close_source = policy(on_sink_error)
    pump._callback = callback
    take_source(pump, source)
    keep(pump)
    start(pump)
    return pump


def buffer(source, limit=1 << 20):
    """Gathers what *source* gives, at most *limit* bytes at a time (``None``: everything), to be read; returns the `Buffer`."""
    cdef Buffer pump = Buffer.__new__(Buffer)
    pump.pump.kind = BUFFER
    pump.pump.limit = UNLIMITED if limit is None else bytes_limit(limit)
    take_source(pump, source)
    start(pump)
    return pump


def prepare_to_call() -> None:
    """Has what calls callbacks ready, so that a later `Pump.on_done` cannot fail for want of a thread.

    Raises `UnavailableError` when there is no thread to be had now.
    """
    start_dispatcher()


def active() -> int:
    """How many pumps are under way."""
    cdef int count
    pthread_mutex_lock(&lock)
    count = relay.active
    pthread_mutex_unlock(&lock)
    return count


cdef bint policy(on_sink_error) except -1:
    if on_sink_error not in ("drain", "close"):
        raise InvalidArgumentError(f"on_sink_error={on_sink_error!r} is not known: give 'drain' or 'close'")
    return on_sink_error == "close"


cdef size_t bytes_limit(limit) except 0:
    if not isinstance(limit, int) or limit < 1:
        raise InvalidArgumentError(f"a limit is a number of bytes, 1 or more, not {limit!r}")
    return <size_t>min(limit, 1 << 62)


include "bells.pxi"
include "descriptors.pxi"
include "lifetime.pxi"
