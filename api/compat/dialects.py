"""The contracts of others that there are, and which of them a server has."""

import re
from collections.abc import Mapping, Sequence

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
    """The contracts that the configuration's `compat` asks for: `piston` alone is at `/piston`. The
    paths `ours` stay ours.

    Raises:
        ConfigError: there is no such contract, or its prefix is not one.
    """
    made: list[Dialect] = []
    for text in wanted:
        name, equals, prefix = text.partition("=")
        prefix = prefix.rstrip("/") if equals else f"/{name}"
        if name not in DIALECTS:
            raise ConfigError(f"compat is {text!r}: there is no contract {name[:80]!r}", hint=f"there are: {', '.join(DIALECTS)}")
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"compat is {text!r}: {prefix[:80]!r} is not a prefix", hint=f"write {name}=/{name}")
        dialect = DIALECTS[name](prefix)
        if any(other.has(prefix) or dialect.has(other.prefix) for other in made) or any(dialect.has(path) for path in ours):
            raise ConfigError(f"compat is {text!r}: {prefix} is taken", hint="give each a prefix of its own")
        made.append(dialect)
    return tuple(made)
