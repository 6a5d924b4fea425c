"""What `State` tells of containers: what their creates said, kept beside their records, and how they are now."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any, Final

from google.protobuf.message import DecodeError

from libctrd.engine.base import Record
from libctrd.engine.further import write_new
from libctrd.engine.local import LocalEngine
from libctrd.errors import CtrdError
from libctrd.serve import wire
from libctrd.serve.wire import API
from libctrd.state import INIT

log = logging.getLogger("libctrd")

SERVED: Final = "served"


class Descriptions:
    """Of the containers of *engine*: a ``types.Container`` in the directory of each."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def begin(self, request: Any, spec: dict[str, Any], runtime: str, where: str) -> Any:
        """Writes the first one, of a create, into the directory *where*; returns it."""
        stdio = (request.stdin, request.stdout, request.stderr)
        process = wire.process_of_spec(spec.get("process") or {}, name=INIT, system_pid=0, stdio=stdio)
        described = API.Container(
            id=request.id,
            bundlePath=request.bundlePath,
            processes=[process],
            status="stopped",
            labels=request.labels,
            runtime=request.runtime or runtime,
        )
        write_new(os.path.join(where, SERVED), described.SerializeToString())
        return described

    def of(self, id: str) -> Any:
        """What was kept of a container; of one that came by another way, or when that was damaged, hardly anything."""
        path = os.path.join(self._engine.root, id, SERVED)
        with contextlib.suppress(OSError, DecodeError), open(path, "rb") as file:
            kept = API.Container.FromString(file.read())
            if kept.id == id:
                return kept
        record = self._engine.record(id)
        process = wire.process_of_spec({"terminal": record.terminal}, name=INIT, system_pid=0, stdio=("", "", ""))
        return API.Container(id=id, bundlePath=record.bundle, processes=[process], runtime=record.runtime)

    def keep(self, described: Any) -> None:
        """Of what runs already: that it could not be kept is no reason to say that it was not started."""
        path = os.path.join(self._engine.root, described.id, SERVED)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ".new")
            write_new(path + ".new", described.SerializeToString())
            os.rename(path + ".new", path)
        except (CtrdError, OSError) as error:
            log.warning("what State tells of container %s is not complete: %s", described.id, error)

    def forget(self, id: str, process: str) -> None:
        """A further process of it has ended."""
        described = self.of(id)
        left = [known for known in described.processes if known.pid != process]
        del described.processes[:]
        described.processes.extend(left)
        self.keep(described)

    def bundle(self, id: str) -> str:
        """The directory that its create named."""
        path = self.of(id).bundlePath
        assert isinstance(path, str)
        return path

    def now(self, record: Record) -> Any:
        """A container as `State` shows it."""
        described = self.of(record.id)
        snapshot = self._engine.snapshot(record.id)
        running = {process.name: process for process in self._engine.processes(record.id) if process.exit is None}
        kept = [process for process in described.processes if process.pid in running or process.pid == INIT]
        for process in kept:
            process.systemPid = running[process.pid].pid if process.pid in running else 0
        del described.processes[:]
        described.processes.extend(kept)
        described.status = "running" if snapshot.status in ("running", "paused") else "stopped"
        if described.status == "running":
            with contextlib.suppress(CtrdError):  # it has just ended, or has no cgroup to be looked at
                described.pids.extend(self._engine.pids(record.id))
        return described
