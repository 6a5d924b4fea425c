"""The containers that a containerd knows: those of libctrd with the record in a label, those of other programs as well.

A container is only what is to run; whether it runs is the task's affair, in ``containerd.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from libctrd import ids, protos
from libctrd import spec as specs
from libctrd.engine import runc
from libctrd.engine.base import Record, Spec
from libctrd.engine.channel import Channel
from libctrd.errors import InvalidArgumentError, NotFoundError

log = logging.getLogger("libctrd")

CONTAINERS = "containerd.services.containers.v1.Containers"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

LABEL = "libctrd.record"
"""The label in which a container's record is kept with containerd."""
LABEL_BYTES = 4000
"""containerd takes 4,096 for a name and its value together."""

_record_decoder = msgspec.json.Decoder(Record)


class Store:
    """The containers in the namespace of *channel*. *root* is our directory, with a bundle for each of ours."""

    def __init__(self, channel: Channel, root: str) -> None:
        self._channel = channel
        self._root = root

    def list(self) -> list[Record]:
        """The record of each, by id."""
        request = protos.message("containerd.services.containers.v1.ListContainersRequest")()
        found = self._channel.call(f"{CONTAINERS}/List", request, doing="list the containers").containers
        return [self._record_of(container) for container in sorted(found, key=lambda container: container.id)]

    def record(self, id: str) -> Record:
        """That of one. `NotFoundError` when there is none."""
        return self._record_of(self._get(id))

    def spec(self, id: str) -> Spec:
        """The spec of one, as containerd has it."""
        return _spec_of(self._get(id))

    def add(self, record: Record, runtime: runc.Runtime, config: bytes, snapshotter: str, lease: str) -> None:
        """Makes *record* known, with its spec as encoded. `AlreadyExistsError` when the id is another's.

        What a handler of signals raises comes after containerd has answered.
        """
        label = msgspec.json.encode(msgspec.structs.replace(record, labels={})).decode()
        if len(label) > LABEL_BYTES or LABEL in record.labels:
            raise InvalidArgumentError(
                f"container {record.id!r} has more mounts or runtime_args than containerd keeps, or a label {LABEL!r}"
            )
        package = protos.package("containerd.services.containers.v1")
        container = package.Container(
            id=record.id,
            labels={**record.labels, LABEL: label},
            image=record.image,
            runtime=package.Container.Runtime(name=runtime.name, options=runtime.options()),
            spec=protos.any(SPEC, config),
            snapshotter=snapshotter,
            snapshot_key=record.snapshot,
        )
        request = package.CreateContainerRequest(container=container)
        doing = f"make container {record.id!r} known to containerd"
        self._channel.call(f"{CONTAINERS}/Create", request, doing=doing, lease=lease, whole=True)

    def remove(self, id: str) -> None:
        """Makes it unknown. One that is not there is success."""
        request = protos.message("containerd.services.containers.v1.DeleteContainerRequest")(id=id)
        with contextlib.suppress(NotFoundError):
            self._channel.call(f"{CONTAINERS}/Delete", request, doing=f"delete container {id!r}")

    def _get(self, id: str) -> Any:
        request = protos.message("containerd.services.containers.v1.GetContainerRequest")(id=ids.check(id))
        try:
            return self._channel.call(f"{CONTAINERS}/Get", request, doing=f"look at container {id!r}").container
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no container {id!r} in namespace {self._channel.namespace!r} of {self._channel.address}: "
                "`ctrd ps` lists those there are"
            ) from error

    def _record_of(self, container: Any) -> Record:
        labels = dict(container.labels)
        ours = labels.pop(LABEL, None)
        if ours is not None:
            try:
                return msgspec.structs.replace(_record_decoder.decode(ours), labels=labels)
            except msgspec.MsgspecError as error:
                log.warning("the record of container %s in its label %s is damaged: %s", container.id, LABEL, error)
        try:
            spec = _spec_of(container)
        except InvalidArgumentError as error:  # no reason to list no container at all
            log.debug("%s", error)
            spec = {}
        process, linux = _object(spec, "process"), _object(spec, "linux")
        path = linux.get("cgroupsPath")
        return Record(
            id=container.id,
            bundle=os.path.join(self._root, container.id),
            created_at=protos.moment(container.created_at) or datetime.fromtimestamp(0, timezone.utc),
            runtime=container.runtime.name,
            terminal=bool(process.get("terminal")),
            own_pid_namespace=specs.own_namespace(spec, "pid"),
            cgroup=path if isinstance(path, str) else "",
            labels=labels,
            image=container.image,
            snapshot=container.snapshot_key,
            snapshotter=container.snapshotter,
            foreign=True,
        )


def _spec_of(container: Any) -> dict[str, Any]:
    """The spec of a container, which another program may have made: `InvalidArgumentError` when it is none."""
    try:
        spec = msgspec.json.decode(container.spec.value) if container.spec.value else {}
        if isinstance(spec, dict):
            return spec
        why: object = f"it is {type(spec).__name__}, and no object"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = error
    raise InvalidArgumentError(
        f"the spec of container {container.id!r}, of the type {container.spec.type_url!r}, cannot be read: {why} "
        "(it was made by another program)"
    )


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


_PLUGINS = {
    "io.containerd.snapshotter.v1": "snapshotter",
    "io.containerd.runtime.v2": "runtime",
    "io.containerd.transfer.v1": "transfer",
    "io.containerd.differ.v1": "differ",
    "io.containerd.gc.v1": "gc",
}
"""The plugins that matter here, by their type."""


def version(channel: Channel) -> str:
    """containerd's own version, such as ``1.6.20``."""
    request = protos.message("google.protobuf.Empty")()
    reply = channel.call("containerd.services.version.v1.Version/Version", request, doing="ask containerd its version")
    text = reply.version
    assert isinstance(text, str)
    return text.removeprefix("v")


def identity(channel: Channel) -> str:
    """What tells this containerd from every other one: its UUID, which lies in its root directory."""
    request = protos.message("google.protobuf.Empty")()
    doing = "ask containerd who it is"
    uuid = channel.call("containerd.services.introspection.v1.Introspection/Server", request, doing=doing).uuid
    assert isinstance(uuid, str)
    return uuid


def plugins(channel: Channel) -> Iterator[tuple[str, str]]:
    """Kind and name of each plugin that matters here and works."""
    request = protos.message("containerd.services.introspection.v1.PluginsRequest")()
    doing = "ask containerd for its plugins"
    reply = channel.call("containerd.services.introspection.v1.Introspection/Plugins", request, doing=doing)
    for plugin in reply.plugins:
        if plugin.type in _PLUGINS and not plugin.HasField("init_err"):
            yield _PLUGINS[plugin.type], plugin.id
