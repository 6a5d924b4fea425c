"""Images that are pulled from a real registry, by this process and by the daemon where it can do that."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import registry_kit
from images_kit import Place, place
from oci_kit import Descriptor, Layer, Layout, busybox, filler, tar
from registry_kit import PASSWORD, USER, Registry, TokenServer

from libctrd.errors import NotFoundError, UnavailableError, UnsupportedError
from libctrd.images import Progress, platforms

__all__ = ["place"]  # a fixture of another file

LOGIN = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


def several(docker: bool = False) -> tuple[Layout, Descriptor]:
    """An image for this host and another, with layers that are packed in all ways; and its index."""
    layout = Layout()
    layers = [Layer(tar(busybox()), docker=docker), Layer(tar({"zstd": b"2"}), "zstd"), Layer(tar({"plain": b"3"}), "")]
    ours = layout.image(layers, platform=str(platforms.host()), docker=docker)
    other = layout.image([Layer(tar({"other": b""}))], platform="linux/s390x", docker=docker)
    return layout, layout.index([other, ours], docker=docker)


@pytest.fixture(params=[False, True], ids=["by-us", "by-the-daemon"])
def through_daemon(request: pytest.FixtureRequest, place: Place) -> bool:
    """Who fetches."""
    daemon: bool = request.param
    if daemon and place.daemon.version < (1, 7):
        pytest.skip(f"containerd {place.daemon.version} has no transfer service: it came with 1.7")
    return daemon


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that lets everybody do everything."""
    with registry_kit.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants a password, with the image ``team/app:1``."""
    directory = tmp_path_factory.mktemp("guarded")
    with registry_kit.running(directory, registry_kit.basic_auth(directory)) as running:
        running.push(*several(), "team/app:1", LOGIN)
        yield running


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    server = TokenServer(tmp_path_factory.mktemp("tokens"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def with_tokens(tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants tokens, with the images ``team/app:1`` and ``public/app:1``."""
    with registry_kit.running(tmp_path_factory.mktemp("with-tokens"), tokens.auth) as running:
        for name in ("team/app", "public/app"):
            token = tokens.token([{"type": "repository", "name": name, "actions": ["pull", "push"]}])
            running.push(*several(), f"{name}:1", {"Authorization": f"Bearer {token}"})
        yield running


@pytest.fixture(autouse=True)
def own_docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``docker login`` would leave credentials: a place of the test's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


# C26
@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_a_pulled_image_runs_and_is_gone_when_removed(
    place: Place, registry: Registry, through_daemon: bool, docker: bool
) -> None:
    layout, index = several(docker)
    ref = registry.push(layout, index, f"app/{'docker' if docker else 'oci'}:1.0")
    steps: list[Progress] = []
    image = place.images.pull(ref, through_daemon=through_daemon, progress=steps.append)
    assert (image.name, image.digest) == (ref, index["digest"])
    assert image.platforms == (str(platforms.host()),)
    assert place.run(image, "/bin/cat", "/zstd", "/plain") == "23"
    last = {step.digest: step for step in steps}
    assert len(last) == 3, "one bar for each layer"
    assert all(step.done == step.total == len(layout.blobs[step.digest]) for step in last.values())
    place.images.remove(ref)
    assert place.content() == []


# C26
def test_without_a_choice_the_daemon_pulls_when_it_can(place: Place, registry: Registry) -> None:
    ref = registry.push(*several(), "app/any:1")
    before = len(registry.log())
    place.images.pull(ref)
    agent = "containerd/" if place.daemon.version >= (1, 7) else "libctrd/"
    assert agent in registry.log()[before:]
    if place.daemon.version < (1, 7):
        with pytest.raises(UnsupportedError, match=r"could not pull the image .* through the daemon: .*too old"):
            place.images.pull(ref, through_daemon=True)


# C26
def test_by_digest_and_for_another_platform(place: Place, registry: Registry, through_daemon: bool) -> None:
    layout, index = several()
    ref = registry.push(layout, index, "app/digest:1").rpartition(":")[0] + "@" + index["digest"]
    image = place.images.pull(ref, platform="linux/s390x", through_daemon=through_daemon)
    assert (image.name, image.platforms) == (ref, ("linux/s390x",))
    image = place.images.pull(ref, all_platforms=True, through_daemon=through_daemon)
    assert set(image.platforms) == {"linux/s390x", str(platforms.host())}
    with pytest.raises(NotFoundError, match=r"has nothing for linux/mips, only for linux/s390x|not found"):
        place.images.pull(ref, platform="linux/mips", through_daemon=through_daemon)


# C26
def test_what_is_there_is_not_fetched_again(place: Place, registry: Registry) -> None:
    ref = registry.push(*several(), "app/again:1")
    place.images.pull(ref, through_daemon=False)
    before = len(registry.log())
    steps: list[Progress] = []
    place.images.pull(ref, through_daemon=False, progress=steps.append)
    last = {step.digest: step for step in steps}
    assert len(last) == 3
    assert all(step.existed for step in last.values())
    assert not any(layer in registry.log()[before:] for layer in last)


# C26
def test_a_password_from_the_caller_or_from_docker_login(
    place: Place, guarded: Registry, through_daemon: bool, own_docker_config: Path
) -> None:
    ref = f"{guarded.host}/team/app:1"
    place.images.pull(ref, credentials=(USER, PASSWORD), through_daemon=through_daemon)
    place.images.remove(ref)
    packed = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    own_docker_config.write_text(json.dumps({"auths": {guarded.host: {"auth": packed}}}))
    place.images.pull(ref, through_daemon=through_daemon)


# C26
@pytest.mark.parametrize("credentials", [None, (USER, "wrong")])
def test_without_the_right_password_the_registry_refuses(
    place: Place, guarded: Registry, through_daemon: bool, credentials: tuple[str, str] | None
) -> None:
    with pytest.raises(UnavailableError, match=r"could not .* the image .*team/app:1.*(401|denied|no basic auth)"):
        place.images.pull(f"{guarded.host}/team/app:1", credentials=credentials, through_daemon=through_daemon)
    assert place.is_empty()


# C26
def test_a_token_for_everybody_and_one_for_who_has_a_password(
    place: Place, with_tokens: Registry, tokens: TokenServer, through_daemon: bool
) -> None:
    place.images.pull(f"{with_tokens.host}/public/app:1", through_daemon=through_daemon)
    assert tokens.asked[-1]["service"] == "tests"
    assert tokens.asked[-1]["scope"] == "repository:public/app:pull"
    ref = f"{with_tokens.host}/team/app:1"
    place.images.pull(ref, credentials=(USER, PASSWORD), through_daemon=through_daemon)
    place.images.remove(ref)
    for credentials in (None, (USER, "wrong")):
        with pytest.raises(UnavailableError, match=r"401|denied|unauthorized|authorize"):
            place.images.pull(ref, credentials=credentials, through_daemon=through_daemon)


# C26
def test_an_image_that_the_registry_does_not_have(place: Place, registry: Registry, through_daemon: bool) -> None:
    with pytest.raises(NotFoundError, match=r"could not .* the image .*no/such:tag.*(404|not found)"):
        place.images.pull(f"{registry.host}/no/such:tag", through_daemon=through_daemon)
    assert place.is_empty()


# C26
def test_an_image_of_many_layers_comes_in_whole(place: Place, registry: Registry, through_daemon: bool) -> None:
    layout = Layout()
    layers = [Layer(tar({f"file{number}": filler(100_000 + number)})) for number in range(20)]
    ref = registry.push(layout, layout.image([Layer(tar(busybox())), *layers]), "app/many:1")
    image = place.images.pull(ref, through_daemon=through_daemon)
    assert place.run(image, "/bin/sh", "-c", "ls /file* | wc -l 2>/dev/null || echo /file*").count("file") in (0, 20)
    assert len(place.content()) == 23
