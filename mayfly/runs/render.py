"""A run's record as bytes: the programs' output alone, or each event as a line of JSON."""

import base64
import json
from collections.abc import Callable
from typing import Any, Self

from mayfly.errors import to_wire
from mayfly.guests.outcome import StepResult, Verdict
from mayfly.host.snippet import Mode
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult
from mayfly.runs.record import PIECE, START, Position, Reader, Record, RunEvent

_SEPARATORS = {separator: f"\\u{ord(separator):04x}" for separator in "\x85\u2028\u2029"}
"""JSON may hold these as they are, but some readers take them for the ends of lines."""


def as_json(event: RunEvent) -> dict[str, Any]:
    """The event as an object of the events mode (docs/api.md)."""
    match event:
        case Stage():
            return {"event": "stage", "step": event.name}
        case Stdout():
            return {"event": "stdout", **encode(event.data)}
        case Stderr():
            return {"event": "stderr", **encode(event.data)}
        case StepResult():
            return {"event": "exit", **event.to_json()}
        case CaseResult():
            return {"event": "case", **event.to_json()}
        case Failed():
            return {"event": "error", "error": to_wire(event.error)}
        case Verdict():
            return {"event": "done", **event._asdict()}


def encode(data: bytes) -> dict[str, str]:
    """`data` for JSON: `{"data": text}` if it is UTF-8, `{"base64": …}` if it is not."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def dump(value: dict[str, Any]) -> bytes:
    """An object as JSON without an end of line, by every common way of splitting lines."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return text.encode()


def line(event: RunEvent, _: Position = START) -> bytes:
    """The event as a line of the events mode."""
    return dump(as_json(event)) + b"\n"


def raw(event: RunEvent, _: Position = START) -> bytes:
    """The bytes of output alone."""
    if isinstance(event, CaseResult):
        return event.stdout + event.stderr
    return event.data if isinstance(event, Stdout | Stderr) else b""


class Renderer:
    """One reader of a record, who wants it as the bytes that `render` makes of each event and the
    position behind it; `size` or some more of them at a time.
    """

    def __init__(self, reader: Reader, render: Callable[[RunEvent, Position], bytes], size: int = PIECE) -> None:
        self._reader = reader
        self._render = render
        self._size = size

    @classmethod
    def of(cls, record: Record, mode: Mode) -> Self:
        """What an output socket gives."""
        return cls(Reader(record, text=mode is Mode.EVENTS), line if mode is Mode.EVENTS else raw)

    def take(self) -> bytes | None:
        """The next bytes; None if there are none yet."""
        parts: list[bytes] = []
        size = 0
        while size < self._size and (event := self._reader.take()) is not None:
            part = self._render(event, self._reader.position)
            parts.append(part)
            size += len(part)
        return b"".join(parts) or None

    async def wait(self) -> bool:
        """As Reader.wait."""
        return await self._reader.wait()
