"""Save and restore what KVM keeps of an x86-64 machine besides its memory.

The order of restoring matters (Linux virt/kvm/api.rst, and what KVM's code does beyond it):

    CPUID            decides which of the others are taken at all; ours, not the state's
    SREGS            has the local APIC's base and mode, by which LAPIC is read
    LAPIC            before the MSRs: the TSC deadline needs a timer in that mode
    MSRs             the TSC first; its deadline last, as that arms the timer
    events, MP state after the registers that they belong to
    PICs, I/O APIC   after the local APICs, which they deliver to
    clock            kvm-clock goes on; then each vCPU is told of the pause, for its watchdogs
"""

import errno
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from mayfly.errors import KvmError
from mayfly.schema import Meta, Record
from mayfly.vmm.arch.x86_64 import features
from mayfly.vmm.arch.x86_64.cpu import MSR, offered_cpuid, set_cpuid, set_msrs
from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.snapshot.state import U63, Saved, exactly

_BEFORE_MSRS = {
    "sregs": ("SREGS", "struct kvm_sregs"),
    "xcrs": ("XCRS", "struct kvm_xcrs"),
    "regs": ("REGS", "struct kvm_regs"),
    "debugregs": ("DEBUGREGS", "struct kvm_debugregs"),
    "lapic": ("LAPIC", "struct kvm_lapic_state"),
}
_AFTER_MSRS = {"events": ("VCPU_EVENTS", "struct kvm_vcpu_events"), "mp_state": ("MP_STATE", "struct kvm_mp_state")}
_CHIPS = {"pic_master": lib.KVM_IRQCHIP_PIC_MASTER, "pic_slave": lib.KVM_IRQCHIP_PIC_SLAVE, "ioapic": lib.KVM_IRQCHIP_IOAPIC}

MAX_MSRS = 1024
MSR_TSC = 0x10
_ANOTHER_TSC = 1 << 60  # After ten years at 3 GHz
MSR_TSC_DEADLINE = 0x6E0  # Intel SDM volume 4, table 2-2
_XSAVE_BYTES = 4096
"""struct kvm_xsave; KVM_CAP_XSAVE2 says if guests may have more (api.rst 4.42, 4.134)."""


class VcpuState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a vCPU: KVM's structures; `msrs` is an array of kvm_msr_entry."""

    sregs: Annotated[bytes, exactly(ffi.sizeof("struct kvm_sregs"))]
    xcrs: Annotated[bytes, exactly(ffi.sizeof("struct kvm_xcrs"))]
    regs: Annotated[bytes, exactly(ffi.sizeof("struct kvm_regs"))]
    debugregs: Annotated[bytes, exactly(ffi.sizeof("struct kvm_debugregs"))]
    lapic: Annotated[bytes, exactly(ffi.sizeof("struct kvm_lapic_state"))]
    events: Annotated[bytes, exactly(ffi.sizeof("struct kvm_vcpu_events"))]
    mp_state: Annotated[bytes, exactly(ffi.sizeof("struct kvm_mp_state"))]
    xsave: bytes
    msrs: Annotated[bytes, Meta(max_length=MAX_MSRS * MSR.size)]


class KvmState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of all vCPUs, the interrupt controllers and kvm-clock."""

    vcpus: tuple[VcpuState, ...]
    pic_master: Annotated[bytes, exactly(ffi.sizeof("struct kvm_irqchip"))]
    pic_slave: Annotated[bytes, exactly(ffi.sizeof("struct kvm_irqchip"))]
    ioapic: Annotated[bytes, exactly(ffi.sizeof("struct kvm_irqchip"))]
    clock_ns: U63


def identity(kvm: Kvm) -> str:
    """What a guest here may see of the processor, as text: it goes on only where it is the same."""
    return offered_cpuid().identity


def difference(theirs: str, ours: str) -> str:
    """What differs in two of these, in words."""
    return features.difference(theirs, ours)


def prepare() -> None:
    """Find out what `identity` and `save` have to know, once for a process and its forks: that
    takes a virtual machine, and a vmm process may make no other once its own runs.
    """
    _writable_msrs()


def save(vm: Vm, controller: None, vcpus: Sequence[Vcpu]) -> KvmState:
    """All of it. The vCPUs stand still, with no access half done, and may go on afterwards."""
    msrs = _writable_msrs()
    saved = tuple(_save_vcpu(vm.kvm, vcpu, msrs) for vcpu in vcpus)
    chips = {name: vm.exchange("KVM_GET_IRQCHIP", "struct kvm_irqchip", {"chip_id": chip}) for name, chip in _CHIPS.items()}
    clock = vm.exchange("KVM_GET_CLOCK", "struct kvm_clock_data")
    return KvmState(vcpus=saved, clock_ns=clock.clock, **{name: bytes(ffi.buffer(chip)) for name, chip in chips.items()})


def restore(vm: Vm, controller: None, vcpus: Sequence[Vcpu], saved: Saved) -> Callable[[], None]:
    """Restore into as many new vCPUs and new controllers. What this returns sets their time back to
    the snapshot's, for a machine that did not run at once. Both raise SnapshotError, KvmError.
    """
    state = saved.decode(KvmState)
    for vcpu, of_vcpu in saved.pairs("vcpus", vcpus, state.vcpus):
        set_cpuid(offered_cpuid(), vcpu, len(vcpus))  # of this host: a state could offer more
        _restore_vcpu(vm.kvm, vcpu, of_vcpu, saved)
    for name, chip in _CHIPS.items():
        irqchip: Any = ffi.from_buffer("struct kvm_irqchip *", bytearray(getattr(state, name)))
        irqchip.chip_id = chip
        vm.ioctl("KVM_SET_IRQCHIP", irqchip)
    _set_clock(vm, state.clock_ns)
    tell_of_pause(vcpus)
    return functools.partial(_set_back, vm, vcpus, state)


def _set_clock(vm: Vm, clock_ns: int) -> None:
    vm.exchange("KVM_SET_CLOCK", "struct kvm_clock_data", {"clock": clock_ns})


def _set_back(vm: Vm, vcpus: Sequence[Vcpu], state: KvmState) -> None:
    # KVM takes a TSC within a second of what it is now for what it is now (kvm_synchronize_tsc), so
    # another one comes first; all vCPUs have each of them at about the same time.
    for vcpu in vcpus:
        set_msrs(vcpu, MSR.pack(MSR_TSC, _ANOTHER_TSC))
    for vcpu, of_vcpu in zip(vcpus, state.vcpus, strict=True):
        set_msrs(vcpu, of_vcpu.msrs)
    _set_clock(vm, state.clock_ns)


def _save_vcpu(kvm: Kvm, vcpu: Vcpu, msrs: Sequence[int]) -> VcpuState:
    # The deadline before the LAPIC: a timer that fires meanwhile is in one of them at least.
    saved = b"".join(MSR.pack(*msr) for msr in _read_msrs(vcpu, msrs))
    # MP state first: asking for it lets KVM take in INIT and start-up IPIs that wait.
    structs = {}
    for name, (ioctl, kind) in [*reversed(_AFTER_MSRS.items()), *_BEFORE_MSRS.items()]:
        structs[name] = bytes(ffi.buffer(vcpu.exchange(f"KVM_GET_{ioctl}", kind)))
    xsave = ffi.new("char[]", _xsave_bytes(kvm))
    vcpu.ioctl("KVM_GET_XSAVE2" if len(xsave) > _XSAVE_BYTES else "KVM_GET_XSAVE", xsave)
    return VcpuState(xsave=bytes(ffi.buffer(xsave)), msrs=saved, **structs)


def _restore_vcpu(kvm: Kvm, vcpu: Vcpu, state: VcpuState, saved: Saved) -> None:
    for name, (ioctl, kind) in _BEFORE_MSRS.items():
        # Without XSAVE there are no XCRs, and KVM takes none: their count is first (api.rst 4.46).
        if name != "xcrs" or any(state.xcrs[:4]):
            vcpu.ioctl(f"KVM_SET_{ioctl}", ffi.from_buffer(f"{kind} *", getattr(state, name)))
    if len(state.xsave) != (wanted := _xsave_bytes(kvm)):
        raise saved.damaged(f"vcpus[{vcpu.index}].xsave has {len(state.xsave)} bytes, not {wanted}")
    vcpu.ioctl("KVM_SET_XSAVE", ffi.from_buffer("char[]", state.xsave))
    count = len(state.msrs) // MSR.size
    if set_msrs(vcpu, state.msrs[: count * MSR.size]) != count:
        raise saved.damaged(f"vcpus[{vcpu.index}].msrs has one that this KVM refuses")
    for name, (ioctl, kind) in _AFTER_MSRS.items():
        vcpu.ioctl(f"KVM_SET_{ioctl}", ffi.from_buffer(f"{kind} *", getattr(state, name)))


@functools.cache
def _writable_msrs() -> list[int]:
    """The MSRs that can be read and written back, in the order of restoring.

    Some can only be read. A vCPU of another machine, with the same CPUID, shows which.
    """
    with Kvm() as kvm, kvm.create_vm() as vm:
        known = kvm.exchange("KVM_GET_MSR_INDEX_LIST", "struct kvm_msr_list", {"nmsrs": MAX_MSRS, "indices": MAX_MSRS})
        indices = sorted(set(known.indices[0 : known.nmsrs]), key=lambda index: (index == MSR_TSC_DEADLINE, index != MSR_TSC, index))
        vm.ioctl("KVM_CREATE_IRQCHIP")
        with vm.create_vcpu(0) as vcpu:
            set_cpuid(offered_cpuid(), vcpu, 1)
            rest, written = _read_msrs(vcpu, indices), []
            while rest:
                count = set_msrs(vcpu, b"".join(MSR.pack(*msr) for msr in rest))
                written += [index for index, _ in rest[:count]]
                rest = rest[count + 1 :]  # what stopped it is refused
    return written


def _read_msrs(vcpu: Vcpu, indices: Sequence[int]) -> list[tuple[int, int]]:
    """(index, value) of those that can be read."""
    saved: list[tuple[int, int]] = []
    while indices:
        msrs: Any = ffi.new("struct kvm_msrs *", {"nmsrs": len(indices), "entries": [{"index": index} for index in indices]})
        count = vcpu.ioctl("KVM_GET_MSRS", msrs)
        saved += [(msrs.entries[at].index, msrs.entries[at].data) for at in range(count)]
        indices = indices[count + 1 :]  # what stopped it cannot be read here
    return saved


def _xsave_bytes(kvm: Kvm) -> int:
    return max(_XSAVE_BYTES, kvm.check_extension("KVM_CAP_XSAVE2"))


def tell_of_pause(vcpus: Sequence[Vcpu]) -> None:
    """Set the flag that says so (api.rst 4.78); a guest without kvm-clock has none."""
    for vcpu in vcpus:
        try:
            vcpu.ioctl("KVM_KVMCLOCK_CTRL")
        except KvmError as error:
            if error.errno != errno.EINVAL:
                raise
