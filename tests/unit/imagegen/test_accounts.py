"""Accounts as docker keeps them: in its file, with a helper for all registries or for one; and what
each may say wrongly.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, HostError
from mayfly.imagegen.oci.accounts import Account, find_account

AUTH = base64.b64encode(b"me:pass:word").decode()
ACCOUNT = Account(basic=AUTH)
TOKEN = Account(identity_token="of-mine")


@pytest.fixture(autouse=True)
def _docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def _config(tmp_path: Path, **config: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))


def _helper(tmp_path: Path, script: str, name: str = "test") -> None:
    path = tmp_path / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\nread -r server || :\n{script}\n")
    path.chmod(0o755)


def test_no_file_no_account() -> None:
    assert find_account("registry.example") is None


@pytest.mark.parametrize("name", ["registry.example:5000", "https://registry.example:5000", "http://registry.example:5000/v2/"])
def test_an_account_in_the_file(tmp_path: Path, name: str) -> None:
    _config(tmp_path, auths={name: {"auth": AUTH}, "other": {"auth": "x"}})
    assert find_account("registry.example:5000") == ACCOUNT
    assert find_account("registry.example") is None


def test_docker_hub_has_a_name_of_its_own(tmp_path: Path) -> None:
    _config(tmp_path, auths={"https://index.docker.io/v1/": {"auth": AUTH}})
    assert find_account("docker.io") == ACCOUNT


def test_helpers_are_asked(tmp_path: Path) -> None:
    _config(tmp_path, credsStore="all", credHelpers={"one.example": "one"}, auths={"one.example": {}})
    _helper(tmp_path, 'echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$server\\"}"', "all")
    _helper(tmp_path, 'echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"pass:word\\"}"', "one")
    assert find_account("one.example") == ACCOUNT
    assert find_account("two.example") == Account(basic=base64.b64encode(b"get:two.example").decode())


def test_a_helper_may_know_nothing(tmp_path: Path) -> None:
    _config(tmp_path, credsStore="test")
    _helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1")
    assert find_account("registry.example") is None


@pytest.mark.parametrize("script", ["exit 1", "echo no json", 'echo \'{"Username": "me"}\'', "echo '[]'"])
def test_a_helper_that_fails_is_named(tmp_path: Path, script: str) -> None:
    _config(tmp_path, credsStore="test")
    _helper(tmp_path, script)
    with pytest.raises(HostError, match="docker-credential-test"):
        find_account("registry.example")


def test_a_helper_that_is_missing_or_a_path(tmp_path: Path) -> None:
    _config(tmp_path, credsStore="test")
    with pytest.raises(HostError, match="docker-credential-test"):
        find_account("registry.example")
    _config(tmp_path, credsStore="../x")
    with pytest.raises(ConfigError, match="no name"):
        find_account("registry.example")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"auths": 3}', '{"auths": {"registry.example": {"auth": "%%"}}}', '{"auths": {"registry.example": {"auth": "bWU="}}}',
     '{"auths": {"registry.example": "x"}}', '{"credsStore": 1, "credHelpers": []}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ConfigError, HostError), match=r"registry\.example|docker-credential"):
        find_account("registry.example")


def test_identity_tokens_in_the_file_and_of_a_helper(tmp_path: Path) -> None:
    _config(tmp_path, credsStore="test", auths={"one.example": {"auth": base64.b64encode(b"me:").decode(), "identitytoken": "of-mine"}})
    _helper(tmp_path, 'echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"of-mine\\"}"')
    assert find_account("one.example") == find_account("two.example") == TOKEN
