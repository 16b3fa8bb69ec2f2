"""vCPU state at the kernel's entry: CPUID, GDT, page tables (Linux boot.rst, "64-bit Boot"); and a
guest with which guests/probe.py times this host's KVM.
"""

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.arch.x86_64.features import deny_msrs, reduce
from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.memory import GuestMemory

MAX_CPUID_ENTRIES = 256
TCG = b"TCGTCGTCGTCG"
CPUID_INDEX_SIGNIFICANT = 1
_COUNT = struct.Struct("=I4x")  # struct kvm_cpuid2 and struct kvm_msrs before their entries
MSR = struct.Struct("=I4xQ")  # struct kvm_msr_entry: index, data
_LEAF = struct.Struct("=7I12x")  # struct kvm_cpuid_entry2: function, index, flags, EAX, EBX, ECX, EDX
_EBX = struct.Struct("=I")
_PER_CPU_LEAVES = (1, 0xB, 0x1F, 0x8000_001E)
"""Leaves that differ by the processor that asks: in its APIC id the first, in all others the rest
(Intel SDM volume 2A; AMD APM volume 3, E.4).
"""
LEAF1_ECX_TSC_DEADLINE, LEAF1_ECX_HYPERVISOR = 1 << 24, 1 << 31  # Intel SDM volume 2A, CPUID
PAGE_PRESENT, PAGE_WRITABLE, PAGE_LARGE = 1 << 0, 1 << 1, 1 << 7  # Intel SDM volume 3A, 4.5
CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31  # Intel SDM volume 3A, 2.5
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_RESERVED = 1 << 1
LARGE_PAGE = 2 << 20

MSR_MTRR_DEFAULT = 0x2FF
MTRR_ENABLED_WRITE_BACK = 1 << 11 | 6

BOOT_CS, BOOT_DS = 0x10, 0x18
BOOT_GDT = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
"""Null, null, 64-bit code, data: flat, present, ring 0 (Intel SDM volume 3A, 3.4.5)."""


def write_boot_tables(memory: GuestMemory) -> None:
    """Write the GDT, and page tables that map the first GiB onto itself."""
    memory.write(layout.GDT, struct.pack(f"<{len(BOOT_GDT)}Q", *BOOT_GDT))
    memory.write(layout.PML4, struct.pack("<Q", layout.PDPT | PAGE_PRESENT | PAGE_WRITABLE))
    memory.write(layout.PDPT, struct.pack("<Q", layout.PD | PAGE_PRESENT | PAGE_WRITABLE))
    flags = PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE
    memory.write(layout.PD, struct.pack("<512Q", *(index * LARGE_PAGE | flags for index in range(512))))


def withhold(vm: Vm) -> None:
    """Deny guests the MSRs of features that CPUID does not show them."""
    deny_msrs(vm)


def set_up(vm: Vm, vcpus: Sequence[Vcpu], *, entry: int) -> None:
    """Give all vCPUs CPUID and MTRRs. The first enters at `entry`, the others wait for an IPI."""
    for vcpu in vcpus:
        set_cpuid(offered_cpuid(), vcpu, len(vcpus))
        set_msrs(vcpu, MSR.pack(MSR_MTRR_DEFAULT, MTRR_ENABLED_WRITE_BACK))
    _enter_at(vcpus[0], entry)


def set_msrs(vcpu: Vcpu, entries: bytes) -> int:
    """Set MSRs, an array of struct kvm_msr_entry; how many KVM has taken, from the first on."""
    msrs = bytearray(_COUNT.pack(len(entries) // MSR.size) + entries)
    return vcpu.ioctl("KVM_SET_MSRS", ffi.from_buffer("struct kvm_msrs *", msrs))


class Offered(NamedTuple):
    """What a guest here may see of the processor."""

    identity: str  # As text: a guest goes on only where it is the same
    leaves: bytes  # Array of struct kvm_cpuid_entry2
    apic: int  # Where in it leaf 1's EBX is


@functools.cache
def offered_cpuid() -> Offered:
    """What KVM supports and FEATURES allows (api.rst 4.46), as this process or its zygote found it
    at first: in a virtual machine asking costs an exit for each leaf.
    """
    with Kvm() as kvm:
        supported = kvm.exchange("KVM_GET_SUPPORTED_CPUID", "struct kvm_cpuid2", {"nent": MAX_CPUID_ENTRIES, "entries": MAX_CPUID_ENTRIES})
        deadline = kvm.check_extension("KVM_CAP_TSC_DEADLINE_TIMER") > 0  # whose bit KVM leaves to us
    entries = reduce(supported.entries[0 : supported.nent])
    shown = []
    for entry in entries:
        if entry.function == 1:  # without HYPERVISOR guests see no KVM or kvm-clock
            entry.ebx &= 0xFFFF
            entry.ecx |= LEAF1_ECX_HYPERVISOR | (LEAF1_ECX_TSC_DEADLINE if deadline else 0)
        elif entry.function in _PER_CPU_LEAVES:
            entry.eax = entry.ebx = entry.ecx = entry.edx = 0
            continue
        ebx = 0 if entry.function == 0xD else entry.ebx  # size of what is on now
        shown.append(f"{entry.function:x}.{entry.index:x}: {entry.eax:x} {ebx:x} {entry.ecx:x} {entry.edx:x}")
    leaf_1 = next(index for index, entry in enumerate(entries) if entry.function == 1)
    leaves = b"".join(bytes(ffi.buffer(ffi.addressof(entry))) for entry in entries)
    return Offered(", ".join(shown), leaves, leaf_1 * _LEAF.size + 4 * 4)


def set_cpuid(offered: Offered, vcpu: Vcpu, cpus: int) -> None:
    """Give a vCPU its CPUID: what is offered to all, its APIC id, and the topology."""
    leaves = offered.leaves + _topology(0, vcpu.index, cpus) + _topology(1, vcpu.index, cpus)
    cpuid = bytearray(_COUNT.pack(len(leaves) // _LEAF.size) + leaves)
    (ebx,) = _EBX.unpack_from(offered.leaves, offered.apic)
    _EBX.pack_into(cpuid, _COUNT.size + offered.apic, ebx | cpus << 16 | vcpu.index << 24)
    vcpu.ioctl("KVM_SET_CPUID2", ffi.from_buffer("struct kvm_cpuid2 *", cpuid))


def _topology(subleaf: int, apic_id: int, cpus: int) -> bytes:
    """CPUID leaf 0xB (Intel SDM volume 2A): one thread per core, all cores in one package."""
    shift, threads, level = ((0, 1, 1), ((cpus - 1).bit_length(), cpus, 2))[subleaf]
    return _LEAF.pack(0xB, subleaf, CPUID_INDEX_SIGNIFICANT, shift, threads, level << 8 | subleaf, apic_id)


def _enter_at(vcpu: Vcpu, entry: int) -> None:
    sregs = vcpu.exchange("KVM_GET_SREGS", "struct kvm_sregs")
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, len(BOOT_GDT) * 8 - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    flat = {"base": 0, "limit": 0xFFFF_FFFF, "present": 1, "dpl": 0, "s": 1, "g": 1}
    sregs.cs = {**flat, "selector": BOOT_CS, "type": 0xB, "l": 1, "db": 0}
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, {**flat, "selector": BOOT_DS, "type": 3, "db": 1})
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0_PE | CR0_ET | CR0_PG, layout.PML4, CR4_PAE, EFER_LME | EFER_LMA
    vcpu.ioctl("KVM_SET_SREGS", sregs)
    vcpu.exchange("KVM_SET_REGS", "struct kvm_regs", {"rip": entry, "rsi": layout.BOOT_PARAMS, "rflags": RFLAGS_RESERVED})


def describe_registers(vcpu: Vcpu) -> str:
    """The registers that matter, for the error of a guest that crashed."""
    general = vcpu.exchange("KVM_GET_REGS", "struct kvm_regs"), "rip rsp rflags rax rbx rcx rdx rsi rdi rbp"
    control = vcpu.exchange("KVM_GET_SREGS", "struct kvm_sregs"), "cr0 cr2 cr3 cr4 efer"
    return " ".join(f"{name}={getattr(registers, name):#x}" for registers, names in (general, control) for name in names.split())


def host_is_emulated() -> bool:
    """Whether this host is itself a guest of QEMU's TCG: CPUID leaf 0x4000_0000 names it."""
    registers = ffi.new("uint32_t[4]")
    lib.host_cpuid(1, 0, registers)
    if not registers[2] & LEAF1_ECX_HYPERVISOR:
        return False
    lib.host_cpuid(0x4000_0000, 0, registers)
    return struct.pack("<3I", *registers[1:4]) == TCG


def write_loop(memory: GuestMemory, loops: int) -> int:
    """Write code of 2 * `loops` supervisor instructions and a port access; its address."""
    # mov ecx, loops; again: dec ecx; jnz again; out 0x10, al
    memory.write(layout.HIGH_RAM, b"\xb9" + struct.pack("<I", loops) + b"\xff\xc9" + b"\x75\xfc" + b"\xe6\x10")
    write_boot_tables(memory)
    return layout.HIGH_RAM
