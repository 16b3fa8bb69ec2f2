"""What clients type for an interactive run of a fleet. Gateways keep it in the registry, in one
order whichever of them it came to: each attempt of the run gets the same bytes, and a terminal of
the size that it had last.
"""

import secrets
from collections.abc import Mapping

import msgspec

from mayfly.errors import MayflyError, RunEndedError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.message import Registered, Size, decode, encode
from mayfly.runs.stdin import LiveStdin, StdinWriter

KEPT = 256 * 1024
"""Bytes of input that are kept; a run that got more has one attempt."""
CHUNK = 4 * 1024
"""Bytes of a value that is added to no more: each addition stores the value anew."""


class Chunk(msgspec.Struct, kw_only=True):
    """A piece of the input. `by` has the bytes, from the beginning on, of each who added to it or
    to the one before. Nothing follows a chunk that is `ended`, or `closed`, as there was more than
    is kept.
    """

    data: bytes = b""
    by: Mapping[str, int] = {}
    ended: bool = False
    closed: bool = False


class Typed:
    """The input of one run, as far as it is known here.

    Attributes:
        name: whose additions these are; no two have the same.
        data: all of it.
        ended: whether it is at its end.
        closed: whether there was more than is kept.
    """

    def __init__(self, bucket: Bucket, registered: Registered) -> None:
        self.name = secrets.token_hex(8)
        self.data = bytearray()
        self.ended = self.closed = False
        self._bucket = bucket
        self._place = f"typed.{registered.head.id}.{registered.token}"
        self._number, self._start, self._revision = 0, 0, 0  # of the chunk that is added to
        self._by: Mapping[str, int] = {}
        self._by_before = self._by  # as the chunk began
        self._added = self._ours = 0  # of these, those that are known to be kept

    async def look(self, *, renew: bool = False) -> None:
        """Learn what others have added. With `renew` all is kept as long as if it came now. Raises
        SilenceError.
        """
        if renew and (size := await self.size()) is not None:
            await self.keep_size(size)
        while not (self.ended or self.closed):
            entry = await self._bucket.get(self._key)
            if entry is None or entry.revision <= self._revision:  # an older one, of a server that lags behind
                return
            if renew:
                await self._bucket.update(self._key, entry.value, entry.revision)
            number = self._number
            self._take(decode(entry.value, type=Chunk), entry.revision)
            if self._number == number:
                return

    async def add(self, data: bytes) -> bool:
        """Keep what comes next, or, if it is empty, that this is the end. False: it is `ended` or
        `closed`.

        Raises:
            SilenceError: it may be kept or not. The same once more finds out.
        """
        added = self._added + len(data)
        while self._ours < added or not (data or self.ended):
            if self.ended or self.closed:
                return False
            chunk = Chunk(data=bytes(self.data[self._start :]) + data, by={**self._by, self.name: added}, ended=not data)
            if len(self.data) + len(data) > KEPT:
                chunk = Chunk(data=bytes(self.data[self._start :]), by=self._by, closed=True)
            if revision := await self._bucket.update(self._key, encode(chunk), self._revision):
                self._take(chunk, revision)
            else:
                await self.look()
        self._added = added
        return True

    async def size(self) -> Size | None:
        """The size that the terminal got last, if it got another one. Raises SilenceError."""
        entry = await self._bucket.get(f"{self._place}.size")
        return decode(entry.value, type=Size) if entry is not None else None

    async def keep_size(self, size: Size) -> None:
        """The terminal has got another size. Raises SilenceError."""
        await self._bucket.put(f"{self._place}.size", encode(size))

    async def forget(self) -> None:
        """Keep nothing of it. Raises SilenceError."""
        await self.look()
        await self._bucket.delete(f"{self._place}.size")
        for number in range(self._number + 1):
            await self._bucket.delete(f"{self._place}.{number}")

    @property
    def _key(self) -> str:
        return f"{self._place}.{self._number}"

    def _take(self, chunk: Chunk, revision: int) -> None:
        self.data[self._start :] = chunk.data
        self.ended, self.closed, self._by, self._revision = chunk.ended, chunk.closed, chunk.by, revision
        self._ours = max(self._ours, chunk.by.get(self.name, 0))
        if len(chunk.data) >= CHUNK and not (chunk.ended or chunk.closed):
            self._number, self._start, self._revision = self._number + 1, len(self.data), 0
            self._by = self._by_before = {who: count for who, count in chunk.by.items() if self._by_before.get(who) != count}


class KeptStdin(LiveStdin):
    """Standard input at a gateway: who writes can wait until it is kept."""

    def __init__(self) -> None:
        super().__init__()
        self._read = self._kept = 0
        self._end_kept = False
        self._refusal: MayflyError | None = None

    async def read(self, most: int) -> bytes:
        """As LiveStdin has it; what was read is to be `settled`."""
        data = await super().read(most)
        self._read += len(data)
        return data

    def settled(self, data: bytes) -> None:
        """What was read next, or the end, is kept."""
        self._kept += len(data)
        self._end_kept = not data
        self._wake()

    def refuse(self, error: MayflyError) -> None:
        """Take no more: who writes, or waits until that is kept, gets the error."""
        self._refusal = error
        self._wake()

    async def kept(self) -> None:
        """Wait until all is kept that was written. Raises as StdinWriter.write: it is not."""
        goal, ended = self._read + len(self.waiting), self._ended
        while self._kept < goal or (ended and not self._end_kept):
            if self._refusal is not None:
                raise self._refusal
            if self._closed:
                raise RunEndedError("the run is over")
            await self._changed.wait()

    def _hold(self, writer: StdinWriter) -> None:
        if self._refusal is not None:
            raise self._refusal
        super()._hold(writer)
