"""vCPU state at the kernel's entry (Linux arm64/booting.rst, "Call the kernel image"), and a guest
with which guests/probe.py times this host's KVM.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from mayfly.vmm.arch.aarch64 import layout
from mayfly.vmm.kvm._kvm import lib
from mayfly.vmm.kvm.kvm import Vcpu, Vm
from mayfly.vmm.memory import GuestMemory

FEATURES = ("PSCI_0_2",)
"""vCPU features beyond the base architecture (api.rst 4.82, KVM_ARM_VCPU_*).

SVE, pointer authentication, performance counters, EL2 and 32-bit EL1 have to be asked for:
without that, KVM hides them in the ID registers and traps their registers.
"""
NAMES = ("PC", "SP", "PSTATE", "X0", "X1", "X2", "X3", "X29", "X30", "ESR_EL1", "FAR_EL1", "ELR_EL1", "VBAR_EL1")
MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
IMPLEMENTER_SHIFT, IMPLEMENTER_SOFTWARE = 24, 0
"""QEMU's TCG says this for processor `max`; no manufacturer has the number (Arm ARM, MIDR_EL1)."""


def withhold(vm: Vm) -> None:
    """Nothing to do: KVM gives vCPUs the features alone that `set_up` asks for."""


def set_up(vm: Vm, vcpus: Sequence[Vcpu], *, entry: int) -> None:
    """Reset all vCPUs: the first enters at `entry`, KVM's PSCI turns the others on."""
    reset(vm, vcpus)
    set_register(vcpus[0], lib.REG_PC, entry.to_bytes(8, "little"))
    set_register(vcpus[0], lib.REG_X0, layout.DEVICE_TREE.to_bytes(8, "little"))


def reset(vm: Vm, vcpus: Sequence[Vcpu]) -> None:
    """Give all vCPUs the state of a processor's reset: the first one is on, the others are off."""
    target = vm.exchange("KVM_ARM_PREFERRED_TARGET", "struct kvm_vcpu_init")
    features = sum(1 << getattr(lib, f"KVM_ARM_VCPU_{name}") for name in FEATURES)
    for vcpu in vcpus:
        target.features[0] = features | (1 << lib.KVM_ARM_VCPU_POWER_OFF if vcpu is not vcpus[0] else 0)
        vcpu.ioctl("KVM_ARM_VCPU_INIT", target)


def set_register(vcpu: Vcpu, register: int, value: bytes) -> None:
    """Set a register, of its whole size, little-endian (api.rst 4.68)."""
    vcpu.exchange_bytes("KVM_SET_ONE_REG", "struct kvm_one_reg", value, id=register)


def register_bytes(register: int) -> int:
    """The size of a register, which is part of its id (api.rst 4.68)."""
    return int(1 << ((register & lib.KVM_REG_SIZE_MASK) >> lib.KVM_REG_SIZE_SHIFT))


def get_register(vcpu: Vcpu, register: int) -> bytes:
    """A register, whose size is part of its id (api.rst 4.69)."""
    return vcpu.exchange_bytes("KVM_GET_ONE_REG", "struct kvm_one_reg", bytes(register_bytes(register)), id=register)


def describe_registers(vcpu: Vcpu) -> str:
    """The registers that matter, for the error of a guest that crashed."""
    values = {name: int.from_bytes(get_register(vcpu, getattr(lib, f"REG_{name}")), "little") for name in NAMES}
    return " ".join(f"{name.lower()}={value:#x}" for name, value in values.items())


def host_is_emulated() -> bool:
    """Whether the processor says that it is software."""
    return MIDR.exists() and int(MIDR.read_text(), 16) >> IMPLEMENTER_SHIFT & 0xFF == IMPLEMENTER_SOFTWARE


def write_loop(memory: GuestMemory, loops: int) -> int:
    """Write 2 * `loops` supervisor instructions and a store outside RAM; the address."""
    movz, movk = 0xD280_0000, 0xF2A0_0000  # x0, low and next 16 bits
    code = (movz | (loops & 0xFFFF) << 5, movk | (loops >> 16) << 5, 0xD100_0400, 0xB5FF_FFE0, 0xB900_0000)
    # mov x0, loops; again: sub x0, x0, 1; cbnz x0, again; str w0, [x0]
    memory.write(layout.KERNEL, struct.pack(f"<{len(code)}I", *code))
    return layout.KERNEL
