"""Guest memory, the bus, the configuration, the console's record."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mayfly.errors import ConfigError
from mayfly.guests.told import told
from mayfly.schema import decode, replace
from mayfly.units import MIB
from mayfly.vmm.build import command_line
from mayfly.vmm.bus import Bus, BusDevice
from mayfly.vmm.config import Channel, Layer, MachineConfig, NetworkBackend, NetworkConfig
from mayfly.vmm.kvm._kvm import ffi
from mayfly.vmm.kvm.kvm import Device
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.process.child import LIMIT, BootLog, traced
from mayfly.vmm.snapshot.files import Shape, shape


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([(0, memoryview(bytearray(0x1000))), (0x1_0000_0000, memoryview(bytearray(0x1000)))])


@pytest.mark.parametrize(
    ("address", "length"), [(0, 0x1001), (0xFFF, 2), (0x1000, 1), (0x1_0000_0FFF, 2), (0, -1), (-1, 1), (2**64 - 1, 2)]
)
def test_a_range_outside_ram_is_refused(memory: GuestMemory, address: int, length: int) -> None:
    with pytest.raises(GuestAddressError):
        memory.slice(address, length)


NETWORK = NetworkConfig(
    backend=NetworkBackend.TAP,
    tap="mayfly0",
    mac="02:00:00:00:00:05",
    addresses=("10.87.0.2/16", "fd00::2/64"),
    gateways=("10.87.0.1",),
    nameservers=("9.9.9.9",),
    allow=("192.168.7.0/24",),
)


def test_both_regions_hold_what_is_written(memory: GuestMemory) -> None:
    memory.write(0xFFC, b"abcd")
    memory.write(0x1_0000_0000, bytes.fromhex("efbeadde"))
    assert bytes(memory.slice(0xFFC, 4)) == b"abcd"
    assert bytes(memory.slice(0x1_0000_0000, 4)) == bytes.fromhex("efbeadde")


class Latch(BusDevice):
    """Remembers accesses."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, value))


def test_the_bus_finds_the_device_and_its_offset() -> None:
    bus, first, second = Bus("io"), Latch(), Latch()
    bus.attach(0x3F8, 8, first)
    bus.attach(0x64, 1, second)
    assert bus.find(0x3FF, 1) == (first, 7, "io 0x3f8")
    assert bus.find(0x64, 1) == (second, 0, "io 0x64")


def test_an_access_that_nobody_takes_reads_as_ones() -> None:
    """All of them have one name, so that a guest cannot make up names to be counted."""
    bus = Bus("mmio")
    bus.attach(0x10, 4, Latch())
    for address, size in ((0x13, 2), (0, 1), (0x14, 8), (1 << 40, 4), ((1 << 64) - 1, 8)):
        device, offset, name = bus.find(address, size)
        assert device.read(offset, size) == (1 << 8 * size) - 1
        device.write(offset, size, 0)
        assert name == "mmio unmapped"


@pytest.mark.parametrize("base", [0x0F, 0x10, 0x12, 0x13])
def test_devices_do_not_overlap(base: int) -> None:
    bus = Bus("io")
    bus.attach(0x10, 4, Latch())
    with pytest.raises(ValueError, match="overlaps"):
        bus.attach(base, 2, Latch())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory": 1}, "16 to"),
        ({"memory": 16 * MIB + 1}, "whole MiB"),
        ({"cpus": 0}, "1 to 64"),
        ({"cpus": 65}, "1 to 64"),
        ({"cmdline": "x" * 3000}, "3000 bytes"),
        ({"cmdline": "a\nb"}, "printable"),
    ],
)
def test_a_value_out_of_range_is_named(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MachineConfig(kernel="k", **values)  # type: ignore[arg-type]


def test_a_configuration_survives_json() -> None:
    config = MachineConfig(kernel="/k", initrd="/i", cmdline="a b", memory=64 * MIB, cpus=3, channel=Channel.VIRTIO, user=None)
    assert decode(MachineConfig, msgspec.json.encode(config)) == config
    config = MachineConfig(kernel="/k", network=NETWORK)
    assert decode(MachineConfig, msgspec.json.encode(config)) == config


def test_the_command_line_announces_what_there_is() -> None:
    serial = command_line(MachineConfig(kernel="k", channel=Channel.SERIAL, cmdline="last"))
    virtio = command_line(MachineConfig(kernel="k", channel=Channel.VIRTIO))
    assert "8250.nr_uarts=2 " in serial
    assert serial.endswith(" last")
    assert "8250.nr_uarts=0 " in virtio
    assert serial.count("virtio_mmio.device=") == 1  # entropy
    assert "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 " in virtio


def test_a_command_line_that_no_kernel_takes_is_refused() -> None:
    """The machine's own parameters count too."""
    with pytest.raises(ConfigError, match="with the machine's own parameters; kernels take 2047"):
        command_line(MachineConfig(kernel="k", cmdline="x" * 2047))


def test_the_command_line_has_the_network() -> None:
    line = command_line(told(MachineConfig(kernel="k", channel=Channel.VIRTIO, network=NETWORK)))
    assert line.count("virtio_mmio.device=") == 3
    addresses = "mayfly.address=10.87.0.2/16 mayfly.address=fd00::2/64"
    assert f"mayfly.mac=02:00:00:00:00:05 {addresses} mayfly.gateway=10.87.0.1 mayfly.nameserver=9.9.9.9" in line
    assert "mayfly.address" not in command_line(MachineConfig(kernel="k", channel=Channel.VIRTIO))


def test_a_snapshot_holds_no_addresses() -> None:
    saved = MachineConfig(kernel="k", network=NETWORK.disconnected(), page_by_page=True)
    assert decode(MachineConfig, msgspec.json.encode(saved)) == saved
    assert not [word for word in command_line(told(saved)).split() if word.startswith("mayfly.")]
    restored = MachineConfig(kernel="k", network=NETWORK, restore=(Layer(folder="/s"),))
    assert shape(saved) == shape(restored) == msgspec.json.decode(msgspec.json.encode(shape(saved)), type=Shape)
    for other in (None, replace(NETWORK, mtu=9000), replace(NETWORK, backend=NetworkBackend.PASST, tap="")):
        assert shape(replace(restored, network=other)) != shape(saved)


def test_a_channel_over_tcp_needs_a_network_and_has_no_snapshots() -> None:
    config = MachineConfig(kernel="k", channel=Channel.TCP, network=NETWORK)
    with pytest.raises(ConfigError, match="needs a network"):
        MachineConfig(kernel="k", channel=Channel.TCP)
    with pytest.raises(ConfigError, match="needs a network"):
        MachineConfig(kernel="k", channel=Channel.TCP, network=replace(NETWORK, addresses=("fd00::2/64",), gateways=()))
    with pytest.raises(ConfigError, match="snapshot"):
        replace(config, restore=(Layer(folder="/s"),))


def test_the_console_keeps_the_end_and_nothing_unprintable() -> None:
    console = BootLog()
    console.write(b"x" * (LIMIT - 12))
    console.write(b"\x1b[31mpanic\r\n\xff\0")
    assert console.text() == "x" * (LIMIT - 14) + "[31mpanic\n\ufffd"


@pytest.mark.parametrize(
    ("offset", "size", "file_offset"), [(-4096, 4096, 0), (0, -4096, 0), (0, 4096, -4096), (1 << 20, 4096, 0), (1, 1, 0)]
)
def test_a_file_is_never_laid_over_other_memory(offset: int, size: int, file_offset: int) -> None:
    with Mapping(1 << 20) as mapping, Path("/dev/zero").open("rb") as file, pytest.raises(ValueError, match="not whole pages inside"):
        mapping.overlay_file(offset, file.fileno(), size, file_offset)


@pytest.mark.parametrize("value", [b"", b"1234", b"12345678"])
def test_a_value_that_kvm_is_shown_by_its_address_keeps_its_size(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Arm machine's registers go into snapshots as they come back."""

    def ioctl(name: str, attribute: Any) -> int:
        assert bytes(ffi.buffer(ffi.cast("char *", attribute.addr), len(value))) == value
        ffi.memmove(ffi.cast("char *", attribute.addr), value[::-1], len(value))
        return 0

    device = Device(-1)
    monkeypatch.setattr(device, "ioctl", ioctl)
    assert device.exchange_bytes("KVM_GET_DEVICE_ATTR", "struct kvm_device_attr", value) == value[::-1]


def test_a_fault_of_the_monitor_is_told_with_its_traceback() -> None:
    try:
        raise ValueError("first")
    except ValueError as caught:
        text = traced(caught)
    assert "Traceback (most recent call last):" in text
    assert "in test_a_fault_of_the_monitor_is_told_with_its_traceback" in text
    assert text.endswith("ValueError: first\n")
