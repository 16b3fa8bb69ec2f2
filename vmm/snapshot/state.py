"""The typed state in a snapshot, checked like a guest's input: who wrote it may have been hijacked.

Each part has a record, whose tag is its version: one that changes what it saves gets another.
Numbers of 64 bits are packed (`pack_u64s`), as msgspec bounds none beyond 63.
"""

import struct
from collections.abc import Iterable
from typing import Annotated, TypeVar

from mayfly.errors import SnapshotError
from mayfly.schema import Meta, Record, msgspec

AGAIN = "remove the snapshot (mayfly snapshot rm) and make it again"
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_State = TypeVar("_State")


class Saved:
    """One part's state as it was read. `decode` checks it; errors name part, field and limit."""

    def __init__(self, part: str, data: bytes | msgspec.Raw) -> None:
        self.part = part
        self._data = data

    def decode(self, kind: type[_State]) -> _State:
        """The state. Raises SnapshotError: it is not a `kind`."""
        try:
            return msgspec.json.decode(self._data, type=kind)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self.damaged(str(error).replace("$", self.part)) from error

    def damaged(self, why: str) -> SnapshotError:
        """The error for a value that does not fit the machine."""
        return SnapshotError(f"the snapshot's state is damaged: {self.part}: {why}", hint=AGAIN)


def raw(state: Record) -> msgspec.Raw:
    """A part's state within another's, for `Saved`."""
    return msgspec.Raw(msgspec.json.encode(state))


def exactly(size: int) -> Meta:
    """So many bytes or items."""
    return Meta(min_length=size, max_length=size)


def pack_u64s(values: Iterable[int]) -> bytes:
    """Numbers of 64 bits as bytes."""
    return b"".join(value.to_bytes(8, "little") for value in values)


def unpack_u64s(data: bytes) -> tuple[int, ...]:
    """What `pack_u64s` packed; a rest is left out."""
    return struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & -8])
