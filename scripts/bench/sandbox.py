"""What the sandbox costs, with and without it in turns: a start, from the request for a machine
until it runs; and the processor time of a guest's exits, and of bytes that it sends.

Usage: python -m scripts.bench.sandbox [COUNT]
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mayfly.guests.zygote import Zygote
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, Sandbox
from mayfly.vmm.devices.virtio.registers import Register
from tests.kit import tiny
from tests.kit.sandbox_scenarios import CONSOLE, PORT_OPEN
from tests.kit.spawned import Spawned

LEVELS = (Sandbox.OFF, Sandbox.REQUIRED)
SPIN = "1: jmp 1b\n"
EXITS = 20_000
READ_STATUS = f"mov edx, 0x3fd\nmov ecx, {EXITS}\n1: in al, dx\ndec ecx\njnz 1b\n{tiny.RESET}"
"""Reads a register of its UART, again and again: each time an exit."""
SENT, BUFFER = 256, 1 * MIB
SEND = f"""
        {tiny.MAP_MMIO}
        mov qword ptr [{CONSOLE[1][0]:#x}], 0x600000
        mov dword ptr [{CONSOLE[1][0] + 8:#x}], {BUFFER}
        lea rsi, [opening]
        mov [{CONSOLE[3][0]:#x}], rsi
        mov dword ptr [{CONSOLE[3][0] + 8:#x}], {len(PORT_OPEN)}
        mov word ptr [{CONSOLE[3][1] + 2:#x}], 1
        {tiny.start_virtio(0, [(8, *queue) for queue in CONSOLE])}
        {tiny.write(Register.QUEUE_NOTIFY, 3)}
        {tiny.offer_again(1, CONSOLE[1], SENT)}
        {tiny.RESET}
opening: .byte {", ".join(map(str, PORT_OPEN))}
"""
"""Sends SENT times a buffer over virtio."""


def in_turns(name: str, count: int, measure: Callable[[Sandbox], float]) -> None:
    """Print the medians of what `measure` gives, and that of the differences within a round.

    Each round begins with the other kind: a machine's end costs the next one something.
    """
    found: dict[Sandbox, list[float]] = {level: [] for level in LEVELS}
    for turn in range(count):
        for level in LEVELS if turn % 2 else reversed(LEVELS):
            found[level].append(measure(level))
    without, with_it = (statistics.median(found[level]) for level in LEVELS)
    low, more, high = statistics.quantiles([b - a for a, b in zip(*found.values(), strict=True)], n=4)
    print(f"{name}: {with_it:.2f} with, {without:.2f} without; within a round {more:+.2f} (quartiles {low:+.2f} and {high:+.2f})")


class Bench:
    """Machines of one zygote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.zygote = Zygote.start()
        self.parts: dict[Sandbox, list[float]] = {level: [] for level in LEVELS}
        self.exits: set[int] = set()
        self.numbers = itertools.count()

    def kernel(self, name: str, source: str) -> str:
        (self.folder / name).mkdir()
        return str(tiny.build(self.folder / name, source))

    def config(self, kernel: str, level: Sandbox, channel: Channel) -> MachineConfig:
        """Of one machine, unlike all others, so that no spare stands by for it."""
        return MachineConfig(kernel=kernel, memory=16 * MIB, channel=channel, sandbox=level, cmdline=str(next(self.numbers)))

    def start(self, kernel: str, level: Sandbox) -> float:
        """Milliseconds until a machine runs."""
        config = self.config(kernel, level, Channel.SERIAL)
        began = time.perf_counter()
        with Spawned(self.zygote, config) as machine:
            running = machine.wait_running()
            took = time.perf_counter() - began
        self.parts[level].append(1000 * running.phases["sandbox"])
        self.zygote.receive()
        return 1000 * took

    def run(self, kernel: str, level: Sandbox, expected: int = 0) -> float:
        """Seconds of processor time of a machine whose guest sends so many bytes."""
        before = self.processor_s()
        config = self.config(kernel, level, Channel.VIRTIO)
        with Spawned(self.zygote, config) as machine:
            machine.wait_running()
            while expected:
                expected -= len(machine.channel.recv(min(expected, MIB)))
            ended = machine.wait_ended()
        self.zygote.receive()
        self.exits.add(ended.exits["total"])
        return self.processor_s() - before

    def processor_s(self) -> float:
        """What its ended machines took, which other work does not lengthen (proc_pid_stat(5))."""
        fields = Path(f"/proc/{self.zygote.pid}/stat").read_text().rpartition(") ")[2].split()
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def main(count: int) -> None:
    """Print all of it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        spin, read_status, send = (bench.kernel(name, source) for name, source in (("spin", SPIN), ("exits", READ_STATUS), ("bytes", SEND)))
        in_turns("a start, ms", count, lambda level: bench.start(spin, level))
        for level in LEVELS:
            print(f"  of which giving up, {level}: {statistics.median(bench.parts[level]):.2f}")
        in_turns("an exit, us", count, lambda level: 1e6 * bench.run(read_status, level) / EXITS)
        print(f"  exits of such a guest: {', '.join(map(str, bench.exits))}")
        in_turns("1 MiB from the guest, us", count, lambda level: 1e6 * bench.run(send, level, SENT * BUFFER) / SENT)
        bench.zygote.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 30)
