"""The messages and services of containerd's wire, as classes that are built from our own .proto files.

The .proto files beside this module are compiled to one committed set of descriptors (``tools/gen_protos.py``), and the
classes are built from that when they are asked for. There is no generated code, so none that wants one version of
protobuf and no other; and the descriptors are in a pool of their own, so that another package in the process may bring
messages of the same names (C26). Messages are ``Any`` to a type checker.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_FIRST_MOMENT: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Method(NamedTuple):
    """A call of a service: its path in HTTP/2, its messages' classes, and whether they come one or many each way."""

    path: str
    request: Any
    reply: Any
    sends_many: bool
    receives_many: bool


class Package:
    """The messages and enums of one package of the wire, as attributes: ``package("containerd.types").Mount``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        full_name = f"{self._name}.{name}"
        try:
            found = message(full_name)
        except KeyError:
            try:
                found = _enum(full_name)
            except KeyError:
                raise AttributeError(f"the wire has no message or enum {full_name}") from None
        setattr(self, name, found)  # so that the next one is found without coming here
        return found


def _files(descriptors: bytes) -> Iterator[bytes]:
    """The files in a serialized FileDescriptorSet, in which each is field 1: a tag, a length, and so many bytes.

    The class for such sets is not used: it would be built for this alone, at every start.
    """
    at = 0
    while at < len(descriptors):
        at += 1  # the tag
        length = shift = 0
        while True:
            byte = descriptors[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield descriptors[at : at + length]
        at += length


def _load() -> Any:
    pool = DescriptorPool()
    with open(os.path.join(os.path.dirname(__file__), "wire.binpb"), "rb") as descriptors:
        for file in _files(descriptors.read()):
            pool.AddSerializedFile(file)
    return pool


# Filled once, under the lock of this module's import, and only read after that: threads need no other lock. Two that
# ask for one class at the same moment get the same, for protobuf keeps one class for a descriptor.
_pool: Final = _load()


@cache
def message(full_name: str) -> Any:
    """The class of a message, such as ``containerd.services.tasks.v1.CreateTaskRequest``. `KeyError`: there is none."""
    return GetMessageClass(_pool.FindMessageTypeByName(full_name))


@cache
def _enum(full_name: str) -> Any:
    descriptor = _pool.FindEnumTypeByName(full_name)
    return enum.IntEnum(descriptor.name, {value.name: value.number for value in descriptor.values})


@cache
def package(name: str) -> Package:
    """The messages and enums of a package, such as ``containerd.services.tasks.v1``; an enum is an `enum.IntEnum`.

    A name that the package has not, or a package that there is not, is an `AttributeError` when it is used.
    """
    return Package(name)


@cache
def method(name: str) -> Method:
    """A call by package, service and name: ``containerd.services.tasks.v1.Tasks/Create``. `KeyError`: there is none."""
    service, _, call = name.partition("/")
    descriptor = _pool.FindServiceByName(service).methods_by_name[call]
    return Method(
        f"/{name}",
        GetMessageClass(descriptor.input_type),
        GetMessageClass(descriptor.output_type),
        descriptor.client_streaming,
        descriptor.server_streaming,
    )


def any(type_url: str, value: bytes) -> Any:
    """A ``google.protobuf.Any`` of bytes of whatever kind, such as the JSON of a spec."""
    return _any(type_url=type_url, value=value)


def pack(content: Any) -> Any:
    """A ``google.protobuf.Any`` of a message. containerd's type URLs are the message's name and have no prefix."""
    return _any(type_url=content.DESCRIPTOR.full_name, value=content.SerializeToString())


def unpack(packed: Any) -> Any | None:
    """The message in a ``google.protobuf.Any``; ``None`` when it is of a kind that is not known here.

    Raises ``google.protobuf.message.DecodeError`` when its bytes are no such message.
    """
    try:
        kind = message(packed.type_url.rpartition("/")[2])
    except KeyError:
        return None
    return kind.FromString(packed.value)


def moment(timestamp: Any) -> datetime | None:
    """A ``google.protobuf.Timestamp`` as a moment in UTC, to the microsecond; ``None`` for "never".

    containerd says "never" with a moment in the year 1, or leaves the timestamp out, which reads as zero.
    """
    if timestamp.seconds <= 0:
        return None
    try:
        return _FIRST_MOMENT + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:  # after the year 9999
        return None


_any: Final = message("google.protobuf.Any")
