"""A vmm process's report pipe: a line of JSON, tagged with its kind, per dataclass.

    {"running": {"phases": {"process": 0.004, "objects": 0.001}}}
    {"ended": {"reason": "reset", "error": null, "console": "", "exits": {"total": 81}, ...}}

A hostile guest may control the process: `decode` takes only what `encode` gives, within limits.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from mayfly.errors import MayflyError, from_wire, to_wire

MAX_LINE = 1 << 20
MAX_NAMES = 1024
MAX_NAME = 64
MAX_TEXT = 64 << 10
MAX_COUNT = (1 << 63) - 1
MAX_SECONDS = 1e9


class End(StrEnum):
    """Why a machine ended."""

    RESET = "reset"
    CHANNEL_CLOSED = "channel-closed"
    STOPPED = "stopped"
    SAVED = "saved"
    ERROR = "error"
    VANISHED = "vanished"  # Its process ended and said nothing; never on the wire


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """The machine is made, and runs. `phases`: seconds that each part of the making took."""

    phases: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """The machine has ended; the last line.

    Attributes:
        reason: why.
        error: what ended it, with the reason `End.ERROR`.
        console: the end of what the guest printed on its boot console.
        exits: `Machine.exits`.
        phases: seconds.
    """

    reason: End
    error: MayflyError | None = None
    console: str = ""
    exits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)


Line = Running | Ended


def encode(line: Line) -> bytes:
    """The line, with its newline."""
    fields = {field.name: getattr(line, field.name) for field in dataclasses.fields(line)}
    if isinstance(line, Ended):
        fields["error"] = line.error and to_wire(line.error)
    return pack(type(line).__name__.lower(), fields) + b"\n"


def decode(data: bytes) -> Line:
    """The line that `encode` made. Raises ValueError."""
    kind, fields = unpack(data)
    if kind == "running":
        return Running(**checked(fields, phases=seconds))
    if kind == "ended":
        return Ended(**checked(fields, reason=_reason, error=_error, console=text, exits=counts, phases=seconds))
    raise ValueError(f"a report has no line {kind[:MAX_NAME]!r}")


def _reason(value: Any) -> End:
    if value == End.VANISHED:
        raise ValueError("a process that says why it ended has not vanished")
    return End(value)


def _error(value: Any) -> MayflyError | None:
    return None if value is None else error(value)


def pack(kind: str, fields: Mapping[str, Any]) -> bytes:
    """A tagged JSON object."""
    return json.dumps({kind: fields}, separators=(",", ":")).encode()


def unpack(data: bytes) -> tuple[str, Mapping[str, Any]]:
    """The kind and the unchecked fields of what `pack` made. Raises ValueError."""
    try:
        raw = json.loads(data)
    except RecursionError as caught:
        raise ValueError("JSON that is too deep") from caught
    if not isinstance(raw, dict) or len(raw) != 1 or not isinstance(fields := next(iter(raw.values())), dict):
        raise ValueError(f"not one object with one tag: {data[:80]!r}")
    return next(iter(raw)), fields


def checked(fields: Mapping[str, Any], **checks: Callable[[Any], Any]) -> dict[str, Any]:
    """Exactly these fields, each through its check. Raises ValueError."""
    if fields.keys() != checks.keys():
        raise ValueError(f"the fields are {', '.join(sorted(fields))[:MAX_NAME]}; they must be {', '.join(checks)}")
    return {name: check(fields[name]) for name, check in checks.items()}


def count(value: Any) -> int:
    """A number from 0 to MAX_COUNT."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{str(value)[:MAX_NAME]} is not a count")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"{str(value)[:MAX_NAME]} is neither true nor false")
    return value


def text(value: Any) -> str:
    """Printable text with newlines and tabs: it is shown on terminals."""
    if type(value) is not str or len(value) > MAX_TEXT or not all(c.isprintable() or c in "\n\t" for c in value):
        raise ValueError(f"not a printable text of at most {MAX_TEXT} characters")
    return value


def error(value: Any) -> MayflyError:
    """An error of `mayfly.errors.to_wire`."""
    if not isinstance(value, dict):
        raise ValueError("an error is not an object")
    for item in value.values():
        if isinstance(item, str):
            text(item)
    return from_wire(value)


def counts(value: Any) -> Mapping[str, int]:
    """Counts by name."""
    return _named(value, count)


def seconds(value: Any) -> Mapping[str, float]:
    """Seconds by name."""
    return _named(value, _duration)


def _duration(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{str(value)[:MAX_NAME]} is not a number of seconds")
    return float(value)


def _named(value: Any, check: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_NAMES or any(len(name) > MAX_NAME or not name.isprintable() for name in value):
        raise ValueError(f"not an object of at most {MAX_NAMES} short names")
    return {name: check(item) for name, item in value.items()}
