"""The order of a start: of a container (C6), and of a further process in one (C21). Both run under its lock.

And what shall start, as `run` and `Client.container` are told it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from libctrd import spec as specs
from libctrd._checks import one_line
from libctrd._log import log
from libctrd.engine.base import CreateRequest, ExecRequest, Log, Unattended
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
)
from libctrd.process import Process
from libctrd.state import INIT
from libctrd.stdio import INHERIT, NULL, Callback, Choice, Stdio, Stream, Text
from libctrd.stdio import path as fifo_path

if TYPE_CHECKING:
    from libctrd.container import Container


_SIGKILL = 9

RAMDISK = "DOCKER_RAMDISK"
"""The environment variable that, when not empty, asks for no pivot root (C8)."""


def launch(
    container: Container,
    streams: Choice | Stdio | Callback,
    *,
    unattended: Unattended,
    log_file: Log | None,
    drain_timeout: float | None,
    auto_remove: bool,
    checkpoint: str,
    text: Text | None,
) -> Process:
    """Starts the container, up to its report, in the order of C6."""
    client = container._client
    client._check_open()
    container._require_not_started()
    init = Process(container, INIT, container._record.terminal, streams, drain_timeout)
    init.streams.text = text
    if auto_remove and (not init.streams.left_to_others or unattended == "hold"):
        raise InvalidArgumentError(
            "auto_remove=True is for stdio=DETACHED with unattended='discard' or 'log': "
            "otherwise a client cleans, or output would be lost that is held for one"
        )
    client._engine.claim(container._record)  # if another was quicker, its fifos stay untouched
    asked = False
    try:
        if not init.streams.left_to_others:
            client._owners.take(container._record, INIT)
    except BaseException:
        client._engine.unclaim(container._record)
        raise
    try:
        init.open()
        container._processes[INIT] = init
        client._register(container)
        if init.streams.callback is not None:
            init.streams.callback(init.streams.pipe)
        request = CreateRequest(
            container._record,
            **_fifos(init, container),
            no_pivot_root=bool(os.environ.get(RAMDISK)),
            unattended=unattended,
            log=log_file,
            attended=init.streams.takes_output,
            auto_remove=auto_remove,
            checkpoint=checkpoint,
        )
        if log_file is not None:
            from libctrd import logs  # not at every start

            logs.remember(container, log_file)
        asked = True
        pid = client._engine.create(request)
    except BaseException as error:
        said = init.streams.said() if isinstance(error, RuntimeFailedError) and not error.output else ""
        container._processes.clear()
        if asked and isinstance(error, AlreadyExistsError):  # another client got in between: what lies there is its
            init.streams.close()
            client._owners.give_back(container._record, INIT)
            client._forget(container)
            raise
        init.failed()
        if container._created_here:
            try:
                client._remove(container, force=True)
            except CtrdError as left:  # the error of the start is the one that counts
                log.warning("container %s could not be started, and not be cleaned: %s", container.id, left)
                client._forget(container)
        else:
            if log_file is not None:
                logs.forget(container)
            client._engine.unclaim(container._record)
            client._forget(container)
        if isinstance(error, RuntimeFailedError) and said:  # a runtime that knows no log has told it there
            told = f"{error}: {one_line(said)}"
            raise RuntimeFailedError(told, output=said, exit_code=error.exit_code) from error
        raise
    container._owned = not init.streams.left_to_others
    container._told_of = True
    init.pid = pid
    return init


def add(
    container: Container,
    name: str,
    settings: dict[str, Any],
    streams: Choice | Stdio | Callback,
    drain_timeout: float | None,
    text: Text | None,
) -> Process:
    """Starts a further process in the order of C21. A failed start leaves no fifo; a failing callback ends it.

    *container* is the object that its events reach. They are handled under its lock, so its end, however soon, finds
    the process registered.
    """
    client = container._client
    if name == INIT or name in container._processes:  # `init` may be another client's
        raise AlreadyExistsError(f"container {container.id!r} has a process {name!r} already: choose another name")
    process = Process(container, name, bool(settings["terminal"]), streams, drain_timeout)
    process.streams.text = text
    if not process.streams.left_to_others:
        client._owners.take(container._record, name)
    try:
        process.open()
        process.pid = client._engine.exec(
            ExecRequest(container._record, name, settings, process.terminal, **_fifos(process, container))
        )
    except BaseException as error:
        process.failed()
        container._leave_bundle()
        if isinstance(error, RuntimeFailedError):
            from libctrd.changes import has_ended  # the rare case

            if has_ended(container, error):
                raise NotFoundError(f"container {container.id!r} ended before {name!r} was started in it") from error
        raise
    container._processes[name] = process
    try:
        if process.streams.callback is not None:
            process.streams.callback(process.streams.pipe)
        process.began()
    except BaseException:
        process.streams.close()
        with contextlib.suppress(NotFoundError):  # it has ended by itself
            client._engine.signal(container.id, name, _SIGKILL)
        from libctrd import unread  # the rare case

        unread.throw_away(container, name)
        raise
    return process


def _fifos(process: Process, container: Container) -> dict[str, str]:
    """The paths of its fifos, by stream. With a terminal stderr is named though it is not there (C8)."""
    names = process.streams.names()
    if process.terminal:
        names.append("stderr")
    return {name: fifo_path(container.bundle, process.name, name) for name in names}


def chosen_spec(
    args: Sequence[str] | None,
    rootfs: str | os.PathLike[str] | None,
    image: str | None,
    spec: dict[str, Any] | None,
    settings: dict[str, Any],
) -> dict[str, Any] | None:
    """What shall run, as `run` is told it; ``None`` when the image has to be asked. Raises `InvalidArgumentError`."""
    if (spec is not None) + (rootfs is not None) + (image is not None) != 1:
        raise InvalidArgumentError("give one of: a spec; args and the rootfs to run them on; an image")
    if rootfs is not None:
        if args is None:
            raise InvalidArgumentError("give the args to run on that rootfs")
        return specs.default(args, os.fspath(rootfs), **settings)
    if image is None and (settings or args is not None):
        raise InvalidArgumentError(f"{', '.join(settings) or 'args'}: these belong into the spec that was given")
    return spec


def chosen_streams(stdin: Stream | None, stdout: Stream | None, stderr: Stream | None) -> Stdio:
    """What becomes of the streams, as `run` is told it: by default no input, and output that is ours."""
    return Stdio(
        NULL if stdin is None else stdin,
        INHERIT if stdout is None else stdout,
        INHERIT if stderr is None else stderr,
    )


def strings(arguments: Sequence[str]) -> tuple[str, ...]:
    """The ``runtime_args`` of a container. Raises `InvalidArgumentError` for what is no list of strings."""
    if not isinstance(arguments, (tuple, list)) or not all(isinstance(a, str) and "\0" not in a for a in arguments):
        raise InvalidArgumentError(f"runtime_args={arguments!r} is no list of strings (without NUL)")
    return tuple(arguments)


def labels_of(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels of a container. Raises `InvalidArgumentError` for what is no mapping of names to strings."""
    given = dict(labels or {})
    if not all(isinstance(text, str) and "\0" not in text for pair in given.items() for text in pair) or "" in given:
        raise InvalidArgumentError(f"labels={labels!r} are no mapping of names to strings (without NUL)")
    return given
