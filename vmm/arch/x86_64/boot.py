"""Load a kernel and its initramfs by Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst)."""

import os

from mayfly.errors import BootError, ConfigError
from vmm.arch.x86_64 import layout
from vmm.arch.x86_64.cpu import write_boot_tables
from vmm.arch.x86_64.hardware import mp_table
from vmm.kvm.mapping import PAGE, Mapping
from vmm.loader import boot_params, bzimage, elf
from vmm.loader.boot_params import E820
from vmm.memory import GuestAddressError, GuestMemory

HEAD = 64 * 1024
SEED = 32
VMLINUX_INITRD_MAX = 0xFFFF_FFFF
VMLINUX_CMDLINE_SIZE = 2047


def load(memory: GuestMemory, mapping: Mapping, *, kernel_fd: int, initrd_fd: int | None, cmdline: str, cpus: int) -> int:
    """Put everything into guest RAM that the kernel wants to find there; its entry point (guest physical address).

    The initramfs is mapped from its file, not copied. The caller keeps the descriptors, which are no longer needed afterwards.

    Raises:
        BootError: the kernel file is not one for this architecture, or something does not fit into RAM.
        ConfigError: the command line is too long for this kernel.
    """
    size = os.fstat(kernel_fd).st_size
    head = os.pread(kernel_fd, HEAD, 0)
    if bzimage.is_bzimage(head):
        image = bzimage.parse(head, size)
        _read_into(memory, kernel_fd, image.kernel_offset, image.load_address, size - image.kernel_offset)
        entry, end = image.entry, image.load_address + image.init_size
        setup_header, initrd_max, cmdline_size = image.setup_header, image.initrd_addr_max, image.cmdline_size
    else:
        vmlinux = elf.parse(head, size, elf.Machine.X86_64)
        for segment in vmlinux.segments:
            _read_into(memory, kernel_fd, segment.offset, segment.address, segment.file_size)
        entry, end = vmlinux.entry, max(segment.address + segment.memory_size for segment in vmlinux.segments)
        setup_header, initrd_max, cmdline_size = None, VMLINUX_INITRD_MAX, VMLINUX_CMDLINE_SIZE
    if len(cmdline) > cmdline_size:
        raise ConfigError(f"the kernel command line has {len(cmdline)} bytes, this kernel takes {cmdline_size}")

    regions = layout.ram_regions(mapping.size)
    initrd = _map_initrd(mapping, initrd_fd, end, min(regions[0][1], initrd_max + 1)) if initrd_fd is not None else (0, 0)
    write_boot_tables(memory)
    memory.write(layout.MP_TABLE, mp_table(cpus))
    memory.write(layout.CMDLINE, cmdline.encode() + b"\0")
    memory.write(layout.SETUP_DATA, boot_params.rng_seed(os.urandom(SEED)))
    page = boot_params.build(
        setup_header=setup_header,
        cmdline_address=layout.CMDLINE,
        initrd=initrd,
        setup_data_address=layout.SETUP_DATA,
        memory_map=_memory_map(regions),
    )
    memory.write(layout.BOOT_PARAMS, page)
    return entry


def _read_into(memory: GuestMemory, fd: int, offset: int, address: int, size: int) -> None:
    try:
        target = memory.slice(address, size)
    except GuestAddressError as error:
        raise BootError(
            f"the kernel does not fit: {size} bytes at {address:#x} are not RAM", hint="give the machine more memory"
        ) from error
    while target:
        count = os.preadv(fd, [target], offset)
        if count == 0:
            raise BootError(f"the kernel file ends {len(target)} bytes too early")
        target, offset = target[count:], offset + count


def _map_initrd(mapping: Mapping, fd: int, kernel_end: int, limit: int) -> tuple[int, int]:
    """Map the initramfs as high as the kernel takes it. Host offset and guest address are equal below the hole."""
    size = os.fstat(fd).st_size
    address = (limit - size) // PAGE * PAGE
    if size == 0 or address < kernel_end:
        raise BootError(
            f"the initramfs of {size} bytes does not fit behind the kernel, which ends at {kernel_end:#x}, and below {limit:#x}",
            hint="give the machine more memory" if size else "build the image again: it is empty",
        )
    mapping.overlay_file(address, fd, size)
    return address, size


def _memory_map(regions: list[tuple[int, int]]) -> list[tuple[int, int, E820]]:
    (_, low), *above = regions
    return [
        (0, layout.LOW_RAM_END, E820.RAM),
        (layout.LOW_RAM_END, layout.HIGH_RAM - layout.LOW_RAM_END, E820.RESERVED),
        (layout.HIGH_RAM, low - layout.HIGH_RAM, E820.RAM),
        (layout.IDENTITY_MAP, layout.KVM_PAGES, E820.RESERVED),
        *((address, size, E820.RAM) for address, size in above),
    ]
