"""Registries that fail, lie, stall and break off: each is told in one clear sentence, and nothing stays behind."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from images_kit import Place, place, serve
from oci_kit import Layer, Layout, busybox, digest, filler, simple, tar
from registry_kit import Action, Fake, certificate, cut, stall, status
from test_images_bad import GOOD, entry, with_layer

from libctrd.errors import (
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

__all__ = ["place", "serve"]  # fixtures of another file

Serve = Callable[..., Fake]
BIG = Layer(tar({"big": filler(3 << 20)}), "")


@pytest.fixture(autouse=True)
def no_docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))


def big() -> Layout:
    """An image with a layer that takes several frames."""
    layout = Layout()
    layout.name(layout.image([BIG]), "app:1")
    return layout


def pull(place: Place, fake: Fake, name: str = "app:1", **more: object) -> str:
    """Pulls the layout's image through this process; returns its name."""
    ref = fake.tag(fake.layout.entries[0], name)
    more.setdefault("timeout", 5.0)
    return place.images.pull(ref, through_daemon=False, **more).name  # type: ignore[arg-type]


# ---- what the registry says -----------------------------------------------------------------------------------------


# C26
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize(
    ("code", "headers", "kind", "text"),
    [
        (401, {}, UnavailableError, r"refuses with 401 \(because\): give credentials"),
        (403, {}, UnavailableError, r"refuses with 403 \(because\): give credentials"),
        (404, {}, NotFoundError, r"has no such thing \(404, because\)"),
        (429, {"Retry-After": "0"}, UnavailableError, r"takes no more requests for now \(429, because\): try again"),
        (
            429,
            {"Retry-After": "3600"},
            UnavailableError,
            r"takes no more requests for now \(429, because\): try again in 3600 s",
        ),
        (500, {"Retry-After": "0"}, UnavailableError, r"fails with 500 \(because\): try again later"),
        (503, {"Retry-After": "0"}, UnavailableError, r"fails with 503 \(because\)"),
        (418, {}, UnavailableError, r"answers with 418 \(because\)"),
    ],
)
def test_a_refusal_is_told(
    *, place: Place, serve: Serve, where: str, code: int, headers: dict[str, str], kind: type[CtrdError], text: str
) -> None:
    fake = serve(big())
    fake.instead(where, status(code, headers, "because"))
    with pytest.raises(kind, match=rf"could not (find|get) .*: registry {re.escape(fake.host)} {text}"):
        pull(place, fake)
    assert place.is_empty()
    assert len(fake.asked(where)) <= 5, "and is not asked for ever"


# C26
@pytest.mark.parametrize(
    "action",
    [
        status(429, {"Retry-After": "0"}),
        status(429, {"Retry-After": formatdate(time.time() - 60, usegmt=True)}),
        status(503, {"Retry-After": "0"}),
        status(500, {"Retry-After": "0"}),
    ],
)
def test_what_fails_for_the_moment_is_asked_again(place: Place, serve: Serve, action: Action) -> None:
    fake = serve(big())
    fake.instead("/manifests/", action, times=1)
    fake.instead("/blobs/", action, times=1)
    assert pull(place, fake)


# C26
def test_a_wait_that_the_registry_asks_for_is_kept(place: Place, serve: Serve) -> None:
    fake = serve(simple())
    fake.instead("/manifests/", status(429, {"Retry-After": "1"}), times=1)
    began = time.monotonic()
    pull(place, fake)
    assert time.monotonic() - began >= 1


# ---- bodies ---------------------------------------------------------------------------------------------------------


# C26
def test_a_broken_connection_goes_on_where_it_stood(place: Place, serve: Serve) -> None:
    fake = serve(big())
    layer = digest(BIG.data)
    fake.instead(layer, cut(1_500_000), times=1)
    fake.instead(layer, cut(1_200_000), times=1)
    done: list[int] = []
    pull(place, fake, progress=lambda step: done.append(step.done))
    assert done == sorted(done)
    ranges = [headers.get("Range", "") for headers in fake.asked(layer)]
    starts = [int(re.sub(r"\D", "", text.partition("-")[0]) or 0) for text in ranges]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2]
    assert starts[1] >= 1 << 20, "what came of it before is not fetched again"


# C26
def test_a_registry_without_ranges_sends_all_again_and_the_blob_is_right(place: Place, serve: Serve) -> None:
    fake = serve(big())
    fake.ranges = False
    fake.instead(digest(BIG.data), cut(2_000_000), times=1)
    assert pull(place, fake)


# C26
def test_a_blob_that_always_breaks_off_is_given_up(place: Place, serve: Serve) -> None:
    fake = serve(big())
    fake.instead(digest(BIG.data), cut(1000))
    with pytest.raises(
        CtrdError, match=r"could not get layer sha256:\S+ of image \S+: (the connection to registry|it is)"
    ):
        pull(place, fake)
    assert place.is_empty()
    assert len(fake.asked(digest(BIG.data))) < 6


# C26
@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_a_stalled_body_is_a_deadline(place: Place, serve: Serve, what: str) -> None:
    fake = serve(big())
    fake.instead({"manifest": "/manifests/", "config": "/blobs/", "layer": digest(BIG.data)}[what], stall(100))
    with pytest.raises(DeadlineError, match=rf"could not .*: registry {re.escape(fake.host)} was silent for 0.3 s"):
        pull(place, fake, timeout=0.3)
    assert place.is_empty()


# C26
def test_a_registry_that_accepts_and_says_nothing(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ref = f"127.0.0.1:{silent.getsockname()[1]}/app:1"
        with pytest.raises(DeadlineError, match=r"was silent for 0.2 s"):
            place.images.pull(ref, through_daemon=False, timeout=0.2)
    assert place.is_empty()


# C26
def test_layers_come_side_by_side_and_the_first_failure_ends_all(place: Place, serve: Serve) -> None:
    layout = Layout()
    layers = [Layer(tar({f"{number}": filler(2_000_000 + number)}), "") for number in range(3)]
    layout.name(layout.image(layers), "app:1")
    fake = serve(layout)
    together = threading.Barrier(3, timeout=20)

    def meet(then: Action) -> Action:
        def act(handler: object) -> bool:
            together.wait()
            return then(handler)  # type: ignore[arg-type]

        return act

    for layer in layers[:2]:
        fake.instead(digest(layer.data), meet(stall(1_000_000)))
    fake.instead(digest(layers[2].data), meet(status(404)))
    began = time.monotonic()
    with pytest.raises(NotFoundError, match="has no such thing"):
        pull(place, fake, timeout=30)
    assert time.monotonic() - began < 10, "those that stalled were not waited for"
    assert place.is_empty()


# ---- lies -----------------------------------------------------------------------------------------------------------

LIES: dict[str, tuple[Callable[[], Layout], type[CtrdError], str]] = {
    "a device node": (
        lambda: with_layer(entry("dev/sda", type=b"4", devmajor=8)),
        InvalidArgumentError,
        "has a device node, 'dev/sda'",
    ),
    "a path traversal": (lambda: with_layer(entry("../x")), InvalidArgumentError, "path traversal"),
    "a truncated layer": (
        lambda: with_layer(Layer(GOOD.plain, data=GOOD.data[:-12])),
        InvalidArgumentError,
        "is truncated: its gzip stream ends too early",
    ),
    "another diff_id": (
        lambda: with_layer(Layer(tar({"a": b""}), diff_id="sha256:" + "1" * 64)),
        InvalidArgumentError,
        "is not the one that the image's config tells of",
    ),
    "an unknown media type": (
        lambda: with_layer(Layer(b"x", media_type="application/x-strange")),
        UnsupportedError,
        "media type 'application/x-strange', which libctrd does not know",
    ),
}


@pytest.fixture(params=[False, True], ids=["by-us", "by-the-daemon"])
def through_daemon(request: pytest.FixtureRequest, place: Place) -> bool:
    """Who fetches."""
    daemon: bool = request.param
    if daemon and place.daemon.version < (1, 7):
        pytest.skip(f"containerd {place.daemon.version} has no transfer service: it came with 1.7")
    return daemon


# C26
@pytest.mark.parametrize("lie", LIES)
def test_a_bad_image_is_refused_and_leaves_nothing(place: Place, serve: Serve, lie: str, through_daemon: bool) -> None:
    make, kind, text = LIES[lie]
    fake = serve(make())
    ref = fake.tag(fake.layout.entries[0], "bad:1")
    with pytest.raises(kind, match=text):
        place.images.pull(ref, through_daemon=through_daemon, timeout=5)
    assert place.is_empty()


# C26
def test_an_unknown_media_type_is_refused_before_a_layer_is_fetched(place: Place, serve: Serve) -> None:
    fake = serve(LIES["an unknown media type"][0]())
    with pytest.raises(UnsupportedError):
        pull(place, fake)
    assert fake.asked("/blobs/") == []


# C26
@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_a_blob_with_a_wrong_digest_is_refused(place: Place, serve: Serve, what: str, through_daemon: bool) -> None:
    layout = Layout()
    manifest = layout.image([GOOD])
    layout.name(layout.index([manifest]), "bad:1")
    config = next(name for name, data in layout.blobs.items() if b"rootfs" in data)
    other = Layer(tar({"good": b"y" * 20_000}), data=b"").data
    name = {"manifest": manifest["digest"], "config": config, "layer": digest(GOOD.data)}[what]
    data = layout.blobs[name]
    layout.blobs[name] = (
        other[: len(data)].ljust(len(data), b"\0") if what == "layer" else data.replace(b":", b": ", 1)[:-1] + b"}"
    )
    fake = serve(layout)
    ref = fake.tag(layout.entries[0], "bad:1")
    with pytest.raises(CtrdError, match=r"digest|damaged|truncated|bytes|size"):
        place.images.pull(ref, through_daemon=through_daemon, timeout=5)
    assert place.is_empty()


# C26
@pytest.mark.parametrize(
    ("code", "kind"), [(404, NotFoundError), (401, UnavailableError), (429, UnavailableError), (500, UnavailableError)]
)
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
def test_what_the_daemon_is_told_is_an_error_of_the_family_too(
    place: Place, serve: Serve, where: str, code: int, kind: type[CtrdError]
) -> None:
    if place.daemon.version < (1, 7):
        pytest.skip(f"containerd {place.daemon.version} has no transfer service: it came with 1.7")
    fake = serve(big())
    fake.instead(where, status(code, {"Retry-After": "0"}))
    ref = fake.tag(fake.layout.entries[0], "app:1")
    with pytest.raises(kind, match=rf"could not pull the image {re.escape(ref)} through the daemon: "):
        place.images.pull(ref, through_daemon=True, timeout=5)
    assert place.is_empty()


# C26
def test_a_body_that_stalls_for_the_daemon_is_a_deadline(place: Place, serve: Serve) -> None:
    if place.daemon.version < (1, 7):
        pytest.skip(f"containerd {place.daemon.version} has no transfer service: it came with 1.7")
    fake = serve(big())
    fake.instead(digest(BIG.data), stall(100_000))
    ref = fake.tag(fake.layout.entries[0], "app:1")
    with pytest.raises(DeadlineError, match=r"nothing came for 0.5 s"):
        place.images.pull(ref, through_daemon=True, timeout=0.5)
    assert place.is_empty()


# ---- certificates, redirects, names ---------------------------------------------------------------------------------


# C26
def test_a_certificate_that_nobody_trusts_is_refused_and_one_given_is_trusted(
    place: Place, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    mine = certificate(tmp_path)
    other, _ = certificate(tmp_path / "other")
    fake = serve(simple(), tls=mine)
    for ca in (None, str(other)):
        with pytest.raises(UnavailableError, match=r"the certificate or TLS of registry \S+ is not valid \(.*ca"):
            pull(place, fake, ca=ca, insecure_http=False)
    assert place.is_empty()
    assert pull(place, fake, ca=str(mine[0]))
    with pytest.raises(NotFoundError, match=r"could not read the certificates"):
        pull(place, fake, ca=str(tmp_path / "none"))
    (tmp_path / "empty").write_text("no certificate")
    with pytest.raises(InvalidArgumentError, match=r"holds no certificates in PEM"):
        pull(place, fake, ca=str(tmp_path / "empty"))
    with pytest.raises(InvalidArgumentError, match=r"insecure_http and ca do not go together"):
        pull(place, fake, ca=str(mine[0]), insecure_http=True)


# C26
def test_a_certificate_for_another_name_is_refused(place: Place, serve: Serve, tmp_path: Path) -> None:
    mine = certificate(tmp_path, "localhost")
    fake = serve(simple(), tls=mine)
    ref = fake.tag(fake.layout.entries[0], "app:1").replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(UnavailableError, match=r"cannot be reached|is not valid"):
        place.images.pull(ref, through_daemon=False, ca=str(mine[0]))


# C26
def test_plain_http_where_https_is_expected_is_told(place: Place, serve: Serve) -> None:
    with pytest.raises(UnavailableError, match=r"TLS of registry .* is not valid \(.*insecure_http"):
        pull(place, serve(simple()), insecure_http=False)


# C26
def test_a_redirect_to_another_host_is_followed_without_the_password(place: Place, serve: Serve) -> None:
    storage, fake = serve(big()), serve(big())
    fake.instead("/manifests/", status(401, {"WWW-Authenticate": 'Basic realm="here"'}), times=1)

    def elsewhere(handler: object) -> bool:
        handler.answer(307, {"Location": f"http://{storage.host}{handler.path}"})  # type: ignore[attr-defined]
        return True

    fake.instead("/blobs/", elsewhere)
    pull(place, fake, credentials=("someone", "secret"))
    assert all("Authorization" in headers for headers in fake.asked("/blobs/"))
    assert storage.asked("/blobs/")
    assert not any("Authorization" in headers for headers in storage.asked(""))


# C26
@pytest.mark.parametrize(
    ("target", "text"),
    [("ftp://example.org/x", "redirects to 'ftp"), ("", "redirects more than 5 times"), (None, "redirects more than")],
)
def test_redirects_that_lead_nowhere_are_told(place: Place, serve: Serve, target: str | None, text: str) -> None:
    fake = serve(big())

    def elsewhere(handler: object) -> bool:
        where = handler.path if target is None else target  # type: ignore[attr-defined]
        handler.answer(302, {"Location": where})  # type: ignore[attr-defined]
        return True

    fake.instead("/manifests/", elsewhere)
    with pytest.raises(UnavailableError, match=text):
        pull(place, fake)


# C26
def test_a_redirect_from_https_to_plain_http_is_refused(place: Place, serve: Serve, tmp_path: Path) -> None:
    mine = certificate(tmp_path)
    fake, plain = serve(big(), tls=mine), serve(big())

    def elsewhere(handler: object) -> bool:
        handler.answer(307, {"Location": f"http://{plain.host}{handler.path}"})  # type: ignore[attr-defined]
        return True

    fake.instead("/blobs/", elsewhere)
    with pytest.raises(UnavailableError, match=r"redirects from HTTPS to plain HTTP"):
        pull(place, fake, ca=str(mine[0]))
    assert plain.asked("") == []


# C26
def test_a_token_that_is_asked_for_at_a_bad_address_is_refused(place: Place, serve: Serve, tmp_path: Path) -> None:
    mine = certificate(tmp_path)
    fake, plain = serve(big(), tls=mine), serve(big())
    bearer = {"WWW-Authenticate": f'Bearer realm="http://{plain.host}/token",service="x"'}
    fake.instead("/manifests/", status(401, bearer))
    with pytest.raises(UnavailableError, match=r"wants a token from 'http://127.0.0.1:\d+/token'"):
        pull(place, fake, ca=str(mine[0]), credentials=("someone", "secret"))
    assert plain.asked("") == []


# C26
@pytest.mark.parametrize("answer", [b"{}", b"no json", b'{"token": "with\\nline"}', b"[]"])
def test_a_token_that_is_none_is_told(place: Place, serve: Serve, answer: bytes) -> None:
    fake = serve(big())
    fake.instead("/manifests/", status(401, {"WWW-Authenticate": f'Bearer realm="http://{fake.host}/token"'}))

    def token(handler: object) -> bool:
        handler.answer(200, {}, answer)  # type: ignore[attr-defined]
        return True

    fake.instead("/token", token)
    with pytest.raises(UnavailableError, match=r"gives no token|is none"):
        pull(place, fake)


# C26
def test_a_registry_that_cannot_be_reached_is_told(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnavailableError, match=r"registry 127.0.0.1:\d+ cannot be reached \(Connection refused\)"):
        place.images.pull(f"127.0.0.1:{port}/app:1", through_daemon=False)
    with pytest.raises(UnavailableError, match=r"the name of registry registry.invalid cannot be resolved"):
        place.images.pull("registry.invalid/app:1", through_daemon=False)
    for timeout in (0, -1, "soon"):
        with pytest.raises(InvalidArgumentError, match=r"a registry's timeout is a number of seconds above 0"):
            place.images.pull("127.0.0.1:1/app:1", through_daemon=False, timeout=timeout)  # type: ignore[arg-type]


# C26
def test_a_pull_that_is_interrupted_leaves_nothing(place: Place, serve: Serve) -> None:
    layout = Layout()
    layout.name(layout.image([Layer(tar(busybox())), BIG]), "app:1")
    fake = serve(layout)

    def refuse(step: object) -> None:
        if step.done:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(place, fake, progress=refuse)
    assert place.is_empty()
