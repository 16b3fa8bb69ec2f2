"""The contracts of others that there are, and which of them a server has."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from yarl import URL

from mayfly.api.compat.codapi import Codapi
from mayfly.api.compat.dialect import Dialect
from mayfly.api.compat.judge0.routes import Judge0
from mayfly.api.compat.piston.routes import Piston
from mayfly.api.compat.polycode import Polycode
from mayfly.api.compat.sandboxfusion import SandboxFusion
from mayfly.errors import ConfigError

DIALECTS: Mapping[str, type[Dialect]] = {kind.name: kind for kind in (Piston, Judge0, Polycode, SandboxFusion, Codapi)}
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def make_dialects(wanted: Sequence[str], ours: Sequence[str]) -> tuple[Dialect, ...]:
    """The contracts that the configuration's `compat` asks for: `piston` alone, or with an address,
    is at `/piston`. The paths `ours` stay ours.

    Raises:
        ConfigError: there is no such contract, or its prefix is not one.
    """
    made: list[Dialect] = []
    for text in wanted:
        name, equals, place = text.partition("=")
        prefix = place.rstrip("/") if equals and not _is_address(place) else f"/{name}"
        if name not in DIALECTS:
            raise ConfigError(f"compat is {text!r}: there is no contract {name[:80]!r}", hint=f"there are: {', '.join(DIALECTS)}")
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"compat is {text!r}: {prefix[:80]!r} is not a prefix", hint=f"write {name}=/{name}, or {name}=HOST:PORT")
        dialect = DIALECTS[name](prefix)
        if any(other.has(prefix) or dialect.has(other.prefix) for other in made) or any(dialect.has(path) for path in ours):
            raise ConfigError(f"compat is {text!r}: {prefix} is taken", hint="give each a prefix of its own")
        made.append(dialect)
    return tuple(made)


def addresses_of(wanted: Sequence[str]) -> dict[str, str]:
    """The prefix of each contract that has a TCP address of its own, by that address."""
    pairs = (text.partition("=") for text in wanted)
    return {place: f"/{name}" for name, _, place in pairs if _is_address(place)}


def _is_address(place: str) -> bool:
    return ":" in place and not place.startswith("/")


class Narrow:
    """Makes aiohttp's requests for a server whose every path stands behind `prefix`."""

    def __init__(self, factory: Callable[..., web.BaseRequest], prefix: str) -> None:
        self._factory = factory
        self._prefix = prefix

    def __call__(self, message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        """A request for the path of the message behind the prefix."""
        if message.url.raw_path.startswith("/"):  # not so: OPTIONS *
            path = self._prefix + message.url.raw_path
            url = URL.build(path=path, query_string=message.url.raw_query_string, encoded=True)
            message = message._replace(path=str(url), url=url)
        return self._factory(message, *rest)
