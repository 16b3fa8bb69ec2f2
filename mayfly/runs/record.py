"""The record of one run: its events and output in order, as typed values. Who shows them renders
them (render.py).

The bytes of each step's streams are kept together, the other events in a list. An array of
**spans** has the order: 8 bytes for each event, or piece of a stream. Consecutive pieces of the
same stream are one span, so a guest that writes byte by byte costs no more than one that writes at
once. Readers hold nothing but positions, which is why they may be late, slow or many.
"""

import array
import asyncio
import enum
from typing import TypeAlias

from mayfly.guests.outcome import StepResult, Verdict
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import Stage, Stderr, Stdout

PIECE = 64 * 1024
"""A reader is given at most this many bytes of output at a time."""
STREAM_BITS = 10
"""Of a span: 0 for an event, else twice the step's number and 1 for stdout, 2 for stderr."""
EVENT = 0
EVENT_BYTES = 200
"""What an event is taken to cost, for limits on memory."""

RunEvent: TypeAlias = Stage | Stdout | Stderr | StepResult | Failed | Verdict
"""What happens in a run: a Verdict is the last event, a Failed may come before it."""


class Mode(enum.StrEnum):
    """What the output socket gives: the programs' bytes alone, or a JSON object a line."""

    RAW = "raw"
    EVENTS = "events"


class Record:
    """Append-only; `closed` when nothing more will come. Whoever appends bounds how much comes (the
    conversation's limits).
    """

    def __init__(self) -> None:
        self.closed = False
        self._streams: dict[int, bytearray] = {}
        self._events: list[RunEvent] = []
        self._spans = array.array("Q")  # the span's end in its stream, or the event's index, above STREAM_BITS
        self._step = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """About how many bytes of memory it takes."""
        output = sum(map(len, self._streams.values()))
        return output + self._spans.itemsize * len(self._spans) + EVENT_BYTES * len(self._events)

    def append(self, event: RunEvent) -> None:
        """Append an event. Output belongs to the step of the last Stage."""
        if isinstance(event, Stdout | Stderr):
            self._output(2 * self._step + (1 if isinstance(event, Stdout) else 2), event.data)
        else:
            if isinstance(event, Stage):
                self._step = event.step
            self._spans.append(len(self._events) << STREAM_BITS | EVENT)
            self._events.append(event)
        self._wake()

    def _output(self, number: int, data: bytes) -> None:
        stream = self._streams.setdefault(number, bytearray())
        stream += data
        span = len(stream) << STREAM_BITS | number
        if self._spans and _number(self._spans[-1]) == number:
            self._spans[-1] = span
        elif data:
            self._spans.append(span)

    def close(self) -> None:
        """Say that nothing more will come."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next append or the close. What is there already must be read first."""
        await self._changed.wait()

    def output(self, step: int) -> tuple[bytes, bytes]:
        """All of a step's standard output and standard error."""
        return bytes(self._streams.get(2 * step + 1, b"")), bytes(self._streams.get(2 * step + 2, b""))


def _number(span: int) -> int:
    return span & ((1 << STREAM_BITS) - 1)


class Reader:
    """One reader's position in a record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._span = 0
        self._read: dict[int, int] = {}

    def take(self) -> RunEvent | None:
        """The next event, or piece of output of at most PIECE bytes; None if there is nothing more
        for now.
        """
        spans = self._record._spans
        while self._span < len(spans):
            number, end = _number(spans[self._span]), spans[self._span] >> STREAM_BITS
            if number == EVENT:
                self._span += 1
                return self._record._events[end]
            at = self._read.get(number, 0)
            if at < end:
                data = bytes(self._record._streams[number][at : min(end, at + PIECE)])
                self._read[number] = at + len(data)
                return Stdout(data) if number % 2 else Stderr(data)
            if self._span + 1 == len(spans):
                return None  # this span may grow yet: stay in it
            self._span += 1
        return None

    async def wait(self) -> bool:
        """Wait until there may be more. False when the record is closed: all that `take` gives now
        is all there is.
        """
        if self._record.closed:
            return False
        await self._record.changed()
        return True
