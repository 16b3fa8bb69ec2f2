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
    if vm.has_device(lib.KVM_DEV_TYPE_ARM_VGIC_V3):
        return GicVersion.V3
    if vm.has_device(lib.KVM_DEV_TYPE_ARM_VGIC_V2):
        return GicVersion.V2
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
    if version is GicVersion.V3:
        kind = lib.KVM_DEV_TYPE_ARM_VGIC_V3
        addresses = {
            lib.KVM_VGIC_V3_ADDR_TYPE_DIST: layout.GIC_DISTRIBUTOR,
            lib.KVM_VGIC_V3_ADDR_TYPE_REDIST: layout.GIC_REDISTRIBUTORS,
        }
    else:
        kind = lib.KVM_DEV_TYPE_ARM_VGIC_V2
        addresses = {
            lib.KVM_VGIC_V2_ADDR_TYPE_DIST: layout.GIC_DISTRIBUTOR,
            lib.KVM_VGIC_V2_ADDR_TYPE_CPU: layout.GIC_CPU_INTERFACE,
        }
    device = vm.create_device(kind)
    for which, address in addresses.items():
        device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_ADDR, which, 8, address)
    device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 4, INTERRUPTS)
    return InterruptController(version, device)
