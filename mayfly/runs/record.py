"""The record of one run: its events and output in order, as typed values. Who shows them renders
them (render.py).

The bytes of each step's streams are kept together, the other events in a list. An array of
**spans** has the order: 8 bytes for each event, or piece of a stream. Consecutive pieces of the
same stream are one span, so a guest that writes byte by byte costs no more than one that writes at
once. Readers hold nothing but positions, which is why they may be late, slow or many.
"""

import array
import asyncio
from typing import NamedTuple, TypeAlias

from mayfly.guests.outcome import StepResult, Verdict
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult

PIECE = 64 * 1024
"""A reader is given at most this many bytes of output at a time, unless it asks for less."""
STREAM_BITS = 20
"""Of a span: 0 for an event, else twice the step's number and 1 for stdout, 2 for stderr."""
EVENT = 0
MAX_RESTORED = 100
"""Times that a run may go on from a save, in all: each needs stream numbers of its own."""
EVENT_BYTES = 200
"""What an event is taken to cost, for limits on memory."""


class Attempt(NamedTuple):
    """The run begins again on another host; what came before counts for nothing."""

    number: int
    reason: str


class Position(NamedTuple):
    """Where a reader of a record is; it means the same to every reader.

    Behind `offset` bytes of the stream that the span is of, or behind the event that the span is
    (0).
    """

    span: int
    offset: int


START = Position(-1, 0)
"""Where nothing has been read yet."""


class Mark(NamedTuple):
    """A place in a record to which its run may go back: the position, and for `Record` alone the
    numbers of steps, and the bytes of each stream.
    """

    position: Position
    first: int
    step: int
    sizes: dict[int, int]


class Restored(NamedTuple):
    """The run's machine, or its server, was lost, and the run goes on from what was saved of it at
    `mark`: what it put out behind that counts for nothing, and comes again. `repeats`: this record
    holds such output. `steps` had ended by then.
    """

    reason: str
    mark: Mark
    steps: int
    repeats: bool


RunEvent: TypeAlias = Stage | Stdout | Stderr | StepResult | CaseResult | Attempt | Restored | Failed | Verdict
"""What happens in a run: a Verdict is the last event, a Failed may come before it."""


class Record:
    """Append-only; `closed` when nothing more will come. Whoever appends bounds how much comes (the
    conversation's limits).

    Attributes:
        restored: how often its run has gone on from a save.
        lives: where each earlier server's record of the run, which is lost, left this one: what
            came behind that there is not here.
    """

    def __init__(self) -> None:
        self.closed = False
        self.restored = 0
        self.lives: tuple[Position, ...] = ()
        self._before: dict[int, bytes] = {}  # what streams begin with that is in earlier ones
        self._streams: dict[int, bytearray] = {}
        self._first: dict[int, int] = {}  # span of each stream's beginning
        self._events: list[RunEvent] = []
        self._spans = array.array("Q")  # the span's end in its stream, or the event's index, above STREAM_BITS
        self._step = 0
        self._steps = 0  # of all attempts but the last one
        self._of_cases = 0  # bytes of output in events
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """About how many bytes of memory it takes."""
        output = sum(map(len, self._streams.values())) + self._of_cases
        output += sum(map(len, self._before.values()))
        return output + self._spans.itemsize * len(self._spans) + EVENT_BYTES * len(self._events)

    def append(self, event: RunEvent) -> None:
        """Append an event. Output belongs to the step of the last Stage."""
        if isinstance(event, Stdout | Stderr):
            self._output(2 * self._step + (1 if isinstance(event, Stdout) else 2), event.data)
        else:
            if isinstance(event, Stage):
                self._step = self._steps + event.step
            elif isinstance(event, Attempt):
                self._step = self._steps = self._step + 1
            elif isinstance(event, Restored):
                self._go_back(event.mark)
            elif isinstance(event, CaseResult):
                self._of_cases += len(event.stdout) + len(event.stderr)
            self._spans.append(len(self._events) << STREAM_BITS | EVENT)
            self._events.append(event)
        self._wake()

    def _output(self, number: int, data: bytes) -> None:
        if not data:
            return
        stream = self._streams.setdefault(number, bytearray())
        self._first.setdefault(number, len(self._spans))
        stream += data
        span = len(stream) << STREAM_BITS | number
        if self._spans and _number(self._spans[-1]) == number:
            self._spans[-1] = span
        else:
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
        """All of a step's standard output and standard error, in the last attempt."""
        step += self._steps
        return self._whole(2 * step + 1), self._whole(2 * step + 2)

    def _whole(self, number: int) -> bytes:
        return self._before.get(number, b"") + self._streams.get(number, b"")

    def mark(self) -> Mark:
        """This place."""
        numbers = {number for number in (*self._streams, *self._before) if number > 2 * self._steps}
        return Mark(self.end, self._steps, self._step, {number: len(self._streams.get(number, b"")) for number in numbers})

    def may_go_back(self, mark: Mark) -> bool:
        """Whether a run can go back to `mark` here, as it can to a mark of its own record."""
        first, step = mark.first, mark.step
        known = 0 <= first <= self._steps and first <= step <= self._step
        return known and self.restored < MAX_RESTORED and all(2 * first < number <= 2 * step + 2 for number in mark.sizes)

    def _go_back(self, mark: Mark) -> None:
        """What comes belongs behind `mark`. All that is here stays, for readers, but is no longer
        part of what the run has put out.
        """
        self.restored += 1
        steps = self._step + 1
        for number, size in mark.sizes.items():
            before = self._before.get(number, b"") + self._streams.get(number, b"")[:size]
            self._before[number + 2 * (steps - mark.first)] = bytes(before)
        self._step, self._steps = steps + mark.step - mark.first, steps

    @property
    def end(self) -> Position:
        """Behind all that is there."""
        span = len(self._spans) - 1
        return Position(span, self._end(span))

    def has(self, position: Position) -> bool:
        """Whether a reader can have come to `position`."""
        span, offset = position
        if not 0 <= span < len(self._spans):
            return position == START
        return offset == 0 if _number(self._spans[span]) == EVENT else self._begin(span) < offset <= self._end(span)

    def ends_at(self, position: Position) -> bool:
        """Whether nothing comes after `position`, now or later."""
        return self.closed and position.span == len(self._spans) - 1 and position.offset == self._end(position.span)

    def _begin(self, span: int) -> int:
        """Where a span of output begins in its stream: at the end of the stream's span before it.
        That one is near, since a step has two streams.
        """
        number = _number(self._spans[span])
        if span == self._first[number]:
            return 0
        span -= 1
        while _number(self._spans[span]) != number:
            span -= 1
        return self._end(span)

    def _end(self, span: int) -> int:
        """Where a span ends in its stream; 0 of an event, and of START."""
        return 0 if span < 0 or _number(self._spans[span]) == EVENT else self._spans[span] >> STREAM_BITS


def _number(span: int) -> int:
    return span & ((1 << STREAM_BITS) - 1)


class Reader:
    """One reader of a record: `position` is behind what it has taken.

    With `text`, output is not cut within a UTF-8 character: while the rest of one may still come,
    its first bytes wait. At most `size` bytes of output are taken at a time.
    """

    def __init__(self, record: Record, *, text: bool = False, after: Position = START, size: int = PIECE) -> None:
        self.position = after
        self._record = record
        self._text = text
        self._size = size

    def take(self) -> RunEvent | None:
        """The next event, or piece of output; None if there is nothing more for now."""
        record = self._record
        spans = record._spans
        span, at = self.position
        if at == record._end(span):  # the last span may grow yet: stay in it
            span += 1
            if span == len(spans):
                return None
            if _number(spans[span]) == EVENT:
                self.position = Position(span, 0)
                return record._events[spans[span] >> STREAM_BITS]
            at = record._begin(span)
        number, end = _number(spans[span]), record._end(span)
        data = bytes(record._streams[number][at : min(end, at + self._size)])
        if self._text and (rest := _unfinished(data)):
            if rest < len(data):
                data = data[:-rest]
            elif span + 1 == len(spans) and not record.closed:
                return None
        self.position = Position(span, at + len(data))
        return Stdout(data) if number % 2 else Stderr(data)

    async def wait(self) -> bool:
        """Wait until there may be more. False when the record is closed: all that `take` gives now
        is all there is.
        """
        if self._record.closed:
            return False
        await self._record.changed()
        return True


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a UTF-8 character without completing it: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if back < need and byte < 0xF5 else 0
    return 0
