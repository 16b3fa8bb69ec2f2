"""The state in a snapshot, checked like a guest's input.

The vmm process that wrote it may have been in a guest's hands.
"""

import binascii
from collections.abc import Mapping
from typing import Any

from mayfly.errors import SnapshotError

AGAIN = "remove the snapshot (mayfly snapshot rm) and make it again"
U8, U16, U32, U64 = 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class Fields:
    """The fields of one part, each checked when it is read. What does not fit is a SnapshotError
    that names part, field and limit.

    Args:
        raw: what was in the file.
        part: the part's name.
    """

    def __init__(self, raw: Any, part: str) -> None:
        self.part = part
        if not isinstance(raw, dict):
            raise self.damaged("", "is not an object")
        self._raw: Mapping[str, Any] = raw

    def damaged(self, name: str, why: str) -> SnapshotError:
        """The error for a field that does not fit."""
        return SnapshotError(f"the snapshot's state is damaged: {self.part}{name and '.'}{name} {why}", hint=AGAIN)

    def value(self, name: str) -> Any:
        """Whatever is there, not checked."""
        if name not in self._raw:
            raise self.damaged(name, "is missing")
        return self._raw[name]

    def number(self, name: str, limit: int) -> int:
        """A number from 0 to `limit`."""
        return self._number(name, self.value(name), limit)

    def _number(self, name: str, value: Any, limit: int) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise self.damaged(name, f"is not a number from 0 to {limit:#x}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.value(name)
        if type(value) is not bool:
            raise self.damaged(name, "is neither true nor false")
        return value

    def items(self, name: str, *, count: int | None = None, most: int = 0) -> list[Any]:
        """A list, not checked further, of `count` items or of at most `most`."""
        value = self.value(name)
        if not isinstance(value, list) or (len(value) > most if count is None else len(value) != count):
            raise self.damaged(name, f"is not a list of {f'at most {most}' if count is None else count} items")
        return value

    def numbers(self, name: str, count: int, limit: int) -> list[int]:
        """`count` numbers from 0 to `limit`."""
        return [self._number(name, value, limit) for value in self.items(name, count=count)]

    def rows(self, name: str, limits: tuple[int, ...], *, most: int) -> list[list[int]]:
        """At most `most` rows of numbers, each from 0 to the limit of its column."""
        rows = self.items(name, most=most)
        for row in rows:
            if not isinstance(row, list) or len(row) != len(limits):
                raise self.damaged(name, f"has rows that are not {len(limits)} numbers")
            for value, limit in zip(row, limits, strict=True):
                self._number(name, value, limit)
        return rows

    def data(self, name: str, size: int) -> bytes:
        """`size` bytes, in base64."""
        data = self._decoded(name, binascii.a2b_base64)
        if len(data) != size:
            raise self.damaged(name, f"has {len(data)} bytes, not {size}")
        return data

    def waiting(self, name: str, most: int) -> bytearray:
        """At most `most` bytes, in base64."""
        data = self._decoded(name, binascii.a2b_base64)
        if len(data) > most:
            raise self.damaged(name, f"has {len(data)} bytes, more than {most}")
        return bytearray(data)

    def _decoded(self, name: str, decode: Any) -> bytes:
        try:
            return bytes(decode(self.value(name)))
        except (ValueError, TypeError) as error:
            raise self.damaged(name, "is not bytes in base64") from error

    def fields(self, name: str) -> "Fields":
        """A part of the part."""
        return Fields(self.value(name), f"{self.part}.{name}")

    def parts(self, name: str, count: int) -> list["Fields"]:
        """`count` parts of the part."""
        return [Fields(value, f"{self.part}.{name}[{index}]") for index, value in enumerate(self.items(name, count=count))]


def text(data: bytes | bytearray) -> str:
    """Bytes as `Fields.data` reads them."""
    return binascii.b2a_base64(data, newline=False).decode()
