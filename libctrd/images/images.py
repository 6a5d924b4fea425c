"""`Images`: what a client does with the images of its containerd, each as one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from libctrd import protos
from libctrd.errors import CtrdError, InvalidArgumentError, NotFoundError, UnsupportedError
from libctrd.images import archive, config, intake, leases, naming, platforms, reference, registry, store, transfer
from libctrd.images.config import Accounts
from libctrd.images.content import Content
from libctrd.images.documents import Descriptor, Settings
from libctrd.images.intake import Intake, Part, Plan, Report, Source
from libctrd.images.login import Login
from libctrd.images.platforms import Platform
from libctrd.images.snapshots import Snapshots, chain_ids, default_snapshotter

if TYPE_CHECKING:
    from libctrd.engine.channel import Channel

_REMEMBERED: Final = 64  # images whose documents are kept: a few kilobytes each


class Image(msgspec.Struct, frozen=True):
    """An image under one of its names."""

    name: str
    digest: str  # of its manifest, or of its index where it has several platforms
    media_type: str
    size: int  # bytes of all that is here of it in the content store, as it is kept there (compressed)
    created_at: datetime | None  # when the name was made; in UTC
    labels: dict[str, str]
    platforms: tuple[str, ...]  # what is here of it: "linux/amd64"


Listed: TypeAlias = list[Image]  # in `Images`, "list" is the method


class _Kept:
    """The content store as a source: for images that are there and not, or not by us, unpacked."""

    parallel = 1

    def __init__(self, content: Content) -> None:
        self.what = "the content store"
        self._content = content

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        return self._content.document(descriptor, what)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._content.read(descriptor.digest, descriptor.size)

    def interrupt(self) -> None:
        """Nothing of it is read in other threads."""


class Images:
    """The images behind *channel*, in its namespace, unpacked by *snapshotter* (the daemon's best when "").

    Any thread may use it. What is remembered is found by digests and so never becomes wrong; two threads that both ask
    for the first time do the same work twice and store the same.
    """

    def __init__(self, channel: Channel, snapshotter: str = "") -> None:
        self._channel = channel
        self._content = Content(channel)
        self._store = store.Store(channel)
        self._snapshotter = snapshotter
        self._plans: dict[str, Plan] = {}  # by the digest of the root, for this host's platform
        self._accounts: dict[str, Accounts] = {}  # by chain id

    @property
    def snapshotter(self) -> str:
        """The name of the snapshotter that images are unpacked with; asked of the daemon at the first use."""
        if not self._snapshotter:
            self._snapshotter = default_snapshotter(self._channel)
        return self._snapshotter

    @property
    def _snapshots(self) -> Snapshots:
        return Snapshots(self._channel, self.snapshotter)

    # ---- what is here ------------------------------------------------------------------------------------------------

    def list(self) -> Listed:
        """All images of the namespace, by name."""
        return [self._image(record) for record in sorted(self._store.list(), key=lambda record: str(record.name))]

    def get(self, ref: str) -> Image:
        """The image *ref* (``busybox`` is short for a full name); `NotFoundError` when it is not here."""
        return self._image(self._record(ref))

    def remove(self, ref: str) -> None:
        """Removes the name *ref*; returns when all that only it held (blobs, snapshots) was collected.

        What containers still use stays until they are removed. `NotFoundError` when there is no such image.
        """
        self._store.remove(str(self._record(ref).name))

    def _record(self, ref: str) -> Any:
        """The record of *ref*, by its full name, else as it stands: other clients name images as they like."""
        name = reference.normalise(ref)
        for known in dict.fromkeys((name, ref)):
            try:
                return self._store.get(known)
            except NotFoundError:
                continue
        raise NotFoundError(
            f"image {name} is not in namespace {self._channel.namespace!r} of containerd: pull or import it first"
        )

    def _image(self, record: Any) -> Image:
        root = store.descriptor_of(record)
        here = self._parts(root, str(record.name))
        sizes = {root.digest: root.size}
        for part in here:
            for blob in (part.descriptor, part.manifest.config, *part.manifest.layers):
                sizes[blob.digest] = blob.size
        return Image(
            name=str(record.name),
            digest=root.digest,
            media_type=root.media_type,
            size=sum(sizes.values()),
            created_at=protos.moment(record.created_at),
            labels=dict(record.labels),
            platforms=tuple(str(part.config.platform) for part in here),
        )

    def _parts(self, root: Descriptor, name: str) -> Sequence[Part]:
        """What is here of an image, for whatever platforms. What cannot be read, or is no image to run, is left out."""
        try:
            return intake.present(_Kept(self._content), root, name)
        except (InvalidArgumentError, NotFoundError, UnsupportedError):
            return []

    # ---- coming in ---------------------------------------------------------------------------------------------------

    def import_archive(
        self,
        file: archive.File,
        *,
        name: str | None = None,
        platform: str | None = None,
        all_platforms: bool = False,
        allow_devices: bool = False,
        progress: Report | None = None,
    ) -> Listed:
        """Imports the images of an archive, the tar of an OCI layout or of ``docker save``, plain, gzip or zstd.

        *file* is a path or a file open for reading bytes; a pipe will do. *name* is the name to give, when the archive
        has none or another is wanted. Of an image for several platforms the one for *platform* comes in (this host's
        when ``None``), with *all_platforms* all; its index is kept either way. *progress* is called with each
        `Progress`, counting the bytes that were sent. *allow_devices* takes layers with device nodes in them.

        The images are unpacked and ready to run. All come in, or none. Raises `InvalidArgumentError` for what is
        damaged, malicious or no archive at all, `UnsupportedError` for media types that are not known, `NotFoundError`
        when something is not there (the file, a blob, the platform), `UnavailableError` when it cannot be read.
        """
        wanted = _platform(platform, all_platforms)
        if name is not None:
            reference.parse(name)
        with (
            leases.held(self._channel) as lease,
            archive.opened(file, self._content, lease, progress) as source,
        ):
            images = naming.named(source, name)
            plans = {root.digest: intake.plan(source, root, wanted, full) for full, root in images}
            taking = Intake(
                self._content, self._snapshots, source, lease, allow_devices=allow_devices, progress=progress
            )
            for full, root in {root.digest: (full, root) for full, root in images}.values():
                taking.take(plans[root.digest], full)
            return self._name(images, lease)

    def _name(self, images: Sequence[tuple[str, Descriptor]], lease: str) -> Listed:
        """Names what has come in. If one name cannot be had, those given before it stand for what they did before."""
        records = []
        before: list[tuple[str, Descriptor | None]] = []
        try:
            for full, root in images:
                old = self._store.find(full)
                if old is not None:  # not to be collected before it is known that all went well
                    leases.hold(self._channel, lease, "content", old.digest)
                records.append(self._store.put(full, root, {}, lease))
                before.append((full, old))
        except CtrdError:
            for full, old in before:
                if old is None:
                    self._store.drop(full)
                else:
                    self._store.put(full, old, {}, lease)
            raise
        return [self._image(record) for record in records]

    def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        credentials: tuple[str, str] | None = None,
        insecure_http: bool | None = None,
        ca: str | None = None,
        timeout: float = registry.TIMEOUT,
        through_daemon: bool | None = None,
        allow_devices: bool = False,
        progress: Report | None = None,
    ) -> Image:
        """Pulls the image *ref* from its registry, unpacked and ready to run.

        *credentials* are a user and a password (or token); without, those that ``docker login`` has left in
        ``config.json``. *insecure_http* speaks plain HTTP (by default with loopback registries alone), *ca* is a file
        of certificates to trust besides the system's, *timeout* the seconds that a registry may be silent.
        *through_daemon* says who fetches: the daemon's transfer service, or this process; by default the former where
        there is one and it can do what is asked for. The rest is as for `import_archive`.

        Raises `NotFoundError` when the registry has no such image, or none for the platform; `UnavailableError` when
        it cannot be reached, refuses (credentials, certificate, too many requests) or fails; `DeadlineError` when it
        is silent; `InvalidArgumentError` for what is damaged or malicious; `UnsupportedError` for media types that are
        not known, and for a daemon that cannot do what *through_daemon* asks for.
        """
        wanted = _platform(platform, all_platforms)
        name = reference.parse(ref)
        login = Login(name, credentials)
        scheme = registry.scheme(name, insecure_http)
        if through_daemon is not False:
            lacking = (
                transfer.lacks(self._channel, scheme)
                if ca is None
                else "it takes certificates from its own configuration alone (hosts.toml)"
            )
            if through_daemon and lacking:
                raise UnsupportedError(
                    f"could not pull the image {name} through containerd at {self._channel.address}: {lacking}: let "
                    f"this process pull"
                )
            through_daemon = not lacking
        with leases.held(self._channel) as lease:
            source: Source
            if through_daemon:
                root = transfer.fetch(
                    *(self._channel, name, lease, wanted),
                    login=login,
                    scheme=scheme,
                    timeout=timeout,
                    progress=progress,
                )
                source = _Kept(self._content)
                return self._take(source, root, wanted, name, lease, allow_devices, None)
            with registry.opened(name, login, insecure_http=insecure_http, ca=ca, timeout=timeout) as remote:
                root = remote.resolve()
                return self._take(remote, root, wanted, name, lease, allow_devices, progress)

    def _take(
        self,
        source: Source,
        root: Descriptor,
        wanted: Platform | None,
        name: reference.Reference,
        lease: str,
        allow_devices: bool,
        progress: Report | None,
    ) -> Image:
        plan = intake.plan(source, root, wanted, str(name))
        taking = Intake(self._content, self._snapshots, source, lease, allow_devices=allow_devices, progress=progress)
        taking.take(plan, str(name))
        return self._name([(str(name), root)], lease)[0]

    # ---- for containers ----------------------------------------------------------------------------------------------

    def spec(self, ref: str, args: Sequence[str] | None = None, **settings: Any) -> dict[str, Any]:
        """The OCI spec of a container of the image *ref*, as the image's config wants it where the caller says nothing.

        *args* take the place of the image's ``Cmd``; *settings* are those of `libctrd.spec.default`, where ``user``
        may also be a name that the image knows. ``root.path`` is ``rootfs``, for a snapshot from `prepare`. Raises
        `NotFoundError` for an image or user that is not there, `InvalidArgumentError` for settings that cannot be.
        """
        plan, name = self._plan(ref)
        part = plan.parts[0]
        ask: Callable[[], Accounts] = lambda: self._accounts_of(plan, name)  # noqa: E731 - it reads better so
        return config.to_spec(part.config.config or Settings(), args, ask, name, **settings)

    def prepare(self, ref: str, key: str, *, lease: str) -> Sequence[Any]:
        """Makes the writable snapshot *key* of the image *ref* for a container; returns its mounts.

        The mounts are ``containerd.types.Mount`` messages for the create request. An image that nobody has unpacked
        yet is checked and unpacked first. The snapshot is held by *lease* until a container's record names it.
        `AlreadyExistsError` when there is a snapshot *key*.
        """
        plan, name = self._plan(ref)
        snapshots = self._snapshots
        top = self._top(plan)
        try:
            return snapshots.prepare(key, top, lease)
        except NotFoundError:
            if not top:
                raise
        self._unpack(plan, name)
        return snapshots.prepare(key, top, lease)

    def unprepare(self, key: str) -> None:
        """Removes the snapshot *key* of a container; one that is not there is fine."""
        self._snapshots.remove(key)

    def leased(self) -> AbstractContextManager[str]:
        """A lease for a block, which gets its id: for what `prepare` makes, until a container refers to it.

        When the block raises, all that only the lease held is gone before the error goes on; a lease that is not
        ended, since its holder was killed, expires within a day.
        """
        return leases.held(self._channel)

    def _plan(self, ref: str) -> tuple[Plan, str]:
        """The documents of *ref* for this host, and its full name."""
        record = self._record(ref)
        root, name = store.descriptor_of(record), str(record.name)
        plan = self._plans.get(root.digest)
        if plan is None:
            plan = intake.plan(_Kept(self._content), root, self._here(root, name), name)
            while len(self._plans) >= _REMEMBERED:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[root.digest] = plan
        return plan, name

    def _here(self, root: Descriptor, name: str) -> Platform | None:
        """The platform to run of an image: this host's, or the only one that there is of it, whatever that is."""
        here = self._parts(root, name)
        return here[0].config.platform if len(here) == 1 else platforms.host()

    def _top(self, plan: Plan) -> str:
        chain = chain_ids(plan.parts[0].config.rootfs.diff_ids)
        return chain[-1] if chain else ""

    def _unpack(self, plan: Plan, name: str) -> None:
        with leases.held(self._channel) as lease:
            Intake(self._content, self._snapshots, _Kept(self._content), lease).take(plan, name)

    def _accounts_of(self, plan: Plan, name: str) -> Accounts:
        top = self._top(plan)
        if not top:
            return Accounts()
        if top not in self._accounts:
            snapshots = self._snapshots
            if not snapshots.exists(top):
                self._unpack(plan, name)
            with leases.held(self._channel) as lease, snapshots.view(top, lease) as mounts:
                self._accounts[top] = config.accounts_in(mounts)
        return self._accounts[top]


def _platform(text: str | None, everything: bool) -> Platform | None:
    """The platform to choose; ``None`` is all of them."""
    if everything:
        if text is not None:
            raise InvalidArgumentError("platform and all_platforms do not go together: give one of them")
        return None
    return platforms.host() if text is None else platforms.parse(text)
