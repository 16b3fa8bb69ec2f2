"""What a client asks for: parsed from JSON or a plain body, checked field by field, and nothing
about images or machines.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mayfly.api.problems import UnprocessableError
from mayfly.errors import BodyTooLargeError, RequestError
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.runs.record import Mode

MAX_TIME_S = 86400
MAX_SIZE = 1 << 40
MAX_ITEMS = 1024
"""Arguments, environment variables or files in a request."""
MAX_TEXT = 32 * 1024
"""Bytes of one argument, environment value or file name; all together must fit into a START frame
of 64 KiB.
"""
_Sized = TypeVar("_Sized", list[Any], dict[Any, Any])
TIMES = ("wall_s", "cpu_s")
SIZES = ("memory", "processes", "output")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snippet:
    """A request. `source` goes to the file that the language names; `limits` are by step, then by
    name, as in the configuration.
    """

    language: str = ""
    source: bytes | None = None
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    output: Mode = Mode.RAW
    network: bool = False

    def __post_init__(self) -> None:
        if len(self.stdin) > MAX_FILES_SIZE:
            raise BodyTooLargeError(f"stdin has {len(self.stdin)} bytes; at most {MAX_FILES_SIZE} are taken")


def parse_mode(text: str) -> Mode:
    """The value of `output`."""
    if text not in set(Mode):
        raise UnprocessableError(f"output is {text[:80]!r}; it must be one of {', '.join(Mode)}")
    return Mode(text)


def parse_flag(name: str, value: Any) -> bool:
    """True or false, in JSON or as a word."""
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def parse_json(body: bytes) -> Snippet:
    """The snippet in a JSON body.

    Raises:
        RequestError: it is not JSON, or not an object.
        UnprocessableError: a field is unknown, of the wrong type or out of range; the message names
            it.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(raw, dict):
        raise RequestError("the body is not a JSON object")
    for name in raw:
        if name not in _PARSERS:
            raise UnprocessableError(f"unknown field {name[:80]!r}", hint=f"the fields are {', '.join(_PARSERS)}")
    snippet = Snippet(**{name: _PARSERS[name](name, value) for name, value in raw.items()})
    if snippet.source is None and not snippet.files:
        raise UnprocessableError("there is nothing to run", hint='give "source", or "files" by name')
    return snippet


def _wrong(name: str, value: Any, allowed: str) -> UnprocessableError:
    return UnprocessableError(f"{name} is {repr(value)[:80]}; it must be {allowed}")


def _text(name: str, value: Any) -> str:
    """Text that can go to the guest: encodable, of bounded length, without NUL."""
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise _wrong(name, value, "text without lone surrogates") from error
    if size > MAX_TEXT or "\0" in value:
        raise _wrong(name, value, f"text of at most {MAX_TEXT} bytes without NUL")
    return value


def _bytes(name: str, value: Any) -> bytes:
    """Content: text, or {"base64": …}."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise _wrong(name, value, "text without lone surrogates") from error
    if isinstance(value, dict) and set(value) == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise UnprocessableError(f"{name} is not valid base64: {error}") from error
    raise _wrong(name, value, 'text or {"base64": text}')


def _items(name: str, value: Any, kind: type[_Sized], allowed: str) -> _Sized:
    if not isinstance(value, kind) or len(value) > MAX_ITEMS:
        raise _wrong(name, value, f"{allowed} of at most {MAX_ITEMS} entries")
    return value


def _args(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(name, item) for item in _items(name, value, list, "a list of texts"))


def _env(name: str, value: Any) -> dict[str, str]:
    env = {_text(name, key): _text(name, item) for key, item in _items(name, value, dict, "an object of texts").items()}
    for key in env:
        if not key or "=" in key:
            raise _wrong(name, key, "an object whose names are not empty and have no =")
    return env


def _files(name: str, value: Any) -> dict[str, bytes]:
    files = {
        _text("a file's name", path): _bytes(f"files[{path[:80]!r}]", item) for path, item in _items(name, value, dict, "an object").items()
    }
    for path in files:
        check_path(path)
    return files


def check_path(path: str) -> None:
    """Refuse a file name that is absolute, or has an empty, `.` or `..` component."""
    if {"", ".", ".."} & set(path.split("/")):
        raise UnprocessableError(f"the file name {path[:80]!r} is not allowed", hint="use a relative path without . and ..")


def _limits(name: str, value: Any) -> dict[str, dict[str, float]]:
    limits = {}
    for step, raw in _items(name, value, dict, "an object of steps").items():
        here = f"limits.{step[:80]}"
        limits[step] = {key: _limit(f"{here}.{key[:80]}", key, item) for key, item in _items(here, raw, dict, "an object").items()}
    return limits


def _limit(name: str, key: str, value: Any) -> float:
    if key not in TIMES + SIZES:
        raise UnprocessableError(f"unknown limit {name}", hint=f"the limits of a step are {', '.join(TIMES + SIZES)}")
    number = isinstance(value, int | float if key in TIMES else int) and not isinstance(value, bool)
    most = MAX_TIME_S if key in TIMES else MAX_SIZE
    if not number or not 0 < value <= most:
        raise _wrong(name, value, f"a {'number' if key in TIMES else 'whole number'} above 0, at most {most}")
    return float(value) if key in TIMES else int(value)


_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "language": _text,
    "source": _bytes,
    "files": _files,
    "stdin": _bytes,
    "args": _args,
    "env": _env,
    "limits": _limits,
    "output": lambda name, value: parse_mode(_text(name, value)),
    "network": parse_flag,
}
