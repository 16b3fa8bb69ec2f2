"""Kernel file formats and boot data, as pure functions of bytes; `placing` alone reads files."""

from typing import NamedTuple


class Segment(NamedTuple):
    """`size` bytes at the file's `offset` go to the guest's `address`; zeros follow."""

    offset: int
    address: int
    size: int


class Kernel(NamedTuple):
    """What an x86 kernel's file says: it takes RAM up to `end`. A bzImage has a `setup_header`."""

    segments: tuple[Segment, ...]
    entry: int
    end: int
    setup_header: bytes | None = None
    initrd_addr_max: int = 0xFFFF_FFFF
