"""Load kernel and initramfs by Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst)."""

import os

from mayfly.errors import BootError
from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.arch.x86_64.cpu import write_boot_tables
from mayfly.vmm.arch.x86_64.hardware import mp_table
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.loader import arm64_image, boot_params, elf
from mayfly.vmm.loader.boot_params import E820_RAM, E820_RESERVED
from mayfly.vmm.loader.placing import map_initrd, read_into
from mayfly.vmm.memory import GuestMemory

HEAD = 64 * 1024
SEED = 32


def load(
    config: MachineConfig, controller: None, memory: GuestMemory, mapping: Mapping, *, kernel_fd: int, initrd_fd: int | None, cmdline: str
) -> int:
    """Put kernel, initramfs and boot tables into guest RAM; the kernel's entry point."""
    size = os.fstat(kernel_fd).st_size
    head = os.pread(kernel_fd, HEAD, 0)
    if boot_params.is_bzimage(head):
        kernel = boot_params.parse_bzimage(head, size)
    elif arm64_image.is_image(head):
        raise BootError("the kernel is an Image for arm64; this machine needs a vmlinux or bzImage for x86-64", hint="mayfly kernel build")
    else:
        kernel = elf.parse(head, size)
    for segment in kernel.segments:
        read_into(memory, kernel_fd, *segment)
    regions, initrd = layout.ram_regions(mapping.size), (0, 0)
    if initrd_fd is not None:
        limit = min(regions[0][1], kernel.initrd_addr_max + 1)
        initrd = map_initrd(mapping, initrd_fd, ram=layout.RAM, kernel_end=kernel.end, limit=limit)
    write_boot_tables(memory)
    memory.write(layout.MP_TABLE, mp_table(config.cpus))
    memory.write(layout.CMDLINE, cmdline.encode() + b"\0")
    memory.write(layout.SETUP_DATA, boot_params.rng_seed(os.urandom(SEED)))
    memory_map = _memory_map(regions)
    page = boot_params.build(
        kernel.setup_header, cmdline=layout.CMDLINE, setup_data=layout.SETUP_DATA, initrd=initrd, memory_map=memory_map
    )
    memory.write(layout.BOOT_PARAMS, page)
    return kernel.entry


def _memory_map(regions: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    (_, low), *above = regions
    return [
        (0, layout.LOW_RAM_END, E820_RAM),
        (layout.LOW_RAM_END, layout.HIGH_RAM - layout.LOW_RAM_END, E820_RESERVED),
        (layout.HIGH_RAM, low - layout.HIGH_RAM, E820_RAM),
        (layout.IDENTITY_MAP, layout.KVM_PAGES, E820_RESERVED),
        *((address, size, E820_RAM) for address, size in above),
    ]
