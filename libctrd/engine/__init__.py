"""Which engine for which address. Engines are imported when they are chosen, and not before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from libctrd import _checks
from libctrd._checks import descriptors_left
from libctrd.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from libctrd.client import Client
    from libctrd.engine.base import Engine
    from libctrd.engine.channel import Channel


def default_state_dir() -> str:
    """``/run/ctrd`` for root (illumos: ``/var/run/ctrd``), for others ``ctrd`` under ``XDG_RUNTIME_DIR``; where that
    is not set ``/tmp/ctrd-<uid>``, which has to be theirs alone (`directory.check_state_dir`).
    """
    if os.geteuid() == 0:
        return os.path.join(_checks.RUN, "ctrd")
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime_dir, "ctrd") if runtime_dir else f"/tmp/ctrd-{os.geteuid()}"


def default_daemon_dir() -> str:
    """Where bundles lie of containers that a containerd runs: ``/run/ctrd.containerd`` for root, and so on."""
    return default_state_dir() + ".containerd"


def connect(address: str | None = None, *, runtime: str | None = None, namespace: str | None = None) -> Client:
    """Connects to an engine and returns its client.

    *address* is one of

    - ``local:`` (no daemon; state in the default directory) or ``local:/DIR``;
    - ``unix:///run/containerd/containerd.sock``, the socket of a containerd 1.x or 2.x, or just its path; or that of
      a daemon that speaks the API of containerd 0.2, such as `ctrd serve`: which of them it is, it is asked;
    - ``containerd:/DIR``: a private containerd of ours with all of its state in that directory, started when it does
      not run yet;
    - ``serve:/DIR``: the same with a `ctrd serve`.

    When it is ``None`` the environment's ``CTRD_ADDRESS``, else ``CONTAINERD_ADDRESS``, else ``local:`` counts.
    *runtime* is the OCI runtime (a path or a name) for containers that name none: with the local engine crun if it
    works here, else runc; with a containerd runc. *namespace* is containerd's, by default ``CONTAINERD_NAMESPACE`` of
    the environment, else ``default``; the local engine has none.

    Raises `InvalidArgumentError` for an address or namespace that cannot be, `UnsupportedError` for one that this
    version does not know, `UnavailableError` when the state directory cannot be used or nobody answers at the socket.
    """
    address = address or os.environ.get("CTRD_ADDRESS") or os.environ.get("CONTAINERD_ADDRESS") or "local:"
    if not isinstance(address, str) or "\0" in address:
        raise InvalidArgumentError(f"the address {address!r} is no str without NUL: {_SAY}")
    if address.startswith("/"):
        address = f"unix://{address}"
    scheme, colon, rest = address.partition(":")
    if not colon:
        raise InvalidArgumentError(f"the address {address!r} has no scheme: {_SAY}")
    if scheme not in ("local", "unix", "containerd", "serve"):
        raise UnsupportedError(f"this version of libctrd speaks to no engine at {address!r}: {_SAY}")
    if rest and not rest.startswith("/"):
        raise InvalidArgumentError(f"the directory or socket in the address {address!r} is not absolute: {_SAY}")
    from libctrd.client import Client  # above the engines' Protocol in this package: hence not at the top

    if scheme == "local":
        if namespace is not None:
            raise InvalidArgumentError("the local engine has no namespaces: keep containers apart with local:/DIR")
        return Client(*_local(rest, runtime))
    # With too few of them gRPC, which opens some when it is imported, ends the process.
    descriptors_left(_DESCRIPTORS, f"connect to {address}: open the descriptors that this takes (open)")
    if scheme == "unix":
        return Client(*_by_socket(address, namespace, runtime))
    if not rest:
        raise InvalidArgumentError(f"the address {address!r} names no directory: say {scheme}:/DIR")
    if scheme == "serve":
        if namespace is not None:
            raise InvalidArgumentError("ctrd serve has no namespaces: keep containers apart with serve:/DIR")
        return Client(*_served(rest, runtime))
    return Client(*_private(rest, _namespace(namespace), runtime))


def _namespace(given: str | None) -> str:
    return given or os.environ.get("CONTAINERD_NAMESPACE") or "default"


_DESCRIPTORS = 40  # of gRPC's channel and threads, and of a container and its streams
_SAY = "say local:, local:/DIR, unix:///SOCKET, containerd:/DIR or serve:/DIR"


def _local(root: str, runtime: str | None) -> tuple[Engine, str]:
    _checks.needs_linux("the local engine (address local:)")
    from libctrd import reactor
    from libctrd.engine.local import LocalEngine

    engine = LocalEngine(root or default_state_dir(), reactor.shared(), runtime)
    return engine, engine.root


def _by_socket(address: str, namespace: str | None, runtime: str | None) -> tuple[Engine, str]:
    """The engine for whichever generation listens at a socket. The newer one is asked first, with a question that has
    to be asked anyway: so it costs nothing there.
    """
    from libctrd import reactor
    from libctrd.engine import store
    from libctrd.engine.channel import Channel
    from libctrd.engine.containerd import ContainerdEngine

    channel = Channel(address, _namespace(namespace))
    try:
        try:
            identity = store.identity(channel)
        except UnsupportedError:
            return _api(channel, namespace, runtime)
        engine = ContainerdEngine(channel, os.path.join(default_daemon_dir(), identity), reactor.shared(), runtime)
    except BaseException:
        channel.close()
        raise
    return engine, engine.root


def _api(channel: Channel, namespace: str | None, runtime: str | None) -> tuple[Engine, str]:
    from libctrd import reactor
    from libctrd.engine import cgroups
    from libctrd.engine.api import ApiEngine
    from libctrd.engine.apioperations import awaited_version

    try:
        awaited_version(channel)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"what listens at {channel.address} is no containerd 1.x or 2.x, and does not speak the types.API of "
            "containerd 0.2 either: name the socket of one of them"
        ) from error
    if namespace is not None:
        raise InvalidArgumentError(
            f"the daemon at {channel.address} speaks types.API, which has no namespaces: leave namespace= out"
        )
    base = os.path.join(default_state_dir() + ".api", cgroups.mark(os.path.realpath(channel.path)))
    engine = ApiEngine(channel, base, reactor.shared(), runtime)
    return engine, engine.root


def _private(state_dir: str, namespace: str, runtime: str | None) -> tuple[Engine, str]:
    _checks.needs_linux("a containerd of our own (address containerd:/DIR)")
    from libctrd import reactor
    from libctrd.engine import exitfile, private
    from libctrd.engine.channel import Channel
    from libctrd.engine.containerd import ContainerdEngine
    from libctrd.engine.daemon import Daemon

    base = os.path.join(os.path.abspath(state_dir), "bundles")
    daemon = Daemon(private.Containerd(), state_dir, before_start=lambda ended: exitfile.write_all(base, ended))
    channel = Channel(daemon.address, namespace)
    try:
        daemon.start()
        engine = ContainerdEngine(channel, base, reactor.shared(), runtime, daemon)
    except BaseException:
        channel.close()
        daemon.close()
        raise
    return engine, engine.root


def _served(state_dir: str, runtime: str | None) -> tuple[Engine, str]:
    _checks.needs_linux("a ctrd serve of our own (address serve:/DIR)")
    from libctrd import reactor
    from libctrd.engine.api import ApiEngine
    from libctrd.engine.channel import Channel
    from libctrd.engine.daemon import Daemon
    from libctrd.engine.privateserve import Serve

    daemon = Daemon(Serve(), state_dir)
    channel = Channel(daemon.address, _namespace(None))
    try:
        daemon.start()
        engine = ApiEngine(channel, os.path.join(daemon.directory, "bundles"), reactor.shared(), runtime, daemon)
    except BaseException:
        channel.close()
        daemon.close()
        raise
    return engine, engine.root
