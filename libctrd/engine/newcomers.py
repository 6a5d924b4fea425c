"""Containers of a state directory that anybody starts from now on, found in the moment in which they start.

The kernel tells of each directory that is made in the state directory, and of the name of a shim's socket in it, which
says that a container starts there. A directory is watched before it is looked at, so whichever comes first is seen. All
of it is done by the reactor's thread, apart from the beginning; when the kernel has more to tell than it keeps, every
directory is looked at again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from libctrd import ids
from libctrd._log import log
from libctrd.engine import shim
from libctrd.errors import CtrdError, NotFoundError, from_os_error
from libctrd.inotify import CREATE, DIRECTORY, IGNORED, MOVED_TO, OVERFLOW, Inotify
from libctrd.reactor import Reactor


class Newcomers:
    """Calls *found* with the id of each container that starts in the state directory *root*, once. `close` it."""

    def __init__(self, root: str, reactor: Reactor, found: Callable[[str], None]) -> None:
        self._root = root
        self._reactor = reactor
        self._found = found
        self._waiting: dict[int, str] = {}  # directories without a shim, by the number of their watch
        self._inotify = Inotify()
        try:
            self._top = self._inotify.add(root, CREATE | MOVED_TO)
            for name in self._list():
                if not shim.was_started(os.path.join(root, name)):
                    self._enter(name)
        except BaseException:
            self._inotify.close()
            raise
        reactor.watch(self._inotify.fileno(), self._read)

    def _read(self, _: int) -> None:
        for change in self._inotify.read():
            if change.what & OVERFLOW:
                self._look_again()
            elif change.watch == self._top:
                if change.what & DIRECTORY:
                    self._enter(change.name)
            elif change.what & IGNORED:
                self._waiting.pop(change.watch, None)
            elif change.name == shim.SOCKET:
                self._starts(change.watch)

    def _enter(self, name: str) -> None:
        try:
            watch = self._inotify.add(os.path.join(self._root, ids.check(name)), MOVED_TO)
        except NotFoundError:
            return  # removed meanwhile
        except CtrdError as error:
            log.debug("the start of a container in %s is not told: %s", name, error)
            return
        self._waiting[watch] = name
        if os.path.lexists(os.path.join(self._root, name, shim.SOCKET)):
            self._starts(watch)

    def _starts(self, watch: int) -> None:
        name = self._waiting.pop(watch, None)
        if name is not None:
            self._inotify.remove(watch)
            self._found(name)

    def _look_again(self) -> None:
        known = set(self._waiting.values())
        for watch, name in list(self._waiting.items()):
            if os.path.lexists(os.path.join(self._root, name, shim.SOCKET)):
                self._starts(watch)
        for name in self._list():
            if name not in known:
                self._enter(name)

    def _list(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except OSError as error:
            raise from_os_error(error, f"list the state directory {self._root!r}") from error

    def close(self) -> None:
        """Calls no more."""
        self._reactor.unwatch(self._inotify.fileno())
        self._inotify.close()
