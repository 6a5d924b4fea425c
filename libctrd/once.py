"""``run``: a container from its start to its end in one call, like ``subprocess.run``."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from libctrd import ids, reactor
from libctrd import spec as specs
from libctrd._checks import seconds_of
from libctrd.client import Client
from libctrd.container import Container
from libctrd.engine import connect
from libctrd.errors import ClosedError, DeadlineError, ExitError, InvalidArgumentError, UnavailableError
from libctrd.stdio import INHERIT, NULL, PIPE, Choice, Stdin, Stdio, Stream


class Completed(Struct, frozen=True):
    """What a finished container leaves: its exit code and, when they were captured, all of its output."""

    id: str
    exit_code: int
    stdout: bytes | None = None
    stderr: bytes | None = None
    oom_killed: bool = False

    def check(self) -> None:
        """Raises `ExitError`, with the last of stderr, when the exit code is not 0."""
        if self.exit_code:
            tail = (self.stderr or b"").decode("utf-8", "replace").strip().splitlines()[-5:]
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
    input: bytes | None = None,
    capture_output: bool = False,
    stdin: Stream | None = None,
    stdout: Stream | None = None,
    stderr: Stream | None = None,
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
    and *stderr* are `INHERIT` unless they say otherwise. After *timeout* seconds the container is killed and cleaned.
    *drain_timeout* is how long output is waited for that another process keeps open after the end (seconds). *check*
    raises `ExitError` for an exit code that is not 0.

    Raises `DeadlineError` after *timeout*; what `Client.create` and `Container.start` raise; whatever is raised, Ctrl-C
    included, the container has gone before.
    """
    if (spec is not None) + (rootfs is not None) + (image is not None) != 1:
        raise InvalidArgumentError("give one of: a spec; args and the rootfs to run them on; an image")
    if rootfs is not None:
        if args is None:
            raise InvalidArgumentError("give the args to run on that rootfs")
        spec = specs.default(args, os.fspath(rootfs), **settings)
    elif image is None and (settings or args is not None):
        raise InvalidArgumentError(f"{', '.join(settings) or 'args'}: these belong into the spec that was given")
    if input is not None and stdin is not None:
        raise InvalidArgumentError("input= is written to stdin: do not give stdin= too")
    if capture_output and (stdout is not None or stderr is not None):
        raise InvalidArgumentError("capture_output= collects stdout and stderr: do not give them too")
    if PIPE in (stdin, stdout, stderr):
        raise InvalidArgumentError("run() waits for the end, so nobody could use a PIPE: give input=, capture_output=")
    seconds_of(timeout, "timeout=")
    collect: Stream | None = Choice.CAPTURE if capture_output else None
    streams = Stdio(
        PIPE if input is not None else NULL if stdin is None else stdin,
        collect or (INHERIT if stdout is None else stdout),
        collect or (INHERIT if stderr is None else stderr),
    )
    owner = client or _shared_client()
    if spec is None:
        spec = owner.images.spec(image or "", args, **settings)
    container = owner.create(
        id or ids.generate(), spec, runtime=runtime, runtime_args=tuple(runtime_args), image=image or ""
    )
    completed = _run(container, streams, input, timeout, drain_timeout)
    if check:
        completed.check()
    return completed


def _run(
    container: Container,
    streams: Stdio,
    input: bytes | None,
    timeout: float | None,
    drain_timeout: float | None,
) -> Completed:
    late = threading.Event()
    timer: reactor.Timer | None = None
    try:
        container.start(streams, drain_timeout=drain_timeout)
        if timeout is not None:
            timer = reactor.shared().later(timeout, lambda: container._kill_late(late))
        if isinstance(container.stdin, Stdin) and input is not None:
            # It read no more of it, or ended meanwhile: its own business, as with subprocess.
            with contextlib.suppress(UnavailableError, ClosedError):
                container.stdin.write(input)
            container.stdin.close()
        status = container.wait()
    except BaseException:
        container._give_up_output()
        container.clean(force=True)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    output = {name: buffer.read() for name, buffer in container._captured().items()}
    completed = Completed(container.id, status.code, output.get("stdout"), output.get("stderr"), status.oom_killed)
    if late.is_set():
        raise DeadlineError(f"container {container.id!r} did not end within {timeout:g} s and was killed")
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
