"""Interrupt controllers of an x86-64 machine: KVM's own PICs, I/O APIC and local APICs."""

from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.kvm._kvm import ffi
from mayfly.vmm.kvm.kvm import Vm


class InterruptController:
    """All of them; they belong to the machine and need nothing once they are made."""

    def start(self) -> None:
        """Nothing to do: each vCPU has got its local APIC."""

    def close(self) -> None:
        """Nothing to give back."""


def create(vm: Vm, *, pit: bool) -> InterruptController:
    """Make the controllers: before the first vCPU, and after the memory slots (17 times faster).

    A PIT takes milliseconds to make. Only kernels that read no MP table need one (Debian's), as
    they do not use the local APIC's timer. Ours have the TSC deadline timer.
    """
    vm.ioctl("KVM_SET_TSS_ADDR", layout.TSS)
    vm.ioctl_struct("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", layout.IDENTITY_MAP))
    vm.ioctl("KVM_CREATE_IRQCHIP")
    if pit:
        vm.ioctl_struct("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *"))
    return InterruptController()
