"""Boot any kernel in this process and show its console: `mayfly boot`."""

import contextlib
import os
import signal
import sys

from mayfly.protocol.report import End
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.eventloop import READ, EventLoop
from mayfly.vmm.machine import Machine
from mayfly.vmm.sandbox import landlock
from mayfly.vmm.sandbox.privileges import drop_privileges, identity

INTERRUPTED = 130


def boot_console(config: MachineConfig) -> int:
    """Run the machine with UART0 on standard input and output.

    Returns: 0 when the guest has reset its machine, 130 after SIGINT or SIGTERM.

    Raises:
        MayflyError: it could not be made, or the guest crashed.
    """
    with EventLoop() as loop:
        machine = build_machine(config, loop=loop, channel=None, console=lambda data: _write_all(sys.stdout.fileno(), data))
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: machine.finish(End.STOPPED))
            _Keyboard(machine, loop)
            drop_privileges(identity(config.user, config.uid_range))
            with contextlib.suppress(OSError):  # this kernel has no Landlock
                landlock.restrict(paths=False, network=False)
            end = machine.run()
        finally:
            machine.close()
    if machine.processors.error is not None:
        raise machine.processors.error
    return 0 if end is End.RESET else INTERRUPTED


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Keyboard:
    """Standard input, read only as fast as the guest takes it."""

    def __init__(self, machine: Machine, loop: EventLoop) -> None:
        self._machine, self._loop = machine, loop
        machine.boot_console.on_room = loop.add_event(self._watch)
        self._watch()

    def _watch(self) -> None:
        # A regular file, /dev/null or a closed descriptor cannot be waited for: nobody types there.
        with contextlib.suppress(OSError, ValueError):
            self._loop.watch(sys.stdin, READ, self._read)

    def _read(self) -> None:
        uart = self._machine.boot_console
        data = os.read(sys.stdin.fileno(), uart.room)
        with self._machine.processors.lock:
            uart.receive(data)
            full = uart.room == 0
        if full or not data:
            self._loop.watch(sys.stdin, 0, self._read)
