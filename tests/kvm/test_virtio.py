"""Virtio devices that a tiny guest drives through their real registers, ioeventfds and irqfds."""

from pathlib import Path

import pytest

from tests.kvm import tiny
from tests.kvm.tiny import RESET, Running, start
from vmm.devices.virtio.mmio import Register
from vmm.machine import End

pytestmark = pytest.mark.kvm

DESCRIPTORS, AVAILABLE, USED, BUFFER = 0x30_0000, 0x30_1000, 0x30_2000, 0x30_3000
RING = [(8, DESCRIPTORS, AVAILABLE, USED)]


def test_a_guest_gets_random_bytes(started: list[Running], tmp_path: Path) -> None:
    """One request of 64 bytes; the kick goes through an ioeventfd, so no exit is QueueNotify's."""
    source = (
        tiny.MAP_MMIO
        + f"mov dword ptr [{DESCRIPTORS}], {BUFFER}\nmov dword ptr [{DESCRIPTORS + 8}], 64\nmov dword ptr [{DESCRIPTORS + 12}], 2\n"
        + tiny.start_virtio(0, RING)
        + f"mov word ptr [{AVAILABLE + 2}], 1\n"
        + tiny.write(Register.QUEUE_NOTIFY, 0)
        + f"""
        wait:   cmp word ptr [{USED + 2}], 1
                jne wait
                mov esi, {BUFFER}
                mov ecx, 64
                mov dx, 0x3f8
        next:   lodsb
                out dx, al
                dec ecx
                jnz next
        """
        + RESET
    )
    outputs = set()
    for _ in range(2):
        running = start(started, tmp_path, source)
        assert running.run() is End.RESET
        assert len(running.console) == 64
        outputs.add(bytes(running.console))
        registers = tiny.start_virtio(0, RING).count("dword ptr")
        assert running.machine.exits()["mmio 0xd0000000"] == registers
    assert len(outputs) == 2
