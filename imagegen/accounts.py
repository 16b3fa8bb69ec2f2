"""Accounts for registries, as `docker login` leaves them: `config.json` in $DOCKER_CONFIG or ~/.docker, and its credential helpers."""

import base64
import binascii
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from mayfly.errors import ConfigError, HostError

DOCKER_HUB = ("docker.io", "https://index.docker.io/v1/")
"""The name in references, and under which docker keeps the account."""
HELPER_S = 60
"""A helper may ask its user for a password."""
NO_ACCOUNT = b"credentials not found"
"""What a helper says of a registry that it does not know (docker-credential-helpers, its protocol)."""


def find_account(registry: str) -> str | None:
    """The account for `registry` (`host` or `host:port`) as `user:password` in base64, or None if there is none.

    Raises:
        ConfigError: the file makes no sense.
        HostError: a credential helper is missing or failed.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(path.read_bytes())
        key = DOCKER_HUB[1] if registry == DOCKER_HUB[0] else registry
        auths, helpers = config.get("auths") or {}, config.get("credHelpers") or {}
        entry: dict[str, Any] = next((auths[name] for name in (key, f"https://{key}", f"http://{key}") if name in auths), {})
        helper = helpers.get(key) or config.get("credsStore")
        if entry.get("auth"):
            return _checked(base64.b64decode(entry["auth"], validate=True).decode(), registry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise ConfigError(f"{path}: no account for {registry} can be read from it: {error}", hint=f"docker login {registry}") from error
    return _ask(str(helper), key) if helper else None


def _ask(helper: str, key: str) -> str | None:
    """What the program docker-credential-HELPER knows."""
    program = f"docker-credential-{helper}"
    if "/" in program:
        raise ConfigError(f"{helper!r} is no name of a credential helper")
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_S, check=False)
        if done.returncode != 0 and NO_ACCOUNT in done.stdout + done.stderr:
            return None
        answer: dict[str, Any] = json.loads(done.stdout)
        return _checked(f"{answer['Username']}:{answer['Secret']}", key)
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{program} gives no account for {key}: {error}", hint="mend it, or remove it from docker's config.json") from error


def _checked(account: str, registry: str) -> str:
    user, colon, _ = account.partition(":")
    if not colon or not user or user == "<token>":
        raise ConfigError(f"the account for {registry} has no user and password", hint="log in with a password or an access token")
    return base64.b64encode(account.encode()).decode()
