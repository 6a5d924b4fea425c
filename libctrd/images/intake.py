"""One image on its way in, from an archive or a registry, into the content store and the snapshotter.

First all documents are read and everything about them is checked, so that what cannot be taken is refused before
any layer moves. Then the layers pass: each goes into the store and, with the same bytes, through the check of what may
be in a layer. Then the documents are written, with the labels that keep their blobs from being collected, and the
layers are unpacked. The image's name is not set here: it is the last step of whoever takes the image in, so that a
half-taken image never has one.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final, Protocol, TypeAlias

import msgspec

from libctrd.errors import CancelledError, InvalidArgumentError, NotFoundError
from libctrd.images import documents, layers, platforms
from libctrd.images.content import Content
from libctrd.images.documents import Config, Descriptor, Index, Manifest, short
from libctrd.images.platforms import Platform
from libctrd.images.snapshots import Snapshots, chain_ids

PARALLEL: Final = 3  # layers of a pull that move at the same time: more only share the same line
UNCOMPRESSED_LABEL: Final = "containerd.io/uncompressed"
_REF: Final = "containerd.io/gc.ref"


class Progress(msgspec.Struct, frozen=True):
    """How far a blob has come: *done* of *total* bytes. ``kind`` is ``"layer"``, or ``"file"`` for what is not known
    to be a layer yet. A blob that is there already is done at once, with ``existed`` set. *done* may fall back when a
    connection broke and the registry cannot go on where it stood."""

    digest: str
    kind: str
    done: int
    total: int
    existed: bool = False


Report: TypeAlias = Callable[[Progress], object]


class Source(Protocol):
    """Where an image comes from."""

    what: str  # for errors: "archive 'x.tar'"
    parallel: int  # blobs that may be read at the same time

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """The document that *descriptor* is of, whole, with its digest checked."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of the blob, piece by piece."""

    def interrupt(self) -> None:
        """Ends what is being read in other threads: their `blob` raises soon."""


class Part(msgspec.Struct, frozen=True):
    """An image for one platform, read and checked."""

    descriptor: Descriptor
    data: bytes
    manifest: Manifest
    config_data: bytes
    config: Config


class Plan(msgspec.Struct, frozen=True):
    """All that is to come in for one root descriptor."""

    root: Descriptor
    index: Index | None
    index_data: bytes
    parts: list[Part]


def plan(source: Source, root: Descriptor, platform: Platform | None, image: str) -> Plan:
    """Reads and checks the documents of *root*, of *image*, for *platform* (``None``: all that it has).

    `UnsupportedError` for a media type that is not known, `NotFoundError` when there is nothing for the platform,
    `InvalidArgumentError` for what is damaged.
    """
    documents.check_kind(root, documents.INDEXES + documents.MANIFESTS, f"image {image}")
    if root.media_type in documents.MANIFESTS:
        part = _part(source, root, image)
        if platform is not None and platforms.rank(platform, part.config.platform) is None:
            raise NotFoundError(
                f"image {image} is for {part.config.platform}, not for {platform}: ask for the platform that it has"
            )
        return Plan(root, None, b"", [part])
    what = f"the index {short(root.digest)} of image {image}"
    data = source.document(root, what)
    index = documents.decode(data, Index, what)
    wanted = [m for m in index.manifests if m.media_type in documents.MANIFESTS and not m.is_attestation]
    if not wanted and index.manifests:
        documents.check_kind(index.manifests[0], documents.MANIFESTS, f"what image {image} holds")
    if platform is not None:
        wanted = _best(source, wanted, platform, image)
    if not wanted:
        raise NotFoundError(f"image {image} has an index with no image in it")
    return Plan(root, index, data, [_part(source, manifest, image) for manifest in wanted])


def _best(source: Source, offered: Sequence[Descriptor], platform: Platform, image: str) -> list[Descriptor]:
    """The manifest that suits *platform* best. One that does not say what it is for is asked by its config."""
    ranked: list[tuple[int, Descriptor]] = []
    has: list[Platform] = []
    for manifest in offered:
        is_for = manifest.platform
        if is_for is None or not is_for.architecture:
            is_for = _part(source, manifest, image).config.platform
        has.append(is_for)
        rank = platforms.rank(platform, is_for)
        if rank is not None:
            ranked.append((rank, manifest))
    if not ranked:
        raise NotFoundError(
            f"image {image} has nothing for {platform}, only for {', '.join(map(str, has)) or 'no platform at all'}"
        )
    return [min(ranked, key=lambda pair: pair[0])[1]]


def _part(source: Source, descriptor: Descriptor, image: str) -> Part:
    what = f"the manifest {short(descriptor.digest)} of image {image}"
    documents.check_kind(descriptor, documents.MANIFESTS, what)
    data = source.document(descriptor, what)
    manifest = documents.decode(data, Manifest, what)
    documents.check_kind(manifest.config, documents.CONFIGS, f"the config of image {image}")
    for layer in manifest.layers:
        documents.check_kind(layer, documents.LAYERS, f"layer {short(layer.digest)} of image {image}")
    what = f"the config {short(manifest.config.digest)} of image {image}"
    config_data = source.document(manifest.config, what)
    config = documents.decode(config_data, Config, what)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise InvalidArgumentError(
            f"{what} tells of {len(config.rootfs.diff_ids)} layers, and its manifest has {len(manifest.layers)}"
        )
    return Part(descriptor, data, manifest, config_data, config)


def present(source: Source, root: Descriptor, image: str) -> list[Part]:
    """The parts of *root* that *source* has; those that it has not (other platforms, most often) are left out."""
    if root.media_type in documents.MANIFESTS:
        return [_part(source, root, image)]
    documents.check_kind(root, documents.INDEXES, f"image {image}")
    what = f"the index {short(root.digest)} of image {image}"
    parts = []
    for manifest in documents.decode(source.document(root, what), Index, what).manifests:
        if manifest.media_type in documents.MANIFESTS and not manifest.is_attestation:
            try:
                parts.append(_part(source, manifest, image))
            except NotFoundError:
                continue
    return parts


class Intake:
    """Takes plans in, under one lease. Its threads report progress one at a time."""

    def __init__(
        self,
        content: Content,
        snapshots: Snapshots,
        source: Source,
        lease: str,
        *,
        allow_devices: bool = False,
        progress: Report | None = None,
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._source = source
        self._lease = lease
        self._allow_devices = allow_devices
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def take(self, plan: Plan, image: str) -> None:
        """Takes in all of *plan*, of *image*, and unpacks it: what it has for this host, else all there is of it."""
        self._layers(plan, image)
        unpacked = self._to_unpack(plan)
        for part in plan.parts:
            self._documents(part, image, unpacked=part in unpacked)
        if plan.index is not None:
            taken = {part.descriptor.digest for part in plan.parts}
            labels = {
                f"{_REF}.content.m.{number}": manifest.digest
                for number, manifest in enumerate(plan.index.manifests)
                if manifest.digest in taken
            }
            self._content.put(plan.index_data, plan.root, f"the index of image {image}", labels, self._lease)
        for part in unpacked:
            self._snapshots.unpack(part.manifest.layers, part.config.rootfs.diff_ids, self._lease)

    def _to_unpack(self, plan: Plan) -> list[Part]:
        if len(plan.parts) == 1:
            return plan.parts
        host = platforms.host()
        ranked = [(platforms.rank(host, part.config.platform), part) for part in plan.parts]
        runs = [(rank, part) for rank, part in ranked if rank is not None]
        return [min(runs, key=lambda pair: pair[0])[1]] if runs else []

    def _documents(self, part: Part, image: str, *, unpacked: bool) -> None:
        manifest, chain = part.manifest, chain_ids(part.config.rootfs.diff_ids)
        labels = {f"{_REF}.snapshot.{self._snapshots.name}": chain[-1]} if unpacked and chain else {}
        self._content.put(part.config_data, manifest.config, f"the config of image {image}", labels, self._lease)
        labels = {f"{_REF}.content.config": manifest.config.digest}
        labels |= {f"{_REF}.content.l.{number}": layer.digest for number, layer in enumerate(manifest.layers)}
        self._content.put(part.data, part.descriptor, f"the manifest of image {image}", labels, self._lease)

    # ---- layers ------------------------------------------------------------------------------------------------------

    def _layers(self, plan: Plan, image: str) -> None:
        """Takes in each layer once, several at a time where the source can. The first failure ends them all."""
        wanted: dict[str, tuple[Descriptor, set[str]]] = {}  # with the diff_ids that it is said to have
        chains: dict[str, set[str]] = {}
        for part in plan.parts:
            diff_ids = part.config.rootfs.diff_ids
            for layer, diff_id, chain in zip(part.manifest.layers, diff_ids, chain_ids(diff_ids), strict=True):
                wanted.setdefault(layer.digest, (layer, set()))[1].add(diff_id)
                chains.setdefault(layer.digest, set()).add(chain)
        for layer, _ in wanted.values():
            self._report(Progress(layer.digest, "layer", 0, layer.size))
        jobs = [(layer, diff_ids, chains[digest]) for digest, (layer, diff_ids) in wanted.items()]
        threads = min(self._source.parallel, len(jobs))
        if threads <= 1:
            for job in jobs:
                self._layer(image, *job)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="libctrd-layer") as pool:
            futures = [pool.submit(self._layer, image, *job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # All are done, or one failed, or somebody pressed Ctrl-C here: nobody goes on after this block.
                if not all(future.done() for future in futures):
                    self._stop.set()
                    self._source.interrupt()
                    pool.shutdown(cancel_futures=True)
        failures = [future.exception() for future in futures if not future.cancelled()]
        # Those that only stopped because another failed come last.
        for failure in sorted(filter(None, failures), key=lambda failure: isinstance(failure, CancelledError)):
            raise failure

    def _layer(self, image: str, layer: Descriptor, diff_ids: set[str], chains: set[str]) -> None:
        what = f"layer {short(layer.digest)} of image {image}"
        with self._content.write(what, digest=layer.digest, size=layer.size, lease=self._lease) as writer:
            if not writer.exists:
                found = layers.check(
                    self._sent(layer, writer.write, self._source.blob(layer)), what, allow_devices=self._allow_devices
                )
                writer.commit({UNCOMPRESSED_LABEL: found})
        if writer.exists:
            self._report(Progress(layer.digest, "layer", layer.size, layer.size, existed=True))
            if all(self._snapshots.exists(chain) for chain in chains):
                return  # it was unpacked before, and what is in the store cannot change
            found = layers.check(self._content.read(layer.digest, layer.size), what, allow_devices=self._allow_devices)
        if diff_ids != {found}:
            raise InvalidArgumentError(
                f"{what} is not the one that the image's config tells of: its digest as plain tar is {found}, not "
                f"{', '.join(diff_ids - {found})}"
            )

    def _sent(self, layer: Descriptor, write: Callable[[bytes], None], chunks: Iterator[bytes]) -> Iterator[bytes]:
        done = 0
        for chunk in chunks:
            if self._stop.is_set():
                raise CancelledError(f"layer {short(layer.digest)} was given up since another failed")
            write(chunk)
            done += len(chunk)
            self._report(Progress(layer.digest, "layer", done, layer.size))
            yield chunk

    def _report(self, progress: Progress) -> None:
        if self._progress is not None:
            with self._lock:
                self._progress(progress)
