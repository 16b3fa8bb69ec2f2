"""Read a layer's tar: members in order, with the place of their contents. Reads through a function,
so it opens nothing.

POSIX ustar and pax (IEEE 1003.1, pax, ustar Interchange Format), GNU long names and base-256
numbers (GNU tar, "Basic Tar Format"). Whoever packed the layer is hostile: each number is checked,
each name bounded, and everything else is a LayerError.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from mayfly.errors import LayerError

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""A pax header or a GNU long name may have this many bytes; PATH_MAX is 4,096."""
MAX_PATH = 4095
MAX_ID = 0xFFFF_FFFE

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
"""name mode uid gid size mtime checksum type linkname magic version uname gname devmajor devminor
prefix (pax, ustar Header Block).
"""
_CHECKSUM = slice(148, 156)


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    FIFO = "fifo"
    DEVICE = "device"


_KINDS: Mapping[bytes, Kind] = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One entry. `name` and `link` are raw, as unsafe as they came; the contents of a file are
    `size` bytes at `offset`.
    """

    kind: Kind
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    offset: int
    size: int


def read_members(read_at: Callable[[int, int], bytes], total: int) -> Iterator[Member]:
    """Yield the members of a tar of `total` bytes; `read_at(offset, size)` gives its bytes.

    Raises:
        LayerError: the tar is damaged, ends early, or has something that no layer needs (sparse
            files, volumes, incremental dumps).
    """
    offset = 0
    own: dict[str, bytes] = {}
    while True:
        if offset == total and not own:
            return  # no end-of-archive blocks: Go's writers may omit them, and the digests already say that the tar is whole
        block = read_at(offset, BLOCK) if offset + BLOCK <= total else b""
        if len(block) != BLOCK:
            raise LayerError(f"the layer's tar ends within a header at byte {offset}")
        if block.count(0) == BLOCK:
            if own:
                raise LayerError(f"the layer's tar ends at byte {offset} after an extended header")
            return
        (name, mode, uid, gid, size_field, _, checksum, kind, link, magic, _, _, _, _, _, prefix) = _HEADER.unpack(block)
        if _number(checksum, "checksum", offset) != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
            raise LayerError(f"the layer's tar has a header with a wrong checksum at byte {offset}")
        data_at = offset + BLOCK
        size = _number(own["size"], "size", offset, base=10) if "size" in own else _number(size_field, "size", offset)
        if kind in b"xgLK":
            size = _number(size_field, "size", offset)
            _fits(data_at, size, total, offset)
            if size > MAX_EXTENSION:
                raise LayerError(
                    f"the layer's tar has an extended header of {size} bytes at byte {offset}; at most {MAX_EXTENSION} are allowed"
                )
            data = read_at(data_at, size)
            match kind:
                case b"x":
                    own.update(_pax(data, offset))
                case b"g":
                    _pax(data, offset)  # checked, but no tool puts into a layer's global header what matters here
                case b"L":
                    own["path"] = data.rstrip(b"\0")
                case _:
                    own["linkpath"] = data.rstrip(b"\0")
            offset = _next(data_at, size)
            continue
        if kind not in _KINDS or any(key.startswith("GNU.sparse") for key in own):
            raise LayerError(f"the layer's tar has a member of type {kind!r} or a sparse file at byte {offset}; neither is supported")
        fields, own = own, {}
        short = _text(name)
        if magic == b"ustar\0" and prefix[0]:
            short = _text(prefix) + b"/" + short
        path = fields.get("path", short)
        member_kind = _KINDS[kind]
        if member_kind is Kind.FILE and path.endswith(b"/"):
            member_kind = Kind.DIRECTORY  # how tar wrote directories before it had a type for them
        # Only files have contents; a size in the header of anything else is read past, as GNU tar
        # and Go do it for links.
        length = size if kind in b"07\0" else 0
        _fits(data_at, length, total, offset)
        yield Member(
            kind=member_kind,
            name=_bounded(path, offset),
            link=_bounded(fields.get("linkpath", _text(link)), offset),
            mode=_number(mode, "mode", offset) & 0o7777,
            uid=_identity(fields, "uid", uid, offset),
            gid=_identity(fields, "gid", gid, offset),
            offset=data_at,
            size=length if member_kind is Kind.FILE else 0,
        )
        offset = _next(data_at, length)


def _next(data_at: int, size: int) -> int:
    return data_at + -(-size // BLOCK) * BLOCK


def _fits(data_at: int, size: int, total: int, offset: int) -> None:
    if data_at + size > total:
        raise LayerError(f"the layer's tar ends within the {size} bytes of the member at byte {offset}")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _bounded(path: bytes, offset: int) -> bytes:
    if b"\0" in path:
        raise LayerError(f"the layer's tar has a name with a NUL in it at byte {offset}")
    if len(path) > MAX_PATH:
        raise LayerError(f"the layer's tar has a name of {len(path)} bytes at byte {offset}; Linux takes {MAX_PATH}")
    return path


def _identity(fields: Mapping[str, bytes], key: str, field: bytes, offset: int) -> int:
    value = _number(fields[key], key, offset, base=10) if key in fields else _number(field, key, offset)
    if value > MAX_ID:
        raise LayerError(f"the layer's tar has the {key} {value} at byte {offset}; Linux takes {MAX_ID}")
    return value


def _number(field: bytes, what: str, offset: int, base: int = 8) -> int:
    """An octal or base-256 field, or a decimal one of a pax record. Never negative."""
    if base == 8 and field[0] & 0x80:
        if field[0] & 0x40:
            raise LayerError(f"the layer's tar has a negative {what} at byte {offset}")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.strip(b" \0") if base == 8 else field
    allowed = b"01234567" if base == 8 else b"0123456789"
    if (not digits and base == 10) or len(digits) > 20 or digits.strip(allowed):
        raise LayerError(f"the layer's tar has a {what} that is no number at byte {offset}: {digits[:20]!r}")
    return int(digits, base) if digits else 0


def _pax(data: bytes, offset: int) -> dict[str, bytes]:
    r"""The records `LENGTH KEY=VALUE\n` of a pax header (IEEE 1003.1, pax Extended Header)."""
    records = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        length = _number(data[at:space], "pax record's length", offset, base=10) if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if length <= 0 or at + length > len(data) or not record.endswith(b"\n") or not equals:
            raise LayerError(f"the layer's tar has a broken pax header at byte {offset}")
        if value:  # an empty value takes a record back
            records[key.decode("utf-8", "replace")] = value
        at += length
    return records
