"""The results of a fleet's runs: each is stored once, whole, and never replaced."""

import asyncio
import secrets

import msgspec

from mayfly.fleet.buckets import Bucket
from mayfly.fleet.failures import RefusedError, SilenceError
from mayfly.fleet.message import decode, encode

PIECE = 512 * 1024
"""Bytes of a value: a longer result lies in several, and the one that names them makes it whole."""
TRIES = 3
TRIAL = "trial"


class Value(msgspec.Struct, kw_only=True):
    """What lies under a run's id: the result, or the number of its pieces and where they are."""

    stamp: str
    data: bytes = b""
    pieces: int = 0


class Results:
    """Results by the ids of runs.

    Attributes:
        refused: whether the servers would not store the last one.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.refused = False
        self._bucket = bucket

    async def has(self, run_id: str) -> bool:
        """Whether there is one. Raises SilenceError."""
        return await self._bucket.get(run_id) is not None

    async def get(self, run_id: str) -> bytes | None:
        """The result, if there is one. Raises SilenceError."""
        entry = await self._bucket.get(run_id)
        if entry is None:
            return None
        value = decode(entry.value, type=Value)
        if not value.pieces:
            return value.data
        found = await asyncio.gather(*(self._bucket.get(f"{value.stamp}.{number}") for number in range(value.pieces)))
        return b"".join(piece.value for piece in found if piece is not None)

    async def create(self, run_id: str, data: bytes) -> bool:
        """Store the result, unless there is one. A try whose answer was lost counts if it was ours.

        Raises:
            SilenceError: nothing can be stored now.
        """
        try:
            stored = await self._create(run_id, data)
        except RefusedError:
            self.refused = True
            raise
        self.refused = False
        return stored

    async def try_one(self) -> None:
        """See whether one can be stored by now. Raises SilenceError: not now."""
        await self._bucket.put(TRIAL, bytes(PIECE))
        await self._bucket.delete(TRIAL)
        self.refused = False

    async def _create(self, run_id: str, data: bytes) -> bool:
        stamp = secrets.token_hex(16)
        value = Value(stamp=stamp, data=data)
        if len(data) > PIECE:
            pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
            for number, piece in enumerate(pieces):
                await self._bucket.put(f"{stamp}.{number}", piece)
            value = Value(stamp=stamp, pieces=len(pieces))
        for tries_left in reversed(range(TRIES)):
            try:
                if await self._bucket.create(run_id, encode(value)):
                    return True
                break
            except RefusedError:
                raise
            except SilenceError:
                if not tries_left:
                    raise
        entry = await self._bucket.get(run_id)
        return entry is not None and decode(entry.value, type=Value).stamp == stamp

    async def delete(self, run_id: str) -> None:
        """Remove it. Pieces are dropped in time. Raises SilenceError."""
        await self._bucket.delete(run_id)
