"""What can be asked of a container that runs, and done to it, besides its life itself: limits, checkpoints, a pause."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from libctrd import directory as directories
from libctrd import spec as specs
from libctrd._checks import terminal_size
from libctrd.engine.base import ProcessSnapshot, Record, started_already
from libctrd.errors import InvalidArgumentError, NotFoundError
from libctrd.state import INIT, ExitStatus, Stats

if TYPE_CHECKING:
    from libctrd.client import Client
    from libctrd.process import Process


class Asking:
    """The part of `Container` that asks the engine."""

    _client: Client
    _record: Record
    _processes: dict[str, Process]
    _exit: ExitStatus | None

    @property
    def id(self) -> str:
        """Its id."""
        return self._record.id

    @property
    def bundle(self) -> str:
        """Its directory: ``config.json`` and the fifos lie in it."""
        return self._record.bundle

    def processes(self) -> list[ProcessSnapshot]:
        """Its processes by name, ``init`` first, those that have ended and were not collected included: all that the
        engine knows of. None of one that was not started. Takes no lock.
        """
        return self._client._engine.processes(self.id)

    def pids(self) -> list[int]:
        """The system pids of all processes in it. Takes no lock (C18)."""
        self._require_running()
        return self._client._engine.pids(self.id)

    def stats(self) -> Stats:
        """What it uses at this moment. Takes no lock (C18)."""
        self._require_running()
        return self._client._engine.stats(self.id)

    def update(self, resources: Mapping[str, Any]) -> None:
        """Sets limits while it runs: *resources* holds what changes, as ``linux.resources`` of an OCI spec (C20)."""
        checked = specs.check_resources(resources)
        with self._client._locked(self.id):
            self._require_running()
            self._client._engine.update(self.id, checked)

    def checkpoint(self, path: str, *, leave_running: bool = False) -> None:
        """Writes its state into the directory *path*, which is made, with CRIU; ends it unless *leave_running* (C20).

        Open TCP connections and external unix sockets are allowed. ``start(checkpoint=path)`` of a container of the
        same spec goes on from there, with pipes of its own if this one has any. What `exec` started is no part of
        it. Raises `RuntimeFailedError` with what the runtime said; it runs on then.
        """
        path = absolute(path, "checkpoint")
        with self._client._locked(self.id):
            self._require_running()
            self._client._engine.checkpoint(self.id, path, leave_running)

    def checkpoints(self, directory: str | None = None) -> list[str]:
        """The paths of the checkpoints in *directory*; without one in ``checkpoints`` of its bundle (C20).

        Raises `NotFoundError` when there is no such directory.
        """
        where = os.path.join(self.bundle, "checkpoints") if directory is None else absolute(directory, "directory")
        return directories.subdirectories(where)

    def delete_checkpoint(self, path: str) -> None:
        """Removes the checkpoint in the directory *path*, and all in it. One that is not there is success (C20)."""
        directories.remove_tree(absolute(path, "path"))

    def resize(self, width: int, height: int) -> None:
        """Sets the size of its terminal, in characters (C20)."""
        terminal_size(width, height)
        if not self._record.terminal:
            raise InvalidArgumentError(f"container {self.id!r} has no terminal that could be resized")
        with self._client._locked(self.id):
            self._require_running()
            self._client._engine.resize(self.id, INIT, width, height)

    # ---- what must hold ------------------------------------------------------------------------------------------

    def _require_not_started(self) -> None:
        if self._processes or self._exit is not None:
            raise started_already(self.id)

    def _require_started(self) -> None:
        if self._client._engine.snapshot(self.id).status == "created":
            raise InvalidArgumentError(f"container {self.id!r} was not started: start it first")

    def _require_running(self) -> None:
        """One that needs a running process is refused before the engine is asked (C20)."""
        if self._exit is None and self._processes:
            return
        if self._exit is None:
            status = self._client._engine.snapshot(self.id).status
            if status in ("running", "paused"):
                return
            if status == "created":
                self._require_started()
        raise NotFoundError(f"container {self.id!r} is not running any more")


def absolute(given: str, what: str) -> str:
    """*given* made absolute."""
    if not isinstance(given, str) or not given or "\0" in given:
        raise InvalidArgumentError(f"{what}={given!r} is no path")
    return os.path.abspath(given)
