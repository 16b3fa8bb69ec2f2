"""Invariant: whatever comes, `unpacked` gives what was packed, or raises SnapshotError, and takes
no more memory than a block has.
"""

import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import SnapshotError
from mayfly.snapshots.wire import BLOCK, MAX_BLOCK, Packer, unpacked
from tests.kit.virtual_time import VirtualLoop


async def packed(pieces: list[bytes], limit: float | None = None) -> bytes:
    sent = bytearray()

    async def write(data: bytes) -> None:
        sent.extend(data)

    packer = Packer(write, limit)
    for piece in pieces:
        await packer.put(piece)
    await packer.flush(last=True)
    assert packer.sent == len(sent)
    return bytes(sent)


async def unpack(data: bytes, most: int = MAX_BLOCK) -> bytes:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return b"".join([block async for block in unpacked(lambda count: reader.read(min(count, most)))])


@given(st.lists(st.binary(max_size=200) | st.integers(0, BLOCK).map(bytes), max_size=6), st.integers(1, 3000))
def test_what_was_packed_comes_out(pieces: list[bytes], most: int) -> None:
    assert asyncio.run(unpack(asyncio.run(packed(pieces)), most)) == b"".join(pieces)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        asyncio.run(unpack(data[:200]))


@given(st.data())
def test_a_turned_bit_is_refused_or_makes_other_bytes(data: st.DataObject) -> None:
    """Their number is never more than blocks of the largest size have."""
    whole = bytearray(asyncio.run(packed([b"abcabcabc" * 500, bytes(5000)])))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(SnapshotError):
        assert len(asyncio.run(unpack(bytes(whole)))) <= MAX_BLOCK


def test_a_block_that_says_it_is_huge_takes_no_memory() -> None:
    """The size in zstd's own header counts too."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < MAX_BLOCK
    head = (MAX_BLOCK).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + b"\1\0\0\0"
    with pytest.raises(SnapshotError, match="a block of 268435456 bytes"):
        asyncio.run(unpack(head + bomb))


def test_a_limit_is_kept() -> None:
    """4 MiB that cannot be compressed, at 1 MiB a second."""
    loop = VirtualLoop()
    task = loop.create_task(packed([random.Random(1).randbytes(4 << 20)], limit=1 << 20))
    for _ in range(390):
        loop.advance(0.01)
        assert not task.done()
    for _ in range(40):
        loop.advance(0.01)
    assert len(task.result()) > 4 << 20
    loop.close()


def test_a_slow_link_gets_compressed_blocks() -> None:
    pieces = [b"%08d" % number * 32768 for number in range(16)]
    sent = len(asyncio.run(packed(pieces)))
    assert sent < sum(map(len, pieces))
