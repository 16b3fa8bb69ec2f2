"""The typed state in a snapshot, checked like a guest's input: who wrote it may have been hijacked.

Each part has a record, whose tag is its version: one that changes what it saves gets another.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

from mayfly.errors import SnapshotError
from mayfly.schema import Meta, msgspec

AGAIN = "remove the snapshot (mayfly snapshot rm) and make it again"
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_State = TypeVar("_State")
_Live = TypeVar("_Live")


class Live(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of a part's state that is its registers too, and so changes."""


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

    def pairs(self, name: str, live: Sequence[_Live], states: Sequence[_State]) -> Iterator[tuple[_Live, _State]]:
        """Each object with its state in the list `name`. Raises SnapshotError: other lengths."""
        if len(states) != len(live):
            raise self.damaged(f"{name} has {len(states)} items, not {len(live)}")
        return zip(live, states, strict=True)

    def damaged(self, why: str) -> SnapshotError:
        """The error for a value that does not fit the machine."""
        return SnapshotError(f"the snapshot's state is damaged: {self.part}: {why}", hint=AGAIN)


def raw(state: msgspec.Struct) -> msgspec.Raw:
    """A part's state within another's, for `Saved`."""
    return msgspec.Raw(msgspec.json.encode(state))


def exactly(size: int) -> Meta:
    """So many bytes or items."""
    return Meta(min_length=size, max_length=size)
