"""Standard input of an interactive run: written to while the run is under way, by one at a time.

Whoever writes waits while the program does not read: no more than ROOM bytes are held.
"""

import asyncio
from typing import Self

from mayfly.errors import RunEndedError, StdinEndedError, StdinTakenError
from mayfly.guests.converse import BytesStdin

ROOM = 64 * 1024
"""Bytes that may wait for the program."""


class LiveStdin:
    """A source of standard input that stays open. `first` comes before what is written."""

    def __init__(self, first: bytes = b"") -> None:
        self._first = BytesStdin(first)
        self._waiting = bytearray()
        self._ended = False
        self._closed = False
        self._writer: StdinWriter | None = None
        self._changed = asyncio.Event()

    async def read(self, most: int) -> bytes:
        """At least one and at most `most` bytes; empty at the end."""
        if data := await self._first.read(most):
            return data
        while not self._waiting and not self._ended:
            await self._changed.wait()
        data = bytes(self._waiting[:most])
        del self._waiting[:most]
        self._wake()
        return data

    def start_with(self, first: bytes) -> None:
        """Have `first` come before what nobody has read yet."""
        self._first = BytesStdin(first + self._first.waiting)

    def skip(self, count: int) -> None:
        """Have nobody read the next `count` bytes, which are there."""
        waiting = self._first.waiting
        self._first = BytesStdin(waiting[count:])
        del self._waiting[: max(0, count - len(waiting))]

    @property
    def waiting(self) -> bytes:
        """What nobody has read yet."""
        return self._first.waiting + self._waiting

    @property
    def ended(self) -> bool:
        """Whether nothing comes after what waits."""
        return self._ended

    async def kept(self) -> None:
        """Wait until what was written is where it is not lost before the run is. Raises as
        StdinWriter.write.
        """

    def close(self) -> None:
        """Say that the run is over; who waits in a write gets a RunEndedError."""
        self._closed = True
        self._waiting.clear()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _hold(self, writer: "StdinWriter") -> None:
        """Have `writer` be the one who writes."""
        if self._closed:
            raise RunEndedError("the run is over")
        if self._ended:
            raise StdinEndedError("the run's standard input is at its end", hint="nothing more can be sent")
        if self._writer not in (None, writer):
            raise StdinTakenError("another client writes to the run's standard input", hint="wait until it goes, or only read")
        self._writer = writer

    async def _write(self, writer: "StdinWriter", data: bytes) -> None:
        while True:
            self._hold(writer)
            piece = data[: ROOM - len(self._waiting)]
            self._waiting += piece
            writer.written += len(piece)
            data = data[len(piece) :]
            if piece:
                self._wake()
            if not data:
                return
            await self._changed.wait()

    def _end(self, writer: "StdinWriter") -> None:
        self._hold(writer)
        self._ended = True
        self._wake()

    def _release(self, writer: "StdinWriter") -> None:
        if self._writer is writer:
            self._writer = None


class StdinWriter:
    """One who may write to a run's standard input. Its first write keeps all others out until the
    block is left.

    Attributes:
        written: the bytes that standard input has taken of it.
    """

    def __init__(self, stdin: LiveStdin) -> None:
        self.written = 0
        self._stdin = stdin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write, until the next write here."""
        self._stdin._release(self)

    async def write(self, data: bytes) -> None:
        """Write bytes, waiting while there is no room for them.

        Raises:
            StdinTakenError: somebody else writes.
            StdinEndedError: it has been ended.
            RunEndedError: the run is over.
        """
        await self._stdin._write(self, data)

    def end(self) -> None:
        """End standard input. Raises what `write` does."""
        self._stdin._end(self)
