"""A machine's stream (protocol/pages.py) between two hosts: in blocks, compressed where that
is quicker, and not faster than somebody allows.

A block is {bytes u32, bytes as sent u32, last u8, 3 zero bytes} in little endian and the bytes:
with zstd if they are fewer, as they are if not. Who receives it takes it for hostile.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from mayfly.errors import SnapshotError

Write = Callable[[bytes], Awaitable[None]]
"""Sends all of it, waiting while the other side is slower."""
Read = Callable[[int], Awaitable[bytes]]
"""Gives from 1 to so many bytes; none at the end."""

BLOCK = 256 << 10  # Bytes of a block, at which it is sent
MAX_BLOCK = 1 << 20
LEVEL = -5  # Of zstd: about as quick as LZ4
_HEAD = struct.Struct("<IIB3s")
_TRIED = 16  # Each so manieth block is compressed to see whether that pays
_WEIGHT = 1 / 8  # Of the newest block in what was measured
_BURST_S = 0.02  # What a limit lets through at once


class Packer:
    """Makes blocks of what it is given, and sends them with `write`; `limit` is in bytes a second.

    Attributes:
        sent: bytes that went to `write`.
    """

    def __init__(self, write: Write, limit: float | None) -> None:
        import zstandard  # only here: most processes never move a machine

        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._write, self._limit = write, limit
        self._now = asyncio.get_running_loop().time
        self._waiting = bytearray()
        self._blocks = 0
        self._free_at = 0.0
        self._link_s = self._pack_s = 0.0  # of a byte: on the link, and compressing it
        self._ratio = 1.0
        self.sent = 0

    async def put(self, *pieces: bytes) -> None:
        """Send them, or keep them for a block."""
        for piece in pieces:
            self._waiting += piece
        while len(self._waiting) >= BLOCK:
            data = bytes(self._waiting[:BLOCK])
            del self._waiting[:BLOCK]
            await self._send(data, last=False)

    async def flush(self, *, last: bool) -> None:
        """Send what was kept; nothing comes behind the `last` block."""
        if self._waiting or last:
            data = bytes(self._waiting)
            self._waiting.clear()
            await self._send(data, last=last)

    async def _send(self, data: bytes, *, last: bool) -> None:
        packed = self._pack(data)
        block = _HEAD.pack(len(data), len(packed), last, bytes(3)) + packed
        began = self._now()
        await self._write(block)
        self.sent += len(block)
        if self._limit:
            self._free_at = max(self._free_at, began) + len(block) / self._limit
            if (early := self._free_at - self._now()) > _BURST_S:
                await asyncio.sleep(early)
        self._link_s += _WEIGHT * ((self._now() - began) / len(block) - self._link_s)

    def _pack(self, data: bytes) -> bytes:
        """Compressed if a byte of it takes less time then, by what was measured."""
        self._blocks += 1
        if self._pack_s + self._ratio * self._link_s > self._link_s and self._blocks % _TRIED:
            return data
        began = self._now()
        packed = self._compressor.compress(data)
        if data:
            self._pack_s += _WEIGHT * ((self._now() - began) / len(data) - self._pack_s)
            self._ratio += _WEIGHT * (len(packed) / len(data) - self._ratio)
        return packed if len(packed) < len(data) else data


async def unpacked(read: Read) -> AsyncIterator[bytes]:
    """What the blocks hold, up to the last one's. Raises SnapshotError: damaged, or cut off."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    last = 0
    while not last:
        size, sent, last, zeros = _HEAD.unpack(await _exactly(read, _HEAD.size))
        if size > MAX_BLOCK or sent > size or last > 1 or any(zeros):
            raise _damaged(f"a block of {sent} bytes for {size}")
        data = await _exactly(read, sent)
        if sent < size:
            try:
                if (says := zstandard.get_frame_parameters(data).content_size) != size:  # so much memory it would take
                    raise _damaged(f"a block of {says} bytes, not {size}")
                data = decompressor.decompress(data)
            except zstandard.ZstdError as error:
                raise _damaged(f"a block that is not zstd: {error}") from error
        yield data


async def _exactly(read: Read, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await read(size - len(data))
        if not piece:
            raise _damaged("it ends too early")
        data += piece
    return bytes(data)


def _damaged(why: str) -> SnapshotError:
    return SnapshotError(f"what came of a machine is damaged: {why}", hint="try the move again")
