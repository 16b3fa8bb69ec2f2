"""Virtio devices that a tiny guest drives through their real registers, ioeventfds and irqfds."""

import os
from pathlib import Path

import pytest

from tests.kvm import tiny
from tests.kvm.tiny import RESET, Running, start
from tests.unit.net_kit import GATEWAY, GUEST, GUEST_MAC, PLAIN_HEADER, SIBLING, arp, make_tap, namespace, packet_socket
from vmm.config import NetworkBackend, NetworkConfig
from vmm.devices.virtio.mmio import Register
from vmm.machine import End

pytestmark = pytest.mark.kvm

ENTROPY, NET = 0, 1
"""Slots."""
DESCRIPTORS, AVAILABLE, USED, BUFFER = 0x30_0000, 0x30_1000, 0x30_2000, 0x30_3000
RING = [(8, DESCRIPTORS, AVAILABLE, USED)]


def test_a_guest_gets_random_bytes(started: list[Running], tmp_path: Path) -> None:
    """One request of 64 bytes; the kick goes through an ioeventfd, so no exit is QueueNotify's."""
    source = (
        tiny.MAP_MMIO
        + f"mov dword ptr [{DESCRIPTORS}], {BUFFER}\nmov dword ptr [{DESCRIPTORS + 8}], 64\nmov dword ptr [{DESCRIPTORS + 12}], 2\n"
        + tiny.start_virtio(ENTROPY, RING)
        + f"mov word ptr [{AVAILABLE + 2}], 1\n"
        + tiny.write(Register.QUEUE_NOTIFY, 0, ENTROPY)
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
        registers = tiny.start_virtio(ENTROPY, RING).count("dword ptr")
        assert running.machine.exits()["mmio 0xd0000000"] == registers
    assert len(outputs) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")
def test_a_guests_frame_comes_out_of_its_tap(started: list[Running], tmp_path: Path) -> None:
    """Two frames: one that asks for the gateway, one that the filter drops. Then the guest waits for both chains to come back."""
    frames = [PLAIN_HEADER + arp(SIBLING), PLAIN_HEADER + arp(GATEWAY)]
    descriptors = "".join(f".quad frame{n}\n.long {len(frame)}\n.word 0, 0\n" for n, frame in enumerate(frames))
    data = "".join(f"frame{n}: .byte {', '.join(map(str, frame))}\n" for n, frame in enumerate(frames))
    source = (
        tiny.MAP_MMIO
        + f"lea rsi, [table]\nmov edi, {DESCRIPTORS}\nmov ecx, 32\nrep movsb\n"
        + tiny.start_virtio(NET, [(8, 0x31_0000, 0x31_1000, 0x31_2000), *RING])
        + f"mov word ptr [{AVAILABLE + 6}], 1\nmov word ptr [{AVAILABLE + 2}], 2\n"
        + tiny.write(Register.QUEUE_NOTIFY, 1, NET)
        + f"wait: cmp word ptr [{USED + 2}], 2\njne wait\n"
        + RESET
        + f".balign 8\ntable: {descriptors}{data}"
    )
    with namespace():
        make_tap("mayfly0", f"{GATEWAY}/16")
        with packet_socket("mayfly0") as sniffer:
            network = NetworkConfig(
                backend=NetworkBackend.TAP, tap="mayfly0", mac=GUEST_MAC.hex(":"), addresses=(f"{GUEST}/16",), gateways=(GATEWAY,)
            )
            assert start(started, tmp_path, source, network=network).run() is End.RESET
            assert sniffer.recv(2000) == arp(GATEWAY)
