"""What vmm processes do in their lives, each with a tiny guest: for tests under the filters of
system calls, and for `scripts/system_calls.py`, which measures them.
"""

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mayfly.errors import ConfigError
from mayfly.guests.spawner import snapshot_files
from mayfly.guests.zygote import Zygote
from mayfly.protocol.control import Done, Pause, Prefault, Resume, Send, Snapshot, Stats, Track
from mayfly.protocol.report import End
from mayfly.protocol.spawning import Reaped
from mayfly.units import MIB
from mayfly.vmm.config import Channel, Layer, MachineConfig, NetworkBackend, NetworkConfig, Sandbox
from mayfly.vmm.devices.virtio.console import Control
from mayfly.vmm.devices.virtio.packet import HEADER
from mayfly.vmm.devices.virtio.registers import Register
from tests.kit import tiny
from tests.kit.net_kit import GATEWAY, GUEST, GUEST_MAC, arp, ip, make_tap, namespace
from tests.kit.spawned import Spawned

SPIN = "1: jmp 1b\n"
ECHO = """
        mov dx, 0x2fc
        mov al, 0x0a
        out dx, al
again:  mov dx, 0x2fd
        in al, dx
        test al, 1
        jz again
        mov dx, 0x2f8
        in al, dx
        out dx, al
        jmp again
"""
SCATTER = """
        mov edi, 0x200000
1:      inc dword ptr [rdi]
        add edi, 0x4000
        cmp edi, 0x800000
        jb 1b
        mov edi, 0x200000
        jmp 1b
"""
"""Writes each fourth page, for ever."""
SAY = "mov dx, 0x3f8\nmov al, 'H'\nout dx, al\n"
CRASH = "lidt [zero]\nud2\nzero: .quad 0, 0\n"
RINGS = ((0x30_0000, 0x30_1000, 0x30_2000), (0x31_0000, 0x31_1000, 0x31_2000))
ENTROPY = f"""
        {tiny.MAP_MMIO}
        {tiny.start_virtio(0, [(8, *RINGS[0])])}
        mov qword ptr [{RINGS[0][0]:#x}], 0x600000
        mov dword ptr [{RINGS[0][0] + 8:#x}], 1
        mov word ptr [{RINGS[0][0] + 12:#x}], 2
        {tiny.offer_again(0, RINGS[0], 200)}
        {tiny.RESET}
"""


CONSOLE = [(0x30_0000 + 0x4000 * queue, 0x30_1000 + 0x4000 * queue, 0x30_2000 + 0x4000 * queue) for queue in range(4)]
PORT_OPEN = struct.pack("<IHH", 0, Control.PORT_OPEN, 1)
GREETING = b"over virtio"
"""What the guest of `speaking` says."""


def speaking() -> str:
    """A guest that opens its port, says GREETING there, and resets when something has come."""
    receive, transmit, _, control = CONSOLE
    return f"""
        {tiny.MAP_MMIO}
        mov qword ptr [{receive[0]:#x}], 0x600000
        mov dword ptr [{receive[0] + 8:#x}], 64
        mov word ptr [{receive[0] + 12:#x}], 2
        mov word ptr [{receive[1] + 2:#x}], 1
        lea rsi, [greeting]
        mov [{transmit[0]:#x}], rsi
        mov dword ptr [{transmit[0] + 8:#x}], {len(GREETING)}
        mov word ptr [{transmit[1] + 2:#x}], 1
        lea rsi, [opening]
        mov [{control[0]:#x}], rsi
        mov dword ptr [{control[0] + 8:#x}], {len(PORT_OPEN)}
        mov word ptr [{control[1] + 2:#x}], 1
        {tiny.start_virtio(0, [(8, *queue) for queue in CONSOLE])}
        {tiny.write(Register.QUEUE_NOTIFY, 3)}
        {tiny.write(Register.QUEUE_NOTIFY, 1)}
        {tiny.write(Register.QUEUE_NOTIFY, 0)}
wait:   cmp word ptr [{receive[2] + 2:#x}], 1
        jne wait
        {tiny.RESET}
greeting: .ascii "{GREETING.decode()}"
opening: .byte {", ".join(map(str, PORT_OPEN))}
"""


def sending(slot: int) -> str:
    """A guest with a network device in `slot` that asks for its gateway, and resets when that is
    sent.
    """
    frame = bytes(HEADER.size) + arp(GATEWAY)
    receive, transmit = RINGS
    return f"""
        {tiny.MAP_MMIO}
        lea rsi, [frame]
        mov [{transmit[0]:#x}], rsi
        mov dword ptr [{transmit[0] + 8:#x}], {len(frame)}
        mov qword ptr [{receive[0]:#x}], 0x600000
        mov dword ptr [{receive[0] + 8:#x}], 4096
        mov word ptr [{receive[0] + 12:#x}], 2
        mov word ptr [{receive[1] + 2:#x}], 1
        {tiny.start_virtio(slot, [(8, *receive), (8, *transmit)])}
        mov word ptr [{transmit[1] + 2:#x}], 1
        {tiny.write(Register.QUEUE_NOTIFY, 0, slot)}
        {tiny.write(Register.QUEUE_NOTIFY, 1, slot)}
wait:   cmp word ptr [{transmit[2] + 2:#x}], 1
        jne wait
        {SAY}
hold:   cmp word ptr [{receive[2] + 2:#x}], 0
        je hold
        {tiny.RESET}
frame:  .byte {", ".join(map(str, frame))}
"""


class Stage:
    """Where a scenario plays: a zygote, and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self.zygote = Zygote.start()
        self._numbers = iter(range(1, 1000))

    def machine(self, source: str, **options: Any) -> Spawned:
        """A machine with a guest of that source, whose host has all of the sandbox."""
        folder = self.folder / f"guest{next(self._numbers)}"
        folder.mkdir()
        given: dict[str, Any] = {"memory": 16 * MIB, "channel": Channel.SERIAL, "sandbox": Sandbox.REQUIRED, **options}
        machine = self._stack.enter_context(Spawned(self.zygote, MachineConfig(kernel=str(tiny.build(folder, source)), **given)))
        machine.wait_running()
        return machine

    def ends(self, machine: Spawned, reason: End) -> None:
        """See a machine end for that reason, and its process by itself."""
        ended = machine.wait_ended()
        assert ended.reason is reason, ended
        assert self.zygote.receive() == Reaped(machine=7, status=0)
        machine.close()

    def close(self) -> None:
        self._stack.close()
        self.zygote.close()


def boots(stage: Stage) -> None:
    stage.ends(stage.machine(SAY + tiny.RESET), End.RESET)


def echoes(stage: Stage) -> None:
    machine = stage.machine(ECHO)
    data = os.urandom(3000)
    machine.channel.sendall(data)
    assert machine.channel.recv(len(data), socket.MSG_WAITALL) == data
    machine.channel.close()
    stage.ends(machine, End.CHANNEL_CLOSED)


def speaks_over_virtio(stage: Stage) -> None:
    machine = stage.machine(speaking(), channel=Channel.VIRTIO)
    assert machine.channel.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
    machine.channel.sendall(b"heard")
    stage.ends(machine, End.RESET)


def draws_entropy(stage: Stage) -> None:
    stage.ends(stage.machine(ENTROPY), End.RESET)


def crashes(stage: Stage) -> None:
    stage.ends(stage.machine(CRASH, cpus=2), End.ERROR)


def is_stopped(stage: Stage) -> None:
    machine = stage.machine(SPIN, cpus=4)
    stage.zygote.signal(7, signal.SIGTERM)
    stage.ends(machine, End.STOPPED)


def is_commanded(stage: Stage) -> None:
    machine = stage.machine(SPIN, cpus=2, paused=True)
    machine.control.ask(Resume())
    machine.control.ask(Pause())
    machine.control.ask(Stats())
    machine.control.ask(Resume())
    with contextlib.suppress(ConfigError):
        machine.commands.send(b"not JSON")
        machine.control.accept()
    machine.channel.close()
    stage.ends(machine, End.CHANNEL_CLOSED)


def is_saved_and_restored(stage: Stage) -> None:
    """Live, then for good; then restored in each way, saved on top of that, and that again."""
    folders = [stage.folder / name for name in ("live", "base", "diff", "diff-of-diff")]

    def save(machine: Spawned, folder: Path, *, go_on: bool = False) -> None:
        folder.mkdir()
        with snapshot_files(folder) as descriptors:
            assert isinstance(machine.control.ask(Snapshot(go_on=go_on), descriptors), Done)
        if not go_on:
            stage.ends(machine, End.SAVED)

    live, base, diff, second = folders
    machine = stage.machine(SCATTER)
    save(machine, live, go_on=True)
    save(machine, base)
    for options in ({"eager": True}, {}):
        machine = stage.machine(SCATTER, restore=(Layer(folder=str(base), **options),), page_by_page=not options)
        machine.channel.close()
        stage.ends(machine, End.CHANNEL_CLOSED)
    machine = stage.machine(SCATTER, restore=(Layer(folder=str(base), copied=True),))
    save(machine, diff)
    machine = stage.machine(SCATTER, restore=(Layer(folder=str(base)), Layer(folder=str(diff), working_set=True)))
    machine.control.ask(Prefault())
    save(machine, second)


def is_moved(stage: Stage) -> None:
    """Two rounds while it runs, one while it stands still; another process takes them."""
    machine = stage.machine(SPIN)
    machine.control.ask(Track(held=0))
    rounds = bytearray()
    for last in (False, False, True):
        reading, writing = os.pipe()
        machine.control.ask(Send(last=last), [writing])
        os.close(writing)
        with open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor)
            rounds += pipe.read()
    folder = stage.folder / "there"
    folder.mkdir()
    config = MachineConfig(
        kernel=str(tiny.build(folder, SPIN)), memory=16 * MIB, channel=Channel.SERIAL, sandbox=Sandbox.REQUIRED, arriving=True
    )
    there = Spawned(stage.zygote, config, number=8)
    there.channel.sendall(rounds)
    there.wait_running()
    there.control.ask(Resume())
    there.close()
    assert stage.zygote.receive() == Reaped(machine=8, status=0)
    machine.control.ask(Resume())
    machine.channel.close()
    stage.ends(machine, End.CHANNEL_CLOSED)


def _network(backend: NetworkBackend) -> NetworkConfig:
    tap = "mayfly0" if backend is NetworkBackend.TAP else ""
    return NetworkConfig(backend=backend, tap=tap, mac=GUEST_MAC.hex(":"), addresses=(f"{GUEST}/16",), gateways=(GATEWAY,))


def has_a_tap(stage: Stage) -> None:
    """Over which it gets an answer to its question, from the host's own stack."""
    stage.ends(stage.machine(sending(1), network=_network(NetworkBackend.TAP)), End.RESET)


def has_passt(stage: Stage) -> None:
    """Which answers its question."""
    stage.ends(stage.machine(sending(1), network=_network(NetworkBackend.PASST)), End.RESET)


def has_its_channel_over_tcp(stage: Stage) -> None:
    """Its first frame has the monitor connect, which fails, as nobody answers for its address."""
    machine = stage.machine(sending(1).replace("je hold", "jmp hold"), network=_network(NetworkBackend.TAP), channel=Channel.TCP)
    stage.ends(machine, End.ERROR)


@contextlib.contextmanager
def with_tap() -> Iterator[None]:
    """A network namespace with a tap. Needs root."""
    with namespace():
        make_tap("mayfly0", f"{GATEWAY}/16")
        yield


@contextlib.contextmanager
def with_route() -> Iterator[None]:
    """A network namespace with what passt takes for the way to the Internet. Needs root."""
    with namespace():
        make_tap("mayfly1", "198.51.100.1/24")
        ip("route", "add", "default", "via", "198.51.100.2", "dev", "mayfly1")
        yield


SCENARIOS: dict[str, tuple[Callable[[Stage], None], Callable[[], contextlib.AbstractContextManager[None]]]] = {
    "boot": (boots, contextlib.nullcontext),
    "channel": (echoes, contextlib.nullcontext),
    "virtio": (speaks_over_virtio, contextlib.nullcontext),
    "entropy": (draws_entropy, contextlib.nullcontext),
    "crash": (crashes, contextlib.nullcontext),
    "stop": (is_stopped, contextlib.nullcontext),
    "commands": (is_commanded, contextlib.nullcontext),
    "snapshots": (is_saved_and_restored, contextlib.nullcontext),
    "move": (is_moved, contextlib.nullcontext),
    "tap": (has_a_tap, with_tap),
    "tcp": (has_its_channel_over_tcp, with_tap),
    "passt": (has_passt, with_route),
}
"""By name: what happens, and where."""


def play(name: str, folder: Path) -> None:
    """Play a scenario. Raises AssertionError."""
    happens, where = SCENARIOS[name]
    with where():
        stage = Stage(folder)
        try:
            happens(stage)
        finally:
            stage.close()
