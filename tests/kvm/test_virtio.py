"""Virtio devices that a tiny guest drives through their real registers, ioeventfds and irqfds."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from mayfly.protocol.report import End
from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.bus import BusDevice
from mayfly.vmm.config import Channel, NetworkBackend, NetworkConfig
from mayfly.vmm.devices.virtio.mmio import MAGIC, MmioTransport
from mayfly.vmm.devices.virtio.registers import Interrupt, Register
from tests.kit import tiny
from tests.kit.net_kit import GATEWAY, GUEST, GUEST_MAC, PLAIN_HEADER, SIBLING, arp, make_tap, namespace, packet_socket
from tests.kit.scale import scaled
from tests.kit.tiny import RESET, Running, start

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


def test_what_a_guest_reads_of_registers_is_no_exit(started: list[Running], tmp_path: Path) -> None:
    """Nor is what acknowledges an interrupt. What it reads follows what it writes."""
    registers = [Register.MAGIC_VALUE, Register.DEVICE_ID, Register.STATUS, Register.QUEUE_NUM_MAX, Register.INTERRUPT_STATUS]
    reads = "".join(f"mov eax, [{layout.VIRTIO_MMIO + register:#x}]\nout dx, eax\n" for register in registers)
    source = (
        f"{tiny.MAP_MMIO}mov dx, 0x60\n{reads}"
        + tiny.write(Register.STATUS, 1)
        + tiny.write(Register.QUEUE_SEL, 1)
        + tiny.write(Register.INTERRUPT_ACK, Interrupt.USED_BUFFER)
        + f"mov dx, 0x60\n{reads}{RESET}"
    )
    running = start(started, tmp_path, source)
    written = Written()
    running.machine.processors.ports.attach(0x60, 4, written)
    assert running.run() is End.RESET
    assert written.values == [MAGIC, 4, 0, 8, 0, MAGIC, 4, 1, 0, 0]
    assert running.machine.exits()["mmio 0xd0000000"] == 2


class Written(BusDevice):
    """A port's device that keeps what was written."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)


def tap_network() -> NetworkConfig:
    return NetworkConfig(backend=NetworkBackend.TAP, tap="mayfly0", mac=GUEST_MAC.hex(":"), addresses=(f"{GUEST}/16",), gateways=(GATEWAY,))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")
def test_a_guests_frame_comes_out_of_its_tap(started: list[Running], tmp_path: Path) -> None:
    """Two frames: one that asks for the gateway, one that the filter drops. Then the guest waits
    for both chains to come back.
    """
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
            assert start(started, tmp_path, source, network=tap_network()).run() is End.RESET
            assert sniffer.recv(2000) == arp(GATEWAY)


RINGS = 0x30_0000
HOSTILE = f"""
        mov esp, 0x400000
        {tiny.MAP_MMIO}
        mov ebx, {{seed}}
again:  mov edi, {RINGS}
        mov ecx, 0x2000
        xor eax, eax
        rep stosq
        {{starts}}
        mov ebp, 300
step:   call random
        test eax, 0xff0000
        jnz garble
        mov edi, eax
        and edi, 0x31fc
        add edi, {layout.VIRTIO_MMIO:#x}
        call number
        mov dword ptr [rdi], eax
        jmp kick
garble: and eax, 0xf43e
        lea edi, [eax + {RINGS}]
        call number
        mov word ptr [rdi], ax
kick:   call random
        mov edi, eax
        and edi, 0x3000
        add edi, {layout.VIRTIO_MMIO + Register.QUEUE_NOTIFY:#x}
        and eax, 3
        mov dword ptr [rdi], eax
        dec ebp
        jnz step
        jmp again
number: call random
        test eax, 0x780000
        jz random
        and eax, 0x0f
        ret
random: imul ebx, ebx, 1664525
        add ebx, 1013904223
        mov eax, ebx
        shr eax, 8
        ret
"""
"""Starts the devices as a driver does, then for ever writes to descriptors and available rings, now
and then to registers, and kicks.
"""


@pytest.mark.parametrize("seed", range(1, scaled(30) + 1))
def test_a_hostile_guest_is_stopped_within_a_second(started: list[Running], tmp_path: Path, seed: int) -> None:
    """The monitor has no fault of its own by then. The guest may have crashed before, when a device
    wrote where it told it to.
    """
    ours, theirs = socket.socketpair()
    network = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        if os.geteuid() == 0:
            stack.enter_context(namespace())
            make_tap("mayfly0", f"{GATEWAY}/16")
            network = tap_network()
        queues = [4, 1, 2] if network else [4, 1]
        starts = ""
        for slot, count in enumerate(queues):
            rings = [RINGS + slot * 0x4000 + index * 0x1000 for index in range(count)]
            starts += tiny.start_virtio(slot, [(16, ring, ring + 0x400, ring + 0x600) for ring in rings])
        source = HOSTILE.format(seed=seed, starts=starts)
        running = start(started, tmp_path, source, channel=theirs, carrier=Channel.VIRTIO, network=network)
        timer = threading.Timer(1.0, running.machine.finish, [End.STOPPED])
        timer.start()
        end = running.run()
        timer.join()
        for vcpu in running.machine.processors.threads:
            vcpu.join(1.0)
            assert not vcpu.is_alive()
    assert end is End.STOPPED or "triple fault" in str(running.machine.processors.error)
    for slot in range(len(queues)):
        found = running.machine.processors.mmio.find(layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE, 4)
        assert isinstance(found[0], MmioTransport)
        assert found[0].misuse, "it has not come far"
