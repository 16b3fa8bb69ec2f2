"""Load kernel and initramfs by the arm64 boot protocol (Documentation/arch/arm64/booting.rst)."""

import os

from mayfly.vmm.arch.aarch64 import layout
from mayfly.vmm.arch.aarch64.hardware import Gic, device_tree
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.loader import arm64_image
from mayfly.vmm.loader.placing import map_initrd, read_into
from mayfly.vmm.memory import GuestMemory

SEED = 64


def load(
    config: MachineConfig, controller: Gic, memory: GuestMemory, mapping: Mapping, *, kernel_fd: int, initrd_fd: int | None, cmdline: str
) -> int:
    """Put kernel, initramfs and device tree into guest RAM; the kernel's entry point."""
    size = os.fstat(kernel_fd).st_size
    kernel = arm64_image.parse(os.pread(kernel_fd, arm64_image.HEADER.size, 0), size)
    entry = layout.KERNEL + kernel.text_offset
    read_into(memory, kernel_fd, 0, entry, size)
    initrd = None
    if initrd_fd is not None:
        limit = min(layout.RAM + mapping.size, layout.INITRD_END)
        initrd = map_initrd(mapping, initrd_fd, ram=layout.RAM, kernel_end=entry + kernel.memory_size, limit=limit)
    tree = device_tree(config, gic=controller.version, cmdline=cmdline, initrd=initrd, seed=os.urandom(SEED))
    memory.write(layout.DEVICE_TREE, tree)
    return entry
