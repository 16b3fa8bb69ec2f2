"""The guest physical address space of an x86-64 machine.

0x0000_0000  RAM   real-mode vectors, unused
0x0000_0500        boot GDT
0x0000_7000        boot_params ("zero page")
0x0000_8000        setup_data: entropy seed
0x0000_9000        page tables: PML4, PDPT, PD (first GiB, identity)
0x0002_0000        kernel command line
0x0009_fc00  ----  reserved (EBDA, video, option ROMs)
0x000f_0000        MP floating pointer and configuration table
0x0010_0000  RAM   kernel at 0x0100_0000; initramfs at the top of low RAM
0xc000_0000  ----  hole
0xd000_0000        virtio-mmio devices, 0x1000 each
0xfec0_0000        I/O APIC
0xfee0_0000        local APIC
0xfffb_c000        KVM's identity map page and TSS (Intel without unrestricted guest)
0x1_0000_0000 RAM  what did not fit below the hole
"""

from mayfly.units import GIB

RAM = 0
GDT = 0x500
BOOT_PARAMS = 0x7000
SETUP_DATA = 0x8000
PML4 = 0x9000
PDPT = 0xA000
PD = 0xB000
CMDLINE = 0x2_0000
LOW_RAM_END = 0x9_FC00
MP_TABLE = 0xF_0000
HIGH_RAM = 0x10_0000
HOLE_START = 3 * GIB
HOLE_END = 4 * GIB

VIRTIO_MMIO = 0xD000_0000
VIRTIO_MMIO_SIZE = 0x1000
VIRTIO_READABLE_AS_MEMORY = True  # Uncached accesses look into the caches too (Intel SDM 3A, 12.3)
IO_APIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
IDENTITY_MAP = 0xFFFB_C000
TSS = 0xFFFB_D000
KVM_PAGES = 0x4000
"""The identity map page and the three pages of the TSS behind it (api.rst 4.36, 4.41)."""

RESET, UART1, UART0 = 0x64, 0x2F8, 0x3F8  # I/O ports
UART_SIZE = 8
UARTS_ON_PORTS = True

UART1_GSI = 3  # COM2's line on every PC, which Linux expects there
UART0_GSI = 4
VIRTIO_GSI = 5  # The first virtio-mmio device's; the next ones follow
GSI_END = 24  # The I/O APIC's pins


def ram_regions(size: int) -> list[tuple[int, int]]:
    """(guest physical address, bytes) of each region of RAM for `size` bytes of it."""
    if size <= HOLE_START:
        return [(0, size)]
    return [(0, HOLE_START), (HOLE_END, size - HOLE_START)]


KERNEL_PARAMETERS = "reboot=k no_timer_check tsc=reliable"
VIRTIO_PARAMETER = f"virtio_mmio.device={VIRTIO_MMIO_SIZE // 1024}K@{{address:#x}}:{{gsi}}"
"""By which the kernel finds a virtio device: it looks for no others."""
EARLY_CONSOLE = f"earlycon=uart8250,io,{UART0:#x},115200 keep_bootcon"
