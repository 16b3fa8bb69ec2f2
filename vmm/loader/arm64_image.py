"""Read the header of an arm64 `Image` (Linux booting.rst, "Call the kernel image")."""

import struct
from typing import NamedTuple

from mayfly.errors import BootError

HEADER = struct.Struct("<IIQQQQQQ4sI")  # code0, code1, text_offset, image_size, flags, res2, res3, res4, magic, res5
MAGIC = b"ARM\x64"
MAGIC_OFFSET = 56
GZIP = b"\x1f\x8b"
ZBOOT = b"zimg"
"""At byte 4 of a compressed EFI image, which only firmware starts (libstub/zboot-header.S)."""
FLAG_BIG_ENDIAN = 1 << 0


class Image(NamedTuple):
    """The file goes `text_offset` above a 2 MiB boundary and takes `memory_size` bytes there."""

    text_offset: int
    memory_size: int


def is_image(head: bytes) -> bool:
    """Whether the file looks like an arm64 Image at all."""
    return head[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


def parse(head: bytes, file_size: int) -> Image:
    """Parse an Image's beginning. Raises BootError: no Image, big-endian, or without its size."""
    if head.startswith(GZIP) or head[4:8] == ZBOOT:
        raise BootError("the kernel is a compressed Image", hint="unpack it first")
    if len(head) < HEADER.size or not is_image(head):
        raise BootError("the kernel is not an arm64 Image", hint="mayfly kernel build")
    _, _, text_offset, memory_size, flags, *_ = HEADER.unpack_from(head)
    if flags & FLAG_BIG_ENDIAN:
        raise BootError("the kernel is a big-endian Image, this machine is little-endian")
    if memory_size < file_size:  # 0 in kernels before 3.17
        raise BootError(f"the Image's header is damaged: it takes {memory_size} bytes of memory, and its file has {file_size}")
    if text_offset >= 2 << 20:
        raise BootError(f"the Image's header is damaged: its text offset is {text_offset:#x}, not less than 2 MiB")
    return Image(text_offset=text_offset, memory_size=memory_size)
