"""Which systems a dependency of a crate is for (The Rust Reference: conditional compilation; The
Cargo Book: platform specific dependencies).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mayfly.errors import ImageError

MAX_TOKENS = 500
"""Of one expression, which bounds its depth too."""
_TOKEN = re.compile(r'\s*(?:([A-Za-z_][A-Za-z0-9_]*)|"([^"]*)"|([(),=]))')
_BITS = {"8", "16", "32", "64", "ptr"}


class Programs(NamedTuple):
    """Programs of Linux: their type of machine, and their C library: `gnu` or `musl`."""

    arch: str
    env: str


def holds(target: str, programs: Programs) -> bool:
    """Whether a target is that of these programs: `cfg(unix)`, or a triple; an empty one is any.

    Raises:
        ImageError: it makes no sense.
    """
    if not target.startswith("cfg("):
        return target in ("", f"{programs.arch}-unknown-linux-{programs.env}")
    try:
        tokens = _tokens(target[3:])
        found = _list(tokens, programs)
        if len(found) != 1 or next(tokens, None) is not None:
            raise ValueError("it is not one condition")
    except (ValueError, StopIteration) as error:
        raise ImageError(f"a crate is for {target[:80]!r}, which makes no sense: {error}", hint="do not use the crate") from error
    return found[0]


def _tokens(text: str) -> Iterator[str]:
    at = count = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        count += 1
        if match is None or count > MAX_TOKENS:
            raise ValueError("it has what no condition has")
        at = match.end()
        yield match[1] or match[3] or f'"{match[2]}'


def _list(tokens: Iterator[str], programs: Programs) -> list[bool]:
    """The conditions between two parentheses."""
    found: list[bool] = []
    if next(tokens) != "(":
        raise ValueError("a parenthesis is missing")
    word = next(tokens)
    while word != ")":
        name, word = word, ""
        if name in ("all", "any", "not"):
            inner = _list(tokens, programs)
            found.append(all(inner) if name == "all" else any(inner) if name == "any" else inner == [False])
            word = next(tokens)
        else:
            word = next(tokens)
            if word == "=":
                found.append(_is(name, next(tokens)[1:], programs))
                word = next(tokens)
            else:
                found.append(name in ("unix", "debug_assertions"))
        if word == ",":
            word = next(tokens)
        elif word != ")":
            raise ValueError("a comma is missing")
    return found


def _is(key: str, value: str, programs: Programs) -> bool:
    if key == "target_has_atomic":
        return value in _BITS
    known = {"os": "linux", "family": "unix", "pointer_width": "64", "endian": "little", "vendor": "unknown", **programs._asdict()}
    return known.get(key.removeprefix("target_")) == value or (key, value) == ("panic", "unwind")
