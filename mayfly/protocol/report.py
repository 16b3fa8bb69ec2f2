"""A vmm process's report pipe: a line of JSON per record, tagged with its kind.

    {"type":"running","phases":{"process":0.004,"objects":0.001}}
    {"type":"ended","reason":"reset","error":null,"console":"","exits":{"total":81},...}

A hostile guest may control the process: `decode` takes only what `encode` gives, within limits.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from mayfly.errors import MayflyError, from_wire, to_wire
from mayfly.schema import Meta, Record, field, msgspec

MAX_LINE = 1 << 20
MAX_NAMES = 1024
MAX_NAME = 64
MAX_TEXT = 64 << 10
MAX_COUNT = (1 << 63) - 1
MAX_SECONDS = 1e9
PHASES = frozenset({"process", "turn", "objects", "load", "sandbox", "running", "save"})
"""Of a vmm process, which report the time that they took. No other name: each becomes a label of
the server's metrics.
"""

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Name = Annotated[str, Meta(max_length=MAX_NAME)]
Counts = Annotated[dict[_Name, Count], Meta(max_length=MAX_NAMES)]
Seconds = Annotated[dict[_Name, Annotated[float, Meta(ge=0, le=MAX_SECONDS)]], Meta(max_length=MAX_NAMES)]


class End(StrEnum):
    """Why a machine ended."""

    RESET = "reset"
    CHANNEL_CLOSED = "channel-closed"
    STOPPED = "stopped"
    SAVED = "saved"
    ERROR = "error"
    VANISHED = "vanished"  # Its process ended and said nothing; never on the wire


class Running(Record, tag="running", frozen=True, kw_only=True):
    """The machine is made, and runs. `phases`: seconds that each part of the making took."""

    phases: Seconds


class Ended(Record, tag="ended", frozen=True, kw_only=True):
    """The machine has ended; the last line.

    `error` belongs to `End.ERROR`, `console` is the end of the guest's boot console, `exits` is
    from `Machine.exits`, and `phases` are seconds.
    """

    reason: End
    error: MayflyError | None = None
    console: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    exits: Counts = field(default_factory=dict)
    phases: Seconds = field(default_factory=dict)


Line = Running | Ended


def encode(line: Line) -> bytes:
    """The line, with its newline."""
    return pack(line) + b"\n"


def decode(data: bytes) -> Line:
    """The line that `encode` made. Raises ValueError."""
    line: Line = unpack(Line, data)
    if isinstance(line, Ended):
        if line.reason is End.VANISHED:
            raise ValueError("a process that says why it ended has not vanished")
        check_printable(line.console)
        for name in line.exits:
            check_printable(name)
    if not line.phases.keys() <= PHASES:
        raise ValueError(f"a phase that is none of {', '.join(sorted(PHASES))}")
    return line


def pack(message: Record) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message, enc_hook=to_wire)


def unpack(kind: Any, data: bytes) -> Any:
    """The message that `pack` made, of a `kind`, which may be a union. Raises ValueError."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_error)
    except RecursionError as caught:
        raise ValueError("JSON that is too deep") from caught


def is_shown(character: str) -> bool:
    """Whether it is printable, newline or tab: texts of guests are shown on terminals."""
    return character.isprintable() or character in "\n\t"


def check_printable(text: str) -> None:
    """Raise ValueError for what is not to be shown."""
    if not all(map(is_shown, text)):
        raise ValueError("text with control characters")


def _error(kind: type, value: Any) -> MayflyError:
    if not isinstance(value, Mapping):
        raise ValueError("an error is not an object")
    for item in value.values():
        if isinstance(item, str):
            if len(item) > MAX_TEXT:
                raise ValueError(f"an error with a text of more than {MAX_TEXT} characters")
            check_printable(item)
    return from_wire(value)
