"""Build x86's boot_params (Linux x86/zero-page.rst) and its entropy seed (boot.rst)."""

import struct
from collections.abc import Sequence
from enum import IntEnum

from mayfly.vmm.loader.bzimage import BOOT_FLAG, MAGIC, Header

SIZE = 4096
E820_ENTRY = struct.Struct("<QQI")  # address, size, type
SETUP_DATA = struct.Struct("<QII")  # next, type, length
SETUP_RNG_SEED = 9
LOADER_UNDEFINED = 0xFF
LOADED_HIGH = 1


class E820(IntEnum):
    """Types of memory (ACPI specification, "System Address Map Interfaces")."""

    RAM = 1
    RESERVED = 2


class Field(IntEnum):
    """Offsets in boot_params."""

    EXT_RAMDISK_IMAGE = 0x0C0
    EXT_RAMDISK_SIZE = 0x0C4
    EXT_CMD_LINE_PTR = 0x0C8
    E820_ENTRIES = 0x1E8
    TYPE_OF_LOADER = 0x210
    LOADFLAGS = 0x211
    RAMDISK_IMAGE = 0x218
    RAMDISK_SIZE = 0x21C
    CMD_LINE_PTR = 0x228
    SETUP_DATA = 0x250
    E820_TABLE = 0x2D0


def build(
    *,
    setup_header: bytes | None,
    cmdline_address: int,
    initrd: tuple[int, int],
    setup_data_address: int,
    memory_map: Sequence[tuple[int, int, E820]],
) -> bytes:
    """The page that the kernel finds through RSI.

    `setup_header` is a bzImage's own; a vmlinux has none. Addresses are guest physical; the command
    line ends with NUL; `initrd` is (address, bytes), (0, 0) for none; `memory_map` is ascending.
    """
    page = bytearray(SIZE)

    def put(offset: int, size: int, value: int) -> None:
        page[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    if setup_header is None:
        put(Header.BOOT_FLAG, 2, BOOT_FLAG)
        page[Header.MAGIC : Header.MAGIC + 4] = MAGIC
        put(Header.VERSION, 2, 0x020F)
    else:
        page[Header.SETUP_SECTS : Header.SETUP_SECTS + len(setup_header)] = setup_header
    put(Field.TYPE_OF_LOADER, 1, LOADER_UNDEFINED)
    put(Field.LOADFLAGS, 1, page[Field.LOADFLAGS] | LOADED_HIGH)
    put(Field.CMD_LINE_PTR, 4, cmdline_address)
    put(Field.EXT_CMD_LINE_PTR, 4, cmdline_address >> 32)
    for value, low, high in (
        (initrd[0], Field.RAMDISK_IMAGE, Field.EXT_RAMDISK_IMAGE),
        (initrd[1], Field.RAMDISK_SIZE, Field.EXT_RAMDISK_SIZE),
    ):
        put(low, 4, value)
        put(high, 4, value >> 32)
    put(Field.SETUP_DATA, 8, setup_data_address)
    put(Field.E820_ENTRIES, 1, len(memory_map))
    for index, (address, size, kind) in enumerate(memory_map):
        E820_ENTRY.pack_into(page, Field.E820_TABLE + index * E820_ENTRY.size, address, size, kind)
    return bytes(page)


def rng_seed(seed: bytes) -> bytes:
    """A setup_data that ends the list; the kernel credits `seed` to its entropy pool."""
    return SETUP_DATA.pack(0, SETUP_RNG_SEED, len(seed)) + seed
