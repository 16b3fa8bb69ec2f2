"""The allow list of a guest's CPUID features, and the MSRs that it may not reach.

KVM offers all that it can emulate or pass through, even nested virtualisation. A guest gets only
the features below, as far as KVM offers them, however new the host is. Left out on purpose: VMX,
SVM, SMX, SGX, MONITOR, performance counters, PT, LBR, RDT, TSX, MPX, AMX, CET, FRED, and the
invariant TSC, since a guest would prefer it to kvm-clock, which survives a snapshot.

Names are Linux's (arch/x86/include/asm/cpufeatures.h); bits are from Intel SDM volume 2A, CPUID,
AMD APM volume 3, appendix E, and, for KVM's own, Linux virt/kvm/x86/cpuid.rst.
"""

import contextlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from mayfly.vmm.kvm._kvm import ffi, lib
from mayfly.vmm.kvm.kvm import Vm

_ALL = 0xFFFF_FFFF
REGISTERS = ("eax", "ebx", "ecx", "edx")
_COMMON_EDX = "FPU:0 VME:1 DE:2 PSE:3 TSC:4 MSR:5 PAE:6 MCE:7 CX8:8 APIC:9 MTRR:12 PGE:13 MCA:14 CMOV:15 PAT:16 PSE36:17 MMX:23 FXSR:24"

FEATURES: Mapping[tuple[int, int, str], str] = {
    (1, 0, "ecx"): "XMM3:0 PCLMULQDQ:1 SSSE3:9 FMA:12 CX16:13 PCID:17 XMM4_1:19 XMM4_2:20 X2APIC:21 MOVBE:22 POPCNT:23 "
    "TSC_DEADLINE_TIMER:24 AES:25 XSAVE:26 OSXSAVE:27 AVX:28 F16C:29 RDRAND:30 HYPERVISOR:31",
    (1, 0, "edx"): _COMMON_EDX + " SEP:11 CLFLUSH:19 XMM:25 XMM2:26 SELFSNOOP:27 HT:28",
    (6, 0, "eax"): "ARAT:2",
    (7, 0, "ebx"): "FSGSBASE:0 TSC_ADJUST:1 BMI1:3 AVX2:5 FDP_EXCPTN_ONLY:6 SMEP:7 BMI2:8 ERMS:9 INVPCID:10 ZERO_FCS_FDS:13 AVX512F:16 "
    "AVX512DQ:17 RDSEED:18 ADX:19 SMAP:20 AVX512IFMA:21 CLFLUSHOPT:23 CLWB:24 AVX512PF:26 AVX512ER:27 AVX512CD:28 SHA_NI:29 "
    "AVX512BW:30 AVX512VL:31",
    (7, 0, "ecx"): "AVX512VBMI:1 UMIP:2 PKU:3 OSPKE:4 AVX512_VBMI2:6 GFNI:8 VAES:9 VPCLMULQDQ:10 AVX512_VNNI:11 AVX512_BITALG:12 "
    "AVX512_VPOPCNTDQ:14 LA57:16 RDPID:22 CLDEMOTE:25 MOVDIRI:27 MOVDIR64B:28",
    (7, 0, "edx"): "AVX512_4VNNIW:2 AVX512_4FMAPS:3 FSRM:4 AVX512_VP2INTERSECT:8 SRBDS_CTRL:9 MD_CLEAR:10 SERIALIZE:14 AVX512_FP16:23 "
    "SPEC_CTRL:26 INTEL_STIBP:27 FLUSH_L1D:28 ARCH_CAPABILITIES:29 SPEC_CTRL_SSBD:31",
    (7, 1, "eax"): "SHA512:0 SM3:1 SM4:2 AVX_VNNI:4 AVX512_BF16:5 CMPCCXADD:7 FZRM:10 FSRS:11 FSRC:12 AVX_IFMA:23",
    (7, 1, "edx"): "AVX_VNNI_INT8:4 AVX_NE_CONVERT:5 AVX_VNNI_INT16:10 PREFETCHITI:14",
    (7, 2, "edx"): "INTEL_PSFD:0 IPRED_CTRL:1 RRSBA_CTRL:2 DDPD_U:3 BHI_CTRL:4 MCDT_NO:5",
    (0xD, 0, "eax"): "FP:0 SSE:1 YMM:2 OPMASK:5 ZMM_HI256:6 HI16_ZMM:7 PKRU:9",
    (0xD, 1, "eax"): "XSAVEOPT:0 XSAVEC:1 XGETBV1:2 XSAVES:3",
    (0x4000_0001, 0, "eax"): "CLOCKSOURCE:0 NOP_IO_DELAY:1 CLOCKSOURCE2:3 ASYNC_PF:4 STEAL_TIME:5 PV_EOI:6 PV_UNHALT:7 PV_TLB_FLUSH:9 "
    "ASYNC_PF_VMEXIT:10 PV_SEND_IPI:11 POLL_CONTROL:12 PV_SCHED_YIELD:13 ASYNC_PF_INT:14 CLOCKSOURCE_STABLE:24",
    (0x8000_0001, 0, "ecx"): "LAHF_LM:0 CMP_LEGACY:1 CR8_LEGACY:4 ABM:5 SSE4A:6 MISALIGNSSE:7 3DNOWPREFETCH:8 OSVW:9 XOP:11 FMA4:16 "
    "TBM:21 TOPOEXT:22",
    (0x8000_0001, 0, "edx"): _COMMON_EDX + " SYSCALL:11 NX:20 MMXEXT:22 FXSR_OPT:25 GBPAGES:26 RDTSCP:27 LM:29 3DNOWEXT:30 3DNOW:31",
    (0x8000_0008, 0, "ebx"): "CLZERO:0 XSAVEERPTR:2 WBNOINVD:9 AMD_IBPB:12 AMD_IBRS:14 AMD_STIBP:15 AMD_STIBP_ALWAYS_ON:17 AMD_SSBD:24 "
    "VIRT_SSBD:25 AMD_SSB_NO:26 AMD_PSFD:28 BTC_NO:29 AMD_IBPB_RET:30",
    (0x8000_0021, 0, "eax"): "NO_NESTED_DATA_BP:0 WRMSR_XX_BASE_NS:1 LFENCE_RDTSC:2 VERW_CLEAR:5 NULL_SEL_CLR_BASE:6 AUTOIBRS:8 "
    "NO_SMM_CTL_MSR:9 SBPB:27 IBPB_BRTYPE:28 SRSO_NO:29 SRSO_USER_KERNEL_NO:30",
    (0x8000_0021, 0, "ecx"): "TSA_SQ_NO:1 TSA_L1_NO:2",
}
"""By leaf, subleaf and register: a name and a bit for each feature."""

NUMBERS: Mapping[tuple[int, int], tuple[str, ...]] = {
    (1, 0): ("eax", "ebx"),  # model; brand, CLFLUSH size, APIC id
    **{(leaf, 0): REGISTERS for leaf in (0, 2, 0x4000_0000, 0x8000_0000, *range(0x8000_0002, 0x8000_0007), 0x8000_0019, 0x8000_001E)},
    **{(leaf, index): REGISTERS for leaf in (4, 0x8000_001D) for index in range(16)},  # caches
    **{(0xD, index): REGISTERS for index in range(2, 10)},  # sizes and offsets of states
    (0xD, 0): ("ebx", "ecx"),
    (0xD, 1): ("ebx",),
    (0x8000_0008, 0): ("eax", "ecx"),  # address sizes, number of cores
}
"""Registers that are numbers or text, not features: names, sizes, caches."""
_LAST_LEAF = {0: 0xD, 0x8000_0000: 0x8000_0021}
"""Leaves whose EAX says which one is the last of their range."""
_XSAVE_LEAF, _XSAVE_LEGACY_BYTES = 0xD, 576

DENIED_MSRS = (
    (0x3A, 1),  # IA32_FEATURE_CONTROL: VMX, SGX
    (0x8C, 4),  # SGX: IA32_SGXLEPUBKEYHASH
    (0xC1, 8),  # performance counters, and what selects their events
    (0x186, 8),
    (0x309, 4),
    (0x345, 1),
    (0x38D, 4),
    (0x3F1, 2),  # PEBS
    (0x480, 0x14),  # VMX capabilities
    (0x4C1, 8),
    (0x560, 0x28),  # PT
    (0x600, 1),  # DS area
    (0xC001_0114, 4),  # SVM: VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA
    (0xC001_0200, 12),  # AMD's performance counters
)
"""First and number (Intel SDM volume 4, table 2-2; AMD APM volume 2, appendix A), 16 at most."""
# Of a range each MSR has a bit: all of them are 0, that is denied. In words of 64 bits.
_BITMAPS = [ffi.new("uint8_t[]", -(-count // 64) * 8) for _, count in DENIED_MSRS]
_FILTER = ffi.new(
    "struct kvm_msr_filter *",
    {
        "ranges": [
            {"flags": lib.KVM_MSR_FILTER_READ | lib.KVM_MSR_FILTER_WRITE, "base": first, "nmsrs": count, "bitmap": bits}
            for (first, count), bits in zip(DENIED_MSRS, _BITMAPS, strict=True)
        ]
    },
)


def mask(names: str) -> int:
    """The bits of features as FEATURES has them."""
    return sum(1 << int(feature.partition(":")[2]) for feature in names.split())


def _masks() -> dict[tuple[int, int], list[int]]:
    masks = {place: [_ALL if register in numbers else 0 for register in REGISTERS] for place, numbers in NUMBERS.items()}
    for (leaf, index, register), names in FEATURES.items():
        masks.setdefault((leaf, index), [0] * len(REGISTERS))[REGISTERS.index(register)] = mask(names)
    return masks


ALLOWED = _masks()  # By leaf and subleaf: the bits of each register that a guest may see
_STATES = mask(FEATURES[_XSAVE_LEAF, 0, "eax"])


def difference(theirs: str, ours: str) -> str:
    """What guests see otherwise at two hosts, whose cpu.Offered has these identities: features by
    name, and other registers by leaf and subleaf, of which some are the processor's name.
    """
    there, here = _registers(theirs), _registers(ours)
    only_there: list[str] = []
    only_here: list[str] = []
    others: list[str] = []
    for place in sorted(there.keys() | here.keys()):
        differs = there.get(place, 0) ^ here.get(place, 0)
        for feature in FEATURES.get(place, "").split():
            name, _, bit = feature.partition(":")
            if differs >> int(bit) & 1:
                (only_there if there.get(place, 0) >> int(bit) & 1 else only_here).append(name)
        if differs and place not in FEATURES:
            others.append(f"{place[0]:#x}.{place[1]}")
    said = (("only there", only_there), ("only here", only_here), ("other numbers in CPUID", others))
    names = [_processor(registers) for registers in (there, here)]
    parts = [f"{names[0]} there, {names[1]} here"] if names[0] != names[1] else []
    return "; ".join(parts + [f"{what}: {', '.join(dict.fromkeys(found))}" for what, found in said if found])


def _registers(identity: str) -> dict[tuple[int, int, str], int]:
    found = {}
    with contextlib.suppress(ValueError):  # of another server, which may say anything
        for entry in filter(None, identity.split(", ")):
            place, _, values = entry.partition(": ")
            leaf, _, index = place.partition(".")
            for register, value in zip(REGISTERS, values.split(), strict=True):
                found[int(leaf, 16), int(index, 16), register] = int(value, 16)
    return found


def _processor(registers: Mapping[tuple[int, int, str], int]) -> str:
    """Its name (Intel SDM volume 2A, CPUID, "Processor Brand String")."""
    words = [registers.get((leaf, 0, register), 0) & _ALL for leaf in range(0x8000_0002, 0x8000_0005) for register in REGISTERS]
    text = struct.pack("<12I", *words).partition(b"\0")[0].decode(errors="replace")
    return " ".join("".join(filter(str.isprintable, text)).split()) or "an unnamed processor"


def reduce(entries: Iterable[Any]) -> list[Any]:
    """Those of KVM's CPUID entries that are allowed, their other bits cleared in place."""
    kept = []
    size = _XSAVE_LEGACY_BYTES
    states = 0
    for entry in entries:
        leaf, index = entry.function, entry.index
        masks = ALLOWED.get((leaf, index))
        if masks is None or (leaf == _XSAVE_LEAF and index > 1 and not states >> index & 1):
            continue
        for register, bits in zip(REGISTERS, masks, strict=True):
            setattr(entry, register, getattr(entry, register) & bits)
        if leaf in _LAST_LEAF:
            entry.eax = min(entry.eax, _LAST_LEAF[leaf])
        elif leaf == _XSAVE_LEAF and index == 0:
            states = entry.eax
        elif leaf == _XSAVE_LEAF and index > 1:
            size = max(size, entry.ebx + entry.eax)
        kept.append(entry)
    for entry in kept:
        if entry.function == _XSAVE_LEAF and entry.index == 0:
            entry.ecx = size if states else 0  # of all states that may be switched on (KVM keeps EBX: of those that are)
    return kept


def deny_msrs(vm: Vm) -> None:
    """Deny the MSRs of withheld features. Before Linux 5.10 KVM goes by CPUID alone."""
    if vm.kvm.check_extension("KVM_CAP_X86_MSR_FILTER") <= 0:
        return
    vm.ioctl("KVM_X86_SET_MSR_FILTER", _FILTER)
