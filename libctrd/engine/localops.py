"""What a client asks of a container of the local engine while it runs: a request to its shim, or a look at its cgroup.

A part of `libctrd.engine.local.LocalEngine`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from libctrd import directory
from libctrd import spec as specs
from libctrd.engine import shim
from libctrd.engine.base import Spec, so_already, unsupported
from libctrd.engine.further import Further, write_new
from libctrd.errors import NotFoundError, RuntimeFailedError, UnavailableError
from libctrd.state import INIT, Stats

_T = TypeVar("_T")


class LocalOperations(Further):
    """The requests of `LocalEngine`."""

    def spec(self, id: str) -> Spec:
        """See `Engine.spec`: every container of the local engine is libctrd's own."""
        self.record(id)  # is there one?
        return specs.load(self._directory(id))

    def signal(self, id: str, process: str, number: int, everyone: bool = False) -> None:
        """See `Engine.signal`. The shim sends it, as the parent: it knows whether the pid is still that process."""
        if everyone:
            shim.request(self._directory(id), f"kill-all {number}")
            return
        try:
            shim.request(self._directory(id), f"kill {number}{_named(process)}")
        except NotFoundError:
            self._signal_orphan(id, number, process)

    def discard(self, id: str, process: str, streams: Iterable[str]) -> None:
        """See `Engine.discard`: the shim tells the end when it comes."""

    def close_stdin(self, id: str, process: str) -> None:
        """See `Engine.close_stdin`."""
        shim.request(self._directory(id), f"close-stdin{_named(process)}")

    def resize(self, id: str, process: str, width: int, height: int) -> None:
        """See `Engine.resize`."""
        shim.request(self._directory(id), f"resize {width} {height}{_named(process)}")

    def pause(self, id: str) -> None:
        """See `Engine.pause`."""
        self._require_cgroup(id, "paused")
        self._change(id, "pause")

    def resume(self, id: str) -> None:
        """See `Engine.resume`."""
        self._require_cgroup(id, "resumed")
        self._change(id, "resume")

    def _require_cgroup(self, id: str, what: str) -> None:
        if os.geteuid() != 0:
            from libctrd.engine import rootless

            rootless.require_cgroup(self.record(id), what)

    def _change(self, id: str, change: str) -> None:
        try:
            shim.request(self._directory(id), change)
        except NotFoundError:
            if change != "resume" or not self._resume_orphan(id):
                raise
        except UnavailableError as error:
            if error.errno == errno.EALREADY:
                raise so_already(id, change) from error
            raise

    def pids(self, id: str) -> list[int]:
        """See `Engine.pids`."""
        from libctrd.engine import usage  # no start comes here

        return self._usage(id, usage.pids)

    def stats(self, id: str) -> Stats:
        """See `Engine.stats`."""
        from libctrd.engine import usage  # no start comes here

        return self._usage(id, usage.stats)

    def _usage(self, id: str, look: Callable[[str], _T]) -> _T:
        """What its cgroup says, while the container runs: a cgroup of that name may be somebody else's later."""
        record = self.record(id)
        if not record.cgroup:
            raise unsupported("local", f"measure container {id!r}", "it has no cgroup of its own")
        try:
            found = look(record.cgroup)
        except NotFoundError:
            found = None
        if found is None or not self.snapshot(id).pid:
            raise NotFoundError(f"container {id!r} is not running any more")
        return found

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Engine.update`. The runtime knows how its cgroup manager wants it, so it is called."""
        self._require_cgroup(id, "limited")
        with self._file(id, "update", msgspec.json.encode(resources)) as path:
            self._call(id, "update the limits of", "update", "--resources", path)

    def checkpoint(self, id: str, path: str, leave_running: bool) -> None:
        """See `Engine.checkpoint`."""
        from libctrd.engine import criu  # few containers are ever checkpointed

        runtime = self.record(id).runtime
        criu.require(runtime)
        criu.prepare(id, path)
        work = os.path.join(self._directory(id), f"criu-{os.urandom(8).hex()}")
        try:
            os.mkdir(work, 0o700)
            keys = self._streams(id)
            with criu.configured(self._directory(id), "external", keys):
                self._call(id, "checkpoint", *criu.words(path, work, runtime=runtime, leave_running=leave_running))
            criu.keep(path, keys)
        except BaseException as error:
            told = criu.explained(error, work) if isinstance(error, RuntimeFailedError) else error
            directory.remove_tree(path)
            raise told from error
        finally:
            directory.remove_tree(work)

    def _streams(self, id: str) -> dict[str, int]:
        """The fifos of init that its processes have open, as a checkpoint names them."""
        from libctrd.engine import criu  # see `checkpoint`

        init = self.snapshot(id).pid
        ends = shim.descriptors(self._directory(id))
        try:
            about = {letter: os.fstat(fd) for letter, fd in ends.items()}
        finally:
            for fd in ends.values():
                os.close(fd)
        if "i" not in about:  # its end was told: the shim has let go of it
            with contextlib.suppress(OSError):
                about["i"] = os.stat(f"/proc/{init}/fd/0")
        fifos = {(found.st_dev, found.st_ino): "ioe".index(letter) for letter, found in about.items()}
        return criu.streams([init, *(self.pids(id) if self.record(id).cgroup else ())], fifos)

    def _call(self, id: str, doing: str, *words: str) -> None:
        """Has the shim call the runtime with *words* and the id, after what it is at just now."""
        where = self._directory(id)
        with self._file(id, "call", b"".join(os.fsencode(word) + b"\0" for word in words)) as path:
            token = os.path.basename(path).removeprefix("call-")
            with shim.connection(where) as peer:
                shim.ask(peer, where, f"call {token}", doing)

    @contextlib.contextmanager
    def _file(self, id: str, kind: str, data: bytes) -> Iterator[str]:
        """A file in the container's directory for the time of a call."""
        path = os.path.join(self._directory(id), f"{kind}-{os.urandom(8).hex()}")
        write_new(path, data)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):  # the container is gone
                os.unlink(path)


def _named(process: str) -> str:
    """What a request says to mean that process: of init nothing."""
    return "" if process == INIT else f" {process}"
