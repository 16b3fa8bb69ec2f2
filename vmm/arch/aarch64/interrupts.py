"""KVM's own GIC: version 3 or, on hosts that have only that, version 2."""

import errno
from enum import IntEnum

from mayfly.errors import KvmUnavailableError
from mayfly.vmm.arch.aarch64 import layout
from mayfly.vmm.kvm._kvm import lib
from mayfly.vmm.kvm.kvm import Device, Vm

INTERRUPTS = 32 + layout.GSI_END  # Interrupt ids: 16 SGIs, 16 PPIs, then the SPIs


class GicVersion(IntEnum):
    """The versions of Arm's Generic Interrupt Controller that KVM has."""

    V2 = 2
    V3 = 3


def gic_version(vm: Vm) -> GicVersion:
    """The newest version that this host's KVM makes. Raises KvmUnavailableError if none."""
    for version in reversed(GicVersion):
        if vm.has_device(getattr(lib, f"KVM_DEV_TYPE_ARM_VGIC_{version.name}")):
            return version
    raise KvmUnavailableError(
        "KVM_CREATE_DEVICE (GICv3 and GICv2)", errno.ENODEV, hint="use a host whose interrupt controller has virtualisation extensions"
    )


class InterruptController:
    """A GIC. Owns its descriptor, `device`."""

    def __init__(self, version: GicVersion, device: Device) -> None:
        self.version = version
        self.device = device

    def start(self) -> None:
        """Make it ready, once every vCPU exists (arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_CTRL)."""
        self.device.set(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_VGIC_CTRL_INIT)

    def close(self) -> None:
        """Close the descriptor."""
        self.device.close()


def create(vm: Vm, *, pit: bool) -> InterruptController:
    """Make the GIC, before the first vCPU; `pit` is ignored. Raises KvmUnavailableError if none."""
    version = gic_version(vm)
    second = ("REDIST", layout.GIC_REDISTRIBUTORS) if version is GicVersion.V3 else ("CPU", layout.GIC_CPU_INTERFACE)
    device = vm.create_device(getattr(lib, f"KVM_DEV_TYPE_ARM_VGIC_{version.name}"))
    for part, address in (("DIST", layout.GIC_DISTRIBUTOR), second):
        device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_ADDR, getattr(lib, f"KVM_VGIC_{version.name}_ADDR_TYPE_{part}"), 8, address)
    device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 4, INTERRUPTS)
    return InterruptController(version, device)
