"""Tiny guests: a few lines of assembler, linked as an ELF file that the VMM boots like a kernel."""

import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mayfly.guests.spawner import snapshot_files
from mayfly.protocol.report import End
from mayfly.units import MIB
from mayfly.vmm.arch.x86_64 import layout
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import Channel, Layer, MachineConfig, NetworkConfig
from mayfly.vmm.devices.virtio.device import OFFERED
from mayfly.vmm.devices.virtio.registers import LIVE, STEPS, DeviceStatus, Register
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.machine import Machine

ENTRY = 0x10_0000
RESET = "mov al, 0xfe\nout 0x64, al\n1: jmp 1b\n"
MAP_MMIO = f"""
        mov dword ptr [{layout.PDPT + 3 * 8}], 0x201003
        mov dword ptr [{0x20_1000 + (layout.VIRTIO_MMIO >> 21 & 511) * 8}], {layout.VIRTIO_MMIO | 0x83}
"""
"""Maps the virtio devices' registers where they are: the boot page tables hold the first GiB
only.
"""


def write(register: int, value: int, slot: int = 0) -> str:
    """Write a register of the virtio device in `slot`."""
    address = layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE + register
    return f"mov edx, {address:#x}\nmov dword ptr [rdx], {value:#x}\n"


def start_virtio(slot: int, queues: Iterable[tuple[int, int, int, int]], features: int = int(OFFERED)) -> str:
    """Reset the device in `slot`, then up to DRIVER_OK with `queues`: size, addresses of
    descriptors, available and used ring.
    """
    status = DeviceStatus(0)
    writes: list[tuple[int, int]] = [(Register.STATUS, status)]
    while status != LIVE:
        if STEPS[status] & DeviceStatus.FEATURES_OK and not status & DeviceStatus.FEATURES_OK:
            for half in (0, 1):
                writes += [(Register.DRIVER_FEATURES_SEL, half), (Register.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)]
        if STEPS[status] == LIVE:
            for index, (size, *addresses) in enumerate(queues):
                writes += [(Register.QUEUE_SEL, index), (Register.QUEUE_NUM, size)]
                low = (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW)
                writes += [*zip(low, addresses, strict=True), (Register.QUEUE_READY, 1)]
        status = STEPS[status]
        writes.append((Register.STATUS, status))
    return "".join(write(register, value, slot) for register, value in writes)


def offer_again(index: int, queue: tuple[int, int, int], times: int) -> str:
    """Offer the first chain of a queue (addresses as for `start_virtio`) of the device in slot 0 so
    many times, each once the one before was used.
    """
    _, available, used = queue
    return f"""
        xor ebx, ebx
next:   inc ebx
        mov word ptr [{available + 2:#x}], bx
        {write(Register.QUEUE_NOTIFY, index)}
wait:   cmp word ptr [{used + 2:#x}], bx
        jne wait
        cmp ebx, {times}
        jne next
    """


def start_second(source: str, code: str) -> str:
    """`source` behind the start of a second processor, which runs `code` in real mode, 32 bytes at
    most, at 0x8000: x2APIC on, then INIT and a start-up IPI to APIC 1.
    """
    return f"""
        mov edi, 0x8000
        lea rsi, [trampoline]
        mov ecx, 32
        rep movsb
        mov ecx, 0x1b
        rdmsr
        or eax, 0xc00
        wrmsr
        mov ecx, 0x830
        mov edx, 1
        mov eax, 0x4500
        wrmsr
        mov eax, 0x4608
        wrmsr
        {source}
trampoline: .code16
        {code}
        .code64
        .fill 32, 1, 0x90
    """


def build(folder: Path, source: str) -> Path:
    """Assemble 64-bit `source` (Intel syntax), to be entered at its first instruction; the ELF
    file's path.
    """
    text = folder / "tiny.S"
    text.write_text(f".intel_syntax noprefix\n.globl _start\n_start:\n{source}\n")
    kernel = folder / "tiny.elf"
    flags = ["-nostdlib", "-static", f"-Wl,-Ttext={ENTRY:#x}", "-Wl,--build-id=none,-z,noseparate-code,-N,--no-warn-rwx-segments"]
    subprocess.run(["gcc", *flags, "-o", kernel, text], check=True)
    return kernel


class Running:
    """A machine that runs in a thread of the test's."""

    def __init__(
        self,
        kernel: Path,
        *,
        channel: socket.socket | None = None,
        carrier: Channel = Channel.SERIAL,
        cpus: int = 1,
        network: NetworkConfig | None = None,
        restore: Iterable[str | Layer] = (),
        **options: Any,
    ) -> None:
        self.console = bytearray()
        self.say: Callable[[bytes], None] = self.console.extend
        carrier = Channel.NONE if channel is None else carrier
        layers = tuple(Layer(folder=each) if isinstance(each, str) else each for each in restore)
        options = {"memory": 16 * MIB, "restore": layers, **options}
        config = MachineConfig(kernel=str(kernel), cpus=cpus, channel=carrier, user=None, network=network, **options)
        self.loop = EventLoop()
        self.machine: Machine = build_machine(config, loop=self.loop, channel=channel, console=lambda data: self.say(data))

    def read(self, address: int, size: int) -> bytes:
        """The guest's memory."""
        return bytes(self.machine.mapping.view[address : address + size])

    def run(self) -> End:
        return self.machine.run()

    def save(self, folder: Path, *, go_on: bool = False) -> int:
        """Write a snapshot from within the loop: from a callback of its, or when it has not run."""
        folder.mkdir()
        with snapshot_files(folder) as descriptors:
            return self.machine.snapshot(descriptors, go_on=go_on)

    def close(self) -> None:
        self.machine.close()
        self.loop.__exit__(None, None, None)


def start(started: list[Running], tmp_path: Path, source: str, channel: socket.socket | None = None, **options: Any) -> Running:
    running = Running(build(tmp_path, source), channel=channel, **options)
    started.append(running)
    return running


def run_and_save(running: Running, said: int, folder: Path) -> int:
    """Run until the guest has said so many bytes, save it there, and end it; the bytes written."""
    written = -1
    count = 0

    def save() -> None:
        nonlocal written
        written = running.save(folder)

    def say(data: bytes) -> None:
        nonlocal count
        count += len(data)
        running.console += data
        if count == said:
            for thread in running.machine.processors.threads:  # at once, before the next byte
                thread.pause()
            save_soon()

    save_soon = running.loop.add_event(save)
    running.say = say
    assert running.run() is End.SAVED
    return written
