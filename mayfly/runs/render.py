"""A run's record as bytes: the programs' output alone, or each event as a line of JSON."""

from collections.abc import Callable
from typing import Self

import msgspec

from mayfly.host.snippet import Mode
from mayfly.protocol.frames import Stderr, Stdout
from mayfly.runs.cases import CaseResult
from mayfly.runs.record import PIECE, START, Attempt, Position, Reader, Record, Restored, RunEvent
from mayfly.runs.result import AnyEvent, describe

_SEPARATORS = {separator.encode(): b"\\u%04x" % ord(separator) for separator in "\x85\u2028\u2029"}
"""JSON may hold these as they are, but some readers take them for the ends of lines."""

EVENTS_SIZE = 16 * 1024
"""Bytes of events that are rendered in one turn of the event loop: some 10 ms where each event is a
byte of output.
"""


def dump(value: AnyEvent) -> bytes:
    """An event as JSON without an end of line, by every common way of splitting lines."""
    text = msgspec.json.encode(value)
    for separator, escaped in _SEPARATORS.items():
        if separator in text:
            text = text.replace(separator, escaped)
    return text


def line(event: RunEvent, _: Position = START) -> bytes:
    """The event as a line of the events mode."""
    return dump(describe(event)) + b"\n"


def raw(event: RunEvent, _: Position = START) -> bytes:
    """The bytes of output alone.

    Raises:
        ConnectionAbortedError: the run begins again.
    """
    if isinstance(event, CaseResult):
        return event.stdout + event.stderr
    if isinstance(event, Attempt) or (isinstance(event, Restored) and event.repeats):
        raise ConnectionAbortedError("the run begins again, and what was sent cannot be taken back")
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
        if mode is Mode.EVENTS:
            return cls(Reader(record, text=True), line, EVENTS_SIZE)
        return cls(Reader(record), raw)

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
