"""A run's record as bytes: the programs' output alone, or each event as a line of JSON."""

import base64
import json
from collections.abc import Iterator
from typing import Any

from mayfly.api import problems
from mayfly.guests.outcome import StepResult, Verdict
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.record import PIECE, Mode, Reader, Record, RunEvent

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
        case Failed():
            return {"event": "error", "error": problems.as_json(event.error)}
        case Verdict():
            return {"event": "done", **event._asdict()}


def encode(data: bytes) -> dict[str, str]:
    """`data` for JSON: `{"data": text}` if it is UTF-8, `{"base64": …}` if it is not."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def line(event: RunEvent) -> bytes:
    """The event as one line, for every common way of splitting lines."""
    text = json.dumps(as_json(event), ensure_ascii=False, separators=(",", ":"))
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return text.encode() + b"\n"


class Renderer:
    """One reader of a record, who wants it as bytes.

    In the events mode a character whose last bytes are still to come is held back, so that text is
    not cut in the middle of one.
    """

    def __init__(self, record: Record, mode: Mode) -> None:
        self._record = record
        self._reader = Reader(record)
        self._render = self._lines if mode is Mode.EVENTS else _raw
        self._held: Stdout | Stderr | None = None

    def take(self) -> bytes | None:
        """The next bytes, PIECE or some more if there are so many; None if there are none yet."""
        parts: list[bytes] = []
        size = 0
        while size < PIECE and (event := self._reader.take()) is not None:
            for part in self._render(event):
                parts.append(part)
                size += len(part)
        if not parts and self._held and self._record.closed:
            parts.append(line(self._held))
            self._held = None
        return b"".join(parts) or None

    async def wait(self) -> bool:
        """As Reader.wait."""
        return await self._reader.wait()

    def _lines(self, event: RunEvent) -> Iterator[bytes]:
        if self._held:
            if type(event) is type(self._held):
                event = type(self._held)(self._held.data + event.data)
            else:
                yield line(self._held)
            self._held = None
        if isinstance(event, Stdout | Stderr) and (keep := _unfinished(event.data)):
            self._held = type(event)(event.data[-keep:])
            event = type(event)(event.data[:-keep])
            if not event.data:
                return
        yield line(event)


def _raw(event: RunEvent) -> Iterator[bytes]:
    if isinstance(event, Stdout | Stderr):
        yield event.data


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a UTF-8 character without completing it: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if back < need and byte < 0xF5 else 0
    return 0
