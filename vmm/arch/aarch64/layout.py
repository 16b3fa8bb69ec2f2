"""The guest physical address space of an aarch64 machine.

0x0800_0000        GIC: distributor
0x0801_0000        GICv2: CPU interface
0x0810_0000        GICv3: redistributors, 0x2_0000 each
0x0900_0000        UART0, UART1 and the clock, 0x1000 each
0x0a00_0000        virtio-mmio devices, 0x1000 each
0x4000_0000  RAM   device tree
0x4020_0000        kernel; initramfs at the top of RAM, or of its first 31 GiB
"""

from mayfly.units import GIB

GIC_DISTRIBUTOR = 0x0800_0000
GIC_DISTRIBUTOR_SIZE = 0x1_0000
GIC_CPU_INTERFACE = 0x0801_0000
GIC_CPU_INTERFACE_SIZE = 0x2000
GIC_REDISTRIBUTORS = 0x0810_0000
GIC_REDISTRIBUTOR_SIZE = 0x2_0000
"""Two frames of 64 KiB a processor (GICv3 architecture specification, 12.10)."""

UART0 = 0x0900_0000
UART1 = 0x0900_1000
UART_SIZE = 8
UARTS_ON_PORTS = False
CLOCK = 0x0900_2000
CLOCK_SIZE = 0x1000
VIRTIO_MMIO = 0x0A00_0000
VIRTIO_MMIO_SIZE = 0x1000
VIRTIO_READABLE_AS_MEMORY = False
"""A guest reads device registers past the caches, in which what we wrote may still be."""

RAM = 0x4000_0000
DEVICE_TREE = RAM
DEVICE_TREE_SIZE = 2 << 20  # The maximum (booting.rst, "Setup the device tree")
KERNEL = RAM + DEVICE_TREE_SIZE
INITRD_END = RAM + 31 * GIB
"""Kernel and initramfs share a GiB-aligned window of 32 GiB (booting.rst, "Call the kernel")."""

UART0_GSI = 1  # GSIs are numbers of SPIs: KVM adds 32 to make interrupt ids of them
UART1_GSI = 2
CLOCK_GSI = 3
VIRTIO_GSI = 4  # The first virtio-mmio device's; the next ones follow
GSI_END = 32


def ram_regions(size: int) -> list[tuple[int, int]]:
    """(guest physical address, bytes) of each region of RAM for `size` bytes of it."""
    return [(RAM, size)]


KERNEL_PARAMETERS = VIRTIO_PARAMETER = ""  # The device tree says it all
EARLY_CONSOLE = f"earlycon=uart8250,mmio,{UART0:#x},115200 keep_bootcon"
