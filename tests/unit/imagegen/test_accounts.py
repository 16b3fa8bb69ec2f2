"""Accounts as docker keeps them: in its file, with a helper for all registries or for one; and what
each may say wrongly.
"""

import base64
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, HostError
from mayfly.imagegen.oci import accounts
from mayfly.imagegen.oci.accounts import Account, find_account

AUTH = base64.b64encode(b"me:pass:word").decode()
ACCOUNT = Account(basic=AUTH)
TOKEN = Account(identity_token="of-mine")


@pytest.fixture(autouse=True)
def _docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
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
    with pytest.raises(ConfigError, match="is not the name"):
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


@pytest.mark.parametrize("where", ["run/containers/auth.json", "config/containers/auth.json"])
def test_accounts_of_podman_and_of_a_repository(tmp_path: Path, where: str) -> None:
    other = base64.b64encode(b"me:other").decode()
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"auths": {"one.example/a": {"auth": other}, "one.example": {"auth": AUTH}, "docker.io": {"auth": AUTH}}}))
    _config(tmp_path, auths={"one.example": {"auth": "x"}, "two.example": {"auth": AUTH}})
    assert find_account("one.example", "a/b") == Account(basic=other)
    assert find_account("one.example", "b") == find_account("docker.io", "library/rust") == find_account("two.example", "b") == ACCOUNT


def test_the_file_that_is_named_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _config(tmp_path, auths={"one.example": {"auth": AUTH}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
    assert find_account("one.example") is None


def test_a_helper_says_why_it_refuses(tmp_path: Path) -> None:
    _config(tmp_path, credsStore="test")
    _helper(tmp_path, "echo 'the keychain is locked' >&2; exit 3")
    with pytest.raises(HostError, match="status 3 and says: the keychain is locked"):
        find_account("registry.example")


def test_a_helper_that_hangs_or_leaves_something_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves keeps its output open: that is not waited for."""
    _config(tmp_path, credsStore="test")
    left = f"sleep 600 & echo $! > {tmp_path}/pid"
    try:
        _helper(tmp_path, left + '; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"pass:word\\"}"')
        assert find_account("registry.example") == ACCOUNT
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    monkeypatch.setattr(accounts, "HELPER_S", 0.1)
    _helper(tmp_path, "exec sleep 600")
    with pytest.raises(HostError, match=r"within 0\.1 s"):
        find_account("registry.example")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert find_account("registry.example") is None
