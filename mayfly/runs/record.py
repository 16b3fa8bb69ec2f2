"""The record of one run: what it put out, in order, and the two ways of reading it.

The record is one growing string of bytes, cut into **spans**: bytes of standard output, of standard
error, or another event's JSON line. Consecutive pieces of the same stream are one span, so a guest
that writes byte by byte costs no more than one that writes at once, and a span costs eight bytes
however short it is. Readers hold nothing but a position, which is why they may be late, slow or
many.
"""

import array
import asyncio
import base64
import enum
import json
from typing import Any

PIECE = 64 * 1024
"""A reader is given at most this many bytes of output at a time."""


class Kind(enum.IntEnum):
    """What a span holds."""

    STDOUT = 0
    STDERR = 1
    EVENT = 2


class Mode(enum.StrEnum):
    """What the output socket gives: the programs' bytes alone, or a JSON object a line."""

    RAW = "raw"
    EVENTS = "events"


class Record:
    """Append-only; `closed` when nothing more will come. How much comes in is bounded by whoever
    appends (the session's limits).
    """

    def __init__(self) -> None:
        self.closed = False
        self._bytes = bytearray()
        self._spans = array.array("Q")  # the end of each span in _bytes, shifted left by two bits to make room for its kind
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._bytes) + self._spans.itemsize * len(self._spans)

    def output(self, kind: Kind, data: bytes) -> None:
        """Append bytes of a stream."""
        if data:
            self._append(kind, data, joins=True)

    def event(self, name: str, **fields: Any) -> None:
        """Append another event; it becomes a line of its own in the events mode, and nothing in the
        raw one.
        """
        self._append(Kind.EVENT, _line(name, **fields), joins=False)

    def close(self) -> None:
        """Say that nothing more will come."""
        self.closed = True
        self._wake()

    def _append(self, kind: Kind, data: bytes, joins: bool) -> None:
        self._bytes += data
        span = len(self._bytes) << 2 | kind
        if joins and self._spans and self._spans[-1] & 3 == kind:
            self._spans[-1] = span
        else:
            self._spans.append(span)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next append or the close. What is there already must be read first."""
        await self._changed.wait()


class Reader:
    """One reader's position in a record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._position = 0
        self._span = 0

    def _next_span(self) -> tuple[Kind, int, bool] | None:
        """Kind and end of the span at the position, and whether it can still grow; None at the end
        of what is there.
        """
        spans = self._record._spans
        while self._span < len(spans):
            kind, end = Kind(spans[self._span] & 3), spans[self._span] >> 2
            if self._position < end:
                return kind, end, self._span + 1 == len(spans) and not self._record.closed
            if self._span + 1 == len(spans):
                return None  # this span may grow yet: stay in it
            self._span += 1
        return None

    def take(self) -> tuple[Kind, bytes] | None:
        """The next piece of at most PIECE bytes, or of one whole event; None if there is nothing
        more for now.
        """
        found = self._next_span()
        if found is None:
            return None
        kind, end, _ = found
        return kind, self._advance(end if kind is Kind.EVENT else min(end, self._position + PIECE))

    def take_rendered(self, mode: Mode) -> bytes | None:
        """The next piece as the output socket gives it; None if there is nothing more for now.

        Events mode: a piece of output is `{"event": "stdout", "data": TEXT}` if its bytes are
        UTF-8, else it has `"base64"` instead. A character whose last bytes are still to come is
        held back for the next piece, so that text is not cut in the middle of one.
        """
        while (found := self._next_span()) is not None:
            kind, end, growing = found
            if kind is Kind.EVENT:
                piece = self._advance(end)
                if mode is Mode.EVENTS:
                    return piece
                continue
            limit = min(end, self._position + PIECE)
            if mode is Mode.RAW:
                return self._advance(limit)
            piece = bytes(self._record._bytes[self._position : limit])
            keep = _unfinished(piece) if growing or limit < end else 0
            if keep == len(piece):
                return None
            self._position = limit - keep
            return _line(kind.name.lower(), **encode(piece[: len(piece) - keep]))
        return None

    def _advance(self, end: int) -> bytes:
        piece = bytes(self._record._bytes[self._position : end])
        self._position = end
        return piece

    async def wait(self) -> bool:
        """Wait until there may be more. False when the record is closed: all that `take` gives now
        is all there is.
        """
        if self._record.closed:
            return False
        await self._record.changed()
        return True


def encode(data: bytes) -> dict[str, str]:
    """`data` for JSON: `{"data": text}` if it is UTF-8, `{"base64": …}` if it is not."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _line(name: str, **fields: Any) -> bytes:
    return json.dumps({"event": name, **fields}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a UTF-8 character without completing it: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if back < need and byte < 0xF5 else 0
    return 0
