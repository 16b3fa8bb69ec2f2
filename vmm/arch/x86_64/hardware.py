"""A PC's interrupt controllers, its own devices, and its MP table (Intel MultiProcessor
Specification 1.4, chapter 4).
"""

import struct
from collections.abc import Callable
from typing import Any

from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.bus import Bus, BusDevice
from mayfly.vmm.kvm.kvm import Vm

FLOATING_POINTER = struct.Struct("<4sIBBBBBBBB")  # 4.1: signature, table, length/16, revision, checksum, features 1 to 5
HEADER = struct.Struct("<4sHBB8s12sIHHIHBB")  # 4.2: signature, length, revision, checksum, OEM, product, OEM table, entries, ...
POINTER_CHECKSUM, HEADER_CHECKSUM = 10, 7  # Offsets
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
PULSE_RESET = 0xFE
"""Pulse output line 0, the processor's reset (IBM PC AT, "8042 commands"); Linux's reboot=k."""


class ResetPort(BusDevice):
    """Port 0x64 of the keyboard controller, always ready, for its one command that resets a PC."""

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> int:
        """Status: input buffer empty, output buffer empty."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A command; all but the reset are ignored."""
        if value & 0xFF == PULSE_RESET:
            self._on_reset()


def create_interrupts(vm: Vm, *, pit: bool) -> Any:
    """Make KVM's own PICs, I/O APIC and local APICs: after the memory slots (17 times faster).

    A PIT takes milliseconds to make. Only kernels that read no MP table need one (Debian's), as
    they do not use the local APIC's timer. Ours have the TSC deadline timer.
    """
    vm.ioctl("KVM_SET_TSS_ADDR", layout.TSS)
    vm.exchange("KVM_SET_IDENTITY_MAP_ADDR", "uint64_t", layout.IDENTITY_MAP)
    vm.ioctl("KVM_CREATE_IRQCHIP")
    if pit:
        vm.exchange("KVM_CREATE_PIT2", "struct kvm_pit_config")


def start_interrupts(controller: None) -> None:
    """Nothing to do: each vCPU has got its local APIC."""


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
    names = b"MAYFLY  ", b"MACHINE     "
    header = HEADER.pack(b"PCMP", HEADER.size + len(body), SPEC_1_4, 0, *names, 0, 0, len(entries), layout.LOCAL_APIC, 0, 0, 0)
    address = layout.MP_TABLE + FLOATING_POINTER.size
    pointer = FLOATING_POINTER.pack(b"_MP_", address, FLOATING_POINTER.size // 16, SPEC_1_4, 0, 0, 0, 0, 0, 0)
    return _sealed(pointer, POINTER_CHECKSUM) + _sealed(header + body, HEADER_CHECKSUM)


def _sealed(table: bytes, checksum: int) -> bytes:
    """The table with such a byte at offset `checksum` that the sum of all bytes ends in 0."""
    return table[:checksum] + bytes((-sum(table) & 0xFF,)) + table[checksum + 1 :]
