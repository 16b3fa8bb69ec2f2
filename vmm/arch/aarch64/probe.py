"""The guest with which guests/probe.py times this host's KVM."""

import struct
from pathlib import Path

from mayfly.vmm.arch.aarch64 import layout
from mayfly.vmm.memory import GuestMemory

CODE = layout.KERNEL
MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
IMPLEMENTER_SHIFT = 24
IMPLEMENTER_SOFTWARE = 0
"""QEMU's TCG says this for processor `max`; no manufacturer has the number (Arm ARM, MIDR_EL1)."""


def host_is_emulated() -> bool:
    """Whether the processor says that it is software."""
    return MIDR.exists() and int(MIDR.read_text(), 16) >> IMPLEMENTER_SHIFT & 0xFF == IMPLEMENTER_SOFTWARE


def write_loop(memory: GuestMemory, loops: int) -> int:
    """Write 2 * `loops` supervisor instructions and a store outside RAM; the address."""
    movz, movk = 0xD280_0000, 0xF2A0_0000  # x0, low and next 16 bits
    code = (movz | (loops & 0xFFFF) << 5, movk | (loops >> 16) << 5, 0xD100_0400, 0xB5FF_FFE0, 0xB900_0000)
    # mov x0, loops; again: sub x0, x0, 1; cbnz x0, again; str w0, [x0]
    memory.write(CODE, struct.pack(f"<{len(code)}I", *code))
    return CODE
