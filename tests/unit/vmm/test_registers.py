"""Every device takes any access at any offset, and its answer fits the access.

The devices of both architectures, each in the range that it is attached to.
"""

import itertools
from collections.abc import Callable

import pytest

from mayfly.vmm.arch.aarch64 import layout as arm
from mayfly.vmm.arch.aarch64.hardware import Clock
from mayfly.vmm.arch.x86_64 import layout as x86
from mayfly.vmm.arch.x86_64.hardware import ResetPort
from mayfly.vmm.bus import Bus, BusDevice
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.console import Console
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.mmio import REGION_BYTES
from mayfly.vmm.devices.virtio.net import Net
from tests.kit.net_kit import GUEST_MAC, MemoryBackend
from tests.kit.virtio_driver import Driver

SIZES = (1, 2, 4, 8)
BASE = 0xD000_0000


class Shut:
    """A filter that lets nothing through."""

    def may_leave(self, frame: bytes | bytearray | memoryview) -> bool:
        return False


def uart(registers: tuple[int, int, int]) -> Callable[[], BusDevice]:
    """With these values of IER, LCR and MCR, and a byte that waits."""

    def make() -> BusDevice:
        serial = Serial(lambda: None, lambda: None, lambda: None)
        ier, lcr, mcr = registers
        for offset, value in ((1, ier), (4, mcr), (3, lcr)):
            serial.write(offset, 1, value)
        serial.receive(b"x")
        return serial

    return make


def transport(make_device: Callable[[], VirtioDevice], *, live: bool) -> Callable[[], BusDevice]:
    def make() -> BusDevice:
        driver = Driver(make_device())
        if live:
            driver.start()
        return driver.transport

    return make


VIRTIO: dict[str, Callable[[], VirtioDevice]] = {
    "console": lambda: Console("name", lambda views: 0, lambda: None),
    "entropy": lambda: Entropy(bytes, lambda: 0.0, lambda delay: None),
    "net": lambda: Net(GUEST_MAC, 1500, MemoryBackend(), Shut().may_leave, on_room=lambda: None, on_full=lambda: None),
}
DEVICES: dict[str, tuple[Callable[[], BusDevice], int]] = {
    "clock": (lambda: Clock(lambda: (1 << 64) - 1), arm.CLOCK_SIZE),
    "reset": (lambda: ResetPort(lambda: None), 1),
    **{
        f"uart-{number}": (uart(registers), max(x86.UART_SIZE, arm.UART_SIZE))
        for number, registers in enumerate(itertools.product((0, 0x0F), (0, 0x80, 0xFF), (0, 0x02, 0x1F)))
    },
    **{f"{name}-{live}": (transport(make, live=live), REGION_BYTES) for name, make in VIRTIO.items() for live in (False, True)},
}


@pytest.mark.parametrize("name", DEVICES)
def test_any_access_is_answered_with_a_value_that_fits(name: str) -> None:
    make, size = DEVICES[name]
    bus = Bus("mmio")
    bus.attach(BASE, size, make())
    for offset, width in itertools.product(range(-8, size + 8), SIZES):
        device, at, where = bus.find(BASE + offset, width)
        device.read(at, width).to_bytes(width, "little")
        assert where in ("mmio unmapped", f"mmio {BASE:#x}")


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("value", [0, 1, 0x7F, 0xFFFF_FFFF_FFFF_FFFF])
def test_any_access_is_taken(name: str, value: int) -> None:
    make, size = DEVICES[name]
    device = make()
    for offset, width in itertools.product(range(size), SIZES):
        if offset + width <= size:
            device.write(offset, width, value & (1 << 8 * width) - 1)
            device.read(offset, width).to_bytes(width, "little")
