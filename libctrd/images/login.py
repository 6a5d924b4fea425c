"""How to log in to a registry: with the caller's credentials, or those that ``docker login`` has left.

Only what stands in the file itself is used (``auths`` in ``config.json``); programs that keep credentials elsewhere
(``credsStore``, ``credHelpers``) are not run.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Final

from libctrd.errors import InvalidArgumentError, from_os_error
from libctrd.images.reference import DEFAULT_HOST, Reference

_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_MOST: Final = 1 << 20


class Login:
    """The credentials for the registry of one reference, looked up when they are first asked for."""

    def __init__(self, name: Reference, credentials: tuple[str, str] | None) -> None:
        if credentials is not None:
            if len(credentials) != 2 or not all(isinstance(part, str) for part in credentials):
                raise InvalidArgumentError("credentials are a user and a password, two texts")
            if ":" in credentials[0]:
                raise InvalidArgumentError("a registry's user has no ':' in its name (RFC 7617)")
        self._name = name
        self._given = credentials
        self._found: tuple[str, str] | None = None
        self._looked = False

    def credentials(self) -> tuple[str, str] | None:
        """The user and the password; ``None`` when there are none. Raises when a config.json cannot be read."""
        if self._given is None and not self._looked:
            self._looked = True
            self._found = _from_file(self._name.host)
        return self._given or self._found

    def is_for(self, host: str) -> bool:
        """Whether *host* is the registry that the credentials are for."""
        names = ("docker.io", "registry-1.docker.io", "index.docker.io") if self._name.host == DEFAULT_HOST else ()
        return host == self._name.host or host in names


def config_path() -> str:
    """Where ``docker login`` keeps its file: below ``DOCKER_CONFIG``, else below ``~/.docker``."""
    top = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    return os.path.join(top, "config.json")


def _from_file(host: str) -> tuple[str, str] | None:
    import msgspec

    path = config_path()
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, f"read the registries' credentials in {path!r} (open)") from error
    try:
        config = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path!r}, where docker keeps credentials, is not JSON: {error}") from error
    auths = config.get("auths") if isinstance(config, dict) else None
    keys = _HUB_KEYS if host == DEFAULT_HOST else (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/")
    for key in keys:
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict):
            return _pair(entry, key, path)
    return None


def _pair(entry: dict[str, Any], key: str, path: str) -> tuple[str, str] | None:
    user, password = entry.get("username"), entry.get("password")
    if isinstance(user, str) and isinstance(password, str) and user:
        return user, password
    packed = entry.get("auth")
    if not isinstance(packed, str) or not packed:
        return None  # a program keeps it
    try:
        user, colon, password = base64.b64decode(packed, validate=True).decode().rstrip("\0").partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"the credentials for {key!r} in {path!r} are not base64: {error}") from error
    if not colon:
        raise InvalidArgumentError(f"the credentials for {key!r} in {path!r} are no user and password")
    return user, password
