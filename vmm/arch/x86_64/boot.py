"""Load kernel and initramfs by Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst)."""

import os

from mayfly.errors import BootError, ConfigError
from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.arch.x86_64.cpu import write_boot_tables
from mayfly.vmm.arch.x86_64.hardware import mp_table
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.kvm.kvm import Vm
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.loader import arm64_image, boot_params, bzimage, elf
from mayfly.vmm.loader.boot_params import E820
from mayfly.vmm.loader.placing import map_initrd, read_into
from mayfly.vmm.memory import GuestMemory

HEAD = 64 * 1024
SEED = 32
VMLINUX_INITRD_MAX = 0xFFFF_FFFF
VMLINUX_CMDLINE_SIZE = 2047


def load(
    config: MachineConfig, vm: Vm, memory: GuestMemory, mapping: Mapping, *, kernel_fd: int, initrd_fd: int | None, cmdline: str
) -> int:
    """Put kernel, initramfs and boot tables into guest RAM; see `mayfly.vmm.arch.Boot`."""
    size = os.fstat(kernel_fd).st_size
    head = os.pread(kernel_fd, HEAD, 0)
    if bzimage.is_bzimage(head):
        packed = bzimage.parse(head, size)
        read_into(memory, kernel_fd, packed.kernel_offset, packed.load_address, size - packed.kernel_offset)
        entry, end = packed.entry, packed.load_address + packed.init_size
        setup_header, initrd_max, cmdline_size = packed.setup_header, packed.initrd_addr_max, packed.cmdline_size
    elif arm64_image.is_image(head):
        raise BootError("the kernel is an Image for arm64; this machine needs a vmlinux or bzImage for x86-64", hint="mayfly kernel build")
    else:
        vmlinux = elf.parse(head, size, elf.ElfMachine.X86_64)
        for segment in vmlinux.segments:
            read_into(memory, kernel_fd, segment.offset, segment.address, segment.file_size)
        entry, end = vmlinux.entry, max(segment.address + segment.memory_size for segment in vmlinux.segments)
        setup_header, initrd_max, cmdline_size = None, VMLINUX_INITRD_MAX, VMLINUX_CMDLINE_SIZE
    if len(cmdline) > cmdline_size:
        raise ConfigError(f"the kernel command line has {len(cmdline)} bytes, this kernel takes {cmdline_size}")

    regions = layout.ram_regions(mapping.size)
    initrd = (
        map_initrd(mapping, initrd_fd, ram=layout.RAM, kernel_end=end, limit=min(regions[0][1], initrd_max + 1))
        if initrd_fd is not None
        else (0, 0)
    )
    write_boot_tables(memory)
    memory.write(layout.MP_TABLE, mp_table(config.cpus))
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


def _memory_map(regions: list[tuple[int, int]]) -> list[tuple[int, int, E820]]:
    (_, low), *above = regions
    return [
        (0, layout.LOW_RAM_END, E820.RAM),
        (layout.LOW_RAM_END, layout.HIGH_RAM - layout.LOW_RAM_END, E820.RESERVED),
        (layout.HIGH_RAM, low - layout.HIGH_RAM, E820.RAM),
        (layout.IDENTITY_MAP, layout.KVM_PAGES, E820.RESERVED),
        *((address, size, E820.RAM) for address, size in above),
    ]
