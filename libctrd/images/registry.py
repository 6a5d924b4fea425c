"""A registry as a source that an image can come in from: our own resolver, for daemons that have none to offer.

Docker Hub is known by its names; a registry on a loopback address is spoken to over plain HTTP, every other over HTTPS.
A blob whose connection breaks goes on where it stood, with a range request; the digest that the store checks at the end
says whether all of it fits together. Source: OCI distribution specification 1.1, "Pulling manifests", "Pulling blobs".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from libctrd.errors import CancelledError, CtrdError, InvalidArgumentError
from libctrd.images import documents, intake
from libctrd.images.content import FRAME
from libctrd.images.documents import Descriptor, short
from libctrd.images.http import ATTEMPTS, Http, Interrupted, is_loopback
from libctrd.images.login import Login
from libctrd.images.reference import DEFAULT_HOST, Reference

TIMEOUT: Final = 30.0  # seconds that a registry may be silent
_HUB: Final = "registry-1.docker.io"
_ENOUGH: Final = 1 << 20  # bytes that an attempt must bring to be none of the attempts that failed
_ACCEPT: Final = ", ".join(documents.INDEXES + documents.MANIFESTS)


class Registry:
    """An open registry: a source (`libctrd.images.intake.Source`) for the image *name*. Any thread may read from it."""

    parallel = intake.PARALLEL

    def __init__(self, name: Reference, http: Http) -> None:
        self.what = f"registry {name.host}"
        self._name = name
        self._http = http
        self._root: tuple[str, bytes] = ("", b"")

    def resolve(self) -> Descriptor:
        """The descriptor of what the reference stands for now."""
        doing = f"find the image {self._name}"
        answer = self._http.get(self._path("manifests", self._name.target), doing, headers={"Accept": _ACCEPT})
        media_type = (answer.headers.get("Content-Type") or "").partition(";")[0].strip()
        data = self._http.body(answer, documents.MOST, doing)
        digest = documents.digest_of(data)
        if self._name.digest and digest != self._name.digest:
            raise InvalidArgumentError(
                f"could not {doing}: {self.what} gives something else for that digest (its digest is {digest})"
            )
        said = documents.decode(data, _Said, f"what {self.what} gives for image {self._name}").media_type
        self._root = (digest, data)
        return Descriptor(media_type=said or media_type, digest=digest, size=len(data))

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """The document that *descriptor* is of, whole, with its digest checked."""
        if descriptor.digest == self._root[0]:
            return documents.check_document(descriptor, self._root[1], what)
        doing = f"get {what}"
        is_manifest = descriptor.media_type in documents.INDEXES + documents.MANIFESTS
        path = self._path("manifests" if is_manifest else "blobs", descriptor.digest)
        answer = self._http.get(path, doing, headers={"Accept": descriptor.media_type})
        return documents.check_document(descriptor, self._http.body(answer, documents.MOST, doing), what)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of the blob, piece by piece, over as many connections as it takes.

        Gives up after some attempts in a row that brought next to nothing.
        """
        doing = f"get layer {short(descriptor.digest)} of image {self._name}"
        done, fruitless = 0, 0
        while True:
            began = done
            try:
                for chunk in self._from(descriptor, done, doing):
                    done += len(chunk)
                    yield chunk
                return
            except Interrupted as error:
                fruitless = 1 if done - began >= _ENOUGH else fruitless + 1
                if fruitless >= ATTEMPTS - 1:
                    raise error.told from error.__cause__
            if self._http.pause(0.1 * fruitless):
                raise CancelledError(f"could not {doing}: it was given up")

    def _from(self, descriptor: Descriptor, offset: int, doing: str) -> Iterator[bytes]:
        """The rest of the blob from *offset*. A registry that knows no ranges sends what we have once more."""
        headers = {"Range": f"bytes={offset}-{descriptor.size - 1}"} if offset else {}
        answer = self._http.get(self._path("blobs", descriptor.digest), doing, headers=headers, good=(200, 206))
        whole = False
        try:
            skip = offset if answer.status == 200 else 0
            if answer.status == 206 and not _range_from(answer, offset):
                raise InvalidArgumentError(f"could not {doing}: {self.what} sends another range than the one asked for")
            at = offset - skip
            while at < descriptor.size:
                chunk = self._http.chunk(answer, min(FRAME, descriptor.size - at), doing)
                if not chunk:
                    raise Interrupted(
                        InvalidArgumentError(
                            f"could not {doing}: it is truncated, {at} of its {descriptor.size} bytes came"
                        )
                    )
                at += len(chunk)
                if skip:
                    passed = min(skip, len(chunk))
                    skip, chunk = skip - passed, chunk[passed:]
                if chunk:
                    yield chunk
            whole = True
        finally:
            if whole:
                self._http.finish(answer)
            else:
                answer.close()

    def interrupt(self) -> None:
        """Ends what other threads read."""
        self._http.interrupt()

    def _path(self, kind: str, target: str) -> str:
        return f"/v2/{self._name.path}/{kind}/{target}"


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


def _range_from(answer: Any, offset: int) -> bool:
    return (answer.headers.get("Content-Range") or "").startswith(f"bytes {offset}-")


def scheme(name: Reference, insecure_http: bool | None) -> str:
    """How the registry of *name* is spoken to: ``http`` where that is asked for, and by default for loopback."""
    plain = is_loopback(urlsplit(f"//{name.host}").hostname or "") if insecure_http is None else insecure_http
    return "http" if plain else "https"


@contextmanager
def opened(
    name: Reference, login: Login, *, insecure_http: bool | None = None, ca: str | None = None, timeout: float = TIMEOUT
) -> Iterator[Registry]:
    """The registry of *name*, for the block. Nothing is asked of it yet.

    *insecure_http* ``None``: plain HTTP for loopback alone. A registry there whose certificates are given (*ca*) is
    spoken to over HTTPS. *timeout* is in seconds of silence.
    """
    if not isinstance(timeout, (int, float)) or not 0 < timeout < 1e6:
        raise InvalidArgumentError(f"a registry's timeout is a number of seconds above 0, not {timeout!r}")
    if insecure_http and ca is not None:
        raise InvalidArgumentError("insecure_http and ca do not go together: plain HTTP has no certificates")
    plain = False if ca is not None else insecure_http
    where = _HUB if name.host == DEFAULT_HOST else name.host
    http = Http(f"{scheme(name, plain)}://{where}", name.host, f"repository:{name.path}:pull", login, ca, timeout)
    try:
        yield Registry(name, http)
    except CtrdError:
        http.interrupt()
        raise
    finally:
        http.close()
