"""Accounts for registries, as `docker login`, `podman login` and credential helpers keep them.

Files, in the order in which containers/image looks (containers-auth.json(5)): the one that
$REGISTRY_AUTH_FILE names, or `containers/auth.json` in $XDG_RUNTIME_DIR and in $XDG_CONFIG_HOME,
then docker's `config.json` in $DOCKER_CONFIG or ~/.docker.
"""

import base64
import binascii
import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.errors import ConfigError, HostError

DOCKER_HUB = ("docker.io", "https://index.docker.io/v1/")
"""The name in references, and under which docker keeps the account."""
HELPER_S = 60.0
"""A helper may ask its user for a password."""
MAX_ANSWER = 1 << 20
NO_ACCOUNT = b"credentials not found"
"""What a helper says of a registry that it does not know (docker-credential-helpers, its
protocol).
"""
TOKEN_USER = "<token>"  # noqa: S105 (a name)
"""The user that a helper names where the secret is an identity token (as above)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What a registry knows its user by: `basic` is `user:password` in base64. An identity token is
    exchanged for tokens of a request.
    """

    basic: str = ""
    identity_token: str = ""


def find_account(registry: str, repository: str = "") -> Account | None:
    """The account for `registry` (`host` or `host:port`), or for the repository in it where one
    has its own; None if there is none.

    Raises:
        ConfigError: a file makes no sense.
        HostError: a credential helper is missing, failed or does not end.
    """
    for path in _files():
        try:
            config = json.loads(path.read_bytes())
            found = _find(config, registry, repository)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise ConfigError(f"{path}: no account for {registry} can be read from it: {error}", hint=f"docker login {registry}") from error
        if found is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    """Where accounts may be, the first that has one counts."""
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
        return
    try:
        home = Path.home()
    except RuntimeError:  # a user who has none
        home = Path("/nonexistent")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers/auth.json"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"
    yield Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _find(config: Mapping[str, Any], registry: str, repository: str) -> Account | None:
    auths, helpers = config.get("auths") or {}, config.get("credHelpers") or {}
    for key in _keys(registry, repository):
        entry: Mapping[str, Any] = _entry(auths, key)
        if token := entry.get("identitytoken"):
            return Account(identity_token=str(token))
        if entry.get("auth"):
            return _account(*base64.b64decode(entry["auth"], validate=True).decode().split(":", 1))
    key = DOCKER_HUB[1] if registry == DOCKER_HUB[0] else registry
    helper = _entry(helpers, registry) or _entry(helpers, key) or config.get("credsStore")
    return _ask(str(helper), key) if helper else None


def _keys(registry: str, repository: str) -> Iterator[str]:
    """What an account may be kept under, the most particular first: `quay.io/a/b`, `quay.io/a`,
    `quay.io`.
    """
    parts = [registry, *repository.split("/")] if repository else [registry]
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])
    if registry == DOCKER_HUB[0]:
        yield DOCKER_HUB[1]


def _entry(entries: Mapping[str, Any], key: str) -> Any:
    """What is there for the registry, by its very name or by a URL of it, as older dockers wrote
    them; else an empty entry.
    """
    if key in entries:
        return entries[key]
    return next((entry for name, entry in entries.items() if name.partition("://")[2].partition("/")[0] == key), {})


def _ask(helper: str, key: str) -> Account | None:
    """What the program docker-credential-HELPER knows."""
    program = f"docker-credential-{helper}"
    if "/" in program:
        raise ConfigError(f"{helper!r} is not the name of a credential helper")
    hint = "repair it, or remove it from docker's config.json"
    # Files, not pipes: what the helper leaves running would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run([program, "get"], input=key.encode(), stdout=out, stderr=err, timeout=HELPER_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{program} gave no account for {key} within {HELPER_S:g} s", hint=hint) from error
        except (OSError, ValueError) as error:
            raise HostError(f"{program} gives no account for {key}: {error}", hint=hint) from error
        answer, said = (_start(file) for file in (out, err))
    if done.returncode != 0:
        if NO_ACCOUNT in answer + said:
            return None
        text = " ".join((said or answer)[:200].decode(errors="replace").split()) or "nothing"
        raise HostError(f"{program} gives no account for {key}; it ended with status {done.returncode} and says: {text}", hint=hint)
    try:
        found: dict[str, Any] = json.loads(answer)
        return _account(found["Username"], found["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostError(f"{program} gives no account for {key}: its answer makes no sense", hint=hint) from error


def _start(file: Any) -> bytes:
    file.seek(0)
    data: bytes = file.read(MAX_ANSWER)
    return data


def _account(user: str, secret: str) -> Account:
    secret = secret.strip("\0")  # some helpers pad it; docker strips it too
    if not user or not secret:
        raise ValueError("it has no user or no password")
    if user == TOKEN_USER:
        return Account(identity_token=secret)
    return Account(basic=base64.b64encode(f"{user}:{secret}".encode()).decode())
