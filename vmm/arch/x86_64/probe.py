"""The guest with which guests/probe.py times this host's KVM."""

import struct

from mayfly.vmm.arch.x86_64.cpu import LEAF1_ECX_HYPERVISOR, write_boot_tables
from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.memory import GuestMemory

CODE = 0x10_0000
TCG = b"TCGTCGTCGTCG"


def host_is_emulated() -> bool:
    """Whether CPUID leaf 0x4000_0000 names QEMU's TCG."""
    registers = ffi.new("uint32_t[4]")
    lib.host_cpuid(1, 0, registers)
    if not registers[2] & LEAF1_ECX_HYPERVISOR:
        return False
    lib.host_cpuid(0x4000_0000, 0, registers)
    return struct.pack("<3I", *registers[1:4]) == TCG


def write_loop(memory: GuestMemory, loops: int) -> int:
    """Write code of 2 * `loops` supervisor instructions and a port access; its address."""
    # mov ecx, loops; again: dec ecx; jnz again; out 0x10, al
    memory.write(CODE, b"\xb9" + struct.pack("<I", loops) + b"\xff\xc9" + b"\x75\xfc" + b"\xe6\x10")
    write_boot_tables(memory)
    return CODE
