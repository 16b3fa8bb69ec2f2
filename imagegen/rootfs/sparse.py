"""Sparse files in a tar: which of their bytes are there, and where they belong.

GNU tar, "Storing Sparse Files": the old format, a type of member, and those of pax, 0.0, 0.1 and
1.0. They are read as Go's archive/tar reads them. bsdtar writes 1.0 for each file that has holes.
"""

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mayfly.errors import LayerError

BLOCK = 512
MAX_MAP = 1 << 20
"""Bytes of a map, in any format."""
PAX_KEYS = tuple(f"GNU.sparse.{name}" for name in ("major", "minor", "name", "size", "realsize", "map"))
"""The pax records that count; the map of 0.0, repeated records, is joined to one of 0.1."""
_SLOT = struct.Struct("12s12s")
_IN_HEADER = slice(386, 386 + 4 * _SLOT.size)
_IS_EXTENDED, _REAL_SIZE = 482, slice(483, 495)
"""Old format, header: four slots of offset and size, whether more follow, the file's size."""
_IN_BLOCK = slice(0, 21 * _SLOT.size)
_IS_EXTENDED_BLOCK = 504
"""Old format, each block behind the header: 21 slots, whether more follow."""

Pieces = tuple[tuple[int, int], ...]


class Sparse(NamedTuple):
    """A sparse file of `size` bytes. `pieces` are (offset, size) of those that are there, which
    follow one another from `data_at` on; all others are 0.
    """

    pieces: Pieces
    size: int
    data_at: int


def read_old(
    block: bytes, data_at: int, packed: int, read: Callable[[int, int], bytes], number: Callable[[bytes], int], most: int
) -> Sparse:
    """The sparse file of the old format whose header is `block`; `packed` of its bytes follow the
    map. `number` reads a header's number. There may be `most` pieces.

    Raises:
        LayerError: the map makes no sense or is too long.
    """
    slots, more = block[_IN_HEADER], block[_IS_EXTENDED]
    while more:
        extension = read(data_at, BLOCK)
        if len(extension) != BLOCK or len(slots) > MAX_MAP:
            raise LayerError("the layer's tar has a sparse file whose map does not end")
        slots, more = slots + extension[_IN_BLOCK], extension[_IS_EXTENDED_BLOCK]
        data_at += BLOCK
    numbers = [number(field) for slot in _SLOT.iter_unpack(slots) if slot[0][0] for field in slot]
    size = number(block[_REAL_SIZE])
    return Sparse(_pieces(numbers, size, packed, most), size, data_at)


def read_pax(fields: Mapping[str, bytes], data_at: int, packed: int, read: Callable[[int, int], bytes], most: int) -> Sparse | None:
    """The sparse file that the records `fields` tell of, or None if they tell of none; `packed`
    bytes are in the tar at `data_at`, the map of 1.0 included.

    Raises:
        LayerError: the map makes no sense or is too long.
    """
    version = fields.get("GNU.sparse.major", b""), fields.get("GNU.sparse.minor", b"")
    if version == (b"", b"") and "GNU.sparse.map" not in fields:
        return None
    size = _decimal(fields.get("GNU.sparse.size") or fields.get("GNU.sparse.realsize") or b"")
    match version:
        case (b"1", b"0"):
            numbers, taken = _read_map(data_at, packed, read)
        case (b"0", b"0" | b"1") | (b"", b""):
            text = fields.get("GNU.sparse.map", b"")
            numbers, taken = [_decimal(part) for part in text.split(b",")] if text else [], 0
        case _:
            raise LayerError(f"the layer's tar has a sparse file of the unknown version {version}", hint="pack it without --sparse")
    return Sparse(_pieces(numbers, size, packed - taken, most), size, data_at + taken)


def _read_map(data_at: int, packed: int, read: Callable[[int, int], bytes]) -> tuple[list[int], int]:
    """The numbers of a map of 1.0, lines before the contents, and the bytes that it takes."""
    lines: list[bytes] = []
    rest = b""
    taken = 0
    while not lines or len(lines) < 1 + 2 * _decimal(lines[0]):
        if taken + BLOCK > min(packed, MAX_MAP):
            raise LayerError("the layer's tar has a sparse file whose map does not end")
        *whole, rest = (rest + read(data_at + taken, BLOCK)).split(b"\n")
        lines += whole
        taken += BLOCK
    return [_decimal(line) for line in lines[1 : 1 + 2 * _decimal(lines[0])]], taken


def _pieces(numbers: list[int], size: int, packed: int, most: int) -> Pieces:
    pieces = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    if len(pieces) > most:
        raise LayerError("the layer's tar has too many pieces of sparse files", hint="pack it without --sparse")
    end = 0
    for offset, length in pieces:
        if offset < end or offset + length > size:
            raise LayerError(f"the layer's tar has a sparse file whose piece at {offset} of {length} bytes is out of its place")
        end = offset + length
    if len(numbers) % 2 or sum(length for _, length in pieces) != packed:
        raise LayerError("the layer's tar has a sparse file whose map and contents differ")
    return pieces


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise LayerError(f"the layer's tar has a sparse file with a map or size that is not a number: {text[:20]!r}")
    return int(text)
