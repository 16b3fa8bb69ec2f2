"""The life of one vmm process, from the zygote's fork to its exit."""

import os
import signal
import socket
import time
import traceback

from mayfly.errors import HostError, MayflyError
from mayfly.vmm.boot_log import BootLog
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.machine import usage
from mayfly.vmm.process.control import ControlServer
from mayfly.vmm.process.report import End, Ended, Line, Running, encode
from mayfly.vmm.sandbox.privileges import drop_privileges


def run_process(config: MachineConfig, channel: socket.socket, report_fd: int, control: socket.socket, forked_at: float) -> None:
    """Run the machine to its end and report it, after a fork at `forked_at` (time.monotonic()).

    Takes over all descriptors.
    """
    console = BootLog()
    phases = {"process": time.monotonic() - forked_at}
    exits: dict[str, int] = {}
    end, error = End.ERROR, None
    try:
        with EventLoop() as loop:
            machine = build_machine(config, loop=loop, channel=channel, console=console.write)
            signal.signal(signal.SIGTERM, lambda *_: machine.finish(End.STOPPED))
            ControlServer(control, loop, machine)
            drop_privileges(config.user)
            _say(report_fd, Running(phases=phases | machine.phases))
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
    _say(report_fd, Ended(reason=end, error=error, console=console.tail(), exits=exits | usage(), phases=phases))


def report_failure(report_fd: int, error: MayflyError) -> None:
    """Report, in the place of a vmm process that cannot be, why there is none."""
    _say(report_fd, Ended(reason=End.ERROR, error=error))


def _say(report_fd: int, line: Line) -> None:
    """Write a line of the report; a reader that has gone is no error."""
    data = encode(line)
    try:
        while data:
            data = data[os.write(report_fd, data) :]
    except BrokenPipeError:
        pass
