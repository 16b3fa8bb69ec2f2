"""The life of one vmm process, from the zygote's fork to its exit."""

import contextlib
import functools
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from mayfly.errors import HostError, MayflyError
from mayfly.protocol.control import Request
from mayfly.protocol.report import End, Ended, Line, Running, encode, is_shown
from mayfly.schema import decode
from mayfly.vmm.arch import state
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import Channel, MachineConfig, Sandbox
from mayfly.vmm.devices.serial import SerialState
from mayfly.vmm.devices.virtio import device, mmio
from mayfly.vmm.devices.virtio.console import ConsoleState
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.machine import Machine
from mayfly.vmm.process import spares
from mayfly.vmm.process.requests import serve
from mayfly.vmm.process.spares import Ends
from mayfly.vmm.process.turns import Turn
from mayfly.vmm.resources import Resources
from mayfly.vmm.sandbox import landlock, seccomp
from mayfly.vmm.sandbox.descriptors import keep_only
from mayfly.vmm.sandbox.namespaces import Cell
from mayfly.vmm.sandbox.privileges import drop_privileges, identity
from mayfly.vmm.signals import handle
from mayfly.vmm.snapshot.files import MachineState

LIMIT = 4096
FIRST_WORD_S = 0.1
"""How long a restored guest that says nothing keeps its turn."""
DECODED = (MachineConfig, Request, MachineState, state.KvmState, mmio.TransportState, device.DeviceState, ConsoleState, SerialState)
"""What a vmm process decodes. Learning how to takes msgspec 2 ms and half a megabyte."""


class BootLog(bytearray):
    """The end of the guest's boot console, for the error of a boot that fails."""

    def write(self, data: bytes) -> None:
        """Add `data`, dropping what is oldest."""
        self.extend(data)
        del self[:-LIMIT]

    def text(self) -> str:
        """What is left, which the guest chose: no control characters but line ends."""
        return "".join(filter(is_shown, self.decode("utf-8", "replace").replace("\r\n", "\n")))


Make = Callable[[], tuple[Machine, Callable[[], None]]]
"""Gives a machine, and the rest of its sandbox."""


def run_process(config: bytes, ends: Ends, forked_at: float, cell: Cell, turn: Turn) -> None:
    """Run the machine of an encoded MachineConfig to its end, in `cell`, and report it; it is made
    when its `turn` has come. Takes over all descriptors, and closes all others.
    """
    console, phases = BootLog(), {"process": time.monotonic() - forked_at}

    def make():  # type: ignore[no-untyped-def] # what would be said here would be made anew in each machine
        keep_only([*(end for end in ends if end is not None), turn.descriptor, *cell.descriptors.values()])
        if ends.group is not None:
            _enter(ends.group)
        wanted, began = decode(MachineConfig, config), time.monotonic()
        if not wanted.arriving:  # which waits for another host, not for a processor
            turn.take()
        phases["turn"] = time.monotonic() - began
        # Told what they are, so that nobody asks the kernel.
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, ends.channel)
        machine = build_machine(wanted, loop=EventLoop(), channel=channel, console=console.write)
        machine.resources.callback(channel.close)  # a machine without a channel does not hold it
        began = time.monotonic()
        _yield_to_guest()
        seal = confine(wanted, cell)
        phases["sandbox"] = time.monotonic() - began
        _end_turn(turn, machine)
        return machine, seal

    _live(ends, make, console, phases)


def run_spare(config: bytes, link: socket.socket, cell: Cell, turn: Turn) -> None:
    """As `run_process`, but make the machine ahead, with all of its sandbox but the filters of
    system calls, and have it stand by until its descriptors come over `link`. If something fails
    before they do, or `link` is closed, end without a word.
    """
    keep_only([link.fileno(), turn.descriptor, *cell.descriptors.values()])
    console, (placeholder, other) = BootLog(), socket.socketpair()
    other.close()
    turn.take()
    failed: Exception | None = None
    try:
        machine = build_machine(decode(MachineConfig, config), loop=EventLoop(), channel=placeholder, console=console.write)
        _yield_to_guest()
        seal = confine(machine.config, cell, threads=True)
        machine.stand_by()
    except Exception as error:
        failed = error
    turn.give_back()
    taken = spares.wait(link, made=failed is None)
    if taken is None:
        return
    asked_at, ends = taken

    def connect():  # type: ignore[no-untyped-def]
        if failed is not None:
            raise failed
        turn.take()
        os.set_blocking(ends.channel, False)
        machine.loop.replace(placeholder, ends.channel)
        if machine.set_back is not None:
            machine.set_back()
        machine.phases.clear()  # of what nobody has waited for
        _end_turn(turn, machine)
        return machine, seal

    _live(ends, connect, console, {"process": time.monotonic() - asked_at})


def _end_turn(turn: Turn, machine: Machine) -> None:
    """Let the next machine begin when the guest of this one has said a word, or soon, if it goes on
    from a base, whose agent alone speaks then; else now, as other code is not to hold a turn.
    """
    if len(machine.config.restore) != 1 or machine.config.paused or machine.config.arriving or machine.carrier is None:
        turn.end()
        return
    ending = Resources()
    ending.callback(turn.end)
    machine.carrier.on_first_word = ending.close
    machine.loop.call_later(FIRST_WORD_S, ending.close)


def _live(ends: Ends, make: Make, console: BootLog, phases: dict[str, float]) -> None:
    """Run the machine that `make` gives, and the rest of its sandbox, and report it."""
    exits: dict[str, int] = {}
    end, error = End.ERROR, None
    try:
        machine, seal = make()
        handle(signal.SIGTERM, lambda *_: machine.finish(End.STOPPED))
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, ends.control)
        serve(control, machine.loop, machine.carry_out)
        say(ends.report, Running(phases=phases | machine.phases))
        began = time.monotonic()
        end = machine.run(started=seal)
        phases |= machine.phases | {"running": time.monotonic() - began}
        exits, error = machine.exits() | machine.usage(), machine.processors.error
    except MayflyError as caught:
        error = caught
    except (OSError, MemoryError) as caught:
        error = HostError(f"this host lacks something that the machine needs: {caught}", hint="see its limits, memory and disk")
    except Exception as caught:
        error = MayflyError(f"a fault of the monitor: {caught!r}", hint=f"report it, with this text:\n{traced(caught)}")
    # Nothing is unmapped: the kernel does that faster, and when the reply is on its way.
    say(ends.report, Ended(reason=end, error=error, console=console.text(), exits=exits, phases=phases))


def _yield_to_guest() -> None:
    # On a shared processor the guest then runs until it waits, and many packets cost one turn of
    # the loop. Only for this thread: the vCPUs' keep the usual policy (sched(7)).
    os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))


def _enter(group: int) -> None:
    try:
        os.write(group, b"0")
    except OSError as error:
        hint = "something else removes or fills control groups that are this server's"
        raise HostError(f"the machine cannot enter its control group: {error}", hint=hint) from error
    finally:
        os.close(group)


def confine(config: MachineConfig, cell: Cell, *, threads: bool = False) -> Callable[[], None]:
    """Give up, in this order, what a running machine does not need of its host; the last of it by
    what this returns, once all threads run. With `threads` they start behind this already, and the
    first filter of system calls is part of the last. Raises ConfigError, HostError.
    """
    own = identity(config.user, config.uid_range)  # while there are files that tell
    connects = config.channel is Channel.TCP
    give_up = functools.partial(_give_up, config.sandbox)
    give_up("namespaces", cell.join)
    drop_privileges(own)
    give_up("Landlock", lambda: landlock.restrict(network=not connects))
    first = seccomp.first(connects=connects)
    filtered = not threads and give_up("seccomp", lambda: seccomp.install(first))

    def seal() -> None:
        if filtered or (threads and give_up("seccomp", lambda: seccomp.install(first, all_threads=True))):
            seccomp.install(seccomp.second(), all_threads=True)

    return seal


def _give_up(sandbox: Sandbox, part: str, action: Callable[[], None]) -> bool:
    """Whether `action` is done, which a host may lack."""
    if sandbox is Sandbox.OFF:
        return False
    try:
        action()
    except OSError as error:
        if sandbox is Sandbox.REQUIRED:
            raise HostError(f"sandbox is required, and this host lacks {part}: {error}", hint="see `mayfly doctor`") from error
        return False
    return True


def traced(error: Exception) -> str:
    """The traceback, without the module of that name: it takes 200 KiB in each machine."""
    with contextlib.redirect_stderr(io.StringIO()) as text:
        sys.__excepthook__(type(error), error, error.__traceback__)
    return text.getvalue()


def say(report_fd: int, line: Line) -> None:
    """Write a line of the report; a reader that has gone is no error."""
    data = encode(line)
    try:
        while data:
            data = data[os.write(report_fd, data) :]
    except BrokenPipeError:
        pass
