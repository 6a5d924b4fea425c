"""Credentials for a registry: the caller's, or those that ``docker login`` has left in its file."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from libctrd.errors import InvalidArgumentError
from libctrd.images import login, reference


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where docker would have its file; there is none yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def ask(ref: str, credentials: tuple[str, str] | None = None) -> tuple[str, str] | None:
    return login.Login(reference.parse(ref), credentials).credentials()


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# C26
def test_the_file_is_below_the_home_directory_if_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", "/home-of-somebody")
    assert login.config_path() == "/home-of-somebody/.docker/config.json"


# C26
@pytest.mark.parametrize("key", ["example.org:5000", "https://example.org:5000", "https://example.org:5000/v1/"])
def test_a_registry_is_found_under_its_names(config: Path, key: str) -> None:
    assert ask("example.org:5000/x") is None
    config.write_text(json.dumps({"auths": {key: {"auth": packed("me:pass:word")}}}))
    assert ask("example.org:5000/x") == ("me", "pass:word")
    assert ask("example.org/x") is None
    assert ask("example.org:5000/x", ("other", "word")) == ("other", "word")


# C26
def test_docker_hub_has_a_name_of_its_own(config: Path) -> None:
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"username": "me", "password": "word"}}}))
    assert ask("busybox") == ("me", "word")
    here = login.Login(reference.parse("busybox"), None)
    assert here.is_for("registry-1.docker.io")
    assert not here.is_for("example.org")


# C26
@pytest.mark.parametrize("text", ["{}", '{"auths": {}}', '{"auths": {"example.org": {}}}', '{"auths": [1]}', "[]"])
def test_a_file_without_them_is_fine(config: Path, text: str) -> None:
    config.write_text(text)
    assert ask("example.org/x") is None


# C26
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ('{"auths": {"example.org": {"auth": "%%%"}}}', "are not base64"),
        (json.dumps({"auths": {"example.org": {"auth": packed("nothing")}}}), "are no user and password"),
    ],
)
def test_a_file_that_is_damaged_is_told(config: Path, text: str, reason: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidArgumentError, match=reason):
        ask("example.org/x")


# C26
@pytest.mark.parametrize("credentials", [("a:b", "c"), ("a",), ("a", 5)])
def test_credentials_that_cannot_be_are_told_at_once(credentials: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"credentials are a user and a password|has no ':'"):
        login.Login(reference.parse("x"), credentials)  # type: ignore[arg-type]
