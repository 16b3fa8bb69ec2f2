"""KVM's own GIC, the clock, and the device tree (Devicetree Specification 0.4; Linux
devicetree/bindings).
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import fdt  # type: ignore[import-untyped]

from mayfly.errors import KvmError, KvmUnavailableError
from mayfly.vmm.arch.aarch64 import layout
from mayfly.vmm.bus import Bus, BusDevice
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.kvm._kvm import lib
from mayfly.vmm.kvm.kvm import Device, Vm

DTB_VERSION, DTB_COMPATIBLE = 17, 16
GIC_PHANDLE = 1
UART_CLOCK_HZ = 1_843_200
SPI, PPI = 0, 1
EDGE_RISING, LEVEL_HIGH = 1, 4
"""First and third cell of an interrupt (bindings/interrupt-controller/arm,gic-v3.yaml)."""
TIMER_PPIS = (13, 14, 11, 10)
"""Secure, non-secure, virtual, hypervisor; guests use the virtual one (arm,arch_timer.yaml)."""
INTERRUPTS = 32 + layout.GSI_END  # Interrupt ids: 16 SGIs, 16 PPIs, then the SPIs

TIME_LOW, TIME_HIGH = 0x00, 0x04  # Registers of the clock, 4 bytes each


class GicVersion(IntEnum):
    """The versions of Arm's Generic Interrupt Controller that KVM has; some hosts only V2."""

    V2 = 2
    V3 = 3


class Gic(NamedTuple):
    """A GIC, whose descriptor the machine's closes."""

    version: GicVersion
    device: Device


def create_interrupts(vm: Vm, *, pit: bool) -> Gic:
    """Make the newest GIC that KVM has here, before the first vCPU; `pit` is ignored.

    Raises KvmUnavailableError: it has none.
    """
    for version in reversed(GicVersion):
        with contextlib.suppress(KvmError):
            device = vm.create_device(getattr(lib, f"KVM_DEV_TYPE_ARM_VGIC_{version.name}"))
            break
    else:
        hint = "use a host whose interrupt controller has virtualisation extensions"
        raise KvmUnavailableError("KVM_CREATE_DEVICE (GICv3 and GICv2)", errno.ENODEV, hint=hint)
    second = ("REDIST", layout.GIC_REDISTRIBUTORS) if version is GicVersion.V3 else ("CPU", layout.GIC_CPU_INTERFACE)
    for part, address in (("DIST", layout.GIC_DISTRIBUTOR), second):
        device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_ADDR, getattr(lib, f"KVM_VGIC_{version.name}_ADDR_TYPE_{part}"), 8, address)
    device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 4, INTERRUPTS)
    return Gic(version, device)


def start_interrupts(controller: Gic) -> None:
    """Make it ready, once every vCPU exists (arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_CTRL)."""
    controller.device.set_int(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_VGIC_CTRL_INIT)


class Clock(BusDevice):
    """The reading half of the goldfish RTC, no alarm (Linux drivers/rtc/rtc-goldfish.c).

    Nanoseconds since 1970. Reading the low half keeps the high half that belongs to it.
    """

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self._now = now
        self._high = 0

    def read(self, offset: int, size: int) -> int:
        """The guest reads a register; all but the time are 0, and so is any other size."""
        if size != 4:
            return 0
        if offset == TIME_LOW:
            now = self._now()
            self._high = now >> 32
            return now & 0xFFFF_FFFF
        return self._high if offset == TIME_HIGH else 0


def attach(ports: Bus, mmio: Bus, on_reset: Callable[[], None]) -> None:
    """Add the clock. A guest resets its machine by PSCI, which KVM reports by itself."""
    mmio.attach(layout.CLOCK, layout.CLOCK_SIZE, Clock())


def mpidr(cpu: int) -> int:
    """KVM's affinity fields of vCPU `cpu`: 16 to a cluster (arm64/kvm/sys_regs.c, reset_mpidr)."""
    return cpu & 0xF | (cpu >> 4 & 0xFF) << 8


def device_tree(config: MachineConfig, *, gic: GicVersion, cmdline: str, initrd: tuple[int, int] | None, seed: bytes) -> bytes:
    """The flattened tree. `initrd`: guest physical address and bytes; the kernel credits `seed`."""
    tree = fdt.FDT()

    def node(path: str, properties: Mapping[str, Any]) -> None:
        for name, value in properties.items():
            tree.set_property(name, value, path)

    node("/", {"compatible": "linux,dummy-virt", "#address-cells": 2, "#size-cells": 2, "interrupt-parent": GIC_PHANDLE})
    node("/chosen", {"bootargs": cmdline, "rng-seed": seed})
    if initrd is not None:
        address, size = initrd
        node("/chosen", {"linux,initrd-start": _cells(address), "linux,initrd-end": _cells(address + size)})
    for address, size in layout.ram_regions(config.memory):
        node(f"/memory@{address:x}", {"device_type": "memory", "reg": _cells(address, size)})
    node("/psci", {"compatible": ["arm,psci-1.0", "arm,psci-0.2"], "method": "hvc"})
    node("/cpus", {"#address-cells": 1, "#size-cells": 0})
    for cpu in range(config.cpus):
        properties = {"device_type": "cpu", "compatible": "arm,armv8", "enable-method": "psci", "reg": mpidr(cpu)}
        node(f"/cpus/cpu@{mpidr(cpu):x}", properties)
    timers = [cell for ppi in TIMER_PPIS for cell in (PPI, ppi, LEVEL_HIGH)]
    node("/timer", {"compatible": "arm,armv8-timer", "interrupts": timers, "always-on": None})
    node(f"/interrupt-controller@{layout.GIC_DISTRIBUTOR:x}", _gic(gic, config.cpus))
    for name, address, size, gsi, properties in _devices(config):
        interrupts = [SPI, gsi, EDGE_RISING]  # edges, as an irqfd gives
        node(f"/{name}@{address:x}", {"reg": _cells(address, size), "interrupts": interrupts, **properties})
    if config.channel is Channel.SERIAL:
        node("/aliases", {"serial1": f"/serial@{layout.UART1:x}"})
    return bytes(tree.to_dtb(DTB_VERSION, DTB_COMPATIBLE, 0))


def _gic(version: GicVersion, cpus: int) -> dict[str, Any]:
    if version is GicVersion.V3:
        compatible, second = "arm,gic-v3", (layout.GIC_REDISTRIBUTORS, cpus * layout.GIC_REDISTRIBUTOR_SIZE)
    else:
        compatible, second = "arm,cortex-a15-gic", (layout.GIC_CPU_INTERFACE, layout.GIC_CPU_INTERFACE_SIZE)
    return {
        "compatible": compatible,
        "reg": _cells(layout.GIC_DISTRIBUTOR, layout.GIC_DISTRIBUTOR_SIZE, *second),
        "interrupt-controller": None,
        "phandle": GIC_PHANDLE,
        "#interrupt-cells": 3,
        "#address-cells": 0,
    }


def _devices(config: MachineConfig) -> Iterator[tuple[str, int, int, int, dict[str, Any]]]:
    """Name, address, size, GSI and properties of each device; UART0 only if interactive."""
    yield "rtc", layout.CLOCK, layout.CLOCK_SIZE, layout.CLOCK_GSI, {"compatible": "google,goldfish-rtc"}
    uart = {"compatible": "ns16550a", "clock-frequency": UART_CLOCK_HZ}
    if config.interactive:
        yield "serial", layout.UART0, layout.UART_SIZE, layout.UART0_GSI, uart
    if config.channel is Channel.SERIAL:
        yield "serial", layout.UART1, layout.UART_SIZE, layout.UART1_GSI, uart
    for slot in range(len(config.devices)):
        address = layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE
        yield "virtio", address, layout.VIRTIO_MMIO_SIZE, layout.VIRTIO_GSI + slot, {"compatible": "virtio,mmio", "dma-coherent": None}


def _cells(*values: int) -> list[int]:
    """Each value in two cells, high and low."""
    return [half for value in values for half in (value >> 32, value & 0xFFFF_FFFF)]
