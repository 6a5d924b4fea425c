"""containerd's shims, asked directly: how a process ended, while containerd itself is away (C26).

Each container's shim outlives containerd and remembers every exit until it is deleted; newer daemons delete what has
ended in the very moment they start, and tell nobody. Where a shim listens is written in the container's bundle, below
the daemon's state directory, and that is learned from any process that runs. Only root may do all this.
"""

from __future__ import annotations

import logging
import os
import re
import select
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf.message import DecodeError

from libctrd import ids, protos
from libctrd.engine.ttrpc import Call
from libctrd.errors import CtrdError, NotFoundError, UnavailableError, UnsupportedError, from_os_error
from libctrd.state import UNKNOWN_EXIT, ExitStatus

log = logging.getLogger("libctrd")

TASKS: Final = "io.containerd.runtime.v2.task"
"""The directory of bundles, in a daemon's state directory and in its root."""

STATUS_SECONDS: Final = 2.0
ENDED_SECONDS: Final = 5.0

_BUNDLE: Final = re.compile(rf"(/.*)/{re.escape(TASKS)}/[^/]+/[^/]+(?: \(deleted\))?\Z")
_LARGEST_FILE: Final = 1 << 16
_AT_ONCE: Final = 64  # connections of `ended`: far below any limit on descriptors
_WATCHED: Final = 400  # connections of `Ends`: a process may have 1,024 descriptors
_STATE, _WAIT = "State", "Wait"
_STOPPED: Final = 3  # of containerd.v1.types.Status


class Address(NamedTuple):
    """Where a container's shim listens (a path; one that begins with NUL is no file), and what it speaks there."""

    socket: str
    service: str
    namespace: str


class Ended(NamedTuple):
    """A process that has ended, and whose shim still says how. ``exec_id`` is "" for the first of its container."""

    namespace: str
    id: str
    exec_id: str
    status: ExitStatus


class _Bootstrap(msgspec.Struct):
    address: str
    version: int = 2
    protocol: str = "ttrpc"


_decoder = msgspec.json.Decoder(_Bootstrap)


def state_dir_of(pid: int) -> str | None:
    """The state directory of the containerd that the running process *pid* of a container belongs to.

    Its parent is the shim, whose working directory is the bundle of a container. ``None`` when that is not so: the
    process has ended, is no container's, or this user may not know.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything; the state and the parent's pid follow it.
            parent = int(file.read().rpartition(b")")[2].split()[1])
        bundle = os.readlink(f"/proc/{parent}/cwd")
    except (OSError, IndexError, ValueError):
        return None
    found = _BUNDLE.match(bundle)
    return found[1] if found else None


def state_dir_beside(socket: str, namespace: str, id: str) -> str | None:
    """The same, where no process tells it: from where the daemon's *socket* lies, and that the bundle is there.

    The socket is in the state directory, unless the daemon was told otherwise; those beside it are looked into too.
    """
    top = os.path.dirname(socket)
    for where in (top, *(os.path.join(top, name) for name in _list_or_none(top))):
        if os.path.isdir(os.path.join(where, TASKS, namespace, id)):
            return where
    return None


def _list_or_none(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []  # not for this user to see


def find(state_dir: str, namespace: str, id: str) -> Address:
    """Where the shim of container *id* listens.

    Raises `NotFoundError` when there is none of that name, `UnavailableError` when this user may not look,
    `UnsupportedError` for a shim that speaks something else than ttrpc over a unix socket.
    """
    bundle = os.path.join(state_dir, TASKS, ids.check(namespace, "namespace"), ids.check(id))
    said = _read(bundle, "bootstrap.json")  # 2.x
    if said is not None:
        try:
            bootstrap = _decoder.decode(said)
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"{bundle}/bootstrap.json does not say where a shim listens: {error}") from error
    else:
        said = _read(bundle, "address")  # 1.x
        if said is None:
            raise NotFoundError(f"container {id!r} has no shim: nothing in {bundle!r} says where one listens")
        bootstrap = _Bootstrap(os.fsdecode(said.strip()))
    path = bootstrap.address.removeprefix("unix://")
    if bootstrap.protocol != "ttrpc" or bootstrap.version not in (2, 3) or "://" in path or not path:
        raise UnsupportedError(
            f"the shim of container {id!r} speaks {bootstrap.protocol} {bootstrap.version} at {bootstrap.address!r}, "
            "and libctrd asks shims by ttrpc on unix sockets only"
        )
    if path == bootstrap.address:
        path = f"\0{path}"  # without a scheme it is an abstract socket
    return Address(path, f"containerd.task.v{bootstrap.version}.Task", namespace)


def _read(bundle: str, name: str) -> bytes | None:
    """A small file of the bundle; ``None`` when it is not there."""
    path = os.path.join(bundle, name)
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UnavailableError(
            f"could not read {path!r}: user {os.geteuid()} is not allowed to ask containerd's shims: only root is"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {path!r}") from error


def status(address: Address, id: str, exec_id: str = "", timeout: float = STATUS_SECONDS) -> ExitStatus | None:
    """How the process ended; ``None`` when it has not. Takes about a millisecond.

    ``known`` is false for a process that could not be started.
    Raises `NotFoundError` when the shim has gone or does not know the process, `DeadlineError` when there was no
    answer within *timeout* seconds, `UnavailableError` when this user may not ask.
    """
    deadline = time.monotonic() + timeout
    for method in (_STATE, _WAIT):
        call = _ask(address, method, id, exec_id, max(0.001, deadline - time.monotonic()))
        try:
            status = _answer(method, call.wait(deadline), address)
        finally:
            call.close()
        if status is None or status.known:
            break
    return status


class Watch:
    """Waits for the end of a process at its shim. No thread: `fileno` is for a reactor or a poll. `close` it."""

    __slots__ = ("_address", "_call")

    def __init__(self, address: Address, id: str, exec_id: str = "") -> None:
        """Asks the shim to tell. Raises `NotFoundError` when it has gone, `UnavailableError` when it cannot be asked.

        A process that has ended is told at once; one that the shim does not know is `on_readable`'s to raise.
        """
        self._address = address
        self._call = _ask(address, _WAIT, id, exec_id, None)

    def fileno(self) -> int:
        """What becomes readable when there is something to hear; -1 when it is closed."""
        return self._call.fileno()

    def on_readable(self) -> ExitStatus | None:
        """How it ended; ``None`` when that has not come yet. Never waits.

        ``known`` is false when it never ran. Raises `NotFoundError` when the shim has gone without telling (who kills a
        shim takes what it knew along), or does not know the process; `UnavailableError` for an answer that is none.
        """
        reply = self._call.receive()
        if reply is None:
            return None
        return _answer(_WAIT, reply, self._address)

    def close(self) -> None:
        """Waits no more. Idempotent. A reactor must have been told to forget the descriptor before."""
        self._call.close()


class Ends:
    """Hears of the end of each container below *state_dir*, also in the very moment in which a daemon starts.

    As `Watch`, for all of them: a connection each, so some that are far too many are left out. `close` it.
    """

    def __init__(self, state_dir: str) -> None:
        """Asks all shims; those that have gone are left out. Raises `UnavailableError` when this user may not ask."""
        self._watches: list[tuple[str, str, Watch]] = []
        try:
            for namespace, id, exec_id in _processes(state_dir):
                if exec_id or len(self._watches) == _WATCHED:
                    continue
                try:
                    watch = Watch(find(state_dir, namespace, id), id)
                except CtrdError as error:
                    log.debug("%s", error)
                    continue
                self._watches.append((namespace, id, watch))
        except BaseException:
            self.close()
            raise

    def heard(self) -> list[Ended]:
        """Those that were told since the last time. Never waits."""
        found = []
        for one in list(self._watches):
            namespace, id, watch = one
            status = None
            try:
                status = watch.on_readable()
                if status is None:
                    continue
            except CtrdError as error:
                log.debug("%s", error)
            self._watches.remove(one)
            watch.close()
            if status is not None:
                found.append(Ended(namespace, id, "", status))
        return found

    def close(self) -> None:
        """Hears of no more."""
        for _, _, watch in self._watches:
            watch.close()
        self._watches.clear()


def ended(state_dir: str, timeout: float = ENDED_SECONDS) -> list[Ended]:
    """Every process below *state_dir* that has ended and whose shim still says how, further processes included.

    All shims are asked at the same time, by this thread; after *timeout* seconds those that did not answer are named
    in the log. What no shim says is not here. Raises `UnavailableError` when this user may not ask.
    """
    deadline = time.monotonic() + timeout
    found: list[Ended] = []
    for group in _groups(list(_processes(state_dir)), _AT_ONCE):
        found += _ask_group(state_dir, group, deadline)
    return found


def _ask_group(state_dir: str, group: list[tuple[str, str, str]], deadline: float) -> list[Ended]:
    """`ended` for some processes, each of which has a connection for it."""
    found: list[Ended] = []
    calls: dict[int, tuple[str, Address, Call, tuple[str, str, str]]] = {}
    look = select.poll()

    def ask(method: str, process: tuple[str, str, str]) -> None:
        namespace, id, exec_id = process
        try:
            address = find(state_dir, namespace, id)
            call = _ask(address, method, id, exec_id, max(0.001, deadline - time.monotonic()))
        except CtrdError as error:
            # One whose shim was killed is nothing new; the rest (a damaged file, a shim that hangs) may be wanted.
            log.log(logging.DEBUG if isinstance(error, NotFoundError) else logging.WARNING, "%s", error)
            return
        calls[call.fileno()] = method, address, call, process
        look.register(call.fileno(), select.POLLIN)

    try:
        for process in group:
            ask(_STATE, process)
        while calls:
            ready = look.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                names = ", ".join(f"{process[0]}/{process[1]}" for _, _, _, process in calls.values())
                log.warning("these shims of containerd did not say in time whether their process has ended: %s", names)
                break
            for fd, _ in ready:
                method, address, call, process = calls[fd]
                status = None
                try:
                    reply = call.receive()
                    if reply is None:
                        continue
                    status = _answer(method, reply, address)
                except CtrdError as error:
                    log.debug("%s", error)
                look.unregister(fd)
                del calls[fd]
                call.close()
                if status is not None and not status.known and method == _STATE:
                    ask(_WAIT, process)
                elif status is not None:
                    found.append(Ended(*process, status))
    finally:
        for _, _, call, _ in calls.values():
            call.close()
    return found


def _processes(state_dir: str) -> Iterator[tuple[str, str, str]]:
    """Namespace, id and exec id of every process that has left its pid in a bundle."""
    top = os.path.join(state_dir, TASKS)
    for namespace in _list(top):
        for id in _list(os.path.join(top, namespace)):
            try:
                ids.check(namespace)
                ids.check(id)
            except ValueError:
                continue  # not a name that containerd gives
            yield namespace, id, ""
            for file in _list(os.path.join(top, namespace, id)):
                exec_id, dot, rest = file.rpartition(".pid")
                if dot and not rest and exec_id != "init":
                    yield namespace, id, exec_id


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise from_os_error(error, f"list {path!r}", "only root may ask containerd's shims") from error


def _groups(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _ask(address: Address, method: str, id: str, exec_id: str, timeout: float | None) -> Call:
    package = address.service.rpartition(".")[0]
    request = protos.message(f"{package}.{method}Request")(id=id, exec_id=exec_id)
    what = f"process {exec_id!r} of container {id!r}" if exec_id else f"container {id!r}"
    return Call(
        address.socket,
        f"{address.service}/{method}",
        request,
        doing=f"ask the shim about {what}",
        timeout=timeout,
        metadata=(("containerd-namespace-ttrpc", address.namespace),),
    )


def _answer(method: str, reply: bytes, address: Address) -> ExitStatus | None:
    """How a process has ended, from the answer to one of two questions; ``None`` when it has not.

    ``known`` is false when no time is told. ``State``, which has from the OCI runtime that a process has ended, says so
    for a moment too, until the shim has reaped it; ``Wait`` does it only for one that was never started.
    """
    answer = _decode(address, f"{method}Response", reply)
    if method == _STATE and answer.status != _STOPPED:
        return None
    return _exit_status(answer)


def _decode(address: Address, name: str, reply: bytes) -> Any:
    try:
        return protos.message(f"{address.service.rpartition('.')[0]}.{name}").FromString(reply)
    except DecodeError as error:
        raise UnavailableError(f"the shim at {address.socket!r} answered with no {name}") from error


def _exit_status(answer: Any) -> ExitStatus:
    at = protos.moment(answer.exited_at)
    return ExitStatus(UNKNOWN_EXIT, known=False) if at is None else ExitStatus(answer.exit_status, exited_at=at)
