"""``run``: a container from its start to its end in one call, like ``subprocess.run``."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from libctrd import ids, reactor
from libctrd._checks import seconds_of
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import connect
from libctrd.errors import ClosedError, DeadlineError, ExitError, InvalidArgumentError, UnavailableError
from libctrd.starting import chosen_spec, chosen_streams
from libctrd.state import ExitStatus
from libctrd.stdio import PIPE, Choice, Stdin, Stdio, Stream, Text


class Completed(Struct, frozen=True):
    """What a finished container leaves: its exit code and, when they were captured, all of its output."""

    id: str
    exit_code: int
    stdout: Any = None
    """Bytes, or a str with ``text=True``; ``None`` when it was not captured. So is ``stderr``."""
    stderr: Any = None
    oom_killed: bool = False

    def check(self) -> None:
        """Raises `ExitError`, with the last of stderr, when the exit code is not 0."""
        if self.exit_code:
            said = self.stderr or b""
            tail = (said if isinstance(said, str) else said.decode("utf-8", "replace")).strip().splitlines()[-5:]
            raise ExitError(
                f"container {self.id!r} ended with exit code {self.exit_code}"
                + (" (out of memory)" if self.oom_killed else "")
                + (": " + " / ".join(tail) if tail else ""),
                exit_code=self.exit_code,
                stdout=self.stdout,
                stderr=self.stderr,
            )


def run(
    args: Sequence[str] | None = None,
    *,
    rootfs: str | os.PathLike[str] | None = None,
    image: str | None = None,
    spec: dict[str, Any] | None = None,
    id: str | None = None,
    input: bytes | str | None = None,
    capture_output: bool = False,
    stdin: Stream | None = None,
    stdout: Stream | None = None,
    stderr: Stream | None = None,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: float | None = None,
    drain_timeout: float | None = None,
    check: bool = False,
    runtime: str | None = None,
    runtime_args: Sequence[str] = (),
    client: Client | None = None,
    **settings: Any,
) -> Completed:
    """Runs a container, waits for its end, cleans it, and returns all of its output and its true exit code (C28).

    What runs is *args* on *rootfs*, with *settings* as `libctrd.spec.default` takes them (``env``, ``cwd``, ``user``,
    ``memory`` …); or an OCI *spec*; or *image*, a reference of one that the engine has: *args* take the place of its
    own command, and *settings* go over what its configuration says.

    *input* is written to its stdin; *capture_output* collects stdout and stderr; else *stdin* is `NULL` and *stdout*
    and *stderr* are `INHERIT` unless they say otherwise. With *text*, or an *encoding* (UTF-8 else) or *errors*, input
    and output are str, as in `subprocess`. After *timeout* seconds the container is killed and cleaned.
    *drain_timeout* is how long output is waited for that another process keeps open after the end (seconds). *check*
    raises `ExitError` for an exit code that is not 0.

    Raises `DeadlineError` after *timeout*; what `Client.create` and `Container.start` raise; whatever is raised, Ctrl-C
    included, the container has gone before.
    """
    prepared = prepare(
        args,
        rootfs=rootfs,
        image=image,
        spec=spec,
        id=id,
        input=input,
        capture_output=capture_output,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        encoding=encoding,
        errors=errors,
        timeout=timeout,
        drain_timeout=drain_timeout,
        check=check,
        runtime=runtime,
        runtime_args=runtime_args,
        client=client,
        **settings,
    )
    try:
        container = prepared.start()
        prepared.send(container)
        status = container.wait()
    except BaseException:
        prepared.stop()
        raise
    return prepared.complete(status)


def prepare(
    args: Sequence[str] | None = None,
    *,
    rootfs: str | os.PathLike[str] | None = None,
    image: str | None = None,
    spec: dict[str, Any] | None = None,
    id: str | None = None,
    input: bytes | str | None = None,
    capture_output: bool = False,
    stdin: Stream | None = None,
    stdout: Stream | None = None,
    stderr: Stream | None = None,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: float | None = None,
    drain_timeout: float | None = None,
    check: bool = False,
    runtime: str | None = None,
    runtime_args: Sequence[str] = (),
    client: Client | None = None,
    **settings: Any,
) -> Run:
    """What `run` does before it does anything: all that can be wrong with what it was given is told here."""
    wanted = chosen_spec(args, rootfs, image, spec, settings)
    if input is not None and stdin is not None:
        raise InvalidArgumentError("input= is written to stdin: do not give stdin= too")
    if capture_output and (stdout is not None or stderr is not None):
        raise InvalidArgumentError("capture_output= collects stdout and stderr: do not give them too")
    if PIPE in (stdin, stdout, stderr):
        raise InvalidArgumentError("run() waits for the end, so nobody could use a PIPE: give input=, capture_output=")
    seconds_of(timeout, "timeout=")
    as_text: Text | None = None
    if text or encoding is not None or errors is not None or not isinstance(input, (bytes, type(None))):
        from libctrd import text as texts  # not at every run

        as_text = texts.wanted(text, encoding, errors)
        input = texts.encoded(input, as_text) if input is not None else None
    collect: Stream | None = Choice.CAPTURE if capture_output else None
    streams = chosen_streams(PIPE if input is not None else stdin, collect or stdout, collect or stderr)

    def create() -> Container:
        owner = client or _shared_client()
        return owner.create(
            id or ids.generate(),
            wanted if wanted is not None else owner.images.spec(image or "", args, **settings),
            runtime=runtime,
            runtime_args=tuple(runtime_args),
            image=image or "",
        )

    return Run(create, streams, input, timeout, drain_timeout, check, as_text)


class Run:
    """One `run`, step by step: what there is of it in an event loop too.

    `start`, then `send` or what does the same, then a wait for the container's end, then `complete`; `stop`, when
    something of that raises, or is given up.
    """

    def __init__(
        self,
        create: Callable[[], Container],
        streams: Stdio,
        input: bytes | None,
        timeout: float | None,
        drain_timeout: float | None,
        check: bool,
        text: Text | None,
    ) -> None:
        self.input = input
        self._create = create
        self._streams = streams
        self._timeout = timeout
        self._drain_timeout = drain_timeout
        self._check = check
        self._text = text
        self._container: Container | None = None
        self._late = threading.Event()
        self._timer: reactor.Timer | None = None

    def start(self) -> Container:
        """Creates and starts it."""
        self._container = container = self._create()
        container.start(self._streams, drain_timeout=self._drain_timeout)
        if self._timeout is not None:
            self._timer = reactor.shared().later(self._timeout, lambda: container._kill_late(self._late))
        return container

    def send(self, container: Container) -> None:
        """Writes the input. If it reads no more of it, or ended meanwhile, that is its own business."""
        if isinstance(container.stdin, Stdin) and self.input is not None:
            with contextlib.suppress(UnavailableError, ClosedError):
                container.stdin.write(self.input)
            container.stdin.close()

    def stop(self) -> None:
        """It is killed, and cleaned. One that was never created, or has gone, is fine."""
        if self._timer is not None:
            self._timer.cancel()
        if self._container is not None:
            self._container._give_up_output()
            self._container.clean(force=True)

    def complete(self, status: ExitStatus) -> Completed:
        """What it leaves. Raises as `run` does for one that was late, or failed."""
        container = self._container
        assert container is not None
        if self._timer is not None:
            self._timer.cancel()
        output: dict[str, Any] = {name: buffer.read() for name, buffer in container._captured().items()}
        if self._text is not None:
            from libctrd import text as texts

            output = {name: texts.decoded(data, self._text) for name, data in output.items()}
        completed = Completed(container.id, status.code, output.get("stdout"), output.get("stderr"), status.oom_killed)
        if self._late.is_set():
            raise DeadlineError(f"container {container.id!r} did not end within {self._timeout:g} s and was killed")
        if self._check:
            completed.check()
        return completed


# One client serves every run() that names none. It is made anew when the environment names another engine, and after
# a fork, whose child has none of its parent's threads.
_clients: dict[tuple[str | None, ...], Client] = {}
_clients_lock = threading.Lock()


def _shared_client() -> Client:
    key = (
        os.environ.get("CTRD_ADDRESS"),
        os.environ.get("CONTAINERD_ADDRESS"),
        os.environ.get("XDG_RUNTIME_DIR"),
    )
    with _clients_lock:
        if key not in _clients:
            _clients[key] = connect()
        return _clients[key]


def _after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)
