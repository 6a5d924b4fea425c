"""Registries for tests, all on loopback: Debian's ``docker-registry``, and one of our own that fails on demand."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from oci_kit import Descriptor, Layout

USER, PASSWORD = "someone", "open sesame"
# What `htpasswd -nbB` prints for the two (bcrypt).
HTPASSWD = "someone:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
_LISTENS = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


def tool(name: str, package: str) -> str:
    """The path of a program, or a skip that names its package."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is missing on this host: apt-get install {package}")
    return path


def certificate(directory: Path, name: str = "localhost") -> tuple[Path, Path]:
    """A key and a self-signed certificate for *name* and 127.0.0.1; returns their paths, the certificate's first."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        [
            *(tool("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


# ---- Debian's --------------------------------------------------------------------------------------------------------


class Registry:
    """A running ``docker-registry``; *auth* is a section of its configuration."""

    def __init__(self, directory: Path, auth: str = "") -> None:
        program = tool("docker-registry", "docker-registry")
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n"
            f"    rootdirectory: {directory}/data\nhttp:\n  addr: 127.0.0.1:0\n{auth}"
        )
        self._log = directory / "log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end, pause = time.monotonic() + 20, threading.Event()
        while (found := _LISTENS.search(self.log())) is None:
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            pause.wait(0.01)
        self.port = int(found[1])
        self.host = f"127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, layout: Layout, root: Descriptor, name: str, headers: dict[str, str] | None = None) -> str:
        """Puts all of *layout* there, with *root* as *name* (``path:tag``); returns the reference to pull it by."""
        path, _, tag = name.partition(":")
        base = f"http://{self.host}/v2/{path}"
        pool = urllib3.PoolManager()
        manifests: dict[str, str] = {}

        def put(url: str, data: bytes, kind: str) -> None:
            answer = pool.request("PUT", url, body=data, headers={**(headers or {}), "Content-Type": kind})
            assert answer.status == 201, answer.data

        for digest, data in layout.blobs.items():
            with contextlib.suppress(ValueError, UnicodeDecodeError, AttributeError):
                media_type = json.loads(data).get("mediaType", "")
                if media_type:
                    manifests[digest] = media_type
                    continue
            answer = pool.request("POST", f"{base}/blobs/uploads/", headers=headers)
            assert answer.status == 202, answer.data
            where = urllib.parse.urljoin(base, answer.headers["Location"])
            put(f"{where}&digest={digest}", data, "application/octet-stream")
        # An index is taken only after the manifests in it.
        for digest in sorted(manifests, key=lambda digest: "manifests" in json.loads(layout.blobs[digest])):
            put(f"{base}/manifests/{digest}", layout.blobs[digest], manifests[digest])
        put(f"{base}/manifests/{tag}", layout.blobs[root["digest"]], root["mediaType"])
        return f"{self.host}/{name}"


@contextlib.contextmanager
def running(directory: Path, auth: str = "") -> Iterator[Registry]:
    registry = Registry(directory, auth)
    try:
        yield registry
    finally:
        registry.close()


def basic_auth(directory: Path) -> str:
    """The configuration that lets in `USER` alone."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "htpasswd"
    file.write_text(HTPASSWD)
    return f"auth:\n  htpasswd:\n    realm: test\n    path: {file}\n"


class TokenServer:
    """Gives tokens that a ``docker-registry`` with `auth` believes, to `USER`, and to anybody for public/."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._cert, self._key = certificate(directory)
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                given = self.headers.get("Authorization")
                self.give(query, given is not None, given == "Basic " + outer.credentials())

            def do_POST(self) -> None:  # OAuth 2, as daemons ask first when they have credentials
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                query = dict(urllib.parse.parse_qsl(body))
                self.give(query, True, (query.get("username"), query.get("password")) == (USER, PASSWORD))

            def give(self, query: dict[str, str], tried: bool, known: bool) -> None:
                outer.asked.append(query)
                kind, name, actions = query.get("scope", "repository:none:").split(":")
                if tried and not known:
                    self.answer(401, {}, b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}')
                    return
                allowed = actions.split(",") if known or name.startswith("public/") else []
                token = outer.token([{"type": kind, "name": name, "actions": allowed}])
                self.answer(
                    200,
                    {"Content-Type": "application/json"},
                    json.dumps({"token": token, "access_token": token}).encode(),
                )

        self._server = _Server(Handler)
        self.url = f"http://127.0.0.1:{self._server.port}/token"
        self.auth = (
            f"auth:\n  token:\n    realm: {self.url}\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {self._cert}\n"
        )

    def credentials(self) -> str:
        return base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def token(self, access: list[dict[str, Any]]) -> str:
        """A signed token (JWT, RS256, with its certificate in the header) that grants *access*."""
        der = ssl.PEM_cert_to_DER_cert(self._cert.read_text())
        now = int(time.time())
        parts = (
            {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]},
            {
                "iss": "tests",
                "sub": USER,
                "aud": "tests",
                "jti": os.urandom(8).hex(),
                "access": access,
                "exp": now + 300,
                "nbf": now - 60,
                "iat": now,
            },
        )
        text = b".".join(_url64(json.dumps(part).encode()) for part in parts)
        signed = subprocess.run(
            [tool("openssl", "openssl"), "dgst", "-sha256", "-sign", str(self._key)],
            input=text,
            capture_output=True,
            check=True,
        ).stdout
        return (text + b"." + _url64(signed)).decode()

    def close(self) -> None:
        self._server.close()


def _url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# ---- ours ------------------------------------------------------------------------------------------------------------


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server:
    def __init__(self, handler: type[_Quiet], tls: tuple[Path, Path] | None = None) -> None:
        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is what many tests are about."""

        self._server = Server(("127.0.0.1", 0), handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, tls))
            # The handshake in the connection's own thread, at the first read: a client that fails it stops nobody.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


Action = Callable[["_Handler"], bool]
"""What is done instead of the right answer; returns whether it has answered."""


class _Handler(_Quiet):
    fake: Fake

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        fake = self.fake
        with fake.lock:
            fake.requests.append((self.path, dict(self.headers)))
            action = fake.next_action(self.path)
        if action is not None and action(self):
            return
        kind, _, target = self.path.rpartition("/")
        data = fake.layout.blobs.get(fake.tags.get(target, target))
        if data is None:
            self.answer(404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')
            return
        headers = {"Content-Type": "application/octet-stream"}
        if kind.endswith("/manifests"):
            headers["Content-Type"] = json.loads(data)["mediaType"]
        ranged = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranged and fake.ranges:
            start = int(ranged[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, headers, data[start:])
        else:
            self.answer(200, headers, data)


class Fake:
    """A registry that serves *layout*, but for what a test has it do instead; ``requests`` are those that came."""

    def __init__(self, layout: Layout, tls: tuple[Path, Path] | None = None) -> None:
        self.layout = layout
        self.tags: dict[str, str] = {}
        self.ranges = True
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()  # what stalls goes on when this is set
        self._actions: list[tuple[str, Action, int]] = []
        self._server = _Server(type("Handler", (_Handler,), {"fake": self}), tls)
        self.host = f"127.0.0.1:{self._server.port}"

    def tag(self, root: Descriptor, name: str) -> str:
        """Serves *root* as *name* (``path:tag``); returns the reference to pull it by."""
        self.tags[name.partition(":")[2]] = root["digest"]
        return f"{self.host}/{name}"

    def instead(self, part: str, action: Action, times: int = 1000) -> None:
        """Does *action* for the next *times* requests with *part* in their path."""
        self._actions.append((part, action, times))

    def next_action(self, path: str) -> Action | None:
        for number, (part, action, times) in enumerate(self._actions):
            if part in path and times:
                self._actions[number] = (part, action, times - 1)
                return action
        return None

    def asked(self, part: str) -> list[dict[str, str]]:
        """The headers of the requests with *part* in their path."""
        with self.lock:
            return [headers for path, headers in self.requests if part in path]

    def close(self) -> None:
        self.released.set()
        self._server.close()


def status(code: int, headers: dict[str, str] | None = None, text: str = "no") -> Action:
    """Answers with *code* and an error as registries write it."""

    def act(handler: _Handler) -> bool:
        body = json.dumps({"errors": [{"code": "SOME", "message": text}]}).encode()
        handler.answer(code, headers or {}, body)
        return True

    return act


def cut(after: int) -> Action:
    """Sends so many bytes of the right body and breaks the connection."""

    def act(handler: _Handler) -> bool:
        data = handler.fake.layout.blobs[handler.path.rpartition("/")[2]]
        ranged = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(ranged[1]) if ranged else 0
        handler.send_response(206 if ranged else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        if ranged:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(data[start : start + after])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    return act


def stall(after: int) -> Action:
    """Sends so many bytes of the right body and then nothing, until the registry is closed."""

    def act(handler: _Handler) -> bool:
        data = handler.fake.layout.blobs[handler.fake.tags.get(*2 * (handler.path.rpartition("/")[2],))]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:after])
        handler.wfile.flush()
        handler.fake.released.wait()
        handler.close_connection = True
        return True

    return act
