"""What a guest finds of the processor when it looks for itself."""

import os
import struct
from pathlib import Path

import pytest

from mayfly.guests.probe import probe
from mayfly.protocol.report import End
from mayfly.vmm.arch.x86_64.cpu import offered_cpuid
from mayfly.vmm.arch.x86_64.features import ALLOWED
from tests.kit import tiny
from tests.kit.tiny import RESET, Running

pytestmark = pytest.mark.kvm

LAST_BASIC, LAST_EXTENDED = (0, 0), (0x8000_0000, 0)
"""Their EAX is the last leaf of its range."""
FEATURES = (7, 0)
ASKED = [(1, 0), FEATURES, (0xA, 0), (0xD, 0), (0xD, 1), (0x8000_0001, 0), (0x8000_0007, 0), (0x8000_000A, 0)]


def cpuid(leaf: int, index: int) -> str:
    """Say all four registers on UART0, a byte at a time."""
    say = "".join(f"mov eax, {register}\nmov ecx, 4\n2: out dx, al\nshr eax, 8\nloop 2b\n" for register in ("r8d", "r9d", "r10d", "r11d"))
    keep = "mov r8d, eax\nmov r9d, ebx\nmov r10d, ecx\nmov r11d, edx\nmov dx, 0x3f8\n"
    return f"mov eax, {leaf:#x}\nmov ecx, {index}\ncpuid\n{keep}{say}"


def test_a_guest_sees_no_feature_that_is_not_allowed(started: list[Running], tmp_path: Path) -> None:
    places = [LAST_BASIC, LAST_EXTENDED, *ASKED]
    running = tiny.start(started, tmp_path, "".join(cpuid(*place) for place in places) + RESET)
    assert running.run() is End.RESET
    answers = dict(zip(places, struct.iter_unpack("<4I", running.console), strict=True))
    given = {(leaf, index): registers for leaf, index, _, *registers in struct.iter_unpack("=7I12x", offered_cpuid().leaves)}
    assert not any(
        value & ~allowed for place in ASKED for value, allowed in zip(given.get(place, ()), ALLOWED.get(place, [0] * 4), strict=False)
    )
    if list(answers[FEATURES]) != given[FEATURES] and not probe().usable:
        pytest.skip("KVM shows guests here what the processor says, not what it was given")
    for place in ASKED:
        if place[0] > answers[LAST_EXTENDED if place[0] >= LAST_EXTENDED[0] else LAST_BASIC][0]:
            continue  # Intel's answer is that of their last basic leaf (SDM volume 2A, CPUID)
        masks = ALLOWED.get(place, [0] * 4)
        assert [value & ~allowed for value, allowed in zip(answers[place], masks, strict=True)] == [0] * 4, place
    assert answers[1, 0][2] >> 31 & 1  # a hypervisor is there
    assert not answers[1, 0][2] >> 5 & 1  # VMX


@pytest.mark.parametrize(("msr", "reached"), [(0x10, True), (0x480, False), (0x3A, False), (0xC001_0117, False)])
def test_msrs_of_hidden_features_cannot_be_read(started: list[Running], tmp_path: Path, msr: int, reached: bool) -> None:
    """The guest has no handler for the exception, so that ends it."""
    running = tiny.start(started, tmp_path, f"mov ecx, {msr:#x}\nrdmsr\n" + RESET)
    assert running.run() is (End.RESET if reached else End.ERROR)


def test_there_is_no_nested_virtualisation(started: list[Running], tmp_path: Path) -> None:
    """CR4.VMXE is reserved, as CPUID has no VMX."""
    running = tiny.start(started, tmp_path, "mov rax, cr4\nor rax, 0x2000\nmov cr4, rax\n" + RESET)
    assert running.run() is End.ERROR


def test_the_processor_that_asks_changes_nothing() -> None:
    """So what a zygote found holds for its machines, whichever processor each of them is on."""
    allowed, offered = os.sched_getaffinity(0), []
    try:
        for processor in allowed:
            os.sched_setaffinity(0, {processor})
            offered.append(offered_cpuid.__wrapped__())
    finally:
        os.sched_setaffinity(0, allowed)
    assert all(other == offered[0] for other in offered)
