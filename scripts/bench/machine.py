"""A machine of ours, for benchmarks."""

import contextlib
import socket
from collections.abc import Iterator

from mayfly.vmm.config import MachineConfig
from mayfly.vmm.process.report import Ended, Line
from mayfly.vmm.process.zygote import Reaped, Zygote
from tests.kit.spawned import Spawned


@contextlib.contextmanager
def started(zygote: Zygote, config: MachineConfig) -> Iterator[tuple[socket.socket, list[Line]]]:
    """The channel of such a machine, the only one of `zygote`, and its report, which is filled when
    the machine has ended in the end.
    """
    lines: list[Line] = []
    with Spawned(zygote, config) as machine:
        yield machine.channel, lines
        machine.channel.close()
        while not lines or not isinstance(lines[-1], Ended):
            lines.append(machine.next_line())
    if lines[-1].error:
        raise SystemExit(f"the machine failed: {lines[-1].error}")
    while not isinstance(zygote.receive(), Reaped):
        pass
