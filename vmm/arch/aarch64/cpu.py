"""vCPU state at the kernel's entry (Linux Documentation/arch/arm64/booting.rst, "Call the kernel image")."""

from collections.abc import Sequence

from vmm.arch.aarch64 import layout
from vmm.kvm._kvm import ffi, lib
from vmm.kvm.kvm import Vcpu, Vm

NAMES = ("PC", "SP", "PSTATE", "X0", "X1", "X2", "X3", "X29", "X30", "ESR_EL1", "FAR_EL1", "ELR_EL1", "VBAR_EL1")


def set_up(vm: Vm, vcpus: Sequence[Vcpu], *, entry: int) -> None:
    """Reset all vCPUs to EL1 with interrupts masked; the first one enters the kernel at `entry`, with the device tree's address in X0.

    The others are switched off until the kernel asks for them by PSCI, which KVM answers itself.
    """
    target = ffi.new("struct kvm_vcpu_init *")
    vm.ioctl_struct("KVM_ARM_PREFERRED_TARGET", target)
    for vcpu in vcpus:
        target.features[0] = 1 << lib.KVM_ARM_VCPU_PSCI_0_2 | (1 << lib.KVM_ARM_VCPU_POWER_OFF if vcpu is not vcpus[0] else 0)
        vcpu.ioctl_struct("KVM_ARM_VCPU_INIT", target)
    _set_register(vcpus[0], lib.REG_PC, entry)
    _set_register(vcpus[0], lib.REG_X0, layout.DEVICE_TREE)


def _set_register(vcpu: Vcpu, register: int, value: int) -> None:
    cell = ffi.new("uint64_t *", value)
    vcpu.ioctl_struct("KVM_SET_ONE_REG", ffi.new("struct kvm_one_reg *", {"id": register, "addr": int(ffi.cast("uintptr_t", cell))}))


def _register(vcpu: Vcpu, register: int) -> int:
    cell = ffi.new("uint64_t *")
    vcpu.ioctl_struct("KVM_GET_ONE_REG", ffi.new("struct kvm_one_reg *", {"id": register, "addr": int(ffi.cast("uintptr_t", cell))}))
    return int(cell[0])


def describe_registers(vcpu: Vcpu) -> str:
    """The registers that matter, for the error of a guest that crashed."""
    return " ".join(f"{name.lower()}={_register(vcpu, getattr(lib, f'REG_{name}')):#x}" for name in NAMES)
