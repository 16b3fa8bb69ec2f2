"""vCPU state at the kernel's entry: CPUID, GDT, page tables (Linux boot.rst, "64-bit Boot")."""

import struct
from collections.abc import Sequence
from typing import Any

from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.arch.x86_64.features import deny_msrs, reduce
from mayfly.vmm.kvm._kvm import ffi
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.memory import GuestMemory

MAX_CPUID_ENTRIES = 256
CPUID_INDEX_SIGNIFICANT = 1


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
    memory.write_int(layout.PML4, 8, layout.PDPT | PAGE_PRESENT | PAGE_WRITABLE)
    memory.write_int(layout.PDPT, 8, layout.PD | PAGE_PRESENT | PAGE_WRITABLE)
    flags = PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE
    memory.write(layout.PD, struct.pack("<512Q", *(index * LARGE_PAGE | flags for index in range(512))))


def set_up(vm: Vm, vcpus: Sequence[Vcpu], *, entry: int) -> None:
    """Give all vCPUs CPUID and MTRRs, and the first one the kernel's entry state at `entry`.

    The others wait for the kernel's start-up IPI, as KVM makes them.
    """
    deny_msrs(vm)
    cpuid = offered_cpuid(vm.kvm)
    for vcpu in vcpus:
        set_cpuid(cpuid, vcpu, len(vcpus))
        msrs = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [{"index": MSR_MTRR_DEFAULT, "data": MTRR_ENABLED_WRITE_BACK}]})
        vcpu.ioctl_struct("KVM_SET_MSRS", msrs)
    _enter_at(vcpus[0], entry)


def offered_cpuid(kvm: Kvm) -> list[Any]:
    """Entries of a struct kvm_cpuid2 (api.rst 4.46): what KVM supports and FEATURES allows."""
    cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": MAX_CPUID_ENTRIES, "entries": MAX_CPUID_ENTRIES})
    kvm.ioctl_struct("KVM_GET_SUPPORTED_CPUID", cpuid)
    # Copies, as a cdata entry does not keep its array alive.
    entries = reduce(ffi.new("struct kvm_cpuid_entry2 *", cpuid.entries[index]) for index in range(cpuid.nent))
    for entry in entries:
        if entry.function == 1:
            # Without HYPERVISOR guests see no KVM or kvm-clock; KVM leaves the deadline bit to us.
            deadline = kvm.check_extension("KVM_CAP_TSC_DEADLINE_TIMER") > 0
            entry.ecx |= LEAF1_ECX_HYPERVISOR | (LEAF1_ECX_TSC_DEADLINE if deadline else 0)
    return entries


def set_cpuid(entries: Sequence[Any], vcpu: Vcpu, cpus: int) -> None:
    """Give a vCPU its CPUID: what is offered to all, its APIC id, and the topology."""
    topology = [_topology_leaf(0xB, subleaf, vcpu.index, cpus) for subleaf in range(2)]
    cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": len(entries) + len(topology), "entries": len(entries) + len(topology)})
    for index, entry in enumerate(entries):
        cpuid.entries[index] = entry[0]
        if entry.function == 1:
            cpuid.entries[index].ebx = entry.ebx & 0xFFFF | cpus << 16 | vcpu.index << 24
    for index, leaf in enumerate(topology, len(entries)):
        cpuid.entries[index] = leaf
    vcpu.ioctl_struct("KVM_SET_CPUID2", cpuid)


def _topology_leaf(leaf: int, subleaf: int, apic_id: int, cpus: int) -> dict[str, int]:
    """CPUID leaf 0xB (Intel SDM volume 2A): one thread per core, all cores in one package."""
    shift, threads, level = ((0, 1, 1), ((cpus - 1).bit_length(), cpus, 2))[subleaf]
    return {
        "function": leaf,
        "index": subleaf,
        "flags": CPUID_INDEX_SIGNIFICANT,
        "eax": shift,
        "ebx": threads,
        "ecx": level << 8 | subleaf,
        "edx": apic_id,
    }


def _enter_at(vcpu: Vcpu, entry: int) -> None:
    sregs = ffi.new("struct kvm_sregs *")
    vcpu.ioctl_struct("KVM_GET_SREGS", sregs)
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, len(BOOT_GDT) * 8 - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    flat = {"base": 0, "limit": 0xFFFF_FFFF, "present": 1, "dpl": 0, "s": 1, "g": 1}
    sregs.cs = {**flat, "selector": BOOT_CS, "type": 0xB, "l": 1, "db": 0}
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, {**flat, "selector": BOOT_DS, "type": 3, "db": 1})
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG
    sregs.cr3 = layout.PML4
    sregs.cr4 = CR4_PAE
    sregs.efer = EFER_LME | EFER_LMA
    vcpu.ioctl_struct("KVM_SET_SREGS", sregs)
    regs = ffi.new("struct kvm_regs *", {"rip": entry, "rsi": layout.BOOT_PARAMS, "rflags": RFLAGS_RESERVED})
    vcpu.ioctl_struct("KVM_SET_REGS", regs)


def describe_registers(vcpu: Vcpu) -> str:
    """The registers that matter, for the error of a guest that crashed."""
    regs, sregs = ffi.new("struct kvm_regs *"), ffi.new("struct kvm_sregs *")
    vcpu.ioctl_struct("KVM_GET_REGS", regs)
    vcpu.ioctl_struct("KVM_GET_SREGS", sregs)
    general = ("rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
    control = ("cr0", "cr2", "cr3", "cr4", "efer")
    return " ".join([f"{name}={getattr(regs, name):#x}" for name in general] + [f"{name}={getattr(sregs, name):#x}" for name in control])
