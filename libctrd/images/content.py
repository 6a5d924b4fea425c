"""The content store of a daemon: blobs by their digest, written in bounded frames, read, labelled and removed.

A write has a ref of its own, so that two that write the same blob at the same time do not wait for each other: the
second one's commit finds that the blob is there, which is success. A write that fails is aborted, and nothing of it
stays. Contract row C26; the wire is ``containerd.services.content.v1``.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from libctrd import protos
from libctrd.errors import AlreadyExistsError, CtrdError, InvalidArgumentError, NotFoundError
from libctrd.images.documents import Descriptor, check_document, short

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

FRAME: Final = 512 << 10  # bytes of one write; a daemon takes up to 16 MiB
_UNDERWAY: Final = 2  # frames that are sent before the first of them is answered
_PATIENCE: Final = 60.0  # seconds for one answer
_SLOWEST: Final = 1 << 20  # bytes a second: what a disk that is still alive does
_SERVICE: Final = "containerd.services.content.v1.Content"
REF_PREFIX: Final = "libctrd-"


class Content:
    """The content store behind *channel*, in its namespace."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._types = protos.package("containerd.services.content.v1")

    def write(self, what: str, *, digest: str = "", size: int = 0, lease: str = "") -> Writer:
        """Begins to write a blob, called *what* in errors; a context manager that aborts what was not committed.

        *digest* "" means that the daemon finds it out; *size* 0 that it is not known. Raises what the daemon says.
        """
        return Writer(self._channel, what, digest, size, lease)

    def put(self, data: bytes, descriptor: Descriptor, what: str, labels: Mapping[str, str], lease: str) -> None:
        """Writes a document, *data* of *descriptor*, with *labels*; one that is there gets the labels."""
        with self.write(what, digest=descriptor.digest, size=descriptor.size, lease=lease) as writer:
            if not writer.exists:
                writer.write(data)
                writer.commit(labels)
        if writer.existed and labels:
            self.label(descriptor.digest, labels)

    def info(self, digest: str) -> Any | None:
        """What is known of the blob *digest* (digest, size, labels, …), or ``None`` when it is not there."""
        request = self._types.InfoRequest(digest=digest)
        try:
            return self._channel.call(f"{_SERVICE}/Info", request, doing=f"look for the blob {short(digest)}").info
        except NotFoundError:
            return None

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        """The *size* bytes of the blob *digest*, piece by piece. Raises `NotFoundError` when it is not there.

        Each piece is a call of its own: of one call for all, gRPC would take in ahead of us, and keep, megabytes.
        """
        doing = f"read the blob {short(digest)} from the content store"
        for offset in range(0, size, FRAME):
            wanted = min(FRAME, size - offset)  # never 0, which means "to the end"
            request = self._types.ReadContentRequest(digest=digest, offset=offset, size=wanted)
            for answer in self._channel.stream(f"{_SERVICE}/Read", request, doing=doing, timeout=_PATIENCE):
                yield answer.data

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """The document that *descriptor* is of, whole, with its digest checked."""
        data = b"".join(self.read(descriptor.digest, descriptor.size))
        return check_document(descriptor, data, what)

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Sets *labels* of the blob *digest*, and leaves its other labels as they are."""
        info = self._types.Info(digest=digest, labels=dict(labels))
        request = self._types.UpdateRequest(info=info)
        request.update_mask.paths.extend(f"labels.{name}" for name in labels)
        self._channel.call(f"{_SERVICE}/Update", request, doing=f"label the blob {short(digest)}")

    def delete(self, digest: str) -> None:
        """Removes the blob *digest*; one that is not there is fine."""
        request = self._types.DeleteContentRequest(digest=digest)
        try:
            self._channel.call(f"{_SERVICE}/Delete", request, doing=f"remove the blob {short(digest)}")
        except NotFoundError:
            return

    def blobs(self) -> list[str]:
        """The digests of all blobs of the namespace."""
        doing = "list the content store"
        call = self._channel.stream(
            f"{_SERVICE}/List", self._types.ListContentRequest(), doing=doing, timeout=_PATIENCE
        )
        return [info.digest for answer in call for info in answer.info]

    def ingests(self) -> list[str]:
        """The refs of all writes of the namespace that are neither committed nor aborted."""
        request = self._types.ListStatusesRequest()
        answer = self._channel.call(f"{_SERVICE}/ListStatuses", request, doing="list what is being written")
        return [status.ref for status in answer.statuses]


class Writer:
    """One blob on its way into the store. For one thread at a time.

    ``exists`` tells that the store has it already and wants no bytes; ``existed`` that its commit found so; ``offset``
    how many bytes the store was given.

    Two threads stand behind it: gRPC's own, which takes frames from ``_frames``, a bounded number ahead, and a watch
    that cancels the call when one answer takes too long, as gRPC has no limit of that kind for streams. ``_since`` is
    written by our thread alone and read by the watch: a float that is old at worst makes it look again.
    """

    def __init__(self, channel: Channel, what: str, digest: str, size: int, lease: str) -> None:
        self._channel = channel
        self._types = protos.package("containerd.services.content.v1")
        self._digest, self._size, self._lease = digest, size, lease
        self._ref = f"{REF_PREFIX}{secrets.token_hex(8)}-{digest or 'new'}"
        self._doing = f"write {what} into the content store"
        self._frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._unanswered = 0
        self._since = 0.0
        self._patience = _PATIENCE
        self._over = threading.Event()
        self._call: Any = None
        self.offset = 0
        self.exists = False
        self.existed = False
        self._committed = False
        self._opened = False

    def __enter__(self) -> Writer:
        frames = iter(self._frames.get, None)
        self._call = self._channel.stream(f"{_SERVICE}/Write", frames, doing=self._doing, lease=self._lease)
        threading.Thread(target=self._watch, name="libctrd-write-watch", daemon=True).start()
        try:
            self._send(
                self._types.WriteContentRequest(
                    action=self._types.WriteAction.STAT, ref=self._ref, total=self._size, expected=self._digest
                )
            )
            self._opened = True  # from here on there may be an ingest, whatever the answer
            answer = self._receive()
            self.offset = answer.offset
            if self._size and self.offset == self._size:
                # Another namespace has it, and the daemon shares content: a commit is all that is wanted.
                self.commit({})
                self.exists = self.existed = True
        except AlreadyExistsError:
            self.exists = self.existed = True
            self.close()
        except BaseException:
            self.close()
            raise
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Adds *data*. Raises what the daemon says to it or to what went before."""
        view = memoryview(data)
        while view:
            frame = view[:FRAME]
            view = view[FRAME:]
            if self._size and self.offset + len(frame) > self._size:
                raise InvalidArgumentError(f"could not {self._doing}: it has more than its {self._size} bytes")
            self._send(
                self._types.WriteContentRequest(
                    action=self._types.WriteAction.WRITE, offset=self.offset, data=bytes(frame)
                )
            )
            self.offset += len(frame)
            while self._unanswered > _UNDERWAY:
                self._receive()

    def commit(self, labels: Mapping[str, str]) -> str:
        """Makes a blob of what was written; returns its digest. That the blob is there already is success.

        Raises `InvalidArgumentError` when size or digest are not those that were promised.
        """
        while self._unanswered:
            self._receive()
        self._patience = _PATIENCE + self.offset / _SLOWEST  # it goes to the disk now
        self._send(
            self._types.WriteContentRequest(
                action=self._types.WriteAction.COMMIT,
                offset=self.offset,
                total=self._size or self.offset,
                expected=self._digest,
                labels=dict(labels),
            )
        )
        try:
            digest = str(self._receive().digest)
        except AlreadyExistsError:
            self.existed = True
            digest = self._digest
        self._committed = True
        return digest

    def close(self) -> None:
        """Ends the write, and aborts what was not committed. A second close does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        self._frames.put(None)  # gRPC's thread waits here
        if self._committed:
            return
        self._call.cancel()
        if self._opened and not self.exists:
            self._abort()

    def _abort(self) -> None:
        """Drops the ingest. The daemon may still hold the ref locked while it notices that the call was cancelled."""
        request = self._types.AbortRequest(ref=self._ref)
        try:
            self._channel.call(f"{_SERVICE}/Abort", request, doing=f"abort: {self._doing}", lease=self._lease)
        except NotFoundError:
            return  # it never came to be
        except CtrdError:
            return  # the lease's end takes it along; what failed before is what the caller is to hear

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: Any) -> None:
        self._frames.put(request)
        self._unanswered += 1

    def _receive(self) -> Any:
        self._since = time.monotonic()
        try:
            answer = next(self._call)
        except StopIteration:
            raise InvalidArgumentError(f"could not {self._doing}: the daemon ended the write too early") from None
        finally:
            self._since = 0.0
        self._unanswered -= 1
        return answer

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            since = self._since
            if since and time.monotonic() - since > self._patience:
                self._call.cancel()
                return
