"""A PC's own devices, and its MP table (Intel MultiProcessor Specification 1.4, chapter 4)."""

import struct
from collections.abc import Callable

from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.bus import Bus
from mayfly.vmm.devices.reset import ResetPort

FLOATING_POINTER = struct.Struct("<4sIBBBBBBBB")  # 4.1: signature, table, length/16, revision, checksum, features 1 to 5
HEADER = struct.Struct(
    "<4sHBB8s12sIHHIHBB"
)  # 4.2: signature, length, revision, checksum, OEM, product, OEM table, its size, entries, LAPIC, ...
PROCESSOR = struct.Struct("<BBBBIIQ")  # 4.3.1: type, APIC id, version, flags, signature, features, reserved
BUS = struct.Struct("<BB6s")  # 4.3.2: type, id, name
IO_APIC = struct.Struct("<BBBBI")  # 4.3.3: type, id, version, flags, address
INTERRUPT = struct.Struct("<BBHBBBB")  # 4.3.4 and 4.3.5: type, kind, flags, source bus, source IRQ, destination APIC, pin

APIC_VERSION = 0x14
ENABLED, BOOT_PROCESSOR = 1, 2
INT, NMI, EXT_INT = 0, 1, 3
ISA_BUS = 0
ALL_APICS = 0xFF
SPEC_1_4 = 4


def uart_bus(ports: Bus, mmio: Bus) -> Bus:
    """UARTs are COM1 and COM2, on I/O ports."""
    return ports


def attach(ports: Bus, mmio: Bus, on_reset: Callable[[], None]) -> None:
    """Add the keyboard controller's port by which Linux resets a PC."""
    ports.attach(layout.RESET, 1, ResetPort(on_reset))


def mp_table(cpus: int) -> bytes:
    """Floating pointer and table for layout.MP_TABLE; the I/O APIC's pins are ISA lines."""
    io_apic = cpus
    entries = [PROCESSOR.pack(0, cpu, APIC_VERSION, ENABLED | (BOOT_PROCESSOR if cpu == 0 else 0), 0, 0, 0) for cpu in range(cpus)]
    entries.append(BUS.pack(1, ISA_BUS, b"ISA   "))
    entries.append(IO_APIC.pack(2, io_apic, APIC_VERSION, ENABLED, layout.IO_APIC))
    # Edge, active high, as ISA; GSI, ISA line and pin are one number, even beyond ISA's 16.
    entries += [INTERRUPT.pack(3, INT, 0, ISA_BUS, gsi, io_apic, gsi) for gsi in range(layout.GSI_END)]
    entries.append(INTERRUPT.pack(4, EXT_INT, 0, ISA_BUS, 0, 0, 0))
    entries.append(INTERRUPT.pack(4, NMI, 0, ISA_BUS, 0, ALL_APICS, 1))
    body = b"".join(entries)

    def header(checksum: int) -> bytes:
        length = HEADER.size + len(body)
        return HEADER.pack(
            b"PCMP", length, SPEC_1_4, checksum, b"MAYFLY  ", b"MACHINE     ", 0, 0, len(entries), layout.LOCAL_APIC, 0, 0, 0
        )

    table = header(_checksum(header(0) + body)) + body
    address = layout.MP_TABLE + FLOATING_POINTER.size

    def pointer(checksum: int) -> bytes:
        return FLOATING_POINTER.pack(b"_MP_", address, FLOATING_POINTER.size // 16, SPEC_1_4, checksum, 0, 0, 0, 0, 0)

    return pointer(_checksum(pointer(0))) + table


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF
