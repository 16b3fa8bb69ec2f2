"""Save and restore what KVM keeps of an aarch64 machine besides its memory.

A vCPU is the registers that KVM lists, its power state, and a pending error. The virtual counter
is among the registers and shared by all vCPUs: the guest's time goes on where it stopped. The
GIC is read and written by its registers, as a processor sees them (Linux
virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst; GICv3 specification, 12; GICv2, 4).
"""

import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated

from mayfly.schema import Meta, Record
from mayfly.vmm.arch.aarch64.cpu import get_register, register_bytes, reset, set_register
from mayfly.vmm.arch.aarch64.hardware import INTERRUPTS, Gic, GicVersion, mpidr
from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.kvm.kvm import Device, Kvm, Vcpu, Vm
from mayfly.vmm.snapshot.state import U32, U63, Saved, exactly

CPUINFO = Path("/proc/cpuinfo")
MAX_REGISTERS = 2048
COUNTERS = (0x6030_0000_0013_DF1A, 0x6030_0000_0013_DF01)
"""KVM_REG_ARM_TIMER_CNT and KVM_REG_ARM_PTIMER_CNT (Linux asm/kvm.h): the virtual counter, and the
physical one, where KVM has that for each machine.
"""
PRIVATE = 32  # SGIs and PPIs, which each processor has of its own; SPIs come behind them


class Gicd(IntEnum):
    """Registers of the distributor; all but the first two are arrays indexed by interrupt."""

    CTLR = 0x0000
    IIDR = 0x0008
    IGROUPR = 0x0080
    ISENABLER = 0x0100
    ISPENDR = 0x0200
    ISACTIVER = 0x0300
    IPRIORITYR = 0x0400
    ITARGETSR = 0x0800
    ICFGR = 0x0C00
    SPENDSGIR = 0x0F20
    IROUTER = 0x6000


ARRAYS = {Gicd.IGROUPR: 1, Gicd.ICFGR: 2, Gicd.IPRIORITYR: 8, Gicd.ISENABLER: 1, Gicd.ISPENDR: 1, Gicd.ISACTIVER: 1}
"""Bits of an interrupt's entry, in restore order; redistributors have the private ones."""
SECOND_FRAME = 0x1_0000


def _icc(op1: int, crn: int, crm: int, op2: int) -> int:
    """A system register of the processor's interface as the attribute wants it; op0 is 3."""
    return 3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


ICC_CTLR = _icc(0, 12, 12, 4)
ICC_REGISTERS = {
    "sre": _icc(0, 12, 12, 5),
    "ctlr": ICC_CTLR,
    "pmr": _icc(0, 4, 6, 0),
    "bpr0": _icc(0, 12, 8, 3),
    "bpr1": _icc(0, 12, 12, 3),
    "igrpen0": _icc(0, 12, 12, 6),
    "igrpen1": _icc(0, 12, 12, 7),
}
ICC_AP0R0, ICC_AP1R0 = _icc(0, 12, 8, 4), _icc(0, 12, 9, 0)
"""Active priorities: one register for 5 bits of priority, 2 for 6, 4 for 7."""

GICC_REGISTERS = {"ctlr": 0x00, "pmr": 0x04, "bpr": 0x08, "abpr": 0x1C, "apr0": 0xD0, "apr1": 0xD4, "apr2": 0xD8, "apr3": 0xDC}
"""The processor's interface of a GICv2."""


class VcpuState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a vCPU: id and value of each register, struct kvm_vcpu_events."""

    registers: Annotated[tuple[tuple[U63, bytes], ...], Meta(max_length=MAX_REGISTERS)]
    mp_state: U32
    events: Annotated[bytes, exactly(ffi.sizeof("struct kvm_vcpu_events"))]


class KvmState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of all vCPUs and the GIC, of which a register has 64 bits."""

    vcpus: tuple[VcpuState, ...]
    gic: bytes


def identity(kvm: Kvm) -> str:
    """The host processor. KVM refuses ID registers that differ, so they need no comparison here."""
    return _processor()


def difference(theirs: str, ours: str) -> str:
    """What differs in two of these, in words: features by name, all else by the kernel's words."""
    there, here = (dict(map(_pair, text.split(", "))) for text in (theirs, ours))
    features = [set(lines.pop("Features", "").split()) for lines in (there, here)]
    said = [
        f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    for what, more in (("only there", features[0] - features[1]), ("only here", features[1] - features[0])):
        said += [f"{what}: {', '.join(sorted(more))}"] if more else []
    return "; ".join(said)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def prepare() -> None:
    """Find out what `identity` has to know, once for a process and its forks: in its sandbox a vmm
    process has no file that tells.
    """
    _processor()


@functools.cache
def _processor() -> str:
    kept = [line for line in CPUINFO.read_text().split("\n\n")[0].splitlines() if not line.startswith(("processor", "BogoMIPS"))]
    return ", ".join(kept)


def save(vm: Vm, controller: Gic, vcpus: Sequence[Vcpu]) -> KvmState:
    """All of it. The vCPUs stand still, with no access of theirs half done."""
    gic = [controller.device.get_int(*register) for register in _gic_registers(controller, len(vcpus))]
    return KvmState(vcpus=tuple(map(_save_vcpu, vcpus)), gic=struct.pack(f"<{len(gic)}Q", *gic))


def restore(vm: Vm, controller: Gic, vcpus: Sequence[Vcpu], saved: Saved) -> Callable[[], None]:
    """Restore into as many new vCPUs and a new GIC. What this returns sets their time back to the
    snapshot's, for a machine that did not run at once. Both raise SnapshotError, KvmError.
    """
    state = saved.decode(KvmState)
    reset(vm, vcpus)
    for vcpu, of_vcpu in saved.pairs("vcpus", vcpus, state.vcpus):  # the last one's counter is the latest, and holds for all
        _restore_vcpu(vcpu, of_vcpu, saved)
    registers = list(_gic_registers(controller, len(vcpus)))
    values = [value for (value,) in struct.iter_unpack("<Q", state.gic[: len(state.gic) & -8])]
    for (group, attribute, size), value in saved.pairs("gic", registers, values):
        if value >> 8 * size:
            raise saved.damaged(f"gic has {value:#x} for a register of {size} bytes")
        controller.device.set_int(group, attribute, size, value)
    return functools.partial(_set_back, vcpus[-1], state.vcpus[-1])


def _set_back(vcpu: Vcpu, state: VcpuState) -> None:
    for register, value in state.registers:
        if register in COUNTERS:
            set_register(vcpu, register, value)


def tell_of_pause(vcpus: Sequence[Vcpu]) -> None:
    """Nothing to do: the virtual counter goes on."""


def _save_vcpu(vcpu: Vcpu) -> VcpuState:
    known = vcpu.exchange("KVM_GET_REG_LIST", "struct kvm_reg_list", {"n": MAX_REGISTERS, "reg": MAX_REGISTERS})
    mp_state = vcpu.exchange("KVM_GET_MP_STATE", "struct kvm_mp_state")
    events = vcpu.exchange("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events")
    registers = tuple((register, get_register(vcpu, register)) for register in known.reg[0 : known.n])
    return VcpuState(registers=registers, mp_state=mp_state.mp_state, events=bytes(ffi.buffer(events)))


def _restore_vcpu(vcpu: Vcpu, state: VcpuState, saved: Saved) -> None:
    for register, value in state.registers:
        # KVM reads as many bytes as the id says: behind a shorter value is this process's memory.
        if len(value) != register_bytes(register):
            raise saved.damaged(f"vcpus[{vcpu.index}].registers has {len(value)} bytes for {register:#x}")
        set_register(vcpu, register, value)
    vcpu.ioctl("KVM_SET_VCPU_EVENTS", ffi.from_buffer("struct kvm_vcpu_events *", state.events))
    vcpu.exchange("KVM_SET_MP_STATE", "struct kvm_mp_state", {"mp_state": state.mp_state})


def _gic_registers(gic: Gic, cpus: int) -> Iterator[tuple[int, int, int]]:
    """Group, attribute and bytes of each register, in restore order. A new GIC's bits are all 0."""
    return _gicv3_registers(gic.device, cpus) if gic.version is GicVersion.V3 else _gicv2_registers(cpus)


def _words(arrays: Mapping[Gicd, int], first: int, end: int) -> Iterator[int]:
    """Offsets of the arrays' words for the interrupts from `first` to before `end`."""
    return (array + offset for array, bits in arrays.items() for offset in range(first * bits // 8, end * bits // 8, 4))


def _gicv2_registers(cpus: int) -> Iterator[tuple[int, int, int]]:
    distributor, interface = lib.KVM_DEV_ARM_VGIC_GRP_DIST_REGS, lib.KVM_DEV_ARM_VGIC_GRP_CPU_REGS
    yield distributor, Gicd.IIDR, 4  # with it KVM takes groups too
    yield distributor, Gicd.CTLR, 4
    for offset in _words({Gicd.ITARGETSR: 8, **ARRAYS}, PRIVATE, INTERRUPTS):  # where an interrupt goes, before it is pending
        yield distributor, offset, 4
    # A pending SGI depends on its sender (SPENDSGIR); timers raise other PPIs again.
    private: dict[Gicd, int] = {array: bits for array, bits in ARRAYS.items() if array is not Gicd.ISPENDR}
    for processor in (cpu << 32 for cpu in range(cpus)):
        for offset in (*_words(private, 0, PRIVATE), *range(Gicd.SPENDSGIR, Gicd.SPENDSGIR + 16, 4)):
            yield distributor, processor | offset, 4
        for register in GICC_REGISTERS.values():
            yield interface, processor | register, 4


def _gicv3_registers(device: Device, cpus: int) -> Iterator[tuple[int, int, int]]:
    distributor, redistributor = lib.KVM_DEV_ARM_VGIC_GRP_DIST_REGS, lib.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
    levels, interface = lib.KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, lib.KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS
    yield distributor, Gicd.CTLR, 4
    for offset in (*range(Gicd.IROUTER + 8 * PRIVATE, Gicd.IROUTER + 8 * INTERRUPTS, 4), *_words(ARRAYS, PRIVATE, INTERRUPTS)):
        yield distributor, offset, 4
    yield levels, PRIVATE, 4
    for processor in (mpidr(cpu) << 32 for cpu in range(cpus)):
        for offset in _words(ARRAYS, 0, PRIVATE):
            yield redistributor, processor | SECOND_FRAME + offset, 4
        yield levels, processor, 4
        for register in ICC_REGISTERS.values():
            yield interface, processor | register, 8
        # ICC_CTLR_EL1.PRIbits (priority bits - 1) says how many active-priority registers it has.
        priority_bits = (device.get_int(interface, processor | ICC_CTLR, 8) >> 8 & 7) + 1
        for number in range(1 << max(0, priority_bits - 5)):
            yield interface, processor | ICC_AP0R0 + number, 8
            yield interface, processor | ICC_AP1R0 + number, 8
