"""A thread that can be waited for although Ctrl-C came while it was being started."""

from __future__ import annotations

import threading
from collections.abc import Callable

from libctrd.errors import UnavailableError


class Worker(threading.Thread):
    """A daemon thread that runs *target*.

    `Thread.start` waits until the new thread is up, and Ctrl-C interrupts that wait though the thread goes on;
    `Thread.join` refuses then, because it takes it for one that was never started. So `ended` goes by an event of our
    own: set when *target* has returned, and when there is no thread to be had.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._begun = False
        self._over = threading.Event()

    def start(self) -> None:
        """Starts it. Raises `UnavailableError` when the system has no thread to give."""
        self._begun = True
        try:
            super().start()
        except RuntimeError as error:
            self._over.set()
            raise UnavailableError(
                f"could not start the thread {self.name!r}: {error} (the limit of processes or of memory is reached: "
                "see ulimit -u and pids.max of the cgroup)"
            ) from error

    def run(self) -> None:
        """What the thread does."""
        try:
            super().run()
        finally:
            self._over.set()

    def ended(self, timeout: float | None = None) -> bool:
        """Waits until it has ended, *timeout* seconds at most; true when it has, or was never started."""
        return not self._begun or self._over.wait(timeout)
