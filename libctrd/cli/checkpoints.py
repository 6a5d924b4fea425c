"""What ctrd keeps beside a checkpoint, so that a container like that one can be made again: one file of JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from libctrd import spec as specs
from libctrd.errors import InvalidArgumentError, from_os_error

if TYPE_CHECKING:
    from libctrd.container import Container

FILE: Final = "ctrd.json"


class Description(msgspec.Struct):
    """The container that a checkpoint is of: its spec, its image if it had one, and its labels."""

    id: str
    spec: dict[str, Any]
    image: str = ""
    labels: dict[str, str] = {}


def describe(container: Container) -> Description:
    """That of a container. Its cgroup is left out: the next one gets its own."""
    info, spec = container.info(), container.spec()
    linux = {key: value for key, value in (spec.get("linux") or {}).items() if key != "cgroupsPath"}
    return Description(info.id, {**spec, "linux": linux}, info.image, dict(info.labels))


def keep(directory: str, description: Description) -> None:
    """Writes it into the directory of the checkpoint, 0600: the environment in it is nobody's business."""
    path = os.path.join(directory, FILE)
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(msgspec.json.encode(description))
    except OSError as error:
        raise from_os_error(error, f"write {path!r}, without which the checkpoint cannot be started by ctrd") from error


def load(directory: str) -> Description:
    """That of the checkpoint in *directory*. Raises `NotFoundError` and `InvalidArgumentError`; its spec is valid."""
    path = os.path.join(directory, FILE)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = msgspec.json.decode(file.read(), type=Description)
    except OSError as error:
        raise from_os_error(error, f"read {path!r}", "is that a checkpoint of ctrd's?") from error
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"{path!r} does not describe a checkpoint: {error}") from error
    specs.validate(found.spec)
    return found
