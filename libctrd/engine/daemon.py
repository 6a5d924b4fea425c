"""A daemon of ours: started when it is wanted, found again, asked whether it is well, restarted, stopped (C23).

What it is a `Kind` tells: its command, its socket, how it is asked. Everything is in one directory of ours (0700).

Whose a process is: the pid file names it, if that is to be believed (`pidfile`). One whose pid file was lost is known
by our socket, of which the kernel tells who listens, and by its command. What listens there and is not ours is an
error, and is never stopped.

Who may start and stop: whoever holds the lock (flock) on the file ``lock``. A child holds it too until it has written
its pid file, so that not even a starter that is killed in between leaves a daemon that nobody knows of. Several
processes may watch one daemon: the first that finds it dead restarts it, the others find another in its place then, and
take that. A pid file that is gone says that somebody has stopped it, and so nobody restarts it.

Threads: `Daemon` has one, from `start` to `close`. Its checks are calls that may last 3 s and its restarts take far
longer, and the shared reactor must never wait. It sleeps in a poll between two checks, which the daemon's own end cuts
short. ``_lock`` guards who is watched; it is never held while anything is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from libctrd import directory, proc
from libctrd._checks import one_line
from libctrd._worker import Worker
from libctrd.engine import launch
from libctrd.engine.pidfile import PidFile
from libctrd.engine.taskshim import Ended
from libctrd.errors import (
    ClosedError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    from_os_error,
)

log = logging.getLogger("libctrd")

CHECK_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 3.0
FAILURES: Final = 3
STOP_SECONDS: Final = 15.0
START_SECONDS: Final = 30.0
KILL_SECONDS: Final = 10.0
OOM_SCORE: Final = -500
LONGEST_SOCKET: Final = 107
"""Bytes of a unix socket's path."""

LAST_BACKOFF: Final = 8.0
LOOK_SECONDS: Final = 0.01


class Probe(Protocol):
    """A way to ask a daemon whether it is well. One thread asks."""

    def ask(self, seconds: float) -> None:
        """Returns when it answered as it should; raises a `CtrdError` when it did not within *seconds*."""

    def close(self) -> None:
        """Ends a question that is under way, too."""


class Ends(Protocol):
    """What ends while a daemon starts."""

    def heard(self) -> list[Ended]:
        """What has ended since the last time, or before. Never waits."""

    def close(self) -> None:
        """Hears of no more."""


class Kind(Protocol):
    """What a daemon is. *directory* is the absolute path of the one that is all its own."""

    name: str
    """In words, and the first part of its files' names."""
    package: str
    """Of Debian, for who has not installed it."""

    def command(self, directory: str) -> list[str]:
        """Its program's name, and its arguments, by which it is known again."""

    def sockets(self, directory: str) -> list[str]:
        """The paths of those that it makes; at the first one it is asked."""

    def prepare(self, directory: str) -> None:
        """Writes what its command needs, in a directory that is there."""

    def probe(self, directory: str) -> Probe:
        """A way to ask it."""

    def ended(self, directory: str) -> list[Ended]:
        """What has ended since the daemon is away and what it may not know of when it starts."""

    def ends(self, directory: str) -> Ends:
        """Hears of what ends from now on, while it starts."""


def _ignore(ended: list[Ended]) -> None:
    """For who keeps no account of ends."""


class Daemon:
    """The daemon of *kind* in the directory *state_dir*. Any thread may call; see the module for who owns what.

    *live_on*: whether it outlives this process; if not, the kernel kills it with us. *before_start* gets what has ended
    while it was away, each time before it is started, and afterwards what has ended before it answered. *oom_score* is
    what it is given from -1000 to 1000; where that is not allowed it keeps what it has.

    Raises `InvalidArgumentError` when a socket's path would be too long; nothing is made then.
    """

    def __init__(
        self,
        kind: Kind,
        state_dir: str,
        *,
        live_on: bool = True,
        before_start: Callable[[list[Ended]], None] = _ignore,
        oom_score: int = OOM_SCORE,
    ) -> None:
        self.directory = os.path.abspath(state_dir)
        for path in kind.sockets(self.directory):
            if len(os.fsencode(path)) > LONGEST_SOCKET:
                raise InvalidArgumentError(
                    f"the directory {state_dir!r} is too long by {len(os.fsencode(path)) - LONGEST_SOCKET} bytes for "
                    f"{kind.name}'s socket in it: choose a shorter one"
                )
        self.socket = kind.sockets(self.directory)[0]
        self.address = f"unix://{self.socket}"
        self.pid_file = os.path.join(self.directory, f"{kind.name}.pid")
        self._pid_file = PidFile(self.pid_file, kind.command(self.directory))
        self.log_file = os.path.join(self.directory, f"{kind.name}.log")
        self._kind = kind
        self._live_on = live_on
        self._before_start = before_start
        self._oom_score = oom_score
        self._lock = threading.Lock()
        self._ref: proc.ProcessRef | None = None
        self._watcher: _Watcher | None = None
        _all.add(self)

    @property
    def pid(self) -> int | None:
        """Of the daemon as it was last seen to run; ``None`` before it was started and after it was stopped."""
        with self._lock:
            return self._ref.pid if self._ref is not None else None

    def start(self) -> None:
        """Finds it or starts it; returns when it answers, and from then on watches it. Idempotent.

        Raises `NotFoundError` when the program is not installed, `RuntimeFailedError` with its last words when it ends
        at once, `DeadlineError` when it does not answer, `UnavailableError` when something that is not ours has its
        socket or the directory is open to others.
        """
        self._check_directory()
        with self._locked() as lock:
            self._find_or_start(lock)
        with self._lock:
            if self._watcher is None:
                self._watcher = _Watcher(self)

    def stop(self) -> None:
        """Ends it: SIGTERM, and after 15 s SIGKILL. Its containers run on. One that does not run is fine.

        Raises `UnavailableError` when what has its socket is not ours; that is left alone.
        """
        self.close()
        if not os.path.isdir(self.directory):
            return
        with self._locked():
            ref = self._find()
            if ref is not None and not launch.end(ref, signal.SIGTERM, STOP_SECONDS):
                log.warning("%s %d did not end within %g s and is killed", self._kind.name, ref.pid, STOP_SECONDS)
                self._kill(ref)
            self._pid_file.remove()
            self._remove_sockets()
            with self._lock:
                self._ref = None

    def close(self) -> None:
        """Watches it no more; it runs on. Idempotent."""
        with self._lock:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    # ---- which process it is ---------------------------------------------------------------------------------------

    def _find(self) -> proc.ProcessRef | None:
        """Ours, if it runs. Raises `UnavailableError` when somebody else has our socket. Called with the flock held."""
        recorded = self._pid_file.read()
        if recorded is not None:
            return recorded
        pid = self._listener()
        if pid is not None and not self._pid_file.is_for(pid) and launch.has_ended(pid, KILL_SECONDS):
            pid = self._listener()  # one that was killed has no command any more when its socket still is there
        if pid is None:
            return None
        if not self._pid_file.is_for(pid):
            raise UnavailableError(
                f"process {pid} listens at {self.socket!r} and is no {self._kind.name} of ours: it was left alone; end "
                "it, or choose another directory"
            )
        log.warning("%s %d had lost its pid file %s, which is written anew", self._kind.name, pid, self.pid_file)
        return self._pid_file.write(pid)

    def _listener(self) -> int | None:
        """Who listens at our socket; ``None``: nobody. Linux tells it to whoever connects (unix(7), SO_PEERCRED)."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            try:
                peer.connect(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except OSError as error:
                raise from_os_error(error, f"find out who listens at {self.socket!r} (connect)") from error
            pid: int = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid

    # ---- its start -------------------------------------------------------------------------------------------------

    def _find_or_start(self, lock: int, failed: proc.ProcessRef | None = None) -> None:
        """Takes the one that runs; starts one when there is none, or after killing it when it is the one that *failed*.

        Called with the flock held. One that is found has as long to answer as the watcher would give it.
        """
        ref = self._find()
        if ref is not None and (ref == failed or not self._is_well(ref)):
            self._kill(ref)
            ref = None
        if ref is None:
            ref = self._start(lock)
        self._set_oom_score(ref.pid)
        with self._lock:
            self._ref = ref

    def _start(self, lock: int) -> proc.ProcessRef:
        """Starts one. After a failure its pid file stays: it names a process that is dead, and that one is wanted."""
        name, *arguments = self._kind.command(self.directory)
        program = launch.program(name, self._kind.package)
        self._remove_sockets()
        self._kind.prepare(self.directory)
        ends = self._kind.ends(self.directory)  # from before the look on: so nothing that ends falls between
        try:
            ended = self._kind.ended(self.directory)
            self._before_start(ended)
            try:
                return self._launch([program, *arguments], lock)
            finally:
                more = [end for end in ends.heard() if end not in ended]
                if more:
                    self._before_start(more)
        finally:
            ends.close()

    def _launch(self, command: list[str], lock: int) -> proc.ProcessRef:
        ref, pidfd = launch.launch(
            command, pid_file=self.pid_file, log_file=self.log_file, lock=lock, live_on=self._live_on
        )
        try:
            self._await_answer(ref.pid, pidfd, START_SECONDS)
            return ref
        except BaseException:
            with contextlib.suppress(NotFoundError):
                proc.pidfd_send_signal(pidfd, signal.SIGKILL)
            launch.readable(pidfd, KILL_SECONDS)
            self._remove_sockets()
            raise
        finally:
            os.close(pidfd)

    def _is_well(self, ref: proc.ProcessRef) -> bool:
        try:
            pidfd = ref.open_pidfd()
        except NotFoundError:
            return False
        try:
            self._await_answer(ref.pid, pidfd, FAILURES * ANSWER_SECONDS)
        except (DeadlineError, RuntimeFailedError) as error:
            log.warning("%s %d is killed and started again: %s", self._kind.name, ref.pid, error)
            return False
        finally:
            os.close(pidfd)
        return True

    def _await_answer(self, pid: int, pidfd: int, seconds: float) -> None:
        """Returns when the process answers. Its end is heard at once, its socket is looked for every few milliseconds:
        of a socket that begins to listen nothing can be heard."""
        deadline = time.monotonic() + seconds
        probe = self._kind.probe(self.directory)
        try:
            while True:
                with contextlib.suppress(DeadlineError, UnavailableError):
                    if self._listener() == pid:
                        probe.ask(max(0.1, min(deadline - time.monotonic(), ANSWER_SECONDS)))
                        return
                if launch.readable(pidfd, LOOK_SECONDS):
                    said = self._last_words()
                    raise RuntimeFailedError(
                        f"{self._kind.name} in {self.directory!r} ended when it was to answer: {said}", output=said
                    )
                if time.monotonic() >= deadline:
                    raise DeadlineError(
                        f"{self._kind.name} in {self.directory!r} did not answer within {seconds:g} s: see "
                        f"{self.log_file!r}"
                    )
        finally:
            probe.close()

    def _last_words(self) -> str:
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
                return one_line(file.read().decode("utf-8", "replace"))
        except OSError as error:
            return f"its log cannot be read: {error.strerror}"

    def _set_oom_score(self, pid: int) -> None:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(self._oom_score))
        except OSError as error:
            log.debug("%s %d keeps its OOM score: %s", self._kind.name, pid, error)

    # ---- its end ---------------------------------------------------------------------------------------------------

    def _kill(self, ref: proc.ProcessRef) -> None:
        """SIGKILL to that process alone: its shims are in its session, and live on."""
        if not launch.end(ref, signal.SIGKILL, KILL_SECONDS):
            raise DeadlineError(f"{self._kind.name} {ref.pid} did not end {KILL_SECONDS:g} s after SIGKILL")

    def _restart(self, failed: proc.ProcessRef) -> None:
        """For the watcher: kills *failed* and starts another, unless somebody has done so or has stopped it."""
        with self._locked() as lock:
            if os.path.lexists(self.pid_file) or self._find() is not None:
                self._find_or_start(lock, failed)
                return
        log.info("%s %d was stopped by somebody else", self._kind.name, failed.pid)
        with self._lock:
            self._ref = None

    def _seen(self) -> proc.ProcessRef | None:
        with self._lock:
            return self._ref

    # ---- the directory ---------------------------------------------------------------------------------------------

    def _check_directory(self) -> None:
        directory.check_state_dir(self.directory)
        status = os.stat(self.directory)
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise UnavailableError(
                f"the directory {self.directory!r} is open to other users, who could use the daemon's socket in it: "
                "make it yours and its mode 0700, or choose another"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the lock, held. Who has it starts or stops the daemon, for which there are time limits."""
        path = os.path.join(self.directory, "lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"open the lock {path!r}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _remove_sockets(self) -> None:
        for path in self._kind.sockets(self.directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _forked(self) -> None:
        """In a child after fork: the daemon is not its to watch; it may find it again by `start`."""
        self._lock = threading.Lock()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.abandon()


class _Watcher:
    """The thread that asks the daemon twice a second, and restarts it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._probe = daemon._kind.probe(daemon.directory)
        self._closing = False
        self._thread = Worker(self._run, "ctrd-daemon")
        self._thread.start()

    def close(self) -> None:
        """Returns when the thread has ended. A question under way is cut short, a restart is not."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._probe.close()
        if self._thread is not threading.current_thread():
            self._thread.ended()
            os.close(self._wake)

    def abandon(self) -> None:
        os.close(self._wake)

    def _run(self) -> None:
        backoff = CHECK_SECONDS
        while not self._closing:
            ref = self._daemon._seen()
            if ref is None or self._watch(ref):
                return
            try:
                self._daemon._restart(ref)
                backoff = CHECK_SECONDS
            except Exception as error:  # also from the caller's `before_start`: the daemon is wanted all the same
                log.error("%s; the next attempt is in %g s", error, backoff, exc_info=not isinstance(error, CtrdError))
                if launch.readable(self._wake, backoff):
                    return
                backoff = min(LAST_BACKOFF, backoff * 2)

    def _watch(self, ref: proc.ProcessRef) -> bool:
        """Asks that process until it has failed three times in a row or has ended: False. True: we are closed."""
        name = self._daemon._kind.name
        try:
            pidfd = ref.open_pidfd()
        except NotFoundError:
            log.warning("%s %d has ended and is started again", name, ref.pid)
            return False
        try:
            failures = 0
            look = select.poll()
            look.register(self._wake, select.POLLIN)
            look.register(pidfd, select.POLLIN)
            while True:
                ready = [fd for fd, _ in look.poll(CHECK_SECONDS * 1000)]
                if self._closing or self._wake in ready:
                    return True
                if pidfd in ready:
                    log.warning("%s %d has ended and is started again", name, ref.pid)
                    return False
                try:
                    self._probe.ask(ANSWER_SECONDS)
                    failures = 0
                except ClosedError:
                    return True
                except CtrdError as error:
                    failures += 1
                    log.warning("%s %d is not well (%d): %s", name, ref.pid, failures, error)
                    if failures == FAILURES:
                        return False
        finally:
            os.close(pidfd)


_all: weakref.WeakSet[Daemon] = weakref.WeakSet()


def _after_fork() -> None:
    for daemon in list(_all):
        daemon._forked()


os.register_at_fork(after_in_child=_after_fork)
