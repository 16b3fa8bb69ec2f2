"""The life of one vmm process, from the zygote's fork to its exit."""

import json
import os
import resource
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from mayfly.errors import ConsoleTailError, MayflyError
from mayfly.vmm.boot_log import Console
from mayfly.vmm.config import PRE_FAULT, SAVE, MachineConfig
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.machine import End, build_machine
from mayfly.vmm.process.privileges import drop_privileges


class Report:
    """The pipe on which a vmm process says what it does: a JSON object a line. A reader that has
    gone is no error.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:
            pass


def run_process(config: MachineConfig, channel: socket.socket, report_fd: int, forked_at: float) -> None:
    """Run the machine to its end and report it; the whole of a vmm process after the fork.

    Descriptors: takes both over. `forked_at` is time.monotonic() at the fork.
    """
    report = Report(report_fd)
    console = Console()
    phases = {"process": time.monotonic() - forked_at}
    exits: dict[str, int] = {}
    end, error = End.ERROR, None
    try:
        with EventLoop() as loop:
            machine = build_machine(config, loop=loop, channel=channel, console=console.write)
            signal.signal(signal.SIGTERM, lambda *_: machine.finish(End.STOPPED))
            signal.signal(PRE_FAULT, lambda *_: machine.pre_fault())
            if config.save_to:
                signal.signal(SAVE, lambda *_: machine.finish(End.SAVED))
            drop_privileges(config.user)
            phases |= machine.phases
            report.say("running", phases=phases)
            # Where a guest and its devices share a processor, the guest goes on until it waits, and
            # many packets cost one turn of the event loop. That is for this thread; the vCPUs'
            # threads keep the usual policy (sched(7)).
            os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
            began = time.monotonic()
            end = machine.run()
            phases["running"] = time.monotonic() - began
            if end is End.SAVED:
                began = time.monotonic()
                report.say("saved", memory=machine.save())
                phases["save"] = time.monotonic() - began
            exits, error = machine.exits(), machine.error
    except MayflyError as caught:
        error = caught
    except Exception as caught:
        error = MayflyError(f"a fault of the monitor: {caught!r}", hint="report it, with this text:\n" + traceback.format_exc())
    # The process ends without unmapping anything: the kernel does that faster, and out of the
    # reply's way.
    exits |= {"page-faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt, "own-bytes": own_memory()}
    report.say("ended", reason=end, error=_describe(error), console=console.tail(), exits=exits, phases=phases)


def own_memory() -> int:
    """Bytes of memory that this process shares with no other: what it copied, or got anew (RssAnon,
    proc_pid_status(5)).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def report_failure(report_fd: int, error: MayflyError) -> None:
    """Report, in the place of a vmm process that cannot be, why there is none."""
    Report(report_fd).say("ended", reason=End.ERROR, error=_describe(error), console="", exits={}, phases={})


def _describe(error: MayflyError | None) -> dict[str, str] | None:
    if error is None:
        return None
    described = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return described | {"console": error.console} if isinstance(error, ConsoleTailError) and error.console else described
