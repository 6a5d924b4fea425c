"""HTTP as registries speak it: one host, its tokens, its redirects, its "not now", and each failure in one sentence.

A token or a password goes to the registry that it is for, and never along a redirect to another host. What fails
for the moment (429, 5xx, a connection that broke) is tried again a bounded number of times; waiting ends at once
when the pull is given up. Sources: OCI distribution specification 1.1, Docker's token protocol, RFC 9110.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

import libctrd
from libctrd.errors import (
    CancelledError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    from_os_error,
)

if TYPE_CHECKING:
    from libctrd.images.login import Login

ATTEMPTS: Final = 4  # of one request
_MOST_WAIT: Final = 60.0  # seconds: a registry that wants more is told of instead
_FIRST_WAIT: Final = 0.5
_REDIRECTS: Final = 5
_MOST_TOKEN: Final = 1 << 20
_ERROR_TEXT: Final = 64 << 10
_AGAIN: Final = (429, 500, 502, 503, 504)
_CHALLENGE: Final = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Http:
    """Requests to the registry at *base* (``https://host:port``), called *host* in errors.

    Any thread may use it, each with a connection of its own. ``_lock`` guards the authorization and the set of answers
    that are being read; a thread that finds an old authorization refused asks for a new one, and two that do so at the
    same time both get a good one.
    """

    def __init__(self, base: str, host: str, scope: str, login: Login, ca: str | None, timeout: float) -> None:
        self._base = base
        self._host = host
        self._scope = scope
        self._login = login
        self._timeout = timeout
        self._pool = _pool(base, ca, timeout, host)
        self._lock = threading.Lock()
        self._authorization = ""
        self._reading: set[Any] = set()
        self._stop = threading.Event()

    def get(
        self, path: str, doing: str, *, headers: Mapping[str, str] | None = None, good: tuple[int, ...] = (200,)
    ) -> Any:
        """The answer to GET *path*, its body still to be read (`body`), with a status that is one of *good*."""
        url = self._base + path
        refused = False
        wait = _FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            answer: Any = None
            try:
                answer = self._follow(url, dict(headers or {}), doing)
            except _Broken as error:
                if attempt == ATTEMPTS or not error.again:
                    raise error.told from error.__cause__
            if answer is not None and answer.status in good:
                return answer
            if answer is not None and answer.status == 401 and not refused:
                refused = True  # once: a fresh token that is refused too is the answer
                self._authorize(answer, doing)
                continue
            if answer is not None and (answer.status not in _AGAIN or attempt == ATTEMPTS):
                raise self._failure(answer, doing)
            wanted = _retry_after(answer) if answer is not None else None
            if answer is not None:
                if wanted is not None and wanted > _MOST_WAIT:
                    raise self._failure(answer, doing)
                self.finish(answer)
            if self._stop.wait(wait if wanted is None else wanted):
                raise CancelledError(f"could not {doing}: it was given up")
            wait *= 2
        raise UnavailableError(f"could not {doing}: registry {self._host} sent it to log in again and again")

    def body(self, answer: Any, most: int, doing: str) -> bytes:
        """The whole body of *answer*, *most* bytes at most. The answer is done with then."""
        try:
            data: bytes = answer.read(most + 1, decode_content=True)
            while len(data) <= most and (more := answer.read(most + 1 - len(data), decode_content=True)):
                data += more
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error, doing).told from error
        finally:
            answer.close()
        if len(data) > most:
            raise InvalidArgumentError(f"could not {doing}: it has more than {most} bytes")
        return data

    def finish(self, answer: Any) -> None:
        """Lets go of an answer whose body does not matter: the connection can be used again if little is left of it."""
        try:
            if len(answer.read(_ERROR_TEXT, decode_content=False)) < _ERROR_TEXT:
                answer.release_conn()
                return
        except (urllib3.exceptions.HTTPError, OSError):
            pass  # it could not: a new one will
        answer.close()

    def chunk(self, answer: Any, size: int, doing: str) -> bytes:
        """Up to *size* bytes more of the body; b"" at the end. Raises `Interrupted` when the connection broke."""
        with self._lock:
            self._reading.add(answer)
        try:
            if self._stop.is_set():
                raise CancelledError(f"could not {doing}: it was given up")
            data: bytes = answer.read(size, decode_content=False)
            return data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if self._stop.is_set():
                raise CancelledError(f"could not {doing}: it was given up") from error
            raise Interrupted(self._broken(error, doing).told) from error
        finally:
            with self._lock:
                self._reading.discard(answer)

    def interrupt(self) -> None:
        """Ends all waiting and reading of other threads: they raise `CancelledError`."""
        self._stop.set()
        with self._lock:
            reading = list(self._reading)
        for answer in reading:
            try:
                answer.shutdown()
            except (OSError, ValueError):
                continue  # it ended by itself meanwhile

    def pause(self, seconds: float) -> bool:
        """Waits; returns whether it was given up meanwhile."""
        return self._stop.wait(seconds)

    def close(self) -> None:
        """Closes all connections."""
        self._pool.clear()

    # ---- one request -------------------------------------------------------------------------------------------------

    def _follow(self, url: str, headers: dict[str, str], doing: str) -> Any:
        """One GET, and where it is redirected to. Authorization goes only to the registry itself."""
        for _ in range(_REDIRECTS + 1):
            sent = dict(headers)
            if _origin(url) == _origin(self._base) and self._authorization:
                sent["Authorization"] = self._authorization
            answer = self._request(url, sent, doing)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            self.finish(answer)
            parts = urlsplit(target)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UnavailableError(f"could not {doing}: registry {self._host} redirects to {target!r}")
            if urlsplit(url).scheme == "https" and parts.scheme == "http":
                raise UnavailableError(
                    f"could not {doing}: registry {self._host} redirects from HTTPS to plain HTTP, {target!r}"
                )
            url = target
        raise UnavailableError(f"could not {doing}: registry {self._host} redirects more than {_REDIRECTS} times")

    def _request(self, url: str, headers: Mapping[str, str], doing: str) -> Any:
        if self._stop.is_set():
            raise CancelledError(f"could not {doing}: it was given up")
        agent = {"User-Agent": f"libctrd/{libctrd.__version__}"}
        try:
            return self._pool.request(
                "GET", url, headers={**agent, **headers}, preload_content=False, redirect=False, retries=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error, doing) from error

    def _broken(self, error: Exception, doing: str) -> _Broken:
        """What *error*, urllib3's, means."""
        cause: BaseException = error
        while isinstance(getattr(cause, "reason", None), BaseException):
            cause = cause.reason  # type: ignore[attr-defined]
        where = f"registry {self._host}"
        told: CtrdError
        if isinstance(cause, urllib3.exceptions.SSLError) or type(cause).__module__ == "ssl":
            text = re.sub(r"\s*\(_ssl\.c:\d+\)", "", str(cause.args[-1] if cause.args else cause))
            told = UnavailableError(
                f"could not {doing}: the certificate or TLS of {where} is not valid ({text}): give its certificates "
                f"(ca), or see whether it speaks plain HTTP (insecure_http)"
            )
            return _Broken(told, again=False)
        if isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError) and not isinstance(
            cause, urllib3.exceptions.NewConnectionError
        ):
            told = DeadlineError(f"could not {doing}: {where} was silent for {self._timeout:g} s")
        elif isinstance(cause, urllib3.exceptions.NameResolutionError):
            told = UnavailableError(f"could not {doing}: the name of {where} cannot be resolved")
            return _Broken(told, again=False)
        elif isinstance(cause, urllib3.exceptions.NewConnectionError):
            text = str(cause).rpartition("] ")[2].rpartition(": ")[2]
            told = UnavailableError(f"could not {doing}: {where} cannot be reached ({text})")
            return _Broken(told, again=False)
        else:
            told = UnavailableError(f"could not {doing}: the connection to {where} broke ({cause})")
        return _Broken(told, again=True)

    def _failure(self, answer: Any, doing: str) -> CtrdError:
        status = answer.status
        text = self._said(answer)
        said, more = (f" ({text})", f", {text}") if text else ("", "")
        if status in (401, 403):
            kind, what = UnavailableError, f"refuses with {status}{said}: give credentials that may read it, or log in"
        elif status == 404:
            return NotFoundError(f"could not {doing}: registry {self._host} has no such thing (404{more})")
        elif status == 429:
            again = _retry_after(answer)
            when = f"in {again:.0f} s" if again else "later"
            kind, what = UnavailableError, f"takes no more requests for now (429{more}): try again {when}"
        elif status >= 500:
            kind, what = UnavailableError, f"fails with {status}{said}: try again later"
        else:
            kind, what = UnavailableError, f"answers with {status}{said}"
        return kind(f"could not {doing}: registry {self._host} {what}")

    def _said(self, answer: Any) -> str:
        """The registry's own words for a failure, in one printable line."""
        import msgspec

        try:
            body = self.body(answer, _ERROR_TEXT, "read what went wrong")
            errors = msgspec.json.decode(body)["errors"]
            text = "; ".join(str(error.get("message") or error.get("code")) for error in errors)
        except (CtrdError, msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            return ""  # no words, or none of the form that registries have agreed on
        return "".join(c if c.isprintable() else " " for c in text)[:300]

    # ---- logging in --------------------------------------------------------------------------------------------------

    def _authorize(self, answer: Any, doing: str) -> None:
        """Does what a 401 asks for: a token from where it says, or the credentials themselves."""
        challenges = answer.headers.getlist("WWW-Authenticate") if hasattr(answer.headers, "getlist") else []
        for challenge in challenges:
            kind, _, rest = challenge.partition(" ")
            fields = {name.lower(): quoted or plain for name, quoted, plain in _CHALLENGE.findall(rest)}
            if kind.lower() == "bearer" and fields.get("realm"):
                self.finish(answer)
                authorization = f"Bearer {self._token(fields, doing)}"
                break
            if kind.lower() == "basic":
                pair = self._login.credentials()
                if pair is None:
                    raise self._failure(answer, doing)
                self.finish(answer)
                authorization = _basic(pair)
                break
        else:
            raise self._failure(answer, doing)
        with self._lock:
            self._authorization = authorization

    def _token(self, fields: Mapping[str, str], doing: str) -> str:
        """A token from the server that the registry names. Without credentials it is one for everybody."""
        import msgspec

        realm = fields["realm"]
        parts = urlsplit(realm)
        secure = urlsplit(self._base).scheme == "https"
        if parts.scheme not in ("http", "https") or not parts.hostname or (secure and parts.scheme == "http"):
            raise UnavailableError(f"could not {doing}: registry {self._host} wants a token from {realm!r}: it may not")
        query = {"service": fields["service"]} if fields.get("service") else {}
        query["scope"] = fields.get("scope") or self._scope
        pair = self._login.credentials()
        url = realm + ("&" if parts.query else "?") + urlencode(query)
        what = f"{doing}: no token"
        try:
            answer = self._request(url, {"Authorization": _basic(pair)} if pair else {}, what)
        except _Broken as error:
            raise error.told from error.__cause__
        if answer.status != 200:
            raise self._failure(answer, doing)
        try:
            found = msgspec.json.decode(self.body(answer, _MOST_TOKEN, doing))
            token = found.get("token") or found.get("access_token")
        except (msgspec.DecodeError, UnicodeDecodeError, AttributeError) as error:
            raise UnavailableError(f"could not {doing}: what {parts.hostname} gives as a token is none") from error
        if not isinstance(token, str) or not token.isprintable() or " " in token:
            raise UnavailableError(f"could not {doing}: {parts.hostname} gives no token")
        return token


class _Broken(Exception):
    """A request without an answer: what to tell of it, and whether it is worth to try again."""

    def __init__(self, told: CtrdError, *, again: bool) -> None:
        super().__init__(str(told))
        self.told = told
        self.again = again


class Interrupted(Exception):
    """A body that broke off: what to tell of it when there is no going on."""

    def __init__(self, told: CtrdError) -> None:
        super().__init__(str(told))
        self.told = told


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _retry_after(answer: Any) -> float | None:
    """The seconds that Retry-After asks for, as a number or a date; ``None`` where it says nothing (RFC 9110)."""
    text = (answer.headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _pool(base: str, ca: str | None, timeout: float, host: str) -> Any:
    """The connections: each silent for *timeout* seconds at most, verified by the system's certificates and *ca*'s."""
    import ssl
    from urllib.request import getproxies, proxy_bypass

    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise InvalidArgumentError(f"{ca!r} holds no certificates in PEM: {error}") from error
        except OSError as error:
            raise from_os_error(error, f"read the certificates {ca!r} (open)") from error
    limits = urllib3.Timeout(connect=timeout, read=timeout)
    name = urlsplit(base).hostname or ""
    proxy = "" if is_loopback(name) or proxy_bypass(name) else getproxies().get(urlsplit(base).scheme, "")
    if proxy:
        return urllib3.ProxyManager(proxy, timeout=limits, ssl_context=context, maxsize=4)
    return urllib3.PoolManager(timeout=limits, ssl_context=context, maxsize=4)


def is_loopback(host: str) -> bool:
    """Whether *host*, without a port, is this machine's loopback."""
    import ipaddress

    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
