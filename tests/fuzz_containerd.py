"""More targets of the fuzzer: what comes from a containerd, and archives of images that are to go into one.

No daemon is behind them: what it would be asked is answered by the classes here.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import IO, Any, Final, cast

from libctrd import protos
from libctrd.engine import metrics
from libctrd.engine.channel import Channel
from libctrd.engine.exits import Exits
from libctrd.engine.store import SPEC, Store
from libctrd.errors import CtrdError, InvalidArgumentError
from libctrd.images import archive as archives
from libctrd.images import documents, intake, layers
from libctrd.images.content import Content
from libctrd.reactor import Reactor
from libctrd.state import INIT, Event

_ENVELOPE: Final = "containerd.types.Envelope"
_CONTAINER: Final = "containerd.services.containers.v1.Container"


def _decoded(name: str, data: bytes) -> Any | None:
    """The message, or ``None`` when the bytes are none."""
    try:
        return protos.message(name).FromString(data)
    except Exception as error:  # noqa: BLE001 - of which kind is a matter of protobuf's version
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return None


def _pieces(data: bytes) -> Iterator[bytes]:
    """Messages, each behind a byte that says how long it is."""
    while data:
        size = data[0] + 1
        yield data[1:size]
        data = data[size:]


def joined(*pieces: bytes) -> bytes:
    """What `_pieces` takes apart."""
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


# ---- events ----------------------------------------------------------------------------------------------------------


class _Deaf:
    """A channel to nobody: a wait never ends."""

    address, namespace, path = "unix:///nowhere", "default", "/nowhere"

    def future(self, *_: object) -> Future[Any]:
        return Future()

    def error(self, error: BaseException, _: str) -> BaseException:
        return error


def events(data: bytes) -> None:
    """Events of a containerd, in any order and number: the end of a process that is watched is told once at most."""
    exits = Exits(cast(Channel, _Deaf()), cast(Reactor, None), lambda: None, lambda id, status: None)
    exits._closing.set()  # no thread
    exits._state_dir = "/nowhere"
    told: list[Event] = []
    exits.sink = told.append
    exits.add("a", INIT, 7)
    exits.add("a", "x", 8)
    lives = Counter({("a", INIT): 1, ("a", "x"): 1})
    for piece in _pieces(data):
        envelope = _decoded(_ENVELOPE, piece)
        if envelope is None:
            continue
        before = len(told)
        try:
            exits._handle(envelope)
        except Exception as error:  # noqa: BLE001 - what is in the envelope; the stream is begun anew then
            assert type(error).__name__ == "DecodeError"  # noqa: PT017
        assert len(told) <= before + 1
        lives.update((one.id, INIT) for one in told[before:] if one.type == "start-container")
    ends = Counter((one.id, one.process) for one in told if one.type == "exit")
    assert all(ends[life] <= lives[life] for life in lives if life[1] == INIT or ends[life] == 0)
    assert ends["a", "x"] <= 1 or lives["a", INIT] > 1
    exits.close()


def containers(data: bytes) -> None:
    """Containers that containerd lists, of other programs too, and what it measured of one."""
    listed = _decoded(_CONTAINER, data)
    if listed is not None:
        Store(cast(Channel, _Deaf()), "/root")._record_of(listed)
    metric = _decoded("containerd.types.Metric", data)
    if metric is not None:
        with contextlib.suppress(CtrdError):
            try:
                metrics.stats(metric)
            except Exception as error:
                if type(error).__name__ != "DecodeError":
                    raise


def event(topic: str, kind: str, **fields: Any) -> bytes:
    """An event of containerd in its envelope."""
    content = protos.message(f"containerd.events.{kind}")(**fields)
    envelope = protos.message(_ENVELOPE)(namespace="default", topic=f"/tasks/{topic}", event=protos.pack(content))
    return cast(bytes, envelope.SerializeToString())


def _moment() -> Any:
    return protos.message("google.protobuf.Timestamp")(seconds=1_700_000_000, nanos=5)


def spec(value: bytes) -> Any:
    """A spec as containerd keeps it."""
    return protos.any(SPEC, value)


def container(**fields: Any) -> bytes:
    """A container as containerd lists it, by default one that another program made."""
    document = b'{"process":{"terminal":true},"linux":{"cgroupsPath":"/a","namespaces":[{"type":"pid"}]}}'
    return cast(bytes, protos.message(_CONTAINER)(**{"id": "a", "spec": spec(document), **fields}).SerializeToString())


def _metric(version: int) -> bytes:
    measured = protos.message(f"io.containerd.cgroups.v{version}.Metrics")()
    measured.pids.current = 3
    metric = protos.message("containerd.types.Metric")(timestamp=_moment(), data=protos.pack(measured))
    return cast(bytes, metric.SerializeToString())


# ---- archives --------------------------------------------------------------------------------------------------------


class _Writer:
    """One blob on its way into the store; a daemon refuses one that is not what it is said to be."""

    def __init__(self, blobs: dict[str, bytes], digest: str, size: int) -> None:
        self._blobs, self._digest, self._size, self._data = blobs, digest, size, b""
        self.exists = digest in blobs

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self, _: object) -> None:
        digest = documents.digest_of(self._data)
        if self._digest not in ("", digest) or len(self._data) != self._size:
            raise InvalidArgumentError("unexpected commit digest or size")
        self._blobs[digest] = self._data


class _Memory:
    """A content store."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def write(self, _: str, *, digest: str, size: int, lease: str) -> _Writer:
        return _Writer(self._blobs, digest, size)

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        assert len(self._blobs[digest]) == size
        yield self._blobs[digest]


class _Pipe(io.BytesIO):
    """What cannot be sought in."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("it is a pipe")


def archive(data: bytes) -> None:
    """An archive of images, as a file and as a pipe: of both the same whole images come in."""
    assert _whole(io.BytesIO(data)) == _whole(_Pipe(data))


def _whole(file: IO[bytes]) -> list[documents.Descriptor]:
    """The images that come in from it, whose layers are what they are said to be."""
    with contextlib.suppress(CtrdError), archives.opened(file, cast(Content, _Memory()), "lease") as source:
        return [image for image in source.images if _is_whole(source, image)]
    return []


def _is_whole(source: archives.Archive, image: documents.Descriptor) -> bool:
    """All that is done with an image before a daemon is given its layers, and what that does."""
    with contextlib.suppress(CtrdError):
        for part in intake.plan(source, image, None, "image").parts:
            for layer, diff_id in zip(part.manifest.layers, part.config.rootfs.diff_ids, strict=True):
                blob = b"".join(source.blob(layer))
                assert len(blob) == layer.size
                if documents.digest_of(blob) != layer.digest or layers.check([blob], "a layer") != diff_id:
                    return False
        return True
    return False


def _tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()[: 512 * (sum(1 + -(-len(data) // 512) for data in members.values()) + 2)]


def _saved() -> bytes:
    """An image as ``docker save`` makes it, of one empty layer."""
    layer = bytes(1024)
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [documents.digest_of(layer)]}})
    saved = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]}])
    return _tar({"manifest.json": saved.encode(), "c.json": config.encode(), "l.tar": layer})


def _layout() -> bytes:
    """The same as an OCI layout."""
    layer = bytes(1024)
    config = json.dumps({"os": "linux", "rootfs": {"diff_ids": [documents.digest_of(layer)]}}).encode()

    def descriptor(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": documents.digest_of(data), "size": len(data)}

    manifest = json.dumps(
        {"config": descriptor(documents.OCI_CONFIG, config), "layers": [descriptor(documents.LAYERS[0], layer)]}
    ).encode()
    index = json.dumps({"manifests": [descriptor(documents.OCI_MANIFEST, manifest)]}).encode()
    blobs = {f"blobs/sha256/{documents.digest_of(data)[7:]}": data for data in (config, manifest, layer)}
    return _tar({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **blobs})


TARGETS: Final[tuple[Callable[[bytes], None], ...]] = (events, containers, archive)
SEEDS: Final[dict[str, list[bytes]]] = {
    "events": [
        joined(
            event("paused", "TaskPaused", container_id="a"),
            event("resumed", "TaskResumed", container_id="a"),
            event("oom", "TaskOOM", container_id="a"),
            event("exit", "TaskExit", container_id="a", id="x", pid=8, exit_status=3, exited_at=_moment()),
            event("exit", "TaskExit", container_id="a", id="a", pid=7, exit_status=1, exited_at=_moment()),
        ),
        joined(
            event("start", "TaskStart", container_id="b", pid=9),
            event("exec-started", "TaskExecStarted", container_id="b", exec_id="y", pid=10),
            event("exit", "TaskExit", container_id="b", id="y", pid=10, exit_status=1, exited_at=_moment()),
        ),
    ],
    "containers": [
        container(),
        container(labels={"libctrd.record": "{}", "x": "y"}),
        _metric(1),
        _metric(2),
    ],
    "archive": [_saved(), _layout()],
}
