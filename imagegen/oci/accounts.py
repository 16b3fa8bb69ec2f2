"""Accounts for registries, as `docker login` leaves them: `config.json` in $DOCKER_CONFIG or
~/.docker, and its credential helpers.
"""

import base64
import binascii
import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mayfly.errors import ConfigError, HostError

DOCKER_HUB = ("docker.io", "https://index.docker.io/v1/")
"""The name in references, and under which docker keeps the account."""
HELPER_S = 60
"""A helper may ask its user for a password."""
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


def find_account(registry: str) -> Account | None:
    """The account for `registry` (`host` or `host:port`), or None if there is none.

    Raises:
        ConfigError: the file makes no sense.
        HostError: a credential helper is missing or failed.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    try:
        path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    except RuntimeError:  # a user without a home has no accounts
        return None
    key = DOCKER_HUB[1] if registry == DOCKER_HUB[0] else registry
    try:
        config = json.loads(path.read_bytes())
        entry: dict[str, Any] = _entry(config.get("auths") or {}, key)
        if token := entry.get("identitytoken"):
            return Account(identity_token=str(token))
        if entry.get("auth"):
            return _account(*base64.b64decode(entry["auth"], validate=True).decode().split(":", 1))
        helper = _entry(config.get("credHelpers") or {}, key) or config.get("credsStore")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise ConfigError(f"{path}: no account for {registry} can be read from it: {error}", hint=f"docker login {registry}") from error
    return _ask(str(helper), key) if helper else None


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
        raise ConfigError(f"{helper!r} is no name of a credential helper")
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_S, check=False)
        if done.returncode != 0 and NO_ACCOUNT in done.stdout + done.stderr:
            return None
        answer: dict[str, Any] = json.loads(done.stdout)
        return _account(answer["Username"], answer["Secret"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{program} gives no account for {key}: {error}", hint="mend it, or remove it from docker's config.json") from error


def _account(user: str, secret: str) -> Account:
    if not user or not secret:
        raise ValueError("it has no user or no password")
    if user == TOKEN_USER:
        return Account(identity_token=secret)
    return Account(basic=base64.b64encode(f"{user}:{secret}".encode()).decode())
