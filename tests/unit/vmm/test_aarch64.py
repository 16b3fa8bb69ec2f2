"""What a 64-bit Arm machine is made of, as far as any host can see it: kernel format, device tree,
layout, clock, KVM's numbers.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fdt  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import BootError, KvmError, KvmUnavailableError
from mayfly.units import MIB
from mayfly.vmm.arch.aarch64 import cpu, hardware, layout, state
from mayfly.vmm.arch.aarch64.hardware import TIME_HIGH, TIME_LOW, Clock, Gic, GicVersion
from mayfly.vmm.config import Channel, MachineConfig, NetworkBackend, NetworkConfig
from mayfly.vmm.kvm import build_kvm
from mayfly.vmm.loader import arm64_image

COMPILER = "aarch64-linux-gnu-gcc"
NETWORK = NetworkConfig(backend=NetworkBackend.TAP, tap="tap0", mac="02:00:00:00:00:05", addresses=("10.87.0.2/16",), gateways=())


def header(*, text_offset: int = 0, size: int = 0x10_0000, flags: int = 0xA, magic: bytes = arm64_image.MAGIC) -> bytes:
    return arm64_image.HEADER.pack(0x1400_0000, 0, text_offset, size, flags, 0, 0, 0, magic, 0)


def test_an_image_says_where_it_goes_and_what_it_takes() -> None:
    parsed = arm64_image.parse(header(text_offset=0x8_0000), 0x1000)
    assert (parsed.text_offset, parsed.memory_size) == (0x8_0000, 0x10_0000)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "not an arm64 Image"),
        (header()[:-1], "not an arm64 Image"),
        (header(magic=b"ARM\x65"), "not an arm64 Image"),
        (b"\x7fELF\x02\x01\x01".ljust(64, b"\0"), "not an arm64 Image"),
        (b"\x1f\x8b\x08".ljust(64, b"\0"), "compressed"),
        (b"MZ\0\0zimg".ljust(64, b"\0"), "compressed"),
        (header(flags=0xB), "big-endian"),
        (header(size=0), "takes 0 bytes"),
        (header(size=0xFFF), "takes 4095 bytes"),
        (header(text_offset=2 << 20), "text offset"),
    ],
)
def test_a_wrong_image_is_named(head: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message):
        arm64_image.parse(head, 0x1000)


@given(st.binary(max_size=80) | st.binary(min_size=56, max_size=56).map(lambda head: head + arm64_image.MAGIC + bytes(4)))
def test_any_bytes_are_an_image_or_a_boot_error(head: bytes) -> None:
    try:
        parsed = arm64_image.parse(head, 0x1000)
    except BootError:
        return
    assert parsed.text_offset < 2 << 20
    assert parsed.memory_size >= 0x1000


def tree(gic: GicVersion = GicVersion.V3, initrd: tuple[int, int] | None = None, **options: Any) -> Any:
    """The device tree of a machine, parsed again."""
    config = MachineConfig(kernel="k", **options)
    return fdt.parse_dtb(hardware.device_tree(config, gic=gic, cmdline="quiet", initrd=initrd, seed=bytes(range(64))))


def words(parsed: Any, path: str, name: str) -> list[int]:
    found: list[int] = parsed.get_property(name, path).data
    return found


def nodes(parsed: Any, path: str = "/") -> list[str]:
    return [node.name for node in parsed.get_node(path).nodes]


def test_the_tree_names_memory_initramfs_command_line_and_seed() -> None:
    parsed = tree(memory=5 << 30, initrd=(0x1_2345_6000, 0x789))
    assert parsed.get_property("device_type", "/memory@40000000").value == "memory"
    assert words(parsed, "/memory@40000000", "reg") == [0, 0x4000_0000, 1, 0x4000_0000]
    assert words(parsed, "/chosen", "linux,initrd-start") == [1, 0x2345_6000]
    assert words(parsed, "/chosen", "linux,initrd-end") == [1, 0x2345_6789]
    assert parsed.get_property("bootargs", "/chosen").value == "quiet"
    seed = parsed.get_property("rng-seed", "/chosen").data
    assert b"".join(word.to_bytes(4, "big") for word in seed) == bytes(range(64)) or bytes(seed) == bytes(range(64))
    assert not tree().exist_property("linux,initrd-start", "/chosen")


def test_every_processor_is_started_by_psci_under_its_own_affinity() -> None:
    parsed = tree(cpus=33)
    found = [words(parsed, f"/cpus/{name}", "reg")[0] for name in nodes(parsed, "/cpus")]
    assert found == [*range(16), *range(0x100, 0x110), 0x200]
    assert {parsed.get_property("enable-method", f"/cpus/{name}").value for name in nodes(parsed, "/cpus")} == {"psci"}
    assert {parsed.get_property("device_type", f"/cpus/{name}").value for name in nodes(parsed, "/cpus")} == {"cpu"}
    assert parsed.get_property("method", "/psci").value == "hvc"


class Numbers:
    """KVM's, of which only a few matter here."""

    KVM_DEV_TYPE_ARM_VGIC_V2 = 5
    KVM_DEV_TYPE_ARM_VGIC_V3 = 7

    def __getattr__(self, name: str) -> int:
        return 0


def vm_with(kinds: set[int]) -> Any:
    """A machine whose KVM makes devices of these kinds."""

    def create_device(kind: int) -> Any:
        if kind not in kinds:
            raise KvmError("KVM_CREATE_DEVICE", errno.ENODEV)
        return SimpleNamespace(set_int=lambda *_: None)

    return SimpleNamespace(create_device=create_device)


@pytest.mark.parametrize(("there", "version"), [({5, 7}, GicVersion.V3), ({7}, GicVersion.V3), ({5}, GicVersion.V2)])
def test_the_newest_interrupt_controller_is_taken(there: set[int], version: GicVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "lib", Numbers())
    assert hardware.create_interrupts(vm_with(there), pit=False).version is version


def test_a_host_whose_kvm_has_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "lib", Numbers())
    with pytest.raises(KvmUnavailableError, match="GICv3 and GICv2") as caught:
        hardware.create_interrupts(vm_with(set()), pit=False)
    assert "virtualisation extensions" in caught.value.hint


@pytest.mark.parametrize(
    ("gic", "compatible", "registers"),
    [
        (GicVersion.V3, "arm,gic-v3", [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0810_0000, 0, 0x8_0000]),
        (GicVersion.V2, "arm,cortex-a15-gic", [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0801_0000, 0, 0x2000]),
    ],
)
def test_both_versions_of_the_interrupt_controller(gic: GicVersion, compatible: str, registers: list[int]) -> None:
    path = "/interrupt-controller@8000000"
    parsed = tree(gic, cpus=4)
    assert parsed.get_property("compatible", path).value == compatible
    assert words(parsed, path, "reg") == registers
    assert words(parsed, "/", "interrupt-parent") == words(parsed, path, "phandle")


def devices(parsed: Any) -> Iterator[tuple[int, int, int]]:
    """Address, size and SPI of every device."""
    for name in nodes(parsed):
        path = f"/{name}"
        if "@" in name and parsed.exist_property("interrupts", path):
            (_, address, _, size), (kind, spi, trigger) = words(parsed, path, "reg"), words(parsed, path, "interrupts")
            assert (int(name.partition("@")[2], 16), kind, trigger) == (address, hardware.SPI, hardware.EDGE_RISING)
            yield address, size, spi


@pytest.mark.parametrize(
    ("options", "uarts", "virtio"),
    [
        ({"channel": Channel.NONE}, [], 1),
        ({"channel": Channel.NONE, "interactive": True}, [layout.UART0], 1),
        ({"channel": Channel.SERIAL}, [layout.UART1], 1),
        ({"channel": Channel.VIRTIO, "network": NETWORK}, [], 3),
    ],
)
def test_the_devices_are_those_of_the_machine(options: dict[str, Any], uarts: list[int], virtio: int) -> None:
    parsed = tree(**options)
    found = sorted(devices(parsed))
    assert [address for address, _, _ in found if address in (layout.UART0, layout.UART1)] == uarts
    slots = [layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE for slot in range(virtio)]
    assert [(address, spi) for address, _, spi in found if address >= layout.VIRTIO_MMIO] == [
        (address, layout.VIRTIO_GSI + slot) for slot, address in enumerate(slots)
    ]
    assert len({spi for _, _, spi in found}) == len(found)
    assert max(spi for _, _, spi in found) < layout.GSI_END
    assert all(address + size <= after for (address, size, _), (after, _, _) in pairwise(found))
    if layout.UART1 in uarts:  # the agent is told that its channel is ttyS1
        assert parsed.get_property("serial1", "/aliases").value == f"/serial@{layout.UART1:x}"


def test_nothing_overlaps_in_the_largest_machine() -> None:
    regions = [
        (layout.GIC_DISTRIBUTOR, layout.GIC_DISTRIBUTOR_SIZE),
        (layout.GIC_CPU_INTERFACE, layout.GIC_CPU_INTERFACE_SIZE),
        (layout.GIC_REDISTRIBUTORS, 64 * layout.GIC_REDISTRIBUTOR_SIZE),
        (layout.UART0, layout.UART_SIZE),
        (layout.UART1, layout.UART_SIZE),
        (layout.CLOCK, layout.CLOCK_SIZE),
        (layout.VIRTIO_MMIO, (layout.GSI_END - layout.VIRTIO_GSI) * layout.VIRTIO_MMIO_SIZE),
        *layout.ram_regions(512 << 30),
    ]
    assert regions == sorted(regions)
    assert all(start + size <= after for (start, size), (after, _) in pairwise(regions))
    assert layout.RAM + (512 << 30) <= 1 << 40  # what KVM gives a guest to address, unless it is asked for more


def test_the_largest_tree_fits_below_the_kernel() -> None:
    config = MachineConfig(kernel="k", cpus=64, memory=512 * 1024 * MIB, channel=Channel.VIRTIO, network=NETWORK)
    largest = hardware.device_tree(config, gic=GicVersion.V3, cmdline="x" * 2047, initrd=(layout.RAM, 1), seed=bytes(64))
    assert len(largest) < layout.DEVICE_TREE_SIZE


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc is missing: apt-get install device-tree-compiler")
def test_the_device_tree_compiler_finds_no_fault(tmp_path: Path) -> None:
    blob = tmp_path / "tree"
    config = MachineConfig(kernel="k", cpus=2, channel=Channel.SERIAL, interactive=True, network=NETWORK)
    blob.write_bytes(hardware.device_tree(config, gic=GicVersion.V3, cmdline="c", initrd=None, seed=bytes(64)))
    done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", "-o", os.devnull, blob], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@given(st.integers(0, 2**63))
def test_the_clock_tells_one_time_in_two_halves(now: int) -> None:
    times = iter((now, now + (1 << 32)))
    clock = Clock(lambda: next(times))
    assert clock.read(TIME_LOW, 4) | clock.read(TIME_HIGH, 4) << 32 == now
    clock.write(TIME_LOW, 4, 0)
    assert clock.read(0x18, 4) == 0
    assert clock.read(TIME_LOW, 4) == now & 0xFFFF_FFFF


GROUPS = {"DIST_REGS": 1, "CPU_REGS": 2, "REDIST_REGS": 5, "CPU_SYSREGS": 6, "LEVEL_INFO": 7}


def gic_registers(version: GicVersion, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What is saved of the interrupt controller of two processors."""
    monkeypatch.setattr(state, "lib", SimpleNamespace(**{f"KVM_DEV_ARM_VGIC_GRP_{name}": number for name, number in GROUPS.items()}))
    device: Any = SimpleNamespace(get_int=lambda group, attribute, size: 6 << 8)  # 7 bits of priority
    registers = list(state._gic_registers(Gic(version, device), 2))
    assert len(registers) == len(set(registers))
    return registers


def test_every_register_of_a_gicv2_is_saved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registers = gic_registers(GicVersion.V2, monkeypatch)
    distributor = [attribute for group, attribute, size in registers if (group, size) == (GROUPS["DIST_REGS"], 4)]
    assert distributor[:3] == [8, 0, 0x820]  # GICD_IIDR, GICD_CTLR, and where interrupts from 32 on go
    assert {0x84, 0x104, 0x204, 0x304, 0x43C, 0x83C, 0xC08, 0xC0C} <= set(distributor)
    assert not {0x88, 0x200, 0x440, 0x800, 0x840, 0xC10} & set(distributor)
    second = [attribute & 0xFFFF_FFFF for attribute in distributor if attribute >> 32 == 1]
    assert second == [0x80, 0xC00, 0xC04, *range(0x400, 0x420, 4), 0x100, 0x300, 0xF20, 0xF24, 0xF28, 0xF2C]
    interface = [attribute & 0xFFFF for group, attribute, size in registers if (group, size) == (GROUPS["CPU_REGS"], 4)]
    assert interface == [0, 4, 8, 0x1C, 0xD0, 0xD4, 0xD8, 0xDC] * 2


def test_every_register_of_a_gicv3_is_saved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registers = gic_registers(GicVersion.V3, monkeypatch)
    distributor = [attribute for group, attribute, _ in registers if group == GROUPS["DIST_REGS"]]
    assert distributor[:3] == [0, 0x6100, 0x6104]  # GICD_CTLR, and where interrupt 32 goes
    assert {0x84, 0x104, 0x204, 0x304, 0x43C, 0xC08, 0xC0C} <= set(distributor)
    assert not {0x80, 0x88, 0x100, 0x41C, 0x440, 0xC04, 0xC10} & set(distributor)
    second = [attribute & 0xFFFF_FFFF for group, attribute, _ in registers if group == GROUPS["REDIST_REGS"] and attribute >> 32 == 1]
    priorities = [0x1_0400 + offset for offset in range(0, 32, 4)]
    assert second == [0x1_0080, 0x1_0C00, 0x1_0C04, *priorities, 0x1_0100, 0x1_0200, 0x1_0300]
    interface = {attribute & 0xFFFF for group, attribute, _ in registers if group == GROUPS["CPU_SYSREGS"]}
    assert interface == {0xC230, 0xC643, 0xC663, 0xC664, 0xC665, 0xC666, 0xC667, *range(0xC644, 0xC64C)}


NUMBERS = """
#include <assert.h>
_Static_assert(KVM_ARM_VCPU_INIT == 0x4020aeae && KVM_ARM_PREFERRED_TARGET == 0x8020aeaf, "ioctls");
_Static_assert(KVM_GET_ONE_REG == 0x4010aeab && KVM_SET_ONE_REG == 0x4010aeac && KVM_CREATE_DEVICE == 0xc00caee0, "ioctls");
_Static_assert(REG_PC == 0x6030000000100040 && REG_X0 == 0x6030000000100000 && REG_PSTATE == 0x6030000000100042, "core registers");
_Static_assert(REG_ESR_EL1 == 0x603000000013c290 && REG_VBAR_EL1 == 0x603000000013c600, "system registers");
_Static_assert(sizeof(struct kvm_vcpu_init) == 32 && sizeof(struct kvm_one_reg) == 16 && sizeof(struct kvm_device_attr) == 24, "sizes");
"""


@pytest.mark.skipif(
    not shutil.which(COMPILER), reason=f"{COMPILER} is missing: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
)
def test_the_numbers_of_kvm_are_the_kernels(tmp_path: Path) -> None:
    """As strace prints them on an Arm machine."""
    source = tmp_path / "kvm.c"
    source.write_text(build_kvm.SOURCE + build_kvm.SOURCES["aarch64"] + NUMBERS)
    subprocess.run([COMPILER, "-fsyntax-only", "-Wall", "-Wno-unused-function", source], check=True)


def test_a_vcpu_is_given_power_calls_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither SVE, pointer authentication, performance counters nor EL2: KVM hides what it is not
    asked for.
    """
    bits = {"PSCI_0_2": 2, "PMU_V3": 3, "SVE": 4, "PTRAUTH_ADDRESS": 5, "PTRAUTH_GENERIC": 6, "HAS_EL2": 7, "POWER_OFF": 0}
    monkeypatch.setattr(cpu, "lib", SimpleNamespace(**{f"KVM_ARM_VCPU_{name}": bit for name, bit in bits.items()}))
    seen: list[list[int]] = []

    class Fake:
        def exchange(self, name: str, kind: str) -> Any:
            return SimpleNamespace(features=[0] * 7)

        def ioctl(self, name: str, target: Any) -> None:
            seen.append(list(target.features))

    cpu.reset(Fake(), [Fake(), Fake()])  # type: ignore[arg-type, list-item]
    assert seen == [[1 << 2, *[0] * 6], [1 << 2 | 1, *[0] * 6]]


def test_the_processor_is_known_without_files_once_it_was_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a sandbox, where a machine is saved."""
    kvm: Any = None
    state._processor.cache_clear()
    state.prepare()
    monkeypatch.setattr(state, "CPUINFO", tmp_path / "gone")
    assert state.identity(kvm)
