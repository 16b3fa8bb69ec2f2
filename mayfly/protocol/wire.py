"""The wire types that frames are made of: little-endian numbers, counted strings and lists, flags,
and the bytes to the end.

A `Wire` is how one value is written and read. A `Fields` is a dataclass whose `layout` has one wire
type for each field.
"""

import dataclasses
import struct
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Generic, Self, TypeVar

from mayfly.errors import EncodeError, OversizeError

_T = TypeVar("_T")


class BadPayloadError(Exception):
    """The payload is not what its type says; never leaves this module."""


class Cursor:
    """Takes a payload apart from its front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise BadPayloadError
        self._at += count
        return piece

    def number(self, form: struct.Struct) -> int:
        """The next number, which has this form."""
        try:
            (value,) = form.unpack_from(self._data, self._at)
        except struct.error as error:
            raise BadPayloadError from error
        self._at += form.size
        return int(value)

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data) - self._at)

    def finish(self) -> None:
        """Refuse bytes that nothing has taken."""
        if self._at != len(self._data):
            raise BadPayloadError


@dataclasses.dataclass(frozen=True)
class Wire(Generic[_T]):
    """One wire type: how a value of it is written and read."""

    write: Callable[[_T], bytes]
    read: Callable[[Cursor], _T]


def numbers(layout: str) -> Wire[tuple[int, ...]]:
    """Numbers of a fixed size each, which `layout` gives in the letters of `struct`."""
    form = struct.Struct("<" + layout)

    def write(values: tuple[int, ...]) -> bytes:
        try:
            return form.pack(*values)
        except struct.error as error:
            raise EncodeError(f"of the numbers {values} one does not fit: {error}") from error

    return Wire(write, lambda cursor: form.unpack(cursor.take(form.size)))


def _number(layout: str) -> Wire[int]:
    form = struct.Struct("<" + layout)

    def write(value: int) -> bytes:
        try:
            return form.pack(value)
        except struct.error as error:
            raise EncodeError(f"the number {value} does not fit in {form.size} bytes") from error

    return Wire(write, lambda cursor: cursor.number(form))


U8, U16, U32, U64 = _number("B"), _number("H"), _number("I"), _number("Q")
_SIZE = struct.Struct("<H")
"""Of a string or list."""


def _text(errors: str) -> Wire[str]:
    def write(value: str) -> bytes:
        try:
            data = value.encode("utf-8", errors)
        except UnicodeEncodeError as error:
            raise EncodeError(f"{value!r} cannot be written as UTF-8") from error
        if errors == "surrogateescape" and b"\0" in data:
            raise EncodeError(f"{value!r} holds a NUL character", hint="paths, arguments and environment values cannot hold one")
        return _SIZE.pack(_count(data)) + data

    def read(cursor: Cursor) -> str:
        data = cursor.take(cursor.number(_SIZE))
        if errors == "surrogateescape" and b"\0" in data:
            raise BadPayloadError
        try:
            return data.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise BadPayloadError from error

    return Wire(write, read)


def _count(items: Collection[Any]) -> int:
    if len(items) > 0xFFFF:
        raise OversizeError(f"a list or string of {len(items)} items; at most 65535 go into a frame")
    return len(items)


def list_of(item: Wire[_T]) -> Wire[tuple[_T, ...]]:
    """A u16 count and as many items."""
    return Wire(
        lambda values: _SIZE.pack(_count(values)) + b"".join(map(item.write, values)),
        lambda cursor: tuple([item.read(cursor) for _ in range(cursor.number(_SIZE))]),
    )


def rest(minimum: int = 0, maximum: int = 65536) -> Wire[bytes]:
    """The bytes to the end of the payload."""

    def write(value: bytes) -> bytes:
        if not minimum <= len(value) <= maximum:
            raise EncodeError(f"{len(value)} bytes where {minimum} to {maximum} are allowed")
        return bytes(value)

    def read(cursor: Cursor) -> bytes:
        value = cursor.rest()
        if not minimum <= len(value) <= maximum:
            raise BadPayloadError
        return value

    return Wire(write, read)


def enum(number: Wire[int], kind: Callable[[int], _T]) -> Wire[_T]:
    """A number that must be a member of `kind`."""

    def read(cursor: Cursor) -> _T:
        try:
            return kind(number.read(cursor))
        except ValueError as error:
            raise BadPayloadError from error

    return Wire(lambda value: number.write(int(value)), read)  # type: ignore[call-overload]


def bits(count: int) -> Wire[tuple[bool, ...]]:
    """One byte of flags, bit 0 first; the bits above them must be 0."""
    flags = [tuple(bool(value >> bit & 1) for bit in range(count)) for value in range(1 << count)]
    written = {each: bytes([value]) for value, each in enumerate(flags)}

    def read(cursor: Cursor) -> tuple[bool, ...]:
        value = U8.read(cursor)
        if value >= len(flags):
            raise BadPayloadError
        return flags[value]

    return Wire(written.__getitem__, read)


_ONE = bits(1)
FLAG: Wire[bool] = Wire(lambda flag: _ONE.write((flag,)), lambda cursor: _ONE.read(cursor)[0])
STR, RAW = _text("strict"), _text("surrogateescape")


def exactly(count: int) -> Wire[bytes]:
    """So many bytes, uncounted."""
    return Wire(rest(count, count).write, lambda cursor: cursor.take(count))


_PAIR: Wire[tuple[str, str]] = Wire(
    lambda pair: RAW.write(pair[0]) + RAW.write(pair[1]), lambda cursor: (RAW.read(cursor), RAW.read(cursor))
)
ENV = list_of(_PAIR)


@dataclasses.dataclass(eq=False, repr=False)
class Fields:
    """A dataclass whose `layout` has one wire type for each of its fields. It equals one of its
    class with the same fields.
    """

    layout: ClassVar[tuple[Wire[Any], ...]] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def encode(self) -> bytes:
        """The fields in their order, as bytes."""
        return b"".join([wire.write(value) for wire, value in zip(self.layout, vars(self).values(), strict=True)])

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read the fields from the cursor."""
        return cls(*(wire.read(cursor) for wire in cls.layout))


def nested(kind: type[Fields]) -> Wire[Any]:
    """Fields as part of others."""
    return Wire(lambda value: value.encode(), kind.read)
