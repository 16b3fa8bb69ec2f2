"""The life of one vmm process, from the zygote's fork to its exit."""

import os
import signal
import socket
import time
import traceback

from mayfly.errors import HostError, MayflyError
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.machine import usage
from mayfly.vmm.process.control import serve
from mayfly.vmm.process.report import End, Ended, Line, Running, encode
from mayfly.vmm.sandbox.privileges import drop_privileges

LIMIT = 64 * 1024
TAIL = 4096


class BootLog:
    """The last 64 KiB of the guest's boot console, for the error of a boot that fails."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> None:
        """Add `data`, dropping what is oldest."""
        self._bytes += data
        if len(self._bytes) > LIMIT:
            del self._bytes[: len(self._bytes) - LIMIT]

    def tail(self, size: int = TAIL) -> str:
        """The last `size` bytes, which the guest chose: no control characters but line ends."""
        text = self._bytes[-size:].decode("utf-8", "replace").replace("\r\n", "\n")
        return "".join(character for character in text if character.isprintable() or character in "\n\t")


def run_process(config: MachineConfig, channel: socket.socket, report_fd: int, control: socket.socket, forked_at: float) -> None:
    """Run the machine to its end, and report it. Takes over all descriptors."""
    console = BootLog()
    phases = {"process": time.monotonic() - forked_at}
    exits: dict[str, int] = {}
    end, error = End.ERROR, None
    try:
        with EventLoop() as loop:
            machine = build_machine(config, loop=loop, channel=channel, console=console.write)
            signal.signal(signal.SIGTERM, lambda *_: machine.finish(End.STOPPED))
            serve(control, loop, machine.carry_out)
            drop_privileges(config.user)
            say(report_fd, Running(phases=phases | machine.phases))
            # On a shared processor the guest then runs until it waits, and many packets cost one
            # turn of the loop. Only for this thread: the vCPUs' keep the usual policy (sched(7)).
            os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
            began = time.monotonic()
            end = machine.run()
            phases |= machine.phases | {"running": time.monotonic() - began}
            exits, error = machine.exits(), machine.processors.error
    except MayflyError as caught:
        error = caught
    except (OSError, MemoryError) as caught:
        error = HostError(f"this host lacks something that the machine needs: {caught}", hint="see its limits, memory and disk")
    except Exception as caught:
        error = MayflyError(f"a fault of the monitor: {caught!r}", hint="report it, with this text:\n" + traceback.format_exc())
    # Nothing is unmapped: the kernel does that faster, and when the reply is on its way.
    say(report_fd, Ended(reason=end, error=error, console=console.tail(), exits=exits | usage(), phases=phases))


def say(report_fd: int, line: Line) -> None:
    """Write a line of the report; a reader that has gone is no error."""
    data = encode(line)
    try:
        while data:
            data = data[os.write(report_fd, data) :]
    except BrokenPipeError:
        pass
