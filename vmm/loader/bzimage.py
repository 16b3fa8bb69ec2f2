"""Read an x86 bzImage's setup header (Linux boot.rst, "The Real-Mode Kernel Header")."""

from enum import IntEnum
from typing import NamedTuple

from mayfly.errors import BootError

BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
MIN_VERSION = 0x020C  # Protocol 2.12, the first with xloadflags
XLF_KERNEL_64 = 1
SECTOR = 512
ENTRY_64 = 0x200


class Header(IntEnum):
    """Offsets in the file, and in boot_params, of the setup header's fields."""

    SETUP_SECTS = 0x1F1
    BOOT_FLAG = 0x1FE
    JUMP_LENGTH = 0x201
    MAGIC = 0x202
    VERSION = 0x206
    INITRD_ADDR_MAX = 0x22C
    XLOADFLAGS = 0x236
    CMDLINE_SIZE = 0x238
    PREF_ADDRESS = 0x258
    INIT_SIZE = 0x260
    END = 0x268


class BzImage(NamedTuple):
    """What loading needs: the file from `kernel_offset` on goes to `load_address`."""

    setup_header: bytes
    kernel_offset: int
    load_address: int
    init_size: int
    initrd_addr_max: int
    cmdline_size: int

    @property
    def entry(self) -> int:
        """The 64-bit entry point."""
        return self.load_address + ENTRY_64


def is_bzimage(head: bytes) -> bool:
    """Whether the file looks like a bzImage at all."""
    return head[Header.MAGIC : Header.MAGIC + 4] == MAGIC


def parse(head: bytes, file_size: int) -> BzImage:
    """Parse a bzImage's first page. Raises BootError: not one, no 64-bit entry, or cut short."""

    def field(offset: Header, size: int) -> int:
        return int.from_bytes(head[offset : offset + size], "little")

    if len(head) < Header.END or not is_bzimage(head) or field(Header.BOOT_FLAG, 2) != BOOT_FLAG:
        raise BootError("the kernel is not a bzImage")
    version = field(Header.VERSION, 2)
    if version < MIN_VERSION or not field(Header.XLOADFLAGS, 2) & XLF_KERNEL_64:
        raise BootError(
            f"the bzImage (boot protocol {version >> 8}.{version & 0xFF:02}) has no 64-bit entry point",
            hint="use a 64-bit kernel, 3.8 or later",
        )
    offset = ((field(Header.SETUP_SECTS, 1) or 4) + 1) * SECTOR
    if offset + ENTRY_64 >= file_size:
        raise BootError(f"the bzImage is cut short: its kernel begins at byte {offset} of {file_size}")
    end = Header.MAGIC + head[Header.JUMP_LENGTH]
    return BzImage(
        setup_header=head[Header.SETUP_SECTS : end],
        kernel_offset=offset,
        load_address=field(Header.PREF_ADDRESS, 8),
        init_size=field(Header.INIT_SIZE, 4),
        initrd_addr_max=field(Header.INITRD_ADDR_MAX, 4),
        cmdline_size=field(Header.CMDLINE_SIZE, 4),
    )
