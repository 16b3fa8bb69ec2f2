"""Read an x86 bzImage's setup header (Linux boot.rst, "The Real-Mode Kernel Header"), and build
boot_params (Linux x86/zero-page.rst), which holds it, with its entropy seed (boot.rst).
"""

import struct
from collections.abc import Sequence
from enum import IntEnum

from mayfly.errors import BootError
from mayfly.vmm.loader import Kernel, Segment

BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
MIN_VERSION = 0x020C  # Protocol 2.12, the first with xloadflags
XLF_KERNEL_64 = 1
SECTOR = 512
ENTRY_64 = 0x200
SIZE = 4096
E820_ENTRY = struct.Struct("<QQI")  # address, size, type
SETUP_DATA = struct.Struct("<QII")  # next, type, length
SETUP_RNG_SEED = 9
LOADER_UNDEFINED = 0xFF
LOADED_HIGH = 1
E820_RAM, E820_RESERVED = 1, 2  # Types of memory (ACPI specification, "System Address Map Interfaces")


class Field(IntEnum):
    """Offsets in boot_params; those from SETUP_SECTS to END are also a bzImage's, of its header."""

    EXT_RAMDISK_IMAGE = 0x0C0
    EXT_RAMDISK_SIZE = 0x0C4
    EXT_CMD_LINE_PTR = 0x0C8
    E820_ENTRIES = 0x1E8
    SETUP_SECTS = 0x1F1
    BOOT_FLAG = 0x1FE
    JUMP_LENGTH = 0x201
    MAGIC = 0x202
    VERSION = 0x206
    TYPE_OF_LOADER = 0x210
    LOADFLAGS = 0x211
    RAMDISK_IMAGE = 0x218
    RAMDISK_SIZE = 0x21C
    CMD_LINE_PTR = 0x228
    INITRD_ADDR_MAX = 0x22C
    XLOADFLAGS = 0x236
    SETUP_DATA = 0x250
    PREF_ADDRESS = 0x258
    INIT_SIZE = 0x260
    END = 0x268
    E820_TABLE = 0x2D0


def is_bzimage(head: bytes) -> bool:
    """Whether the file looks like a bzImage at all."""
    return head[Field.MAGIC : Field.MAGIC + 4] == MAGIC


def parse_bzimage(head: bytes, file_size: int) -> Kernel:
    """Parse a bzImage's first page. Raises BootError: not one, no 64-bit entry, or cut short."""

    def field(offset: Field, size: int) -> int:
        return int.from_bytes(head[offset : offset + size], "little")

    if len(head) < Field.END or not is_bzimage(head) or field(Field.BOOT_FLAG, 2) != BOOT_FLAG:
        raise BootError("the kernel is not a bzImage")
    version = field(Field.VERSION, 2)
    if version < MIN_VERSION or not field(Field.XLOADFLAGS, 2) & XLF_KERNEL_64:
        raise BootError(
            f"the bzImage (boot protocol {version >> 8}.{version & 0xFF:02}) has no 64-bit entry point",
            hint="use a 64-bit kernel, 3.8 or later",
        )
    offset = ((field(Field.SETUP_SECTS, 1) or 4) + 1) * SECTOR
    if offset + ENTRY_64 >= file_size:
        raise BootError(f"the bzImage is cut short: its kernel begins at byte {offset} of {file_size}")
    load_address = field(Field.PREF_ADDRESS, 8)
    return Kernel(
        segments=(Segment(offset, load_address, file_size - offset),),
        entry=load_address + ENTRY_64,
        end=load_address + field(Field.INIT_SIZE, 4),
        setup_header=head[Field.SETUP_SECTS : Field.MAGIC + head[Field.JUMP_LENGTH]],
        initrd_addr_max=field(Field.INITRD_ADDR_MAX, 4),
    )


def build(
    setup_header: bytes | None, *, cmdline: int, setup_data: int, initrd: tuple[int, int], memory_map: Sequence[tuple[int, int, int]]
) -> bytes:
    """The page that the kernel finds through RSI.

    `setup_header` is a bzImage's own; a vmlinux has none. The command line, which ends with NUL,
    and setup_data are at guest physical addresses; `initrd` is (address, bytes), (0, 0) for none;
    `memory_map` is ascending.
    """
    page = bytearray(SIZE)

    def put(offset: int, size: int, value: int) -> None:
        page[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    if setup_header is None:
        put(Field.BOOT_FLAG, 2, BOOT_FLAG)
        page[Field.MAGIC : Field.MAGIC + 4] = MAGIC
        put(Field.VERSION, 2, 0x020F)
    else:
        page[Field.SETUP_SECTS : Field.SETUP_SECTS + len(setup_header)] = setup_header
    put(Field.TYPE_OF_LOADER, 1, LOADER_UNDEFINED)
    put(Field.LOADFLAGS, 1, page[Field.LOADFLAGS] | LOADED_HIGH)
    image, length = (Field.RAMDISK_IMAGE, Field.EXT_RAMDISK_IMAGE), (Field.RAMDISK_SIZE, Field.EXT_RAMDISK_SIZE)
    for value, (low, high) in ((cmdline, (Field.CMD_LINE_PTR, Field.EXT_CMD_LINE_PTR)), (initrd[0], image), (initrd[1], length)):
        put(low, 4, value)
        put(high, 4, value >> 32)
    put(Field.SETUP_DATA, 8, setup_data)
    put(Field.E820_ENTRIES, 1, len(memory_map))
    for index, (address, size, kind) in enumerate(memory_map):
        E820_ENTRY.pack_into(page, Field.E820_TABLE + index * E820_ENTRY.size, address, size, kind)
    return bytes(page)


def rng_seed(seed: bytes) -> bytes:
    """A setup_data that ends the list; the kernel credits `seed` to its entropy pool."""
    return SETUP_DATA.pack(0, SETUP_RNG_SEED, len(seed)) + seed
