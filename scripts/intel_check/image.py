"""What Bochs loads straight into RAM, so that no disk and no boot loader is in the way.

setup.img   at SETUP: the kernel's real-mode part with its header filled in, and the command line
image.img   at IMAGE: its protected-mode part, and the initramfs behind it
boot.rom    at ROM: boot.S, which starts the kernel
"""

import struct
from pathlib import Path

from scripts.debian.root import HostFilesError, run

BLOCK = 8 << 20
"""bochsrc's block_size."""
ROM = 0xD_0000
SETUP = 0x9_0000
IMAGE = 0x10_0000
INITRD = 160 << 20
"""Behind the memory into which the kernel unpacks itself."""
HEAP_END = 0xE000
CHECK = b"YAKO"
ROM_BYTES = 512
BOOT = Path(__file__).with_name("boot.S")
# Offsets in the setup header (boot.rst, "The Real-Mode Kernel Header").
SETUP_SECTS, VID_MODE, MAGIC, TYPE_OF_LOADER, LOADFLAGS = 0x1F1, 0x1FA, 0x202, 0x210, 0x211
CODE32_START, HEAP_END_PTR, CMD_LINE_PTR = 0x214, 0x224, 0x228
CAN_USE_HEAP = 0x80
UNDEFINED_LOADER = 0xFF
NORMAL_VIDEO = 0xFFFF


def write(folder: Path, *, kernel: bytes, initrd: bytes, cmdline: str) -> None:
    """Write the three files described above for a bzImage.

    Raises:
        HostFilesError: it is not one.
    """
    if kernel[MAGIC : MAGIC + 4] != b"HdrS":
        raise HostFilesError("the emulated host's kernel is not a bzImage")
    size = ((kernel[SETUP_SECTS] or 4) + 1) * 512
    setup = bytearray(kernel[:size])
    struct.pack_into("<H", setup, VID_MODE, NORMAL_VIDEO)
    setup[TYPE_OF_LOADER] = UNDEFINED_LOADER
    setup[LOADFLAGS] |= CAN_USE_HEAP
    struct.pack_into("<III", setup, CODE32_START, IMAGE, INITRD, len(initrd))  # with ramdisk_image and ramdisk_size
    struct.pack_into("<H", setup, HEAP_END_PTR, HEAP_END - 0x200)
    struct.pack_into("<I", setup, CMD_LINE_PTR, SETUP + HEAP_END)
    setup += bytes(HEAP_END - len(setup)) + cmdline.encode() + b"\0"
    (folder / "setup.img").write_bytes(setup)
    check = INITRD + len(initrd) + 15 & ~15
    with (folder / "image.img").open("wb") as file:
        for address, data in ((IMAGE, kernel[size:]), (INITRD, initrd), (check, CHECK)):
            for offset, part in _placed(address, memoryview(data)):
                file.seek(offset)
                file.write(part)
    (folder / "boot.rom").write_bytes(_rom(folder, check))


def _placed(address: int, data: memoryview) -> list[tuple[int, memoryview]]:
    """Where in the image those parts lie that the guest shall see from `address` on: the second
    block is the one that the BIOS has touched.
    """
    parts = []
    while data:
        part = data[: BLOCK - address % BLOCK]
        parts.append((address - IMAGE + (BLOCK if address >= BLOCK else 0), part))
        address, data = address + len(part), data[len(part) :]
    return parts


def _rom(folder: Path, check: int) -> bytes:
    names = {"BLOCK": BLOCK, "ROM": ROM, "SETUP": SETUP, "HEAP_END": HEAP_END, "CHECK_AT": check, "IMAGE_END": check + len(CHECK)}
    symbols = [f"--defsym={name}={value}" for name, value in {**names, "CHECK": int.from_bytes(CHECK, "little")}.items()]
    run("as", "--32", *symbols, "-o", folder / "boot.o", BOOT)
    run("ld", "-m", "elf_i386", "-Ttext=0", "--oformat=binary", "-o", folder / "boot.bin", folder / "boot.o")
    rom = bytearray((folder / "boot.bin").read_bytes().ljust(ROM_BYTES, b"\0"))
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)
