"""Read a layer's tar: members in order, with the place of their contents. Reads through a function,
so it opens nothing.

POSIX ustar and pax (IEEE 1003.1, pax, ustar Interchange Format), GNU long names and base-256
numbers (GNU tar, "Basic Tar Format"). Whoever packed the layer is hostile: each number is checked,
each name bounded, and everything else is a LayerError.
"""

import dataclasses
import functools
import struct
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from mayfly.errors import LayerError
from mayfly.imagegen.rootfs.sparse import PAX_KEYS, Pieces, Sparse, read_old, read_pax

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Bytes of the extended headers in front of one member, together. PATH_MAX is 4,096."""
RECORDS_PER_MEMBER = 16
"""How many pax records a layer may have for each member that the limit allows."""
MAX_PATH = 4095
NO_ID = 0xFFFF_FFFF
"""chown(2) reads this id as "leave it": what unpacks it as root keeps root's."""

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
"""name mode uid gid size mtime checksum type linkname magic version uname gname devmajor devminor
prefix (pax, ustar Header Block).
"""
_CHECKSUM = slice(148, 156)
_RECORDS = {key.encode(): key for key in ("path", "linkpath", "size", "uid", "gid", *PAX_KEYS)}
"""The pax records that count. All others are passed over, so that none of them takes memory."""
_SPARSE_MAP = "GNU.sparse.map"
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_LONGEST = 1 + max(len(key) for key in (*_RECORDS, *_SPARSE_PAIR))


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
    b"S": Kind.FILE,
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
    `size` bytes at `offset`, or those of `pieces` of a sparse one.
    """

    kind: Kind
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    offset: int
    size: int
    pieces: Pieces | None = None


def read_members(read_at: Callable[[int, int], bytes], total: int, max_members: int) -> Iterator[Member]:
    """Yield the members of a tar of `total` bytes; `read_at(offset, size)` gives its bytes.

    Raises:
        LayerError: the tar is damaged, ends early, has more than `max_members` members, or has
            something that no layer needs (volumes, incremental dumps).
    """
    offset = members = extended = 0
    records = max_members * RECORDS_PER_MEMBER
    pieces = max_members
    own: dict[str, bytes] = {}
    while True:
        if offset == total and not extended:
            return  # no end-of-archive blocks: Go's writers may omit them, and the digests already say that the tar is whole
        block = read_at(offset, BLOCK) if offset + BLOCK <= total else b""
        if len(block) != BLOCK:
            raise LayerError(f"the layer's tar ends within a header at byte {offset}")
        if block.count(0) == BLOCK:
            if extended:
                raise LayerError(f"the layer's tar ends at byte {offset} after an extended header")
            return
        (name, mode, uid, gid, size_field, _, checksum, kind, link, magic, _, _, _, _, _, prefix) = _HEADER.unpack(block)
        if _number(checksum, "checksum", offset) not in _sums(block):
            raise LayerError(f"the layer's tar has a header with a wrong checksum at byte {offset}")
        data_at = offset + BLOCK
        if kind in b"xgLK":
            size = _number(size_field, "size", offset)
            _fits(data_at, size, total, offset)
            extended += BLOCK + size
            if extended > MAX_EXTENSION:
                raise LayerError(
                    f"the layer's tar has extended headers of {extended} bytes in front of one member at byte {offset}; "
                    f"at most {MAX_EXTENSION} are allowed"
                )
            match kind:
                case b"x":
                    records -= _pax(read_at(data_at, size), offset, records, own)
                case b"g":
                    pass  # no tool puts into a layer's global header what matters here
                case b"L":
                    own["path"] = _bounded(read_at(data_at, size).rstrip(b"\0"), offset)
                case _:
                    own["linkpath"] = _bounded(read_at(data_at, size).rstrip(b"\0"), offset)
            offset = _next(data_at, size)
            continue
        members += 1
        if members > max_members:
            raise LayerError(f"it has more than {max_members} members", hint="if that is right for this image, raise --max-entries")
        if kind not in _KINDS:
            raise LayerError(f"the layer's tar has a member of type {kind!r} at byte {offset}, which is not supported")
        size = _number(own["size"], "size", offset, base=10) if "size" in own else _number(size_field, "size", offset)
        fields, own, extended = own, {}, 0
        short = _text(name)
        if magic == b"ustar\0" and prefix[0] and kind != b"S":
            short = _text(prefix) + b"/" + short
        path = fields.get("GNU.sparse.name") or fields.get("path", short)
        member_kind = _KINDS[kind]
        if member_kind is Kind.FILE and path.endswith(b"/"):
            member_kind = Kind.DIRECTORY  # how tar wrote directories before it had a type for them
        # Only files have contents; a size in the header of anything else is read past, as GNU tar
        # and Go do it for links.
        length = size if kind in b"07S\0" else 0
        sparse: Sparse | None = None
        if member_kind is Kind.FILE and kind == b"S":
            number = functools.partial(_number, what="sparse map", offset=offset)
            sparse = read_old(block, data_at, length, read_at, number, pieces)
            data_at = sparse.data_at
        _fits(data_at, length, total, offset)
        if member_kind is Kind.FILE and kind != b"S":
            sparse = read_pax(fields, data_at, length, read_at, pieces)
        pieces -= len(sparse.pieces) if sparse else 0
        yield Member(
            kind=member_kind,
            name=_bounded(path, offset),
            link=_bounded(fields.get("linkpath", _text(link)), offset),
            mode=_number(mode, "mode", offset) & 0o7777,
            uid=_identity(fields, "uid", uid, offset),
            gid=_identity(fields, "gid", gid, offset),
            offset=sparse.data_at if sparse else data_at,
            size=sparse.size if sparse else length if member_kind is Kind.FILE else 0,
            pieces=sparse.pieces if sparse else None,
        )
        offset = _next(data_at, length)


def is_tar(head: bytes) -> bool:
    """Whether a blob that begins with `head` (512 bytes, or all of it) can be a tar."""
    if len(head) < BLOCK:
        return not head
    try:
        return head.count(0) == BLOCK or _number(head[_CHECKSUM], "checksum", 0) in _sums(head)
    except LayerError:
        return False


def _sums(block: bytes) -> tuple[int, int]:
    """The checksum of a header: the standard's, of unsigned bytes, and that of old tars, of signed
    ones.
    """
    unsigned = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if block.isascii():
        return unsigned, unsigned
    return unsigned, unsigned - 256 * sum(byte > 127 for byte in block[: _CHECKSUM.start] + block[_CHECKSUM.stop :])


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
    """A user or group id as chown(2) takes it: a negative one counts from 2^32 down."""
    value = _number(fields[key], key, offset, 10, signed=True) if key in fields else _number(field, key, offset, signed=True)
    if not -(1 << 31) <= value <= NO_ID:
        raise LayerError(f"the layer's tar has the {key} {value} at byte {offset}; Linux takes {NO_ID - 1}")
    return 0 if value & NO_ID == NO_ID else value & NO_ID


def _number(field: bytes, what: str, offset: int, base: int = 8, *, signed: bool = False) -> int:
    """An octal or base-256 field, or a decimal one of a pax record. Negative only if `signed`."""
    if base == 8 and field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F | (field[0] & 0x40) << 1]) + field[1:], "big", signed=True)
        if value < 0 and not signed:
            raise LayerError(f"the layer's tar has a negative {what} at byte {offset}")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0] if base == 8 else field
    sign = -1 if signed and base == 10 and digits.startswith(b"-") else 1
    if sign < 0:
        digits = digits[1:]
    allowed = b"01234567" if base == 8 else b"0123456789"
    if (not digits and base == 10) or len(digits) > 20 or digits.strip(allowed):
        raise LayerError(f"the layer's tar has a {what} that is not a number at byte {offset}: {digits[:20]!r}")
    return sign * int(digits, base) if digits else 0


def _pax(data: bytes, offset: int, limit: int, into: dict[str, bytes]) -> int:
    r"""Put the records `LENGTH KEY=VALUE\n` of a pax header that count into `into` (IEEE 1003.1,
    pax Extended Header); how many records there were in all, which is at most `limit`.
    """
    at = count = 0
    sparse: list[bytes] = []
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        length = _number(data[at:space], "pax record's length", offset, base=10) if space > at else 0
        end = at + length
        equals = data.find(b"=", space, end)
        if length <= 0 or end > len(data) or equals < 0 or data[end - 1] != ord("\n"):
            raise LayerError(f"the layer's tar has a broken pax header at byte {offset}")
        count += 1
        if count > limit:
            raise LayerError(f"the layer's tar has too many pax records at byte {offset}", hint="do not use the image")
        name = data[space + 1 : equals] if equals - space <= _LONGEST else b""
        if name in _SPARSE_PAIR:
            sparse.append(data[equals + 1 : end - 1])
        elif (key := _RECORDS.get(name)) is not None:
            if value := data[equals + 1 : end - 1]:
                into[key] = value if key == _SPARSE_MAP else _bounded(value, offset)
            else:
                into.pop(key, None)  # an empty value takes a record back
        at = end
    if sparse:
        into[_SPARSE_MAP] = b",".join(sparse)
    return count
