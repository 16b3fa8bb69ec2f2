"""What a guest sees of the processor: a list of what is allowed, whatever the host offers."""

import dataclasses
import itertools
import re
import types

import pytest

from mayfly.vmm.arch.x86_64.features import ALLOWED, DENIED_MSRS, FEATURES, NUMBERS, REGISTERS, mask, reduce

ALL = 0xFFFF_FFFF


@dataclasses.dataclass
class Entry:
    """As struct kvm_cpuid_entry2."""

    function: int
    index: int = 0
    eax: int = ALL
    ebx: int = ALL
    ecx: int = ALL
    edx: int = ALL


def everything() -> list[Entry]:
    """A host that offers every bit of every leaf."""
    leaves = [*range(0x30), *range(0x4000_0000, 0x4000_0010), *range(0x8000_0000, 0x8000_0030), 0xC000_0001]
    subleaves = {4: 16, 7: 4, 0xB: 3, 0xD: 64, 0x12: 4, 0x14: 2, 0x1D: 2, 0x1F: 3, 0x8000_001D: 16}
    entries = [Entry(leaf, index) for leaf in leaves for index in range(subleaves.get(leaf, 1))]
    for entry in entries:
        if entry.function == 0xD and entry.index > 1:
            entry.eax, entry.ebx = 64, 512 + 64 * entry.index
    return entries


def seen(leaf: int, index: int, register: str) -> int:
    values = [getattr(entry, register) for entry in reduce(everything()) if (entry.function, entry.index) == (leaf, index)]
    return values[0] if values else 0


NEVER = {
    "DTES64": (1, 0, "ecx", 2),
    "MONITOR": (1, 0, "ecx", 3),
    "VMX": (1, 0, "ecx", 5),
    "SMX": (1, 0, "ecx", 6),
    "PDCM": (1, 0, "ecx", 15),
    "DS": (1, 0, "edx", 21),
    "SGX": (7, 0, "ebx", 2),
    "HLE": (7, 0, "ebx", 4),
    "RTM": (7, 0, "ebx", 11),
    "MPX": (7, 0, "ebx", 14),
    "RDT_A": (7, 0, "ebx", 15),
    "INTEL_PT": (7, 0, "ebx", 25),
    "WAITPKG": (7, 0, "ecx", 5),
    "ARCH_LBR": (7, 0, "edx", 19),
    "AMX_TILE": (7, 0, "edx", 24),
    "performance counters": (0xA, 0, "eax", 0),
    "XTILE": (0xD, 0, "eax", 18),
    "SVM": (0x8000_0001, 0, "ecx", 2),
    "IBS": (0x8000_0001, 0, "ecx", 10),
    "SKINIT": (0x8000_0001, 0, "ecx", 12),
    "LWP": (0x8000_0001, 0, "ecx", 15),
    "PERFCTR_CORE": (0x8000_0001, 0, "ecx", 23),
    "invariant TSC": (0x8000_0007, 0, "edx", 8),
    "SVM's features": (0x8000_000A, 0, "edx", 0),
    "SEV": (0x8000_001F, 0, "eax", 1),
    "AMD performance counters": (0x8000_0022, 0, "eax", 0),
    "KVM_MIGRATION_CONTROL": (0x4000_0001, 0, "eax", 17),
    "KVM_REALTIME": (0x4000_0001, 0, "edx", 0),
}
WANTED = (
    "AVX AES XSAVE PCLMULQDQ RDRAND X2APIC TSC_DEADLINE_TIMER HYPERVISOR POPCNT FMA CX16 BMI1 BMI2 AVX2 AVX512F AVX512BW AVX512VL RDSEED "
    "SHA_NI FSGSBASE SMEP SMAP INVPCID ERMS FSRM UMIP PKU GFNI VAES YMM OPMASK ZMM_HI256 XSAVEC XSAVES CLOCKSOURCE2 CLOCKSOURCE_STABLE "
    "SYSCALL NX LM RDTSCP GBPAGES LAHF_LM ABM SPEC_CTRL ARCH_CAPABILITIES AMD_IBPB ARAT"
)


@pytest.mark.parametrize("name", NEVER)
def test_is_never_shown(name: str) -> None:
    leaf, index, register, bit = NEVER[name]
    assert not seen(leaf, index, register) >> bit & 1


def test_what_programs_and_linux_want_is_shown() -> None:
    names = {feature.partition(":")[0] for features in FEATURES.values() for feature in features.split()}
    assert set(WANTED.split()) <= names
    for (leaf, index, register), features in FEATURES.items():
        assert seen(leaf, index, register) == mask(features)


def test_the_table_names_each_bit_once() -> None:
    for (leaf, index, register), features in FEATURES.items():
        assert re.fullmatch(r"[0-9A-Z_]+:[0-9]+( [0-9A-Z_]+:[0-9]+)*", features)
        bits = [int(feature.partition(":")[2]) for feature in features.split()]
        assert len(set(bits)) == len(bits)
        assert max(bits) < 32
        assert register in REGISTERS
        assert register not in NUMBERS.get((leaf, index), ())


def test_no_leaf_but_those_of_the_table_is_shown() -> None:
    shown = {(entry.function, entry.index) for entry in reduce(everything())}
    assert shown <= set(ALLOWED)
    assert {leaf for leaf, _ in shown}.isdisjoint({3, 5, 0xA, 0xB, 0xF, 0x10, 0x12, 0x14, 0x1D, 0x1E, 0x1F, 0x24, 0x8000_000A, 0x8000_001B})
    assert seen(0, 0, "eax") == 0xD
    assert seen(0x8000_0000, 0, "eax") == 0x8000_0021


def test_the_area_of_xsave_holds_the_states_that_are_left() -> None:
    assert {entry.index for entry in reduce(everything()) if entry.function == 0xD} == {0, 1, 2, 5, 6, 7, 9}
    assert seen(0xD, 0, "ecx") == 512 + 64 * 9 + 64
    assert seen(0xD, 0, "edx") == 0
    assert seen(0xD, 1, "ecx") == 0  # no supervisor states
    assert [entry.ecx for entry in reduce([Entry(0xD, 0, eax=3)])] == [576]
    assert [entry.ecx for entry in reduce([Entry(0xD, 0, eax=0)])] == [0]  # a processor without XSAVE


def test_a_host_that_offers_little_gets_no_more() -> None:
    little = [Entry(1, 0, 0x123, 0, 1, 1), Entry(0xD, 0, 7, 0, 0, 0), Entry(0xD, 2, 256, 576, 0, 0), Entry(0xD, 5, 64, 1088, 0, 0)]
    assert [(entry.function, entry.index) for entry in reduce(little)] == [(1, 0), (0xD, 0), (0xD, 2)]
    assert [entry.ecx for entry in little[:2]] == [1, 832]


def test_entries_of_any_kind_are_taken() -> None:
    [entry] = reduce([types.SimpleNamespace(function=1, index=0, eax=ALL, ebx=ALL, ecx=1 << 5, edx=0)])
    assert entry.ecx == 0


def test_denied_msrs_fit_kvms_filter() -> None:
    """At most 16 ranges of at most 0x600 bytes of bits (Linux arch/x86/include/uapi/asm/kvm.h)."""
    assert len(DENIED_MSRS) <= 16
    spans = sorted((first, first + count) for first, count in DENIED_MSRS)
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(spans))
    denied = {msr for first, end in spans for msr in range(first, end)}
    assert {0x3A, 0x480, 0x491, 0xC001_0114, 0xC001_0117} <= denied
    assert denied.isdisjoint({0x10, 0x1B, 0x3B, 0x48, 0x49, 0x10A, 0x10B, 0x174, 0x277, 0x2FF, 0x6E0, 0xDA0, 0xC000_0080, 0xC000_0081})
